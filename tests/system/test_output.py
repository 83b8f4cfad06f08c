"""stdout and stderr of workers: all of it, from whoever wrote it, to wherever it is wanted; it stops nothing else."""

from __future__ import annotations

import io
import os
import signal
import threading

import pytest

import farwire
from farwire import GatewayLost, RemoteError
from processes import Controller, eventually


class Sink:
    """Gathers output."""

    def __init__(self) -> None:
        self.pieces: list[tuple[str, str, bytes]] = []
        self.block = threading.Event()
        self.block.set()

    def __call__(self, gateway_id: str, stream: str, data: bytes) -> None:
        self.pieces.append((gateway_id, stream, data))
        self.block.wait(30)

    def text(self, stream: str) -> bytes:
        return b"".join(data for _, name, data in self.pieces if name == stream)

    @property
    def out(self) -> bytes:
        return self.text("stdout")

    @property
    def err(self) -> bytes:
        return self.text("stderr")


@pytest.fixture
def sink() -> Sink:
    return Sink()


@pytest.fixture
def talker(group: farwire.Group, sink: Sink) -> farwire.Gateway:
    return group.makegateway("popen", output=sink)


def test_fd_0_is_dev_null(gw: farwire.Gateway) -> None:
    channel = gw.remote_exec(
        """
        import os, sys
        channel.send((os.read(0, 10), sys.stdin.read(), os.fstat(0).st_rdev == os.stat("/dev/null").st_rdev))
        try:
            input()
        except EOFError:
            channel.send("EOF")
        """
    )
    assert channel.receive(timeout=5) == (b"", "", True)
    assert channel.receive(timeout=5) == "EOF"


def test_everything_is_forwarded(talker: farwire.Gateway, sink: Sink) -> None:
    channel = talker.remote_exec(
        """
        import os, sys, subprocess, ctypes
        print("from print")
        print("unfinished", end="")
        sys.stdout.flush()
        os.write(1, b"/os.write/")
        libc = ctypes.CDLL(None)
        libc.puts(b"from C")
        libc.fflush(None)
        subprocess.run(["echo", "from a child"])
        subprocess.run("(echo from a grandchild; echo to stderr >&2) & wait", shell=True)
        sys.stderr.write("from stderr\\n")
        os.write(2, b"os.write 2\\n")
        """
    )
    channel.waitclose(timeout=10)
    talker.exit()
    assert sink.out == b"from print\nunfinished/os.write/from C\nfrom a child\nfrom a grandchild\n"
    assert sink.err == b"to stderr\nfrom stderr\nos.write 2\n"
    assert {piece[0] for piece in sink.pieces} == {"gw0"}


def test_binary_safe(talker: farwire.Gateway, sink: Sink) -> None:
    """Every byte, also what looks like the guard's reports or our own marks."""
    channel = talker.remote_exec(
        """
        import os
        data = bytes(range(256)) * 4000
        for fd in (1, 2):
            rest = data
            while rest:
                rest = rest[os.write(fd, rest[:7777]):]
            os.write(fd, b"\\0" * 100 + b"\\0farwire\\0" + b"\\0" + b"a" * 32 + b":X00000003123")
        """
    )
    channel.waitclose(timeout=10)
    talker.exit()
    expected = bytes(range(256)) * 4000 + b"\0" * 100 + b"\0farwire\0" + b"\0" + b"a" * 32 + b":X00000003123"
    assert sink.out == expected
    assert sink.err == expected


ENDS = {
    "_exit": ("os._exit(3)", "exit status 3"),
    "SIGKILL": ("os.kill(os.getpid(), 9)", "SIGKILL"),
    "segfault": ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("size", [1, 20_000, 60_000, 2_000_000])
def test_what_was_written_before_the_end_arrives(talker: farwire.Gateway, sink: Sink, end: str, size: int) -> None:
    """Every byte, also those on their way from the pipe into the link when the worker dies."""
    code, status = ENDS[end]
    channel = talker.remote_exec(
        f"""
        import os, sys
        data = b"".join(b"%07d " % i for i in range({size} // 8))
        while data:
            data = data[os.write(1, data[:20_000]):]
        print("printed")
        os.write(2, b"last words\\n")
        {code}
        """
    )
    with pytest.raises(GatewayLost, match=status):
        channel.waitclose(timeout=10)
    talker.exit()
    assert sink.out == b"".join(b"%07d " % i for i in range(size // 8)) + b"printed\n"
    assert sink.err.startswith(b"last words\n")


def test_output_of_exit_handlers(talker: farwire.Gateway, sink: Sink) -> None:
    talker.remote_exec("import atexit; atexit.register(print, 'bye'); print('x' * 300_000)").waitclose(timeout=5)
    talker.exit()
    assert sink.out == b"x" * 300_000 + b"\nbye\n"


def test_a_grandchild_that_keeps_stdout_open_does_not_delay_the_end(group: farwire.Group, sink: Sink) -> None:
    gw = group.makegateway("popen", output=sink)
    channel = gw.remote_exec(
        """
        import subprocess
        child = subprocess.Popen("echo started; exec setsid sleep 1000", shell=True)
        print("done")
        channel.send(child.pid)
        """
    )
    pid = channel.receive(timeout=5)
    try:
        channel.waitclose(timeout=5)
        eventually(lambda: b"started" in sink.out, "it runs")
        eventually(lambda: os.getsid(pid) == pid, "it went away from the worker's processes")
        gw.exit(timeout=3)
        assert b"done\n" in sink.out
        assert not gw.hasreceiver()
    finally:
        os.kill(pid, signal.SIGKILL)  # it went away from our process group: nobody ends it


def test_blocked_sink_stops_no_channel_and_memory_is_bounded(talker: farwire.Gateway, sink: Sink) -> None:
    def rss() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = rss()
    sink.block.clear()
    flood = talker.remote_exec(
        """
        import os
        report = channel.receive()
        count = 0
        while not channel.isclosed():
            count += os.write(1, bytes(60_000))
        report.send(count)
        """
    )
    count = talker.newchannel()
    flood.send(count)
    echo = talker.remote_exec("for item in channel: channel.send(item)")
    for i in range(200):
        echo.send(bytes(i * 500))
        assert len(echo.receive(timeout=5)) == i * 500
    eventually(lambda: len(sink.pieces) == 1 and len(sink.out) > 0, "the sink blocks")
    assert talker.status().state == "live"
    assert rss() - before < 32 << 20
    flood.close()
    sink.block.set()
    written = count.receive(timeout=10)
    talker.exit()
    assert len(sink.out) == written


def test_blocked_sink_and_stderr(talker: farwire.Gateway, sink: Sink) -> None:
    sink.block.clear()
    flood = talker.remote_exec("import os\nfor i in range(100): os.write(2, b'e' * 50_000)\nchannel.send('through')")
    echo = talker.remote_exec("for item in channel: channel.send(item)")
    for i in range(200):
        echo.send(i)
        assert echo.receive(timeout=5) == i
    with pytest.raises(TimeoutError):
        flood.receive(timeout=0.2)
    sink.block.set()
    assert flood.receive(timeout=10) == "through"
    talker.exit()
    assert len(sink.err) == 5_000_000


def test_blocked_sink_does_not_stop_the_exit(talker: farwire.Gateway, sink: Sink) -> None:
    sink.block.clear()
    talker.remote_exec("while True: print('x' * 1000)")
    eventually(lambda: sink.pieces, "output")
    talker.exit(timeout=0.5)
    assert not talker.hasreceiver()
    sink.block.set()


def test_a_sink_that_raises(group: farwire.Group, capfd: pytest.CaptureFixture[str]) -> None:
    pieces = []

    def sink(gateway_id: str, stream: str, data: bytes) -> None:
        pieces.append(data)
        raise LookupError("the sink is broken")

    gw = group.makegateway("popen", output=sink)
    gw.remote_exec("print(1)").waitclose(timeout=5)
    eventually(lambda: b"1\n" in b"".join(pieces), "first piece")
    gw.remote_exec("print(2)").waitclose(timeout=5)
    eventually(lambda: b"2\n" in b"".join(pieces), "second piece")
    gw.exit()
    assert "the sink is broken" in capfd.readouterr().err


def test_into_files(group: farwire.Group, tmp_path) -> None:
    binary = io.BytesIO()
    text = io.StringIO()
    with open(tmp_path / "log", "wb") as real:
        for file in (binary, text, real):
            gw = group.makegateway("popen", output=file)
            gw.remote_exec("import sys; sys.stdout.write('out \\xe4\\n'); sys.stderr.write('err\\n')").waitclose(
                timeout=5
            )
            gw.exit()
    assert sorted(binary.getvalue().splitlines()) == [b"err", "out \xe4".encode()]
    assert sorted(text.getvalue().splitlines()) == ["err", "out \xe4"]
    assert sorted((tmp_path / "log").read_bytes().splitlines()) == [b"err", "out \xe4".encode()]


def test_group_output(sink: Sink) -> None:
    with farwire.Group(output=sink) as group:
        group.makegateways(["3*popen"])
        group.remote_exec("print(channel.gateway.id)").waitclose(timeout=5)
    for i in range(3):
        assert b"".join(data for id, _, data in sink.pieces if id == f"gw{i}") == f"gw{i}-worker\n".encode()


def test_none(group: farwire.Group, capfd: pytest.CaptureFixture[str]) -> None:
    gw = group.makegateway("popen//stdio=none")
    channel = gw.remote_exec(
        "import os, sys\nfor i in range(100): print('x' * 10_000); os.write(2, b'y' * 10_000)\nchannel.send(1)"
    )
    assert channel.receive(timeout=5) == 1
    gw.exit()
    assert capfd.readouterr() == ("", "")


def run(text: str) -> tuple[str, str]:
    with Controller(text) as controller:
        status, out, err = controller.finish()
        assert status == 0, err
        return out, err


def test_default_is_ours_with_tags() -> None:
    out, err = run(
        """
        import farwire
        a = farwire.makegateway("popen//id=a")
        a.remote_exec("print('one'); print('two')\\nimport sys; print('three', file=sys.stderr)").waitclose()
        a.exit()
        b = farwire.makegateway("popen//id=b")
        b.remote_exec("import sys; sys.stdout.write('no newline'); sys.stdout.flush()").waitclose()
        b.exit()
        """
    )
    assert out == "[a] one\n[a] two\n[b] no newline"
    assert err == "[a] three\n"


def test_two_unfinished_lines_are_not_mixed() -> None:
    out, _ = run(
        """
        import farwire
        a, b = farwire.Group().makegateways(["popen//id=a", "popen//id=b"])
        for gateway in (a, b):
            gateway.remote_exec("import sys; sys.stdout.write('start'); sys.stdout.flush()").waitclose()
            gateway.exit()
        """
    )
    assert out == "[a] start\n[b] start"


def test_inherit() -> None:
    out, err = run(
        """
        import farwire
        with farwire.makegateway("popen//stdio=inherit") as gateway:
            gateway.remote_exec("print('plain')\\nimport sys; print('error', file=sys.stderr)").waitclose()
        """
    )
    assert out == "plain\n"
    assert err == "error\n"


def test_output_at_the_end_of_the_controller() -> None:
    """Nobody closes the gateway, the script just ends."""
    out, _ = run(
        """
        import farwire
        channel = farwire.makegateway("popen").remote_exec("print('x' * 500_000); channel.send(1); print('last')")
        channel.receive()
        channel.waitclose()
        """
    )
    assert out == f"[gw0] {'x' * 500_000}\n[gw0] last\n"


def test_controller_without_stdout() -> None:
    """Its own stdout is closed, or a pipe that nobody reads any more."""
    for close in ("sys.stdout.close()", "sys.stdout = None", "os.close(1)"):
        text = f"""
            import os, sys, farwire
            {close}
            gateway = farwire.makegateway("popen")
            channel = gateway.remote_exec("for i in range(100): print(i)\\nchannel.send(7)")
            assert channel.receive(timeout=5) == 7
            gateway.exit()
            os._exit(0)
        """
        with Controller(text) as controller:
            status, _, err = controller.finish()
            assert status == 0, err


def test_stderr_of_the_start_is_shown_when_it_lives(group: farwire.Group, sink: Sink, tmp_path) -> None:
    """What the interpreter, or a wrapper, says before it is a worker."""
    wrapper = tmp_path / "python"
    wrapper.write_text("#!/bin/sh\necho 'warning: old hardware' >&2\nexec python3 \"$@\"\n")
    wrapper.chmod(0o755)
    gw = group.makegateway(f"popen//python={wrapper}", output=sink)
    gw.exit()
    assert sink.err == b"warning: old hardware\n"


def test_an_error_in_a_task_is_not_printed(talker: farwire.Gateway, sink: Sink) -> None:
    """It goes to whoever receives."""
    with pytest.raises(RemoteError):
        talker.remote_exec("raise ValueError").waitclose(timeout=5)
    talker.exit()
    assert sink.pieces == []
