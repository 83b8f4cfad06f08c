"""What goes wrong at a start or on a link: one clear error, soon; nothing is left of it, and everybody else goes on."""

from __future__ import annotations

import shlex
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import farwire
import servers
from conftest import Leaks
from farwire import DumpError, GatewayLost, RemoteError, SourceError
from processes import Waiting, eventually, within
from socket_server import Server

# What a program that looks like a worker needs: the nonce out of the configuration, and the words that the protocol starts with.
IMPOSTOR = r"""
import os, struct, sys, time
data = b""
while b"nonce" not in data or len(data) < data.index(b"nonce") + 60:
    data += os.read(0, 65536)
at = data.index(b"nonce") + 10  # after the kind and the length of the value
nonce = data[at : at + 32]
def frame(kind, channel=0, payload=b"", code=0, size=None):
    return struct.pack("<IIBB", len(payload) if size is None else size, channel, kind, code) + payload
def say(*parts):
    os.write(1, b"".join(parts))
sys.stderr.write("the last words\n")
sys.stderr.flush()
MARKER = b"\0far" + b"wire\0" + nonce[::-1] + b"\0"
HELLO = frame(1, 0, b"version=1\npid=%d" % os.getpid())
"""


class Beside:
    """A gateway of the same group that works all the time."""

    def __init__(self, group: farwire.Group) -> None:
        self.gateway = group.makegateway("popen//id=beside")
        self.channel = self.gateway.remote_exec("for item in channel: channel.send(item)")
        self.rounds = 0
        self.stop = False
        self.thread = Waiting(self._play)

    def _play(self) -> None:
        while not self.stop:
            self.channel.send((self.rounds, bytes(3000)))
            assert self.channel.receive(timeout=10) == (self.rounds, bytes(3000))
            self.rounds += 1

    def end(self) -> None:
        before = self.rounds
        eventually(lambda: self.rounds > before, "the other gateway goes on")
        self.stop = True
        assert self.thread.join(15).error is None


@pytest.fixture
def beside(group: farwire.Group) -> Iterator[Beside]:
    """The test leaves no thread, descriptor or process, and does not disturb another gateway of its group."""
    fellow = Beside(group)
    group.makegateway("popen//id=warm").exit()
    eventually(lambda: fellow.rounds, "it works")
    leaks = Leaks()
    yield fellow
    leaks.check()
    assert [gateway.id for gateway in group] == ["beside"]
    fellow.end()


FAILURES = {
    # name: keys of the spec, error, in its text, exit status, in its stderr
    "a cwd that cannot be made": (
        {"popen": True, "chdir": "/proc/no/such"},
        farwire.DirectoryError,
        "/proc/no",
        "",
        "",
    ),
    "a cwd that is a file": ({"popen": True, "chdir": "/etc/passwd"}, farwire.DirectoryError, "/etc/passwd", "", ""),
    "a cwd that a command cannot make": (
        {"cmd": shlex.quote(sys.executable), "chdir": "/proc/no/such"},
        farwire.DirectoryError,
        "/proc/no",
        "exit status 4",
        "farwire: chdir",
    ),
    "/bin/false": ({"popen": True, "python": "/bin/false"}, farwire.NotAPython, "", "exit status 1", ""),
    "/bin/true": ({"popen": True, "python": "/bin/true"}, farwire.NotAPython, "", "exit status 0", ""),
    "no such python": ({"popen": True, "python": "no-such-python"}, farwire.PythonNotFound, "no-such-python", "", ""),
    "a version that is not there": ({"popen": True, "python": "3.99"}, farwire.PythonNotFound, "python3.99", "", ""),
    "a python with a wrong option": (
        {"popen": True, "python": f"{sys.executable} --no-such-option"},
        farwire.NotAPython,
        "",
        "exit status 2",
        "unknown option",
    ),
    "an echo": ({"cmd": "sh -c cat"}, farwire.NotAPython, "repeats", "", ""),
    "its last words": (
        {"cmd": "sh -c 'echo out; echo err >&2; exit 7'"},
        farwire.NotAPython,
        "  output:  out",
        "exit status 7",
        "err",
    ),
    "killed": ({"cmd": "sh -c 'echo err >&2; kill -9 $$'"}, farwire.NotAPython, "", "killed by SIGKILL", "err"),
    "garbage and the end": (
        {"cmd": "sh -c 'head -c 3000000 /dev/urandom; echo err >&2; exit 8'"},
        farwire.NotAPython,
        "",
        "exit status 8",
        "err",
    ),
    "garbage without end": ({"cmd": "sh -c 'exec cat /dev/zero'"}, farwire.StartTimeout, "within 0.4 s", "", ""),
    "it hangs": ({"cmd": "sh -c 'echo err >&2; exec sleep 1000'"}, farwire.StartTimeout, "within 0.4 s", "", "err"),
    "it hangs with children": (
        {"cmd": "sh -c 'sleep 1000 & sleep 1000 & wait'"},
        farwire.StartTimeout,
        "within 0.4 s",
        "",
        "",
    ),
    "it ignores SIGTERM": (
        {"cmd": "sh -c 'trap \"\" 1 2 15; while true; do sleep 1; done'"},
        farwire.StartTimeout,
        "within 0.4 s",
        "",
        "",
    ),
    "it closes its stdout and stays": ({"cmd": "sh -c 'exec >&-; exec sleep 1000'"}, farwire.NotAPython, "", "", ""),
    "an interactive python": (
        {"cmd": f"{shlex.quote(sys.executable)} -i -c pass"},
        farwire.StartTimeout,
        "within 0.4 s",
        "",
        "",
    ),
}


@pytest.mark.parametrize("name", FAILURES)
def test_start(name: str, group: farwire.Group, beside: Beside) -> None:
    keys, kind, text, status, stderr = FAILURES[name]
    spec = farwire.XSpec.build(**keys)
    timeout = 0.4 if kind is farwire.StartTimeout else 20
    with within(8, "the error"), pytest.raises(kind) as caught:
        group.makegateway(spec, timeout=timeout)
    error = caught.value
    assert text in str(error)
    assert isinstance(error, farwire.StartError)
    assert isinstance(error, OSError)
    said = [error.gateway_id, error.hint]
    if "chdir" not in keys or "cmd" in keys:
        said.append(error.command)
    for each in said:
        assert each
        assert each in str(error)
    if status:
        assert error.status == status
        assert status in str(error)
    if stderr:
        assert stderr in error.stderr
        assert stderr in str(error)


def test_ssh(group: farwire.Group, beside: Beside, sshd: servers.Sshd) -> None:
    for host, kind, text in (
        ("wrongkey", farwire.AuthenticationError, "Permission denied"),
        ("unresolvable", farwire.HostNotFound, "no-such-host.invalid"),
    ):
        with pytest.raises(kind, match=text) as caught:
            group.makegateway(farwire.XSpec.build(ssh=host, ssh_config=sshd.ssh_config))
        assert caught.value.status == "exit status 255"
        assert text in caught.value.stderr
        assert caught.value.hint


def test_secret(
    group: farwire.Group, beside: Beside, tcp_server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FARWIRE_SECRET", "not the one of the server")
    with pytest.raises(farwire.AuthenticationError) as caught:
        group.makegateway(f"socket={tcp_server.address}")
    assert "not the one" not in str(caught.value)
    assert caught.value.hint
    with pytest.raises(farwire.AuthenticationError, match="secret"):
        group.makegateway(f"socket={tcp_server.address}//via=beside")


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("popen//pyton=3.9", "python"),
        ("popn", "popen"),
        ("popen//popen", "popen"),
        ("popen//nice=very", "nice"),
        ("popen//via=nobody", "nobody"),
        ("popen//id=beside", "beside"),
        ("popen//execmodel=greenlets", "greenlets"),
        ("", "transport|popen"),
    ],
)
def test_spec(group: farwire.Group, beside: Beside, spec: str, text: str) -> None:
    with pytest.raises(farwire.SpecError, match=text):
        group.makegateway(spec)


def test_values_that_cannot_be_sent(group: farwire.Group, beside: Beside) -> None:
    """Refused where they are, with the place in the item; the channel goes on."""
    with group.makegateway("popen") as gateway:
        channel = gateway.remote_exec("for item in channel: channel.send(item)")
        channel.send("before")
        with pytest.raises(DumpError, match=r"item\[1\]\['x'\]\[0\]"):
            channel.send((1, {"x": [object()]}))
        with pytest.raises(DumpError):
            channel.send(lambda: None)
        with pytest.raises(DumpError):
            channel.send(channel.gateway)
        with pytest.raises(DumpError, match="gateway"):
            channel.send(beside.channel)
        with pytest.raises(DumpError):
            gateway.remote_exec(takes_a_value, value=object())
        channel.send("after")
        assert [channel.receive(timeout=10) for _ in range(2)] == ["before", "after"]
        # and in the worker
        other = gateway.remote_exec("channel.send(1)\nchannel.send([0, object()])")
        assert other.receive(timeout=10) == 1
        with pytest.raises(RemoteError, match=r"item\[1\]"):
            other.receive(timeout=10)


def takes_a_value(channel, value):
    channel.send(value)


def test_functions_that_cannot_run_elsewhere(group: farwire.Group, beside: Beside) -> None:
    here = 1

    def closure(channel) -> None:
        channel.send(here)

    def uses_a_global(channel) -> None:
        channel.send(textwrap.dedent(""))

    with group.makegateway("popen") as gateway:
        with pytest.raises(SourceError, match="here"):
            gateway.remote_exec(closure)
        with pytest.raises(SourceError, match="textwrap"):
            gateway.remote_exec(uses_a_global)
        with pytest.raises(TypeError):
            gateway.remote_exec(5)  # type: ignore[arg-type]
        assert gateway.remote_exec("channel.send(1)").receive(timeout=10) == 1


IMPOSTORS = {
    "another version": ("say(MARKER, frame(1, 0, b'version=99'))", "version 99"),
    "a frame that is none": ("say(MARKER, HELLO, frame(200, 0, b'x'))", "200"),
    "a length beyond all bounds": ("say(MARKER, HELLO, frame(3, 1, b'', 1, 0xFFFFFFFF))", ""),
    "a task for the controller": ("say(MARKER, HELLO, frame(2, 2, b'print()', 1))", "EXEC"),
    "random bytes": ("say(MARKER, HELLO, os.urandom(100000))", ""),
    "a hello twice": ("say(MARKER, HELLO, HELLO)", "second HELLO"),
    "half a frame and the end": ("say(MARKER, HELLO, frame(3, 1, b'xx', 1, 1000))", "exit status 0"),
    "half a hello and the end": ("say(MARKER, HELLO[:7])", "exit status 0"),
}


@pytest.mark.parametrize("name", IMPOSTORS)
def test_a_peer_that_breaks_the_protocol(name: str, group: farwire.Group, beside: Beside, tmp_path: Path) -> None:
    """Whoever waits gets one typed error, and the program is ended."""
    code, text = IMPOSTORS[name]
    if "end" not in name:
        code += "\ntime.sleep(1000)"
    program = tmp_path / "impostor.py"
    program.write_text(f"{IMPOSTOR}\n{code}\n")
    command = f"{shlex.quote(sys.executable)} {shlex.quote(str(program))}"
    with within(10, "the error"), pytest.raises((farwire.StartError, GatewayLost, farwire.ProtocolError)) as caught:
        gateway = group.makegateway(farwire.XSpec.build(cmd=command), timeout=20, output=lambda *args: None)
        gateway.newchannel().receive(timeout=20)
    assert text in str(caught.value)
    eventually(lambda: len(group) == 1, "the gateway is gone")


def test_a_worker_that_is_sent_garbage(group: farwire.Group, beside: Beside) -> None:
    """It says on stderr why it ends, which the controller then quotes."""
    gateway = group.makegateway("popen", output=lambda *args: None)
    waiting = Waiting(gateway.remote_exec("channel.receive()").receive).blocks()
    gateway._link.write_first([b"\xff" * 100])
    error = waiting.join(10).error
    assert isinstance(error, GatewayLost)
    assert "exit status 1" in str(error)
    assert "farwire: " in str(error)
    gateway.join(timeout=5)


def test_user_code_that_writes_on_the_link(group: farwire.Group, beside: Beside) -> None:
    """It has to look for the descriptor; then it can end its own gateway, and nothing else."""
    gateway = group.makegateway("popen", output=lambda *args: None)
    channel = gateway.remote_exec(
        """
        import os
        channel.send(1)
        os.write(channel._core.link.stream.write_fd, b"\\xff" * 100)
        channel.receive()
        """
    )
    with pytest.raises((farwire.ProtocolError, GatewayLost)):
        while True:
            channel.receive(timeout=20)
    gateway.join(timeout=10)
