"""Ctrl-C reaches the controller only, and an exception out of a signal handler may come anywhere without harm to the link."""

from __future__ import annotations

import os
import pty
import signal
import sys
from pathlib import Path

import pytest

import servers
from processes import SOURCE, TOKEN, Controller, eventually

WAITING = """
import farwire, os, signal, sys
gateway = farwire.makegateway("popen")
echo = gateway.remote_exec("for item in channel: channel.send(item)")
echo.send(1)
echo.receive()
silent = gateway.remote_exec("import threading; threading.Event().wait()")
try:
    sys.stdout.write(f"{gateway._process.worker_pid}\\n")
    sys.stdout.flush()
    {wait}
except KeyboardInterrupt:
    pass
os.kill(gateway._process.worker_pid, signal.SIGCONT)
echo.send("still here")
print(echo.receive(timeout=5), gateway.info().pid, flush=True)
text = "import signal; channel.send(str(signal.getsignal(signal.SIGINT)))"
print(gateway.remote_exec(text).receive(timeout=5), flush=True)
"""
WAITS = {
    "receive": "silent.receive()",
    "receive with timeout": "silent.receive(timeout=100)",
    "iteration": "list(silent)",
    "waitclose": "silent.waitclose()",
    "send": "while True: silent.send(bytes(10_000))",
    "send of a large item": "silent.send(bytes(50_000_000))",
    "info": "while True: gateway.info()",
    "info of a stopped worker": "os.kill(gateway._process.worker_pid, signal.SIGSTOP); gateway.info(100)",
    "python": "while True: pass",
}


@pytest.mark.parametrize("wait", WAITS)
def test_ctrl_c_in_every_wait(wait: str) -> None:
    with Controller(WAITING.replace("{wait}", WAITS[wait])) as controller:
        worker = controller.numbers()[0]
        # the terminal sends it to the whole foreground process group
        os.killpg(controller.pid, signal.SIGINT)
        text, pid = controller.line().rsplit(" ", 1)
        assert text == "still here"
        assert int(pid) == worker
        assert "default_int_handler" in controller.line()
        assert controller.finish()[0] == 0


def test_ctrl_c_at_a_terminal(tmp_path) -> None:
    """With a real terminal: the worker is not in its session, so it neither gets the signal nor stops on reading it."""
    script = tmp_path / "script.py"
    script.write_text(WAITING.replace("{wait}", "silent.receive()"))
    token = os.urandom(8).hex()
    pid, fd = pty.fork()
    if not pid:
        os.execve(sys.executable, [sys.executable, str(script)], {**os.environ, "PYTHONPATH": SOURCE, TOKEN: token})
    try:
        data = b""
        while data.count(b"\n") < 1:
            data += os.read(fd, 1000)
        worker = int(data.split()[0])
        assert os.getsid(worker) != os.getsid(pid)
        os.write(fd, b"\x03")
        while b"still here" not in data or (b"SIGINT" not in data and b"int_handler" not in data):
            data += os.read(fd, 1000)
        assert str(worker).encode() in data.partition(b"still here")[2]
        assert os.waitpid(pid, 0)[1] == 0
        pid = 0
        eventually(lambda: not servers.is_alive(worker), "the worker is gone")
    finally:
        os.close(fd)
        for each in servers.processes_with_environment(TOKEN, token):
            servers.kill(each)
        if pid:
            os.waitpid(pid, 0)


def test_ctrl_c_that_nobody_catches() -> None:
    """The script ends with its traceback, the worker with it."""
    text = """
        import farwire
        channel = farwire.makegateway("popen").remote_exec("while True: pass")
        print(1, flush=True)
        channel.receive()
    """
    with Controller(text) as controller:
        controller.numbers()
        os.killpg(controller.pid, signal.SIGINT)
        status, _, err = controller.finish()
        assert status in (1, 130, -signal.SIGINT)
        assert err.rstrip().endswith("KeyboardInterrupt")
        assert err.count("Traceback") == 1
        controller.all_gone()


def test_ctrl_c_while_a_gateway_starts() -> None:
    """makegateway() waits for a program that says nothing: it raises, and the program is gone."""
    text = """
        import farwire, os
        group = farwire.Group()
        print(1, flush=True)
        try:
            group.makegateway("cmd=sh -c 'exec sleep 1000'")
        except KeyboardInterrupt:
            print("interrupted", len(group), flush=True)
        input()
    """
    with Controller(text) as controller:
        controller.numbers()
        eventually(lambda: len(controller.processes()) == 2, "the program runs")
        os.killpg(controller.pid, signal.SIGINT)
        assert controller.line() == "interrupted 0"
        assert controller.processes() == [controller.pid]


def test_ctrl_c_while_many_gateways_start() -> None:
    text = """
        import farwire
        group = farwire.Group()
        print(1, flush=True)
        try:
            group.makegateways(["5*cmd=sh -c 'exec sleep 1000'", "3*popen"])
        except KeyboardInterrupt:
            group.terminate()
            print("interrupted", len(group), flush=True)
        input()
    """
    with Controller(text) as controller:
        controller.numbers()
        eventually(lambda: len(controller.processes()) > 8, "the programs run")
        os.killpg(controller.pid, signal.SIGINT)
        assert controller.line() == "interrupted 0"
        assert controller.processes() == [controller.pid]


def test_ctrl_c_in_exit() -> None:
    text = """
        import farwire
        group = farwire.Group()
        gateway = group.makegateway("popen")
        channel = gateway.remote_exec("import signal; signal.signal(15, signal.SIG_IGN); channel.send(1)\\nwhile True: pass")
        channel.receive()
        print(gateway._process.worker_pid, flush=True)
        try:
            gateway.exit(timeout=100)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        group.terminate(timeout=0.5)
        print(len(group), flush=True)
        input()
    """
    with Controller(text) as controller:
        worker = controller.numbers()[0]
        eventually(lambda: servers.is_alive(worker), "the worker runs")
        os.killpg(controller.pid, signal.SIGINT)
        assert controller.line() == "interrupted"
        assert controller.line() == "0"
        assert not servers.is_alive(worker)


STORM = Path(__file__).with_name("storm.py").read_text()


@pytest.mark.parametrize("kind", ["Exception", "OSError"])
@pytest.mark.parametrize("side", ["controller", "worker"])
@pytest.mark.parametrize("way", ["popen", "via", "tls", "tls via"])
def test_storm(way: str, side: str, kind: str, request: pytest.FixtureRequest) -> None:
    """Exceptions out of a signal's handler, anywhere in the main thread's sends and receives."""
    specs = {"popen": ["popen"], "via": ["popen//id=hop", "popen//via=hop"]}.get(way)
    if specs is None:
        tls = request.getfixturevalue("tls_server").spec
        specs = [tls] if way == "tls" else ["popen//id=hop", f"{tls}//via=hop"]
    with Controller(STORM, side, "1", "500", kind, *specs, flags=("-X", "faulthandler")) as controller:
        status, out, err = controller.finish(timeout=50)
        assert (status, err) == (0, "")
        assert int(out.split()[0]) >= 500, out


def test_no_signal_handler_of_ours() -> None:
    """We install none, and leave the wake-up descriptor alone."""
    text = """
        import signal, farwire
        before = [signal.getsignal(n) for n in range(1, 32)]
        farwire.makegateway("popen").exit()
        assert [signal.getsignal(n) for n in range(1, 32)] == before
        assert signal.set_wakeup_fd(-1) == -1
    """
    with Controller(text) as controller:
        assert controller.finish() == (0, "", "")
