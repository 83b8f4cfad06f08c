"""What hurt users of execnet, tried on its face: the cases of docs/pains.md that no other test has."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import farwire
import servers
from conftest import no_new_children, wait_for
from farwire import compat as execnet

SRC = Path(farwire.__file__).parents[1]


@pytest.fixture
def xgroup() -> Iterator[Any]:
    """A group of execnet's kind; nothing of it may be left."""
    before = set(servers.children(os.getpid()))
    group = execnet.Group()
    yield group
    group.terminate(timeout=5)
    no_new_children(before)


# -- 3, 6: the main thread -------------------------------------------------------------------------------------------------


def test_an_exception_does_not_poison_the_worker(xgroup: Any) -> None:
    """6: after an error, or an interrupt, the next task runs, and in the main thread."""
    gateway = xgroup.makegateway("popen//execmodel=main_thread_only")
    for code, text in (("1/0", "ZeroDivisionError"), ("raise KeyboardInterrupt", "."), ("raise SystemExit(3)", ".")):
        with pytest.raises(execnet.RemoteError, match=text):
            gateway.remote_exec(code).waitclose(10)
        assert gateway._rinfo(update=True).pid
        where = "import threading as t; channel.send(t.current_thread() is t.main_thread())"
        assert gateway.remote_exec(where).receive(10) is True


def test_another_task_waits_its_turn(xgroup: Any) -> None:
    """3: it was refused ("would cause deadlock"), after a second in which nothing else moved."""
    gateway = xgroup.makegateway("popen//execmodel=main_thread_only")
    first = gateway.remote_exec("channel.send(1); channel.receive()")
    assert first.receive(10) == 1
    second = gateway.remote_exec("import threading as t; channel.send(t.current_thread() is t.main_thread())")
    assert gateway._rinfo().pid  # answered meanwhile
    with pytest.raises(execnet.TimeoutError):
        second.receive(0.05)
    first.send(None)
    assert second.receive(10) is True


# -- 4, 27: callbacks that raise -------------------------------------------------------------------------------------------


def test_a_callback_that_raises_at_the_end_leaves_no_orphan(tmp_path: Path) -> None:
    """4: the callback raises on its end marker, the program is killed: the worker, busy for ever, must go."""
    program = """
import farwire.compat; farwire.compat.install()
import execnet, os, signal, time
gateway = execnet.makegateway()
def callback(item):
    raise RuntimeError("on purpose")
ending = gateway.remote_exec("channel.send(1)")
ending.setcallback(callback, endmarker=None)
busy = gateway.remote_exec("import os\\nchannel.send(os.getpid())\\nwhile True: pass")
print(busy.receive(), flush=True)
time.sleep(1000)
"""
    env = {**os.environ, "PYTHONPATH": str(SRC)}
    argv = [sys.executable, "-c", program]
    with subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert servers.is_alive(pid)
        process.kill()
    wait_for(lambda: not servers.is_alive(pid), "the worker is gone")


def test_a_callback_that_raises_harms_its_channel_only(xgroup: Any, capfd: pytest.CaptureFixture[str]) -> None:
    """27: also when nobody holds the channel any more, which ended the whole gateway."""
    gateway = xgroup.makegateway()
    called = threading.Event()

    def callback(item: object) -> None:
        called.set()
        raise RuntimeError("on purpose")

    channel = gateway.remote_exec("channel.send(1); channel.receive()")
    channel.setcallback(callback)
    del channel
    assert called.wait(10)
    assert gateway.remote_exec("channel.send(2)").receive(10) == 2
    called.clear()
    channel = gateway.remote_exec("channel.send(1)")
    channel.setcallback(callback)
    assert called.wait(10)
    channel.waitclose(10)
    assert gateway.hasreceiver()
    assert gateway.remote_exec("channel.send(3)").receive(10) == 3
    assert capfd.readouterr().err.count("RuntimeError: on purpose") == 2


# -- 4, 34: exit, then terminate -------------------------------------------------------------------------------------------


def test_exit_then_terminate(xgroup: Any) -> None:
    """4, 34: a gateway that was told to exit is reaped by ``terminate`` also when the group is empty; ``via`` raises nothing."""
    before = set(servers.children(os.getpid()))
    master = xgroup.makegateway("popen//id=master")
    inner = xgroup.makegateway("popen//via=master")
    assert inner.remote_exec("channel.send(1)").receive(10) == 1
    inner.exit()
    master.exit()
    assert len(xgroup) == 0
    xgroup.terminate(timeout=5)
    assert set(servers.children(os.getpid())) <= before  # reaped, no zombie


# -- 8: callbacks that send ------------------------------------------------------------------------------------------------


def test_callbacks_that_echo_a_megabyte_to_each_other(xgroup: Any) -> None:
    """8: two items of a megabyte are thrown to and fro by callbacks of both ends. Both processes were stuck for ever, and asking
    what was the matter was too."""
    gateway = xgroup.makegateway()
    remote = gateway.remote_exec("""
        pipes = channel.receive()
        for pipe in pipes:
            pipe.setcallback(pipe.send)
        channel.send("ready")
        channel.receive()
    """)
    pipes = [gateway.newchannel() for _ in range(2)]
    remote.send(pipes)
    assert remote.receive(10) == "ready"
    counts = [0, 0]
    done = [threading.Event(), threading.Event()]

    def catcher(number: int) -> Any:
        def catch(item: bytes) -> None:
            assert len(item) == 1 << 20
            counts[number] += 1
            if counts[number] < 20:
                pipes[number].send(item)
            else:
                done[number].set()

        return catch

    for number, pipe in enumerate(pipes):
        pipe.setcallback(catcher(number))
    for pipe in pipes:
        pipe.send(bytes(1 << 20))
    assert gateway.remote_status().numexecuting == 1
    assert done[0].wait(30)
    assert done[1].wait(30)
    remote.send(None)


# -- 9: workers start at the same time -------------------------------------------------------------------------------------


def test_workers_start_at_the_same_time(group: farwire.Group, tmp_path: Path) -> None:
    """9: each start waits until all three have begun; one after the other, none would end."""
    script = tmp_path / "start"
    script.write_text(
        '#!/bin/sh\n: > "$0.$$"\nwhile [ $(ls "$0".* | wc -l) -lt 3 ]; do sleep 0.01; done\nexec '
        + sys.executable
        + ' "$@"\n'
    )
    script.chmod(0o755)
    gateways = group.makegateways([f"popen//python={script}"] * 3, timeout=20)
    assert len({gateway.info().pid for gateway in gateways}) == 3


# -- 11, 33: what is no Python ---------------------------------------------------------------------------------------------


def test_a_program_that_is_no_python_is_told(xgroup: Any) -> None:
    """11: execnet returned a gateway, and everything done with it failed."""
    with pytest.raises(farwire.NotAPython, match="false") as caught:
        xgroup.makegateway("popen//python=false")
    assert isinstance(caught.value, EOFError)
    assert len(xgroup) == 0


def test_a_frozen_application(xgroup: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """33: ``sys.executable`` is the application. The error says what to do, and ``python=`` does it."""
    python = sys.executable
    monkeypatch.setattr(sys, "executable", "/bin/true")
    with pytest.raises(farwire.NotAPython, match=r"/bin/true(?s:.*)interpreter"):
        xgroup.makegateway("popen")
    gateway = xgroup.makegateway(f"popen//python={python}")
    assert gateway.remote_exec("channel.send(1)").receive(10) == 1


# -- 24, 29: names -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["gevent", "eventlet"])
def test_green_threads_are_refused_with_the_reason(xgroup: Any, model: str) -> None:
    """24: they did not work; now that is said."""
    with pytest.raises(ValueError, match=f"{model}.*uses threads"):
        execnet.Group(execmodel=model)
    with pytest.raises(ValueError, match=model):
        xgroup.makegateway(f"popen//execmodel={model}")


def test_the_timeout_error_is_the_builtin_one(xgroup: Any) -> None:
    """29"""
    channel = xgroup.makegateway().remote_exec("channel.receive()")
    for kind in (TimeoutError, execnet.TimeoutError, OSError, channel.TimeoutError):
        with pytest.raises(kind):
            channel.receive(0)
