"""Full pipes, both ways at once, callbacks that block, raise and use channels: nothing stops but what has to."""

from __future__ import annotations

import os
import queue
import threading

import pytest

import farwire
from farwire import RemoteError
from processes import Waiting, eventually

ECHO = "for item in channel: channel.send(item)"


@pytest.mark.parametrize("size", [1_000, 1_000_000, 20_000_000])
def test_both_ends_send_at_once(gw: farwire.Gateway, size: int) -> None:
    """Neither end reads before it has sent: what does not fit the pipe must not stop either."""
    count = max(1, 4_000_000 // size)
    channel = gw.remote_exec(
        f"""
        for i in range({count}):
            channel.send(bytes([i % 256]) * {size})
        for i in range({count}):
            item = channel.receive()
            assert item == bytes([i % 256]) * {size}, i
        channel.send("checked")
        """
    )
    if size < 8 << 20:
        for i in range(count):
            channel.send(bytes([i % 256]) * size)
        for i in range(count):
            assert channel.receive(timeout=20) == bytes([i % 256]) * size
    else:  # larger than the window: somebody has to receive
        sender = Waiting(lambda: channel.send(bytes(size)))
        assert channel.receive(timeout=20) == bytes(size)
        sender.join(20)
    assert channel.receive(timeout=20) == "checked"


def test_full_pipe_in_both_directions(gw: farwire.Gateway) -> None:
    """Nobody receives at either end until both windows are used up; then everything comes, in order."""
    full = gw.newchannel()
    channel = gw.remote_exec(
        """
        full = channel.receive()
        sent = 0
        try:
            while True:
                channel.send((sent, bytes(10_000)), timeout=0.2)
                sent += 1
        except TimeoutError:
            full.send(sent)
        full.receive()
        got = 0
        for number, data in channel:
            assert number == got, (number, got)
            got += 1
        full.send(got)
        """
    )
    channel.send(full)
    told = full.receive(timeout=20)
    sent = 0
    with pytest.raises(TimeoutError):
        while True:
            channel.send((sent, bytes(10_000)), timeout=0.2)
            sent += 1
    assert 9 << 20 > sent * 10_000 > 7 << 20
    full.send("read now")
    channel.send_eof()
    assert [number for number, _ in channel] == list(range(told))
    assert full.receive(timeout=5) == sent


def test_many_channels_at_once(gw: farwire.Gateway) -> None:
    def play(size: int) -> None:
        channel = gw.remote_exec(ECHO)
        for i in range(60):
            item = (i, bytes([i]) * (size + i))
            channel.send(item)
            assert channel.receive(timeout=20) == item
        channel.close()

    players = [Waiting(lambda size=size: play(size)) for size in (0, 1, 100, 4000, 5000, 60_000, 70_000, 300_000)]
    for player in players:
        if error := player.join(30).error:
            raise error


def test_several_threads_share_a_channel(gw: farwire.Gateway) -> None:
    channel = gw.remote_exec(ECHO)
    senders = [Waiting(lambda n=n: [channel.send((n, i, bytes(i * 700))) for i in range(200)]) for n in range(4)]
    receivers = [Waiting(lambda: [channel.receive(timeout=20)[:2] for _ in range(200)]) for _ in range(4)]
    for thread in senders + receivers:
        if error := thread.join(30).error:
            raise error
    got = [item for thread in receivers for item in thread.result]  # type: ignore[attr-defined]
    assert sorted(got) == [(n, i) for n in range(4) for i in range(200)]
    for thread in receivers:
        for n in range(4):
            mine = [i for m, i in thread.result if m == n]  # type: ignore[attr-defined]
            assert mine == sorted(mine)


def test_a_cycle_of_blocking_sends_ends_by_timeout(gw: farwire.Gateway) -> None:
    """Each end sends more than both windows and receives nothing: documented to block; the timeout ends it."""
    channel = gw.remote_exec(
        """
        try:
            for i in range(3000):
                channel.send(bytes(10_000))
        except OSError as error:
            channel.send("error")
        """
    )
    with pytest.raises(TimeoutError):
        for _ in range(3000):
            channel.send(bytes(10_000), timeout=0.3)
    # the gateway is well, and so is the channel
    assert gw.remote_exec("channel.send(1)").receive(timeout=5) == 1
    assert [len(channel.receive(timeout=5)) for _ in range(1000)] == [10_000] * 1000


def test_a_channel_that_nobody_reads_holds_up_no_other(gw: farwire.Gateway) -> None:
    flood = gw.remote_exec("while True: channel.send(bytes(50_000))")
    core = flood._core
    eventually(lambda: core.received > 7 << 20, "its window is full")
    other = gw.remote_exec(ECHO)
    for size in (10, 100_000, 10_000_000):
        other.send(bytes(size))
        assert len(other.receive(timeout=10)) == size
    assert core.received <= core.window


class TestCallbacks:
    def test_in_order_and_the_end_once(self, gw: farwire.Gateway) -> None:
        got: list[object] = []
        channel = gw.remote_exec("for i in range(5000): channel.send(i)")
        channel.setcallback(got.append, endmarker="end")
        channel.waitclose(timeout=10)
        assert got == [*range(5000), "end"]

    def test_what_came_before_is_delivered(self, gw: farwire.Gateway) -> None:
        got: queue.Queue[object] = queue.Queue()
        channel = gw.remote_exec("for i in range(10): channel.send(i)")
        eventually(channel.isclosed, "all sent")
        channel.setcallback(got.put, endmarker=None)
        assert [got.get(timeout=5) for _ in range(11)] == [*range(10), None]

    def test_one_that_blocks_holds_up_no_receive(self, gw: farwire.Gateway) -> None:
        blocked, go = threading.Event(), threading.Event()
        slow = gw.remote_exec("channel.send(1); channel.receive()")

        def callback(item: object) -> None:
            blocked.set()
            go.wait(20)

        slow.setcallback(callback)
        assert blocked.wait(5)
        channel = gw.remote_exec(ECHO)
        for i in range(100):
            channel.send(bytes(i * 1000))
            assert len(channel.receive(timeout=5)) == i * 1000
        assert gw.status().numexecuting == 2
        go.set()

    def test_one_that_blocks_makes_the_sender_wait(self, gw: farwire.Gateway) -> None:
        blocked, go = threading.Event(), threading.Event()
        flood = gw.remote_exec("while True: channel.send(bytes(50_000))")
        got = []

        def callback(item: object) -> None:
            got.append(item)
            blocked.set()
            go.wait(20)

        flood.setcallback(callback)
        assert blocked.wait(5)
        eventually(lambda: flood._core.received > 7 << 20, "the window is full")
        assert len(got) == 1
        assert gw.remote_exec("channel.send(1)").receive(timeout=5) == 1
        go.set()
        eventually(lambda: len(got) > 500, "it goes on")
        flood.close()

    def test_one_that_raises_closes_its_channel_only(
        self, gw: farwire.Gateway, capsys: pytest.CaptureFixture[str]
    ) -> None:
        channel = gw.remote_exec(
            """
            channel.send(1)
            channel.receive()
            """
        )
        told: queue.Queue[object] = queue.Queue()

        def callback(item: object) -> None:
            raise LookupError("the callback is broken")

        channel.setcallback(callback)
        channel.waitclose(timeout=5)
        assert channel.isclosed()
        assert "LookupError: the callback is broken" in capsys.readouterr().err
        good = gw.remote_exec("for i in range(3): channel.send(i)")
        good.setcallback(told.put, endmarker=None)
        assert [told.get(timeout=5) for _ in range(4)] == [0, 1, 2, None]

    def test_the_worker_learns_of_the_error(self, gw: farwire.Gateway) -> None:
        report = gw.newchannel()
        channel = gw.remote_exec(
            """
            report = channel.receive()
            channel.send(1)
            try:
                channel.receive()
            except channel.RemoteError as error:
                report.send((error.typename, error.message, error.formatted))
            """
        )
        channel.send(report)
        channel.setcallback(lambda item: {}["no such key"])
        name, message, text = report.receive(timeout=5)
        assert name == "KeyError"
        assert message == "'no such key'"
        assert "test_traffic.py" in text

    def test_calls_receive_on_other_channels(self, gw: farwire.Gateway) -> None:
        echo = gw.remote_exec(ECHO)
        got: queue.Queue[object] = queue.Queue()

        def callback(item: object) -> None:
            echo.send(item)
            got.put(echo.receive(timeout=5))

        channel = gw.remote_exec("for i in range(100): channel.send(i)")
        channel.setcallback(callback, endmarker="end")
        assert [got.get(timeout=5) for _ in range(101)] == [*range(100), "end"]

    def test_calls_everything_on_its_own_gateway(self, gw: farwire.Gateway) -> None:
        got: queue.Queue[object] = queue.Queue()

        def callback(item: object) -> None:
            inner = gw.remote_exec(ECHO)
            inner.send(item)
            got.put(inner.receive(timeout=5))
            inner.send_eof()
            inner.waitclose(timeout=5)
            got.put(gw.status().state)
            new = gw.newchannel()
            new.close()
            new.waitclose(timeout=5)
            with pytest.raises(OSError, match="callback"):
                channel.receive()
            with pytest.raises(OSError, match="callback"):
                channel.setcallback(print)
            got.put("done")

        channel = gw.remote_exec("channel.send(7); channel.receive()")
        channel.setcallback(callback)
        assert [got.get(timeout=5) for _ in range(3)] == [7, "live", "done"]

    def test_closes_its_channel(self, gw: farwire.Gateway) -> None:
        got = []

        def callback(item: object) -> None:
            got.append(item)
            channel.close()

        channel = gw.remote_exec("while True: channel.send(1)")
        channel.setcallback(callback, endmarker="end")
        channel.waitclose(timeout=5)
        eventually(lambda: "end" in got, "the end marker")
        assert got.count("end") == 1
        assert got[-1] == "end"

    def test_waits_for_its_own_close(self, gw: farwire.Gateway) -> None:
        """waitclose() inside the callback cannot wait for the callback."""
        got: queue.Queue[object] = queue.Queue()

        def callback(item: object) -> None:
            if item != "end":
                channel.waitclose(timeout=5)
            got.put(item)

        channel = gw.remote_exec("channel.send(1)")
        channel.setcallback(callback, endmarker="end")
        assert [got.get(timeout=10), got.get(timeout=10)] == [1, "end"]

    def test_an_item_that_cannot_be_decoded(self, gw: farwire.Gateway, capsys: pytest.CaptureFixture[str]) -> None:
        """A broken item ends its channel as an error of the callback does."""
        channel = gw.remote_exec(
            "import sys; channel._core.link.send_small(channel._core, 3, b'rubbish'); channel.receive()"
        )
        channel.setcallback(lambda item: None)
        channel.waitclose(timeout=5)
        assert "LoadError" in capsys.readouterr().err
        assert gw.remote_exec("channel.send(1)").receive(timeout=5) == 1

    def test_set_after_the_end_of_the_gateway(self, gw: farwire.Gateway) -> None:
        """What came before is delivered, with the end, and no thread stays for it."""
        channels = [gw.remote_exec("channel.send(1)\nchannel.send(2)") for _ in range(3)]
        for channel in channels:
            channel.waitclose(timeout=10)
        gw.exit()
        for channel in channels:
            seen: list[object] = []
            channel.setcallback(seen.append, endmarker=None)
            channel.waitclose(timeout=10)
            assert seen == [1, 2, None]
            with pytest.raises(OSError, match="already"):
                channel.setcallback(seen.append)

        def threads() -> list[str]:
            return [thread.name for thread in threading.enumerate() if gw.id in thread.name]

        eventually(lambda: not threads(), "the callbacks' threads have ended")

    def test_in_the_worker_too(self, gw: farwire.Gateway) -> None:
        channel = gw.remote_exec(
            """
            import threading
            done = threading.Event()
            def callback(item):
                if item is None:
                    done.set()
                else:
                    channel.send((item, threading.current_thread() is not threading.main_thread()))
            channel.setcallback(callback, endmarker=None)
            done.wait()
            """
        )
        for i in range(10):
            channel.send(i)
            assert channel.receive(timeout=5) == (i, True)
        channel.send_eof()
        channel.waitclose(timeout=5)


def test_waitclose_lifts_the_window(gw: farwire.Gateway) -> None:
    """The task sends more than the window and nobody receives: waitclose() takes it in, it can be received afterwards."""
    channel = gw.remote_exec("for i in range(2000): channel.send((i, bytes(10_000)))\nchannel.send(bytes(10_000_000))")
    channel.waitclose(timeout=20)
    items = list(channel)
    assert [item[0] for item in items[:-1]] == list(range(2000))
    assert len(items[-1]) == 10_000_000


def test_waitclose_raises_the_error_and_keeps_the_items(gw: farwire.Gateway) -> None:
    channel = gw.remote_exec("for i in range(100): channel.send(bytes(100_000))\nraise ValueError(7)")
    with pytest.raises(RemoteError, match="7"):
        channel.waitclose(timeout=20)
    assert [len(item) for item in channel] == [100_000] * 100


def test_flow_control_bounds_memory(gw: farwire.Gateway) -> None:
    def rss() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = rss()
    channel = gw.remote_exec("for i in range(6000): channel.send(bytes(50_000))")
    eventually(lambda: channel._core.received > 7 << 20, "the window is full")
    assert rss() - before < 24 << 20
    assert sum(1 for _ in channel) == 6000
    assert rss() - before < 40 << 20


def test_what_was_sent_before_a_call_that_keeps_the_interpreter_lock(gw: farwire.Gateway) -> None:
    """It is on its way, whatever the worker's other thread had to do at that moment."""
    channel = gw.remote_exec(
        """
        import time
        for i in range(8):
            channel.send(i)
            time.sleep(0.003)
        channel.send("now")
        sum(range(10**12))
        """
    )
    assert [channel.receive(timeout=20) for _ in range(9)] == [*range(8), "now"]


@pytest.mark.parametrize("timeout", [1e7, 1e20, float("inf")])
def test_timeouts_longer_than_the_system_takes(gw: farwire.Gateway, timeout: float) -> None:
    channel = gw.remote_exec("channel.send(channel.receive())")
    channel.send(1, timeout=timeout)
    assert channel.receive(timeout=timeout) == 1
    channel.waitclose(timeout=timeout)


def test_no_number_is_no_timeout(gw: farwire.Gateway) -> None:
    with pytest.raises(ValueError, match="nan"):
        gw.newchannel().receive(timeout=float("nan"))
