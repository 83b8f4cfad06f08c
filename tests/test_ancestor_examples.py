"""The examples of py.execnet's documentation (2009), with ``farwire`` in its place and today's syntax, over several transports.

What was typed at a prompt there is an assertion here; what needs other machines (wyvern, codespeak.net) runs on a private sshd.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import farwire
import servers
from socket_server import Server

Make = Callable[[], farwire.Gateway]


@pytest.fixture(params=["PopenGateway", "SshGateway", "SocketGateway", "makegateway popen", "makegateway socket"])
def make(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Opens a gateway of one of the kinds, in the ways that the documentation shows."""
    before = set(farwire.default_group)
    kind = request.param
    if kind == "SshGateway":
        sshd = request.getfixturevalue("sshd")
        yield lambda: farwire.SshGateway(sshd.host, ssh_config=sshd.ssh_config)
    elif kind == "makegateway popen":
        yield lambda: farwire.makegateway("popen")
    elif kind == "PopenGateway":
        yield lambda: farwire.PopenGateway()
    else:
        server: Server = request.getfixturevalue("tcp_server")
        monkeypatch.setenv("FARWIRE_SECRET", Path(server.secret_file).read_text())
        host, _, port = server.address.partition(":")
        if kind == "SocketGateway":
            yield lambda: farwire.SocketGateway(host, int(port))
        else:
            yield lambda: farwire.makegateway(f"socket={host}:{port}")
    for gateway in set(farwire.default_group) - before:
        gateway.exit()


@pytest.fixture
def cleanup() -> Iterator[None]:
    """Ends what the test opened in the default group."""
    before = set(farwire.default_group)
    yield
    for gateway in set(farwire.default_group) - before:
        gateway.exit()


# ------------------------------------------------------------------------- 2.2 remote_exec: execute source code remotely


def test_2_2_reading_the_pid(make: Make) -> None:
    gw = make()
    channel = gw.remote_exec("""
     import os
     channel.send(os.getpid())
    """)
    remote_pid = channel.receive()
    assert remote_pid != os.getpid()


# ----------------------------------------------------------------- 2.3 channels: bidirectionally exchange data between hosts


def test_2_3_send_and_receive(make: Make) -> None:
    channel = make().remote_exec("""
        for item in channel:
            channel.send(item)
    """)
    for item in (1, 2.5, "text", b"bytes", None, [1, (2, {"three": 4})]):
        channel.send(item)
        assert channel.receive() == item


def test_2_3_items_must_be_of_basic_types(make: Make) -> None:
    channel = make().remote_exec("channel.receive()")
    with pytest.raises(farwire.DumpError):
        channel.send(object())
    channel.send(None)
    channel.waitclose()


def test_2_3_remote_errors_are_raised_with_their_traceback(make: Make) -> None:
    channel = make().remote_exec("channel.send(1)\nraise ValueError('remote')")
    assert channel.receive() == 1
    with pytest.raises(channel.RemoteError) as caught:
        channel.receive()
    assert "Traceback" in str(caught.value)
    assert "ValueError: remote" in str(caught.value)


def test_2_3_waitclose(make: Make) -> None:
    gw = make()
    channel = gw.remote_exec("channel.send(1); channel.receive()")
    with pytest.raises(channel.TimeoutError):
        channel.waitclose(timeout=0.05)
    channel.send(None)
    channel.waitclose(timeout=10)
    assert channel.isclosed()
    assert channel.receive() == 1  # a closed channel may still hold items
    channel = gw.remote_exec("raise ValueError('remote')")
    with pytest.raises(channel.RemoteError, match="ValueError: remote"):
        channel.waitclose()


def test_2_3_close_wakes_the_remote_side(make: Make) -> None:
    gw = make()
    channel = gw.remote_exec("""
        report = channel.receive()
        try:
            channel.receive()
        except EOFError:
            report.send("woken up")
    """)
    report = gw.newchannel()
    channel.send(report)
    channel.close()
    assert report.receive() == "woken up"


# --------------------------------------------------------- 2.4 XSpec: string specification for gateway type and configuration


def test_2_4_a_gateway_from_a_string(sshd: servers.Sshd, cleanup: None) -> None:
    # gateway = py.execnet.makegateway("ssh=myhost"); myhost is in an ssh configuration of its own here
    gateway = farwire.makegateway(f"ssh={sshd.host}//ssh_config={sshd.ssh_config}")
    assert gateway.remote_exec("channel.send(1)").receive() == 1


def test_2_4_an_ssh_host_with_python_and_directory(sshd: servers.Sshd, cleanup: None) -> None:
    # ssh=wyvern//python=python2.4//chdir=mycache
    sshd.run("rm -rf mycache")
    gateway = farwire.makegateway(f"ssh={sshd.host}//ssh_config={sshd.ssh_config}//python=python3//chdir=mycache")
    info = gateway._rinfo()
    assert info.cwd == f"{sshd.home}/mycache"
    assert os.path.basename(info.executable).startswith("python3")


def test_2_4_a_subprocess_with_a_version_and_low_priority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cleanup: None
) -> None:
    # popen//python=2.5//nice=20
    version = "%d.%d" % sys.version_info[:2]
    (tmp_path / f"python{version}").symlink_to(sys.executable)  # not every Python that runs tests is in the PATH
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    before = os.nice(0)
    gateway = farwire.makegateway(f"popen//python={version}//nice=20")
    channel = gateway.remote_exec("import os, sys; channel.send((os.nice(0), sys.version_info[:2], os.getcwd()))")
    nice, found, cwd = channel.receive()
    assert nice == min(19, before + 20)
    assert found == sys.version_info[:2]
    assert cwd == os.getcwd()


def test_2_4_a_socket_server(tcp_server: Server, monkeypatch: pytest.MonkeyPatch, cleanup: None) -> None:
    # socket=192.168.1.4:8888
    monkeypatch.setenv("FARWIRE_SECRET", Path(tcp_server.secret_file).read_text())
    gateway = farwire.makegateway(f"socket={tcp_server.address}")
    assert gateway._rinfo().cwd == str(tcp_server.directory / "pyexecnet-cache")


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("popen", {"popen": True}),
        ("ssh=wyvern//python=python2.4//chdir=mycache", {"ssh": "wyvern", "python": "python2.4", "chdir": "mycache"}),
        ("popen//python=2.5//nice=20", {"popen": True, "python": "2.5", "nice": 20}),
        ("socket=192.168.1.4:8888", {"socket": "192.168.1.4:8888"}),
    ],
)
def test_2_4_the_format(text: str, keys: dict[str, object]) -> None:
    spec = farwire.XSpec(text)
    for name in ("popen", "ssh", "socket", "python", "chdir", "nice"):
        assert getattr(spec, name) == keys.get(name)


# ------------------------------------------------------------------------------------------------------------ 2.5 examples


def test_2_5_1_compare_cwd_of_popen_gateways() -> None:
    gw = farwire.PopenGateway()
    ch = gw.remote_exec("import os; channel.send(os.getcwd())")
    res = ch.receive()
    assert res == os.getcwd()
    gw.exit()


def test_2_5_2_synchronously_receive_results_from_two(make: Make) -> None:
    ch1 = make().remote_exec("channel.send(1)")
    ch2 = make().remote_exec("channel.send(2)")
    mch = farwire.MultiChannel([ch1, ch2])
    results = mch.receive_each()
    assert len(results) == 2
    assert 1 in results
    assert 2 in results


def test_2_5_3_asynchronously_receive_results_from_two(make: Make) -> None:
    ch1 = make().remote_exec("channel.send(1)")
    ch2 = make().remote_exec("channel.send(2)")
    mch = farwire.MultiChannel([ch1, ch2])
    queue = mch.make_receive_queue()
    chan1, res1 = queue.get()  # you may also specify a timeout
    chan2, res2 = queue.get()
    assert res1 + res2 == 3
    assert chan1 in {ch1, ch2}
    assert chan2 in {ch1, ch2}
    assert chan1 != chan2


def test_2_5_4_receive_file_contents(make: Make) -> None:
    somefilelist = ["/etc/passwd", "/bin/sh", "/usr/bin/env"]
    gw = make()
    channel = gw.remote_exec("""
     for fn in channel:
         f = open(fn, 'rb')
         channel.send(f.read())
         f.close()
    """)
    for fn in somefilelist:
        channel.send(fn)
        content = channel.receive()
        assert content == Path(fn).read_bytes()
    gw.exit()


def test_2_5_5_instantiate_a_socket_server_in_a_new_subprocess(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cleanup: None, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # the server's workers make pyexecnet-cache in it
    popengw = farwire.PopenGateway()
    socketgw = farwire.SocketGateway.new_remote(popengw, ("127.0.0.1", 0))
    print(socketgw._rinfo())  # print some info about the remote environment
    assert "executable=" in capsys.readouterr().out
    assert socketgw._rinfo().cwd == str(tmp_path / "pyexecnet-cache")
    assert socketgw._rinfo().pid not in {popengw._rinfo().pid, os.getpid()}


def test_2_5_5_on_another_host(sshd: servers.Sshd, cleanup: None) -> None:
    """Its server listens on that host's loopback only; the gateway goes through the first."""
    sshgw = farwire.SshGateway(sshd.host, ssh_config=sshd.ssh_config)
    socketgw = farwire.SocketGateway.new_remote(sshgw, ("127.0.0.1", 0))
    assert socketgw.spec.via == sshgw.id
    assert socketgw.remote_exec("import getpass; channel.send(getpass.getuser())").receive() == sshd.user
    assert socketgw._rinfo().cwd == f"{sshd.home}/pyexecnet-cache/pyexecnet-cache"
