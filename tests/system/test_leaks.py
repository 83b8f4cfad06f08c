"""Opening and closing leaves nothing: no thread, no descriptor, no process, no zombie, no channel."""

from __future__ import annotations

import threading

import pytest

import farwire
from conftest import Leaks, wait_for

CYCLES = 300
CHANNELS = 2000


def one_cycle(group: farwire.Group, number: int) -> None:
    gateway = group.makegateway("popen")
    channel = gateway.remote_exec("channel.send(channel.receive() + 1)")
    if number % 3 == 0:
        seen: list[object] = []
        channel.setcallback(seen.append, endmarker=None)
    channel.send(number)
    if number % 3 == 0:
        channel.waitclose(timeout=10)
        assert seen == [number + 1, None]
    else:
        assert channel.receive(timeout=10) == number + 1
    gateway.exit(timeout=5)


@pytest.mark.timeout(300)
def test_cycles(group: farwire.Group) -> None:
    one_cycle(group, 0)  # starts what the process keeps: its reactor and its output thread
    # The thread of the callback ends on its own when it has delivered the last; it is not of what is kept.
    wait_for(
        lambda: not any("callbacks" in thread.name for thread in threading.enumerate()), "the first cycle's threads end"
    )
    leaks = Leaks()
    for number in range(CYCLES):
        one_cycle(group, number)
    assert len(group) == 0
    leaks.check()


def test_channels(gw: farwire.Gateway) -> None:
    for number in range(CHANNELS):
        channel = gw.remote_exec("channel.send(0)") if number % 4 == 0 else gw.newchannel()
        if number % 4 == 1:
            channel.close()
        elif number % 4 == 0:
            assert channel.receive(timeout=10) == 0
    del channel
    # channel 0 is the link's own
    wait_for(lambda: list(gw._link.connection.channels) == [0], "only the link's own channel is left here")
    wait_for(lambda: gw.status().numchannels == 0, "no channel is left in the worker")
