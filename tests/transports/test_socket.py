"""socket: the conformance suite over TCP, a unix socket and TLS, and what is its own."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

import farwire
from farwire.testing import (
    HAVE_CHILDREN,
    ChannelConformance,
    EndConformance,
    GatewayConformance,
    OutputConformance,
    StartConformance,
    is_running,
)
from processes import eventually
from socket_server import Server


class TestTcp(GatewayConformance):
    @pytest.fixture
    def specs(self, tcp_server: Server) -> list[str]:
        return [tcp_server.spec]


class TestUnix(StartConformance, EndConformance):
    @pytest.fixture
    def specs(self, unix_server: Server) -> list[str]:
        return [unix_server.spec]


class TestTls(StartConformance, ChannelConformance, OutputConformance, EndConformance):
    @pytest.fixture
    def specs(self, tls_server: Server) -> list[str]:
        return [tls_server.spec]


# ------------------------------------------------------------------------------------------------------------- addresses


def secret(server: Server) -> str:
    return Path(server.secret_file).read_text()


@pytest.mark.parametrize("form", ["{host}:{port}", "localhost:{port}"])
def test_addresses(group: farwire.Group, tcp_server: Server, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    monkeypatch.setenv("FARWIRE_SECRET", secret(tcp_server))
    host, _, port = tcp_server.address.rpartition(":")
    gateway = group.makegateway("socket=" + form.format(host=host, port=port))
    assert gateway.remote_exec("channel.send(1)").receive(10) == 1
    assert gateway.remoteaddress.endswith(f":{port}")


def test_ipv6(group: farwire.Group, tmp_path: Path) -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("no IPv6 here")
    server = Server(tmp_path, "[::1]:0")
    try:
        assert group.makegateway(server.spec).remote_exec("channel.send(1)").receive(10) == 1
    finally:
        group.terminate()
        server.stop()


def test_the_default_directory(group: farwire.Group, tcp_server: Server) -> None:
    assert group.makegateway(tcp_server.spec).info().cwd == str(tcp_server.directory / "pyexecnet-cache")


def test_the_secret_is_not_for_the_worker(group: farwire.Group, tcp_server: Server) -> None:
    gateway = group.makegateway(tcp_server.spec)
    code = """
        import os
        channel.send(dict(os.environ))
        channel.send(os.popen("ps -eo args; ls -l /proc/self/fd").read())
    """
    channel = gateway.remote_exec(code)
    text = secret(tcp_server).strip()
    assert text not in str(channel.receive(10))
    assert text not in channel.receive(10)


# --------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("spec", "error", "text"),
    [
        ("socket=127.0.0.1:1", farwire.HostNotFound, "Connection refused"),
        ("socket=no-such-host.invalid:1", farwire.HostNotFound, "does not resolve"),
        ("socket=/no/such/socket", farwire.HostNotFound, "No such file"),
        ("socket=192.0.2.1:1", farwire.AuthenticationError, "without TLS"),
        ("socket=::1:8888", farwire.SpecError, "brackets"),
        ("socket=127.0.0.1:port", farwire.SpecError, "host:port"),
        ("socket=127.0.0.1:1//secret_file=/no/such/file", farwire.AuthenticationError, "secret"),
    ],
)
def test_cannot_connect(
    group: farwire.Group, monkeypatch: pytest.MonkeyPatch, spec: str, error: type[farwire.FarwireError], text: str
) -> None:
    monkeypatch.setenv("FARWIRE_SECRET", "a secret that nobody asks for")
    with pytest.raises(error) as caught:
        group.makegateway(spec, timeout=10)
    assert type(caught.value) is error
    assert text in str(caught.value)
    if isinstance(caught.value, farwire.StartError):
        assert caught.value.gateway_id == "gw0"
        assert str(caught.value).startswith("gateway gw0: ")
        assert caught.value.hint
    assert not list(group)


def test_no_secret(group: farwire.Group, tcp_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FARWIRE_SECRET", raising=False)
    with pytest.raises(farwire.AuthenticationError, match="FARWIRE_SECRET"):
        group.makegateway(f"socket={tcp_server.address}")


def test_wrong_secret(group: farwire.Group, tcp_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARWIRE_SECRET", "not the one of the server")
    with pytest.raises(farwire.AuthenticationError, match="the secret is not this server's"):
        group.makegateway(f"socket={tcp_server.address}")


def test_tls_where_there_is_none(group: farwire.Group, tcp_server: Server) -> None:
    with pytest.raises(farwire.StartError):
        group.makegateway(f"{tcp_server.spec}//tls", timeout=5)


def test_no_tls_where_there_is(group: farwire.Group, tls_server: Server) -> None:
    spec = f"socket={tls_server.address}//secret_file={tls_server.secret_file}"
    with pytest.raises(farwire.AuthenticationError, match="TLS"):
        group.makegateway(spec)
    assert group.makegateway(f"{spec}//tls").remote_exec("channel.send(1)").receive(10) == 1


def test_a_peer_that_says_nothing(group: farwire.Group, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARWIRE_SECRET", "some secret, not needed")
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(farwire.StartTimeout):
        group.makegateway(f"socket=127.0.0.1:{listener.getsockname()[1]}", timeout=0.3)
    assert not list(group)


def test_several_at_once(group: farwire.Group, tcp_server: Server) -> None:
    gateways = group.makegateways([f"3*{tcp_server.spec}"])
    assert len({gateway.info().pid for gateway in gateways}) == 3
    with pytest.raises(farwire.StartErrors) as caught:
        group.makegateways([tcp_server.spec, f"socket=127.0.0.1:1//secret_file={tcp_server.secret_file}"])
    assert len(caught.value.gateways) == 1
    assert [type(error) for error in caught.value.errors.values()] == [farwire.HostNotFound]


# --------------------------------------------------------------------------------------------------------- SocketGateway


def test_new_remote(group: farwire.Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FARWIRE_SECRET", raising=False)
    first = group.makegateway("popen")
    second = farwire.SocketGateway.new_remote(first, ("127.0.0.1", 0))
    assert second.group is group
    assert second.spec.via is None
    assert second.remote_exec("channel.send(1)").receive(10) == 1
    # the first one's main thread is free
    code = "import threading; channel.send(threading.current_thread() is threading.main_thread())"
    assert first.remote_exec(code).receive(10) is True


def test_new_remote_through_others(group: farwire.Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = group.makegateway("popen//id=first")
    second = group.makegateway("popen//via=first//id=second")
    third = farwire.SocketGateway.new_remote(second)
    assert third.spec.via == "second"
    assert third.remote_exec("channel.send(1)").receive(10) == 1
    assert first.hasreceiver()


def test_the_server_ends_with_its_gateway(
    group: farwire.Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first = group.makegateway("popen")
    second = farwire.SocketGateway.new_remote(first)
    pids = second.remote_exec(HAVE_CHILDREN).receive(10)
    server = first.remote_exec("channel.send(channel.gateway.servers[0].pid)").receive(10)
    assert is_running(server)
    first.exit()
    eventually(lambda: not any(map(is_running, [server, *pids])), "the server and its workers are gone")
    second.join(10)


def test_a_server_that_cannot_listen(group: farwire.Group) -> None:
    first = group.makegateway("popen")
    with pytest.raises(farwire.RemoteError, match="did not start"):
        farwire.SocketGateway.new_remote(first, ("0.0.0.0", 0))
    assert list(group) == [first]
