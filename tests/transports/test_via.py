"""via: interpreters started from other gateways' hosts, at any depth, over every transport."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

import farwire
import servers
from farwire.testing import (
    HAVE_CHILDREN,
    ChannelConformance,
    Collected,
    EndConformance,
    GatewayConformance,
    OutputConformance,
    StartConformance,
    is_running,
    together,
)
from processes import eventually
from socket_server import Server


class TestPopenViaPopen(GatewayConformance):
    @pytest.fixture
    def specs(self) -> list[str]:
        return ["popen//id=hop", "popen//via=hop"]


@pytest.mark.needs_sshd
class TestPopenViaSsh(GatewayConformance):
    @pytest.fixture
    def specs(self, sshd: servers.Sshd) -> list[str]:
        return [f"{sshd.spec}//id=hop", "popen//via=hop"]


@pytest.mark.needs_sshd
class TestSshViaPopen(StartConformance, OutputConformance, EndConformance):
    @pytest.fixture
    def specs(self, sshd: servers.Sshd) -> list[str]:
        return ["popen//id=hop", f"{sshd.spec}//via=hop"]


@pytest.mark.needs_sshd
class TestDepthThree(GatewayConformance):
    @pytest.fixture
    def specs(self, sshd: servers.Sshd) -> list[str]:
        return [f"{sshd.spec}//id=first", "popen//id=second//via=first", "popen//via=second"]


class TestSocketViaPopen(StartConformance, ChannelConformance, EndConformance):
    @pytest.fixture
    def specs(self, tcp_server: Server) -> list[str]:
        return ["popen//id=hop", f"{tcp_server.spec}//via=hop"]


class TestTlsViaPopen(ChannelConformance, OutputConformance, EndConformance):
    @pytest.fixture
    def specs(self, tls_server: Server) -> list[str]:
        return ["popen//id=hop", f"{tls_server.spec}//via=hop"]


class TestCmdViaUnixSocket(StartConformance, EndConformance):
    early_env = False

    @pytest.fixture
    def specs(self, unix_server: Server) -> list[str]:
        return [f"{unix_server.spec}//id=hop", "cmd=env python3//via=hop"]


def test_unknown_gateway(group: farwire.Group) -> None:
    with pytest.raises(farwire.SpecError, match="via=nobody"):
        group.makegateway("popen//via=nobody")


@pytest.mark.parametrize(
    ("spec", "error", "text"),
    [
        ("popen//python=/no/such/python", farwire.PythonNotFound, "/no/such/python"),
        ("popen//python=/bin/false", farwire.NotAPython, "exit status 1"),
        ("popen//chdir=/dev/null/x", farwire.DirectoryError, "/dev/null"),
        ("cmd=sh -c cat", farwire.NotAPython, "repeats what it is sent"),
        ("cmd=sh -c 'echo noise; echo more >&2; exit 5'", farwire.NotAPython, "exit status 5"),
        ("cmd=no-such-program", farwire.PythonNotFound, "no-such-program"),
        ("ssh=no-such-host.invalid", farwire.HostNotFound, "does not resolve"),
        ("ssh=-oProxyCommand=x", farwire.SpecError, "'-'"),
        ("socket=127.0.0.1:1", farwire.HostNotFound, "Connection refused"),
        ("socket=/no/such/socket", farwire.HostNotFound, "No such file"),
        ("socket=no-such-host.invalid:1//tls", farwire.HostNotFound, "does not resolve"),
        ("socket=192.0.2.1:1", farwire.AuthenticationError, "without TLS"),
        ("socket=example.org:1", farwire.AuthenticationError, "without TLS"),
    ],
)
def test_errors_come_through(
    group: farwire.Group,
    monkeypatch: pytest.MonkeyPatch,
    spec: str,
    error: type[farwire.FarwireError],
    text: str,
) -> None:
    monkeypatch.setenv("FARWIRE_SECRET", "a secret that nobody asks for")
    hop = group.makegateway("popen//id=hop")
    with pytest.raises(error) as caught:
        group.makegateway(f"{spec}//via=hop", timeout=10)
    assert type(caught.value) is error
    assert text in str(caught.value)
    if isinstance(caught.value, farwire.StartError):
        assert caught.value.gateway_id
        assert caught.value.command.startswith("via hop: ")
    assert list(group) == [hop]
    assert hop.remote_exec("channel.send(1)").receive(10) == 1


def test_wrong_secret(group: farwire.Group, monkeypatch: pytest.MonkeyPatch, tcp_server: Server) -> None:
    monkeypatch.setenv("FARWIRE_SECRET", "not the one of the server")
    group.makegateway("popen//id=hop")
    with pytest.raises(farwire.AuthenticationError, match="the secret is not this server's"):
        group.makegateway(f"socket={tcp_server.address}//via=hop", timeout=10)


def test_something_that_is_no_server(group: farwire.Group, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARWIRE_SECRET", "some secret, not needed")
    group.makegateway("popen//id=hop")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        spec = f"socket=127.0.0.1:{listener.getsockname()[1]}//via=hop"
        with pytest.raises(farwire.StartTimeout, match="did not answer"):
            group.makegateway(spec, timeout=0.5)
        with pytest.raises(farwire.StartTimeout):
            group.makegateway(spec + "//tls", timeout=0.5)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        spec = f"socket=127.0.0.1:{listener.getsockname()[1]}//via=hop"

        def answer() -> None:
            for _ in range(2):
                with listener.accept()[0] as connection:
                    connection.sendall(b"HTTP/1.0 400 what?\r\n")

        results = together(answer, lambda: raises(farwire.NotAPython, lambda: group.makegateway(spec, timeout=10)))
        assert "HTTP/1.0 400" in results[1]


def raises(kind: type[BaseException], function: Callable[[], object]) -> str:
    with pytest.raises(kind) as caught:
        function()
    return str(caught.value)


def test_the_gateway_on_the_way_dies(group: farwire.Group) -> None:
    hop = group.makegateway("popen//id=hop")
    gateways = [group.makegateway("popen//via=hop//id=second"), group.makegateway("popen//via=second")]
    channels = [gateway.remote_exec(HAVE_CHILDREN + "\n    channel.receive()") for gateway in gateways]
    pids = [pid for channel in channels for pid in channel.receive(10)]
    hop.remote_exec("import os; os.kill(os.getpid(), 9)")
    for channel in channels:
        with pytest.raises(farwire.GatewayLost, match="SIGKILL"):
            channel.receive(10)
    eventually(lambda: not any(map(is_running, pids)), "all processes are gone")
    for gateway in [hop, *gateways]:
        gateway.join(10)
    assert not list(group)
    with pytest.raises(farwire.SpecError, match="via=hop"):
        group.makegateway("popen//via=hop")


def test_gateways_through_others_end_first(group: farwire.Group) -> None:
    group.makegateway("popen//id=hop")
    group.makegateway("popen//via=hop//id=second")
    last = group.makegateway("popen//via=second")
    output = Collected()
    last._output = output
    last.remote_exec("import atexit; atexit.register(print, 'in peace'); channel.send(1)").receive(10)
    group.terminate()
    output.wait("stdout", b"in peace\n", 10)


def test_a_relay_holds_little(group: farwire.Group) -> None:
    """While nobody receives, the worker stops sending, and the hop in between keeps at most the windows."""
    hop = group.makegateway("popen//id=hop")
    gateway = group.makegateway(f"popen//via=hop//window={1 << 20}")
    memory = "import resource; channel.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    before = hop.remote_exec(memory).receive(10)
    other = gateway.newchannel()
    gateway.remote_exec("other = channel.receive()\nwhile True: other.send(bytes(50000))").send(other)
    eventually(lambda: gateway.status().numexecuting >= 1 and other._core.received > 1 << 19, "it has sent a lot")
    after = hop.remote_exec(memory).receive(10)
    assert after - before < 24 * 1024
    assert other._core.received <= (1 << 20) + 50_000
