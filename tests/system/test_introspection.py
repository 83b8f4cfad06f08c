"""status(), info() and stacks() are answered whatever the main thread does, also when it holds the interpreter lock."""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest

import farwire
from farwire import GatewayLost
from processes import Waiting, eventually, within

BUSY = {
    "python": "def busy():\n    channel.send(1)\n    while True: pass\nbusy()",
    "sleep": "import time\ndef busy():\n    channel.send(1)\n    time.sleep(1000)\nbusy()",
    "receive": "def busy():\n    channel.send(1)\n    channel.receive()\nbusy()",
    "send": "def busy():\n    channel.send(1)\n    while True: channel.send(bytes(50_000))\nbusy()",
    "lock": "import threading\ndef busy():\n    channel.send(1)\n    threading.Event().wait()\nbusy()",
}


@pytest.mark.parametrize("busy", BUSY)
def test_while_the_main_thread_is_busy(gw: farwire.Gateway, busy: str) -> None:
    channel = gw.remote_exec(BUSY[busy])
    assert channel.receive(timeout=5) == 1
    status = gw.status(timeout=5)
    assert status.state == "live"
    assert status.numexecuting == 1
    assert status.numchannels == 1
    assert status.numqueued == 0
    assert status.execmodel == "thread"
    assert gw.remote_status().state == "live"
    info = gw.info(timeout=5)
    assert info.pid == gw._process.worker_pid
    assert info.version_info[:2] == sys.version_info[:2]
    assert info.executable == sys.executable
    assert info.cwd == os.getcwd()
    assert info.platform == sys.platform
    text = gw.stacks(timeout=5)
    assert "main thread" in text
    assert "in busy" in text


def test_rinfo_is_remembered(gw: farwire.Gateway) -> None:
    first = gw._rinfo()
    gw.remote_exec("import os; os.chdir('/')").waitclose(timeout=5)
    assert gw._rinfo() is first
    assert gw._rinfo(update=True).cwd == "/"
    with pytest.raises(AttributeError, match="no_such"):
        first.no_such  # noqa: B018


def test_cwd_was_removed(gw: farwire.Gateway, tmp_path) -> None:
    path = str(tmp_path / "d")
    gw.remote_exec(f"import os; os.mkdir({path!r}); os.chdir({path!r}); os.rmdir({path!r})").waitclose(timeout=5)
    assert gw.info().cwd == ""


def test_while_a_c_call_holds_the_interpreter_lock(group: farwire.Group) -> None:
    gw = group.makegateway("popen", output=lambda *args: None)
    channel = gw.remote_exec("def stuck():\n    channel.send(1)\n    sum(range(10**12))\nstuck()")
    assert channel.receive(timeout=5) == 1
    eventually(lambda: gw.status(timeout=0.2).state == "unresponsive", "the C call has begun")
    with pytest.raises(TimeoutError):
        gw.info(timeout=0.2)
    with within(6, "stacks()"):
        text = gw.stacks(timeout=6)
    assert "in stuck" in text
    assert gw.status(timeout=0.2).state == "unresponsive"
    assert gw.hasreceiver()


def test_stacks_of_now_and_not_of_before(group: farwire.Group) -> None:
    """Asked twice, in two C calls: each answer is fresh."""
    gw = group.makegateway("popen", output=lambda *args: None)
    channel = gw.remote_exec(
        """
        def hold():
            import ctypes
            lock = ctypes.PyDLL(None)
            lock.usleep.argtypes = [ctypes.c_uint]
            return lambda: lock.usleep(900_000)
        hold = hold()
        def first():
            channel.send(1)
            for i in range(5): hold()
        def second():
            channel.send(2)
            for i in range(5): hold()
        first()
        channel.receive()
        second()
        """
    )
    assert channel.receive(timeout=5) == 1
    assert "in first" in gw.stacks(timeout=6)
    channel.send("go on")
    assert channel.receive(timeout=10) == 2
    text = gw.stacks(timeout=6)
    assert "in second" in text
    assert "in first" not in text


def test_a_stopped_process(gw: farwire.Gateway) -> None:
    pid = gw.info().pid
    os.kill(pid, signal.SIGSTOP)
    assert gw.status(timeout=0.2).state == "unresponsive"
    with pytest.raises(TimeoutError):
        gw.stacks(timeout=0.5)
    os.kill(pid, signal.SIGCONT)
    eventually(lambda: gw.status(timeout=5).state == "live", "it answers again")


def test_closed(gw: farwire.Gateway) -> None:
    gw.exit()
    status = gw.status()
    assert status.state == "closed"
    assert status.numexecuting is None
    for call in (gw.info, gw.stacks, gw.signal):
        with pytest.raises(GatewayLost):
            call()


def test_from_many_threads(gw: farwire.Gateway) -> None:
    """Questions while channels are used: each gets its own answer."""
    echo = gw.remote_exec("for item in channel: channel.send(item)")

    def ask() -> None:
        for _ in range(50):
            assert gw.status().state == "live"
            assert gw.info().pid == gw._process.worker_pid

    threads = [Waiting(ask) for _ in range(4)]
    for i in range(500):
        echo.send(i)
        assert echo.receive(timeout=5) == i
    for thread in threads:
        if error := thread.join(20).error:
            raise error


def test_threads_have_names(gw: farwire.Gateway) -> None:
    first, second = (gw.remote_exec("channel.send(1); channel.receive()") for _ in range(2))
    assert first.receive() == second.receive() == 1
    text = gw.stacks()
    assert "main thread" in text
    assert f"farwire-task-{second.id}" in text
    assert "farwire-io" in text or "farwire I/O" in text


def test_stacks_do_not_mix_with_stderr(group: farwire.Group) -> None:
    """The guard reports through stderr while the worker writes there too."""
    pieces: list[bytes] = []
    gw = group.makegateway("popen", output=lambda id, stream, data: pieces.append(data))
    child = """
import os, threading, subprocess
# a child process writes on, while the worker itself is stuck with many deep stacks
subprocess.Popen("while :; do echo aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa; done >&2", shell=True)
def deep(n):
    if n: deep(n - 1)
    else: threading.Event().wait()
threads = [threading.Thread(target=deep, args=(90,), daemon=True) for i in range(10)]
for t in threads: t.start()
channel.send(1)
sum(range(10**12))
"""
    channel = gw.remote_exec(child)
    assert channel.receive(timeout=10) == 1
    text = gw.stacks(timeout=8)
    assert text.count("in deep") > 500
    assert "aaaa" not in text
    start = time.monotonic()
    gw.exit(timeout=1)
    assert time.monotonic() - start < 3
    rest = b"".join(pieces)
    assert b"in deep" not in rest
    assert set(rest) == set(b"a\n")
