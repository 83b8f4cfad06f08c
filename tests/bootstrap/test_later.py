"""Modules that a worker starts without: they come in time for whatever needs them first, also before the worker's hello."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import farwire
from farwire import Gateway
from farwire.bootstrap.bundle import LATER


@pytest.fixture
def python(tmp_path: Path) -> str:
    """This interpreter under a name of its own, so that it is sent source."""
    path = tmp_path / "python"
    path.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def early(python: str) -> Iterator[Gateway]:
    """A gateway that is used before its worker is there."""
    gateway = farwire.makegateway(f"popen//python={python}", wait=False)
    yield gateway
    gateway.exit()


MISSING = f"""
import sys
importer = sys.meta_path[-1]
channel.send(" ".join(name for name in {sorted(LATER)} if name not in importer.modules))
channel.send(channel.receive())
"""


def test_the_first_result_needs_none(early: Gateway) -> None:
    channel = early.remote_exec(
        "import sys; channel.send(' '.join(name for name in sys.modules if name[:8] == '_farwire'))"
    )
    imported = {name[9:] for name in str(channel.receive(timeout=30)).split()}
    assert "worker.main" in imported
    assert not imported & LATER


def test_they_come_by_themselves(python: str) -> None:
    gateway = farwire.makegateway(f"popen//python={python}")
    channel = gateway.remote_exec(MISSING)
    assert channel.receive(timeout=30) == ""
    gateway.exit()


def test_a_structured_item(early: Gateway) -> None:
    channel = early.remote_exec("channel.send(channel.receive())")
    channel.send([{"a": 1}])
    assert channel.receive(timeout=30) == [{"a": 1}]


def test_structured_arguments(early: Gateway) -> None:
    def task(channel, items):  # type: ignore[no-untyped-def]
        channel.send(len(items))

    assert early.remote_exec(task, items=[1, 2]).receive(timeout=30) == 2


def test_a_task_that_fails_at_once(early: Gateway) -> None:
    with pytest.raises(farwire.RemoteError, match="ZeroDivisionError"):
        early.remote_exec("1 / 0").waitclose(timeout=30)


def test_a_structured_result(early: Gateway) -> None:
    assert early.remote_exec("channel.send((1, [2]))").receive(timeout=30) == (1, [2])


def test_a_question(early: Gateway) -> None:
    assert early.info(timeout=30).executable


def test_an_error_of_ours(early: Gateway) -> None:
    second = early.newchannel()
    channel = early.remote_exec(
        "other = channel.receive()\ntry: other.receive()\nexcept other.RemoteError as error: channel.send(str(error))"
    )
    channel.send(second)
    second.close("too early")
    assert "too early" in str(channel.receive(timeout=30))


def test_a_callback(early: Gateway) -> None:
    channel = early.remote_exec("channel.setcallback(channel.send)\nchannel.waitclose()")
    channel.send(7)
    assert channel.receive(timeout=30) == 7
    channel.close()


def test_a_large_item(early: Gateway) -> None:
    channel = early.remote_exec("channel.send(len(channel.receive()))")
    channel.send(bytes(1 << 20))
    assert channel.receive(timeout=30) == 1 << 20


def test_another_gateway_through_it(early: Gateway) -> None:
    far = farwire.makegateway(f"popen//via={early.id}//python={sys.executable}")
    assert far.remote_exec("channel.send([1])").receive(timeout=30) == [1]
    far.exit()


def test_not_in_a_child_without_the_link(early: Gateway) -> None:
    # A forked child cannot wait for them; what it misses is an ordinary ImportError.
    task = """
import os, sys
importer = sys.meta_path[-1]
def missing():
    try:
        import _farwire.worker.missing
    except ImportError:
        return 0
    return 1
pid = os.fork()
if not pid:
    os._exit(missing() + 2 * len(importer.later))
channel.send(os.waitpid(pid, 0)[1])
"""
    assert early.remote_exec(task).receive(timeout=30) == 0
