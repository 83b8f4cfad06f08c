"""The socket service and its client: real servers, sockets and processes."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import random
import re
import signal
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import servers
from conftest import Leaks, wait_for
from farwire import errors, serve
from farwire.transports import handshake
from farwire.transports.handshake import StartRequest, Tls, connect

SCRIPT = Path(serve.__file__)
SOURCE = SCRIPT.parents[1]
SECRET = b"a secret that is used in tests only"
TIMEOUT = 20.0

ECHO = "import os\nwhile True:\n data = os.read(0, 65536)\n if not data: break\n os.write(1, data)"
LONG = "import os; os.write(1, b'%d\\n' % os.getpid()); os.read(0, 1)"


class RunningServer:
    """A server in a process of its own.

    Attributes:
        process: its process.
        addresses: where it listens.
    """

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log
        self.addresses: list[str] = []

    @property
    def address(self) -> str:
        return self.addresses[0]

    @property
    def port(self) -> int:
        return serve.parse_address(self.address).port

    @property
    def log(self) -> str:
        return self._log.read_text()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(TIMEOUT)


StartServer = Callable[..., RunningServer]


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[StartServer]:
    """Starts servers; each ends with SIGTERM, exit status 0, and nothing left of it."""
    running: list[RunningServer] = []

    def start(
        *options: str,
        address: str | None = "127.0.0.1:0",
        python: str = sys.executable,
        secret: bytes = SECRET,
        prefix: tuple[str, ...] = (),
        script: Path = SCRIPT,
        sockets: int = 1,
        fails: bool = False,
        **popen: object,
    ) -> RunningServer:
        folder = tmp_path / f"server{len(running)}"
        folder.mkdir()
        log = folder / "log"
        command = [*prefix, python, str(script), "--failure-delay=0.01", "--directory", str(folder), *options]
        env = dict(os.environ, FARWIRE_SECRET=os.fsdecode(secret))
        with log.open("wb") as stderr:
            process = subprocess.Popen(  # type: ignore[call-overload]
                command + ([address] if address else []), env=env, stdout=subprocess.PIPE, stderr=stderr, **popen
            )
        server = RunningServer(process, log)
        running.append(server)
        for _ in range(0 if fails else sockets):
            line = process.stdout.readline().decode()
            assert line.startswith("listening on "), f"{line!r}, {server.log}"
            server.addresses.append(line.removeprefix("listening on ").rstrip("\n"))
        return server

    yield start
    wrong = []
    for server in running:
        process = server.process
        if process.poll() is None and (status := server.stop()) != 0:
            wrong.append((status, server.log))
        process.stdout.close()  # type: ignore[union-attr]
        if process.stdin is not None:
            process.stdin.close()
        if "defect" in server.log:
            wrong.append((0, server.log))
    assert not wrong


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with self-signed certificates: server.pem and other.pem, with keys in server.key and other.key."""
    folder = tmp_path_factory.mktemp("certificates")
    for name in ("server", "other"):
        command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=farwire"
        files = ["-keyout", str(folder / f"{name}.key"), "-out", str(folder / f"{name}.pem")]
        names = ["-addext", "subjectAltName=DNS:farwire.test,IP:127.0.0.1"]
        try:
            subprocess.run([*command.split(), *files, *names], check=True, capture_output=True)
        except FileNotFoundError:
            pytest.skip("no openssl here")
    return folder


@pytest.fixture
def tls_options(certificates: Path) -> list[str]:
    return ["--tls-cert", str(certificates / "server.pem"), "--tls-key", str(certificates / "server.key")]


@contextlib.contextmanager
def worker(
    address: str, stage0: str = ECHO, *, secret: bytes = SECRET, tls: Tls | None = None, **request: object
) -> Iterator[handshake.Session]:
    """A session, closed at the end."""
    session = connect(address, secret, StartRequest(stage0, **request), TIMEOUT, tls)  # type: ignore[arg-type]
    session.link_socket.settimeout(TIMEOUT)
    session.stderr_socket.settimeout(TIMEOUT)
    try:
        yield session
    finally:
        session.close()


def read_all(sock: socket.socket) -> bytes:
    """Everything until the end of the stream; a reset ends it too."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while chunk := sock.recv(65536):
            data += chunk
    return data


def echo(session: handshake.Session, data: bytes) -> bytes:
    session.link_socket.sendall(data)
    return serve.read_exactly(serve.SocketStream(session.link_socket, time.monotonic() + TIMEOUT), len(data))


def run(address: str, program: str, *, tls: Tls | None = None, **request: object) -> str:
    """What a program writes to the link until it ends."""
    with worker(address, program, tls=tls, **request) as session:
        return read_all(session.link_socket).decode()


def raw_client(server: RunningServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), TIMEOUT)


@contextlib.contextmanager
def fake_server(*answers: Callable[[socket.socket], object]) -> Iterator[str]:
    """A listener that treats its first connections so, in threads; yields its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(TIMEOUT)

        def treat(answer: Callable[[socket.socket], object]) -> None:
            connection, _peer = listener.accept()
            with connection:
                connection.settimeout(TIMEOUT)
                answer(connection)

        with concurrent.futures.ThreadPoolExecutor() as pool:
            pending = [pool.submit(treat, answer) for answer in answers]
            yield f"127.0.0.1:{listener.getsockname()[1]}"
            for future in pending:
                future.result(TIMEOUT)


# --------------------------------------------------------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    ("text", "host", "port", "path", "shown"),
    [
        ("localhost", "localhost", 8888, "", "localhost:8888"),
        ("10.0.0.5:99", "10.0.0.5", 99, "", "10.0.0.5:99"),
        ("[::1]:7", "::1", 7, "", "[::1]:7"),
        ("[fe80::1%eth0]", "fe80::1%eth0", 8888, "", "[fe80::1%eth0]:8888"),
        ("/run/a.sock", "", 0, "/run/a.sock", "unix:/run/a.sock"),
        ("unix:a.sock", "", 0, "a.sock", "unix:a.sock"),
        ("./a", "", 0, "./a", "unix:./a"),
    ],
)
def test_addresses(text: str, host: str, port: int, path: str, shown: str) -> None:
    address = handshake.parse_address(text)
    assert (address.host, address.port, address.path) == (host, port, path)
    assert str(address) == shown


@pytest.mark.parametrize(
    "text", ["", ":8888", "::1", "::1:8888", "host:", "host:x", "host:65536", "unix:", "[::1]8888"]
)
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(errors.SpecError, match=re.escape(repr(text))):
        handshake.parse_address(text)


def test_ipv6_hint() -> None:
    with pytest.raises(errors.SpecError, match=r"\[::1\]:8888"):
        handshake.parse_address("::1:8888")


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.1.1.1", False),
        ("fe80::1%eth0", False),
        ("::ffff:8.8.8.8", False),
    ],
)
def test_loopback(host: str, loopback: bool) -> None:
    assert serve.is_loopback(host) is loopback


# ------------------------------------------------------------------------------------------------------------------ secret


def test_secret_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARWIRE_SECRET", "from the environment")
    file = tmp_path / "secret"
    file.write_text("  from the file\n")
    file.chmod(0o600)
    assert handshake.find_secret(str(file)) == b"from the file"
    assert handshake.find_secret(None) == b"from the environment"


def test_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FARWIRE_SECRET", raising=False)
    with pytest.raises(errors.AuthenticationError, match=r"secret_file(.|\n)*FARWIRE_SECRET"):
        handshake.find_secret(None)
    monkeypatch.setenv("FARWIRE_SECRET", " ")
    with pytest.raises(errors.AuthenticationError, match="empty"):
        handshake.find_secret(None)
    with pytest.raises(errors.AuthenticationError, match="No such file"):
        handshake.find_secret(str(tmp_path / "missing"))
    file = tmp_path / "secret"
    file.touch(0o600)
    with pytest.raises(errors.AuthenticationError, match="is empty"):
        handshake.find_secret(str(file))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_secret_that_others_can_read(tmp_path: Path, mode: int, start_server: StartServer) -> None:
    file = tmp_path / "secret"
    file.write_text("s" * 32)
    file.chmod(mode)
    with pytest.raises(errors.AuthenticationError, match="run: chmod 600"):
        handshake.find_secret(str(file))
    server = start_server("--secret-file", str(file), fails=True)
    assert server.process.wait(TIMEOUT) == 1
    assert f"run: chmod 600 {file}" in server.log


def test_server_without_secret(start_server: StartServer) -> None:
    server = start_server(secret=b"", fails=True)
    assert server.process.wait(TIMEOUT) == 1
    assert "FARWIRE_SECRET is empty" in server.log


def test_short_secret_is_warned_of(start_server: StartServer) -> None:
    server = start_server(secret=b"short")
    with worker(server.address, secret=b"short") as session:
        assert echo(session, b"hello") == b"hello"
    assert "warning" in server.log


def test_proofs_do_not_change() -> None:
    """What version 1 of the handshake computes; a different result would be a different version."""
    proofs = serve.Proofs(b"key", "link", "5" * 32, "a" * 64, "b" * 64, "-")
    assert proofs.proof("client") == "98e95ae6c7d73b2dbd9e6354106b4050a4126a32eb03ca835724846558a13799"
    assert proofs.proof("server") == "84e44a8e22a9d75a645b214d54964fb81e291f37d7bc64a2178cc89e4a7e8ea4"
    assert proofs.start_mac(b"{}") == "3ad85658901e7a717e84eb65358fb604ff725eeb1a71c290689294e8fbc22d4c"
    everything = ["link", "5" * 32, "a" * 64, "b" * 64, "-"]
    seen = {proofs.proof("client"), proofs.proof("server"), serve.Proofs(b"kez", *everything).proof("client")}
    for position, other in enumerate(["stderr", "6" * 32, "c" * 64, "c" * 64, serve.certificate_binding(b"x")]):
        changed = [*everything[:position], other, *everything[position + 1 :]]
        seen.add(serve.Proofs(b"key", *changed).proof("client"))
    assert len(seen) == 8, "every part must count"


# ------------------------------------------------------------------------------------------------------------------ workers


def test_link_and_stderr(start_server: StartServer) -> None:
    server = start_server()
    program = "import os; os.write(2, b'words'); os.write(1, os.read(0, 9)); os.write(2, b' last words'); os.abort()"
    with worker(server.address, program) as session:
        assert serve.parse_address(session.server) == serve.parse_address(server.address)
        session.link_socket.sendall(b"123456789")
        assert read_all(session.link_socket) == b"123456789"
        assert read_all(session.stderr_socket).startswith(b"words last words")
    wait_for(lambda: f"pid {session.worker_pid} ended, signal {int(signal.SIGABRT)}" in server.log, "the end is logged")


def test_what_a_worker_finds(start_server: StartServer) -> None:
    server = start_server()
    program = """
import fcntl, json, os, sys
fds = []
for fd in range(100):
    try:
        os.fstat(fd)
    except OSError:
        continue
    fds.append(fd)
print(json.dumps({
    "pid": os.getpid(), "pgid": os.getpgrp(), "sid": os.getsid(0), "cwd": os.getcwd(), "nice": os.nice(0), "fds": fds,
    "env": dict(os.environ), "executable": sys.executable, "dev": sys.flags.dev_mode,
    "nonblocking": [bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK) for fd in fds],
}))
"""
    env = {"FARWIRE_TEST": "grüße \udcff=//", "HOME": None}
    request = {"nice": 3, "env": env, "flags": ["-X", "dev"]}
    with worker(server.address, program, **request) as session:
        found = json.loads(read_all(session.link_socket))
        assert found["pid"] == found["pgid"] == found["sid"] == session.worker_pid
    assert found["cwd"] == str(server._log.parent / "pyexecnet-cache")
    assert found["nice"] == os.nice(0) + 3
    assert found["fds"] == [0, 1, 2]
    assert not any(found["nonblocking"])
    assert found["env"]["FARWIRE_TEST"] == env["FARWIRE_TEST"]
    assert "HOME" not in found["env"]
    assert "FARWIRE_SECRET" not in found["env"]
    assert Path(found["executable"]).samefile(sys.executable)
    assert found["dev"]


def test_working_directory(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server()
    program = "import os; print(os.getcwd())"
    assert run(server.address, program, chdir="a/b").strip() == str(server._log.parent / "a" / "b")
    assert run(server.address, program, chdir=str(tmp_path)).strip() == str(tmp_path)
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(errors.DirectoryError, match=re.escape(str(file))):
        run(server.address, program, chdir=str(file))


def test_signals_are_as_a_program_expects(start_server: StartServer) -> None:
    server = start_server()
    status = run(server.address, "unused", python=["sh", "-c", "cat /proc/self/status"])
    ignored = int(re.search(r"SigIgn:\s*(\w+)", status)[1], 16)  # type: ignore[index]
    blocked = int(re.search(r"SigBlk:\s*(\w+)", status)[1], 16)  # type: ignore[index]
    for signum in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        assert not (ignored | blocked) & (1 << (signum - 1)), signum


def test_other_interpreters(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server()
    name = tmp_path / "mypython"
    name.symlink_to(sys.executable)
    program = "import sys; print(sys.argv, end='')"
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    assert run(server.address, program, python="mypython", env=env) == "['-c']"
    assert run(server.address, program, python=str(name)) == "['-c']"
    assert run(server.address, program, python=["env", "python3"]) == "['-c']"
    for python in ("python9", "/missing/python", str(SCRIPT)):
        with pytest.raises(errors.PythonNotFound, match=re.escape(python)):
            run(server.address, program, python=python)


def test_an_interpreter_that_cannot_be_executed(start_server: StartServer, tmp_path: Path) -> None:
    """That is known only after ``ok``; then stderr tells."""
    server = start_server()
    python = tmp_path / "python"
    python.write_text("#!/missing/interpreter\n")
    python.chmod(0o755)
    with worker(server.address, python=str(python)) as session:
        assert read_all(session.link_socket) == b""
        told = read_all(session.stderr_socket).decode()
    assert told.startswith(f"farwire-serve: error python-not-found cannot execute {python}")


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"env": {"A=B": "c"}}, "env"),
        ({"env": {"A": "b\0"}}, "NUL"),
        ({"nice": "x"}, "nice"),
        ({"flags": "x"}, "flags"),
        ({"stage0": ""}, "stage0"),
        ({"chdir": ["x"]}, "chdir"),
    ],
)
def test_requests_that_are_wrong(start_server: StartServer, request_: dict[str, object], message: str) -> None:
    with pytest.raises(serve.Refused, match=message):
        serve.StartRequest(json.dumps({"stage0": "pass", **request_}).encode())


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"stage0": "x", "more": 1}', b'{"stage0": "\xff"}'])
def test_requests_that_are_none(body: bytes) -> None:
    with pytest.raises(serve.Refused):
        serve.StartRequest(body)


def test_concurrent_clients(start_server: StartServer) -> None:
    server = start_server()
    count = 12
    together = threading.Barrier(count)

    def client(number: int) -> int:
        with worker(server.address) as session:
            together.wait(TIMEOUT)  # all are connected
            data = b"%d" % number * 10000
            assert echo(session, data) == data
            return session.worker_pid

    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        pids = list(pool.map(client, range(count)))
    assert len(set(pids)) == count
    wait_for(lambda: not servers.children(server.process.pid), "no children, not even dead ones")


def test_a_stopped_client_holds_up_nobody(start_server: StartServer) -> None:
    server = start_server()
    with raw_client(server), raw_client(server) as silent:
        silent.sendall(b"farwire-client 1\nauth li")
        with worker(server.address) as session:
            assert echo(session, b"hello") == b"hello"


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "tls"])
def test_nothing_is_left(start_server: StartServer, tls_options: list[str], encrypted: bool) -> None:
    """Neither here nor at the server, after the first use of everything."""
    server = start_server(*(tls_options if encrypted else []))

    def use() -> int:
        with worker(server.address, LONG, tls=Tls() if encrypted else None) as session:
            assert session.link_socket.recv(100)
        wait_for(lambda: not servers.children(server.process.pid), "no children")
        return len(os.listdir(f"/proc/{server.process.pid}/fd"))

    first = use()
    here = Leaks()
    assert [use() for _ in range(3)] == [first] * 3
    here.check()


def test_over_any_byte_stream(start_server: StartServer) -> None:
    """The handshake runs over whatever can read and write, and takes no byte too many."""
    server = start_server()

    class Relayed:
        def __init__(self, sock: socket.socket) -> None:
            self.sock = sock

        def read(self, size: int) -> bytes:
            return self.sock.recv(size)

        def write(self, data: bytes) -> None:
            for position in range(len(data)):
                self.sock.sendall(data[position : position + 1])

    with raw_client(server) as link, raw_client(server) as stderr:
        program = "import os; os.write(1, b'at once'); os.write(2, b'this too')"
        pid = handshake.client_handshake(Relayed(link), Relayed(stderr), SECRET, StartRequest(program))
        assert pid > 0
        assert read_all(link) == b"at once"
        assert read_all(stderr) == b"this too"


# ---------------------------------------------------------------------------------------------------------------- transports


def test_unix_socket(start_server: StartServer, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    server = start_server(address=str(path))
    assert server.address == f"unix:{path}"
    mode = path.lstat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600
    with worker(server.address) as session:
        assert echo(session, b"hello") == b"hello"
    second = start_server(address=str(path), fails=True)
    assert second.process.wait(TIMEOUT) == 1
    assert "another server listens" in second.log
    assert server.stop() == 0
    assert not path.exists()


def test_unix_socket_paths_in_use(start_server: StartServer, tmp_path: Path) -> None:
    stale = tmp_path / "stale"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(stale))
    server = start_server(address=str(stale))
    with worker(server.address) as session:
        assert echo(session, b"hello") == b"hello"
    file = tmp_path / "file"
    file.write_text("precious")
    refused = start_server(address=str(file), fails=True)
    assert refused.process.wait(TIMEOUT) == 1
    assert "is not a socket" in refused.log
    assert file.read_text() == "precious"


def test_a_server_leaves_the_socket_of_its_successor(start_server: StartServer, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    server = start_server(address=str(path))
    path.unlink()
    successor = start_server(address=str(path))
    assert server.stop() == 0
    with worker(successor.address) as session:
        assert echo(session, b"hello") == b"hello"


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")
def test_ipv6(start_server: StartServer) -> None:
    server = start_server(address="[::1]:0")
    assert re.fullmatch(r"\[::1\]:[0-9]+", server.address)
    with worker(server.address) as session:
        assert echo(session, b"hello") == b"hello"


def test_a_name_with_several_addresses(start_server: StartServer) -> None:
    found = {info[4][0] for info in socket.getaddrinfo("localhost", 0, 0, socket.SOCK_STREAM)}
    server = start_server(address="localhost:0", sockets=len(found))
    assert len({serve.parse_address(address).port for address in server.addresses}) == 1
    for address in [*server.addresses, f"localhost:{server.port}"]:
        with worker(address) as session:
            assert echo(session, b"hello") == b"hello"


def test_a_client_tries_all_addresses(start_server: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server = start_server()
    with socket.create_server(("127.0.0.1", 0)) as closed:
        nobody = closed.getsockname()
    answers = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", where) for where in (nobody, ("127.0.0.1", server.port))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args: answers)
    with worker("two-addresses:1") as session:
        assert echo(session, b"hello") == b"hello"


ACTIVATE = """
import os, sys
os.environ["LISTEN_PID"] = str(os.getpid())
os.environ["LISTEN_FDS"] = sys.argv[1]
os.execv(sys.argv[2], sys.argv[2:])
"""


@pytest.mark.parametrize("version", ["3.6", "this"])
def test_socket_activation(start_server: StartServer, tmp_path: Path, version: str) -> None:
    python = sys.executable if version == "this" else servers.interpreters().get(version)
    if python is None:
        pytest.skip(f"no Python {version} here")
    with contextlib.ExitStack() as stack:
        path = tmp_path / "socket"
        unix = stack.enter_context(socket.socket(socket.AF_UNIX))
        unix.bind(str(path))
        tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        unix.listen()
        sockets = [unix, tcp]
        if has_ipv6():
            sockets.append(stack.enter_context(socket.create_server(("::1", 0), family=socket.AF_INET6)))

        def pass_sockets() -> None:
            for position, fd in enumerate([os.dup(sock.fileno()) for sock in sockets]):
                os.dup2(fd, 3 + position)

        server = start_server(
            address=None,
            python=str(python),
            prefix=(sys.executable, "-c", ACTIVATE, str(len(sockets))),
            sockets=len(sockets),
            close_fds=False,
            preexec_fn=pass_sockets,
        )
    assert server.addresses[0] == f"unix:{path}"
    for address in server.addresses:
        with worker(address, "import os; print('LISTEN_FDS' in os.environ, end='')") as session:
            assert read_all(session.link_socket) == b"False"


def test_socket_activation_without_listening(start_server: StartServer) -> None:
    left, right = socket.socketpair()
    with left, right:

        def pass_socket() -> None:
            os.dup2(left.fileno(), 3)

        prefix = (sys.executable, "-c", ACTIVATE, "1")
        server = start_server(address=None, prefix=prefix, close_fds=False, preexec_fn=pass_socket, fails=True)
        assert server.process.wait(TIMEOUT) == 1
    assert "Accept=no" in server.log


# ---------------------------------------------------------------------------------------------------------- authentication


def test_wrong_secret(start_server: StartServer) -> None:
    server = start_server()
    with pytest.raises(errors.AuthenticationError, match="the secret is not this server's"):
        connect(server.address, b"another secret, used by somebody else", StartRequest(ECHO), TIMEOUT)
    assert re.search(r"127\.0\.0\.1:[0-9]+: refused: authentication", server.log)


def hello(connection: socket.socket) -> str:
    """A fake server's first steps; returns the client's proof."""
    stream = serve.SocketStream(connection, time.monotonic() + TIMEOUT)
    assert serve.read_line(stream) == serve.CLIENT_OPENING
    connection.sendall(f"{serve.PROTOCOL} {serve.new_nonce()}\n".encode())
    return serve.read_line(stream).split()[-1]


@pytest.mark.parametrize("answer", ["nonsense", "reflection"])
def test_a_server_that_does_not_know_the_secret(answer: str) -> None:
    received: list[bytes] = []

    def pretend(connection: socket.socket) -> None:
        proof = hello(connection)
        connection.sendall(f"welcome {'0' * 64 if answer == 'nonsense' else proof}\n".encode())
        received.append(read_all(connection))

    request = StartRequest(ECHO, env={"TOKEN": "confidential"})
    with (
        fake_server(pretend, pretend) as address,
        pytest.raises(errors.AuthenticationError, match="could not prove"),
    ):
        connect(address, SECRET, request, TIMEOUT)
    assert received == [b"", b""], "nothing may be sent to a server that proved nothing"


def test_a_man_in_the_middle(start_server: StartServer, certificates: Path, tls_options: list[str]) -> None:
    """He has a certificate of his own and passes everything on: neither side takes the other's proof."""
    server = start_server(*tls_options)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "other.pem", certificates / "other.key")
    towards_server = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    towards_server.check_hostname = False
    towards_server.verify_mode = ssl.CERT_NONE

    def relay(connection: socket.socket) -> None:
        deadline = time.monotonic() + TIMEOUT
        client = serve.TlsStream(connection, deadline, context, server_side=True)
        client.handshake()
        with raw_client(server) as onwards:
            real = serve.TlsStream(onwards, deadline, towards_server)
            real.handshake()
            for source, target in ((client, real), (real, client), (client, real), (real, client)):
                target.write(serve.read_line(source).encode() + b"\n")

    with (
        fake_server(relay, relay) as address,
        pytest.raises(errors.AuthenticationError, match="does not end at this server's certificate"),
    ):
        connect(address, SECRET, StartRequest(ECHO), TIMEOUT, Tls())
    assert "refused: authentication" in server.log


def authenticated(server: RunningServer, purpose: str, session: str) -> tuple[serve.SocketStream, serve.Proofs]:
    """A connection up to the server's welcome."""
    stream = serve.SocketStream(raw_client(server), time.monotonic() + TIMEOUT)
    stream.write(f"{serve.CLIENT_OPENING}\n".encode())
    server_nonce = serve.read_line(stream).split()[-1]
    nonce = serve.new_nonce()
    proofs = serve.Proofs(SECRET, purpose, session, server_nonce, nonce, "-")
    stream.write(f"auth {purpose} {session} {nonce} {proofs.proof('client')}\n".encode())
    return stream, proofs


def test_a_changed_request(start_server: StartServer) -> None:
    server = start_server()
    stream, proofs = authenticated(server, "link", "0" * 32)
    with stream.sock:
        assert serve.read_line(stream) == f"welcome {proofs.proof('server')}"
        body = StartRequest(ECHO).encode()
        stream.write(f"start {len(body)} {proofs.start_mac(body)}\n".encode() + body.replace(b"os", b"so"))
        assert serve.read_line(stream) == "error authentication the start request was changed on its way"


def test_a_proof_is_for_one_purpose(start_server: StartServer) -> None:
    server = start_server()
    stream = serve.SocketStream(raw_client(server), time.monotonic() + TIMEOUT)
    with stream.sock:
        stream.write(f"{serve.CLIENT_OPENING}\n".encode())
        server_nonce = serve.read_line(stream).split()[-1]
        proofs = serve.Proofs(SECRET, "stderr", "0" * 32, server_nonce, "1" * 64, "-")
        stream.write(f"auth link {'0' * 32} {'1' * 64} {proofs.proof('client')}\n".encode())
        assert serve.read_line(stream).startswith("error authentication")


def test_a_link_without_stderr(start_server: StartServer) -> None:
    server = start_server("--handshake-timeout=0.5")
    stream, proofs = authenticated(server, "link", "0" * 32)
    with stream.sock:
        assert serve.read_line(stream).startswith("welcome")
        body = StartRequest(ECHO).encode()
        stream.write(f"start {len(body)} {proofs.start_mac(body)}\n".encode() + body)
        assert "no second connection" in serve.read_line(stream)


def test_stderr_without_a_link(start_server: StartServer) -> None:
    server = start_server("--handshake-timeout=0.5")
    stream, _proofs = authenticated(server, "stderr", "0" * 32)
    with stream.sock:
        assert serve.read_line(stream).startswith("welcome")
        assert stream.read(1) == b"", "the server forgets it"


@pytest.mark.parametrize("purpose", ["link", "stderr"])
def test_a_session_used_twice(start_server: StartServer, purpose: str) -> None:
    server = start_server()
    first, _proofs = authenticated(server, purpose, "0" * 32)
    assert serve.read_line(first).startswith("welcome")
    second, _proofs = authenticated(server, purpose, "0" * 32)
    with first.sock, second.sock:
        wait_for(lambda: "session used twice" in server.log, "the second is refused")


# ---------------------------------------------------------------------------------------------------------- hostile clients


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        b"x" * 5000,
        b"\n",
        b"farwire-client 2\n",
        b"farwire-client 1\nauth link x y z\n",
        b"farwire-client 1\nauth shell " + b"0" * 32 + b" " + b"0" * 64 + b" " + b"0" * 64 + b"\n",
        b"farwire-client 1\n\x1b]0;title\x07\n",
    ],
)
def test_garbage(start_server: StartServer, garbage: bytes) -> None:
    server = start_server()
    with raw_client(server) as client:
        client.sendall(garbage)
        assert b"\nerror protocol " in read_all(client)
    assert "refused: protocol" in server.log
    assert re.fullmatch(r"[ -~\n]*", server.log), "a client must not write control characters into the log"
    with worker(server.address) as session:
        assert echo(session, b"hello") == b"hello"


class Canned:
    """A byte stream that answers with given bytes."""

    def __init__(self, answers: bytes) -> None:
        self._answers = answers
        self.written = b""

    def read(self, size: int) -> bytes:
        data, self._answers = self._answers[:size], self._answers[size:]
        return data

    def write(self, data: bytes) -> None:
        self.written += data


def random_lines(seed: int) -> bytes:
    """Bytes that begin like a side of the handshake, more or less."""
    chance = random.Random(seed)
    words = [
        b"farwire-serve",
        b"farwire-client",
        b"1",
        b"auth",
        b"welcome",
        b"start",
        b"ok",
        b"error",
        b"link",
        b"stderr",
    ]
    words += [b"0" * 32, b"a" * 64, b"\xff", b"", b"12", b"timeout", b"9" * 1000, b"python-not-found", b"\r", b"\x16"]
    data = b"".join(chance.choice(words) + chance.choice([b" ", b" ", b"\n"]) for _ in range(chance.randrange(12)))
    opening = chance.choice([b"", b"farwire-client 1\n", b"farwire-serve 1 " + b"a" * 64 + b"\n"])
    return opening + data + chance.choice([b"", b"\n"])


def test_whatever_a_client_sends() -> None:
    """The server refuses it or sees the end, nothing else; and tells no proof to who gave none."""
    for seed in range(1000):
        stream = Canned(random_lines(seed))
        with pytest.raises((serve.Refused, EOFError)):
            serve.admit(stream, SECRET, "-")  # type: ignore[arg-type]
        assert re.fullmatch(rb"farwire-serve 1 [0-9a-f]{64}\n", stream.written)


def test_whatever_a_server_sends() -> None:
    """The client raises a StartError, nothing else; and sends no request to who proved nothing."""
    for seed in range(1000):
        link, stderr = Canned(random_lines(seed)), Canned(random_lines(seed + 100000))
        with pytest.raises(errors.StartError):
            handshake.client_handshake(link, stderr, SECRET, StartRequest("confidential"))
        assert b"confidential" not in link.written + stderr.written


def test_a_request_that_is_too_large(start_server: StartServer) -> None:
    server = start_server()
    stream, _proofs = authenticated(server, "link", "0" * 32)
    with stream.sock:
        assert serve.read_line(stream).startswith("welcome")
        stream.write(f"start 99999999 {'0' * 64}\n".encode())
        assert "at most" in serve.read_line(stream)


@pytest.mark.parametrize("sent", [b"", b"farwire-client 1", b"farwire-client 1\nauth link "])
def test_a_client_that_takes_its_time(start_server: StartServer, sent: bytes) -> None:
    server = start_server("--handshake-timeout=0.3")
    with raw_client(server) as client:
        client.sendall(sent)
        assert b"\nerror timeout " in read_all(client)
    wait_for(lambda: not servers.children(server.process.pid), "its process has ended")


def test_a_client_that_sends_byte_by_byte(start_server: StartServer) -> None:
    """The deadline is for the whole handshake, not for each read."""
    server = start_server("--handshake-timeout=0.5")
    with raw_client(server) as client:
        client.settimeout(0.05)
        received = b""
        started = time.monotonic()
        for byte in b"farwire-client 1\nauth link " + b"0" * 1000:
            try:
                client.sendall(bytes([byte]))
                received += client.recv(4096)
            except TimeoutError:
                continue  # nothing to read; the pause between two bytes
            except ConnectionError:
                break
            if b"error timeout" in received:
                break
        assert time.monotonic() - started < 5


def test_a_silent_client_over_tls(start_server: StartServer, tls_options: list[str]) -> None:
    server = start_server(*tls_options, "--handshake-timeout=0.3")
    with raw_client(server) as client:
        assert b"error timeout" in read_all(client)


def test_too_many_unauthenticated_connections(start_server: StartServer) -> None:
    server = start_server("--max-pending=2", "--handshake-timeout=60")
    with raw_client(server) as first, raw_client(server) as second, raw_client(server) as third:
        assert first.recv(100).startswith(b"farwire-serve")
        assert first.recv(100) == b"", "the oldest makes room for others"
        assert third.recv(100).startswith(b"farwire-serve")
        assert second.recv(100).startswith(b"farwire-serve")
        with worker(server.address) as session:
            assert echo(session, b"hello") == b"hello"
    assert "too many unauthenticated connections" in server.log


def test_more_gateways_than_places(start_server: StartServer) -> None:
    """Those who wait for a place are served in turn, and who is authenticated takes none."""
    server = start_server("--max-pending=2")
    with contextlib.ExitStack() as stack:
        sessions = [stack.enter_context(worker(server.address)) for _ in range(4)]
        with concurrent.futures.ThreadPoolExecutor() as pool:
            more = list(pool.map(lambda _: stack.enter_context(worker(server.address)), range(6)))
        for session in sessions + more:
            assert echo(session, b"hello") == b"hello"


# --------------------------------------------------------------------------------------------------------- wrong addresses


def test_nobody_listens(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    with pytest.raises(errors.HostNotFound, match=f"{address}(.|\n)*is the server running"):
        connect(address, SECRET, StartRequest(ECHO), TIMEOUT)
    with pytest.raises(errors.HostNotFound, match="No such file"):
        connect(str(tmp_path / "missing"), SECRET, StartRequest(ECHO), TIMEOUT)


def test_unknown_host() -> None:
    with pytest.raises(errors.HostNotFound, match=r"no-such-host\.invalid"):
        connect("no-such-host.invalid:1", SECRET, StartRequest(ECHO), TIMEOUT)


def test_not_a_server() -> None:
    def greet(connection: socket.socket) -> None:
        connection.sendall(b"220 mail.example.org ESMTP\r\n")
        read_all(connection)

    with fake_server(greet, greet) as address, pytest.raises(errors.NotAPython) as caught:
        connect(address, SECRET, StartRequest(ECHO), TIMEOUT)
    assert "220 mail.example.org ESMTP" in str(caught.value)
    assert caught.value.noise.startswith("220")


def test_a_server_that_says_nothing() -> None:
    with fake_server(read_all, read_all) as address, pytest.raises(errors.StartTimeout):
        connect(address, SECRET, StartRequest(ECHO), 0.2)


def test_a_server_that_closes_at_once() -> None:
    def receive(connection: socket.socket) -> None:
        connection.recv(100)

    with (
        fake_server(receive, receive) as address,
        pytest.raises(errors.StartError, match="closed the connection"),
    ):
        connect(address, SECRET, StartRequest(ECHO), TIMEOUT)


def test_a_server_of_another_version() -> None:
    def greet(connection: socket.socket) -> None:
        connection.sendall(b"farwire-serve 2 something\n")
        read_all(connection)

    with fake_server(greet, greet) as address, pytest.raises(errors.StartError, match="version 2") as caught:
        connect(address, SECRET, StartRequest(ECHO), TIMEOUT)
    assert "--print-script" in caught.value.hint


# ---------------------------------------------------------------------------------------------------------------- plaintext


@pytest.mark.parametrize(
    "address", ["0.0.0.0:0", pytest.param("[::]:0", marks=pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here"))]
)
def test_a_server_does_not_leave_loopback_without_tls(
    start_server: StartServer, address: str, tls_options: list[str]
) -> None:
    server = start_server(address=address, fails=True)
    assert server.process.wait(TIMEOUT) == 1
    assert "refusing to listen" in server.log
    assert "--tls-cert" in server.log
    server = start_server(*tls_options, address=address)
    loopback = "127.0.0.1" if "0.0.0.0" in address else "[::1]"
    with worker(f"{loopback}:{server.port}", tls=Tls()) as session:
        assert echo(session, b"hello") == b"hello"


def test_a_client_does_not_leave_loopback_without_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshake, "_connect_both", lambda *_: pytest.fail("it connected"))
    with pytest.raises(errors.AuthenticationError, match=r"192\.0\.2\.1 without TLS") as caught:
        connect("192.0.2.1:8888", SECRET, StartRequest(ECHO), TIMEOUT)
    assert "tls" in caught.value.hint


# ---------------------------------------------------------------------------------------------------------------------- TLS


@pytest.mark.parametrize(
    "tls",
    [Tls(), Tls(ca="server.pem"), Tls(ca="server.pem", name="farwire.test")],
    ids=["secret only", "by address", "by name"],
)
def test_tls(start_server: StartServer, certificates: Path, tls_options: list[str], tls: Tls) -> None:
    server = start_server(*tls_options)
    tls = Tls(str(certificates / tls.ca) if tls.ca else None, tls.name)
    program = "import os; os.write(2, b'words'); os.write(1, os.read(0, 9)); os.write(2, b' last words'); os.abort()"
    with worker(server.address, program, tls=tls) as session:
        session.link_socket.sendall(b"123456789")
        assert read_all(session.link_socket) == b"123456789"
        assert read_all(session.stderr_socket).startswith(b"words last words")
    wait_for(lambda: f"pid {session.worker_pid} ended, signal {int(signal.SIGABRT)}" in server.log, "the end is logged")


@pytest.mark.parametrize(
    ("tls", "message"),
    [
        (Tls(ca="other.pem"), "self-signed|self signed|signature"),
        (Tls(ca="server.pem", name="elsewhere.test"), "(?i)hostname mismatch"),
    ],
    ids=["other issuer", "other name"],
)
def test_tls_with_a_certificate_that_is_not_trusted(
    start_server: StartServer, certificates: Path, tls_options: list[str], tls: Tls, message: str
) -> None:
    server = start_server(*tls_options)
    with pytest.raises(errors.AuthenticationError, match=message) as caught:
        connect(server.address, SECRET, StartRequest(ECHO), TIMEOUT, Tls(str(certificates / str(tls.ca)), tls.name))
    assert "tls_ca" in caught.value.hint


def test_tls_with_wrong_files(start_server: StartServer, certificates: Path, tls_options: list[str]) -> None:
    for options in (
        ["--tls-cert", "/missing"],
        ["--tls-cert", str(certificates / "server.pem"), "--tls-key", str(certificates / "other.key")],
        ["--tls-key", str(certificates / "server.key")],
    ):
        refused = start_server(*options, fails=True)
        assert refused.process.wait(TIMEOUT) == 1
        assert "tls-cert" in refused.log or "certificate" in refused.log
    server = start_server(*tls_options)
    with pytest.raises(errors.AuthenticationError, match="cannot use the certificates"):
        connect(server.address, SECRET, StartRequest(ECHO), TIMEOUT, Tls(ca="/missing"))


def test_tls_on_one_side_only(start_server: StartServer, tls_options: list[str]) -> None:
    with_tls, without = start_server(*tls_options), start_server()
    with pytest.raises(errors.AuthenticationError, match="speaks TLS only") as caught:
        connect(with_tls.address, SECRET, StartRequest(ECHO), TIMEOUT)
    assert "add tls" in caught.value.hint
    with pytest.raises(errors.StartError, match="no TLS connection") as other:
        connect(without.address, SECRET, StartRequest(ECHO), TIMEOUT, Tls())
    assert "--tls-cert" in other.value.hint


def test_tls_wrong_secret(start_server: StartServer, tls_options: list[str]) -> None:
    server = start_server(*tls_options)
    with pytest.raises(errors.AuthenticationError, match="the secret is not this server's"):
        connect(server.address, b"another secret, used by somebody else", StartRequest(ECHO), TIMEOUT, Tls())


COUNT = """
import os, zlib
size = check = 0
while True:
    data = os.read(0, 1 << 20)
    if not data:
        break
    size += len(data)
    check = zlib.crc32(data, check)
os.write(1, b"%d %d" % (size, check))
"""


def test_tls_half_close_and_bulk(start_server: StartServer, tls_options: list[str]) -> None:
    """End of file one way leaves the other way open, and comes after all data."""
    import zlib

    server = start_server(*tls_options)
    data = os.urandom(1 << 16) * 160  # 10 MiB
    with worker(server.address, COUNT, tls=Tls()) as session:
        session.link_socket.sendall(data)
        session.link_socket.shutdown(socket.SHUT_WR)
        assert read_all(session.link_socket).decode() == f"{len(data)} {zlib.crc32(data)}"
    program = "import os, sys; sys.stdout.buffer.write(bytes(range(256)) * 40960)"
    with worker(server.address, program, tls=Tls()) as session:
        assert read_all(session.link_socket) == bytes(range(256)) * 40960


def test_tls_both_ways_at_once(start_server: StartServer, tls_options: list[str]) -> None:
    server = start_server(*tls_options)
    data = os.urandom(1 << 16) * 80  # 5 MiB: more than all buffers together, so both ends must read while they write
    with worker(server.address, tls=Tls()) as session, concurrent.futures.ThreadPoolExecutor(1) as pool:
        sending = pool.submit(session.link_socket.sendall, data)
        stream = serve.SocketStream(session.link_socket.dup(), time.monotonic() + TIMEOUT)
        with stream.sock:
            assert serve.read_exactly(stream, len(data)) == data
        sending.result(TIMEOUT)


def test_tls_ends_with_the_client(start_server: StartServer, tls_options: list[str]) -> None:
    server = start_server(*tls_options)
    with worker(server.address, LONG, tls=Tls()) as session:
        assert session.link_socket.recv(100)
        assert servers.is_alive(session.worker_pid)
    assert not session.pump.is_alive()  # type: ignore[union-attr]
    wait_for(lambda: not servers.children(server.process.pid), "worker and pumps have ended")
    assert not servers.is_alive(session.worker_pid)


@pytest.mark.parametrize("unread", [0, 20 << 20], ids=["idle", "busy"])
def test_tls_cut(start_server: StartServer, tls_options: list[str], unread: int) -> None:
    """A connection that ends without close_notify hangs up on the worker, even on one that does not read."""
    server = start_server(*tls_options)
    program = """
import os, select, sys
os.write(1, b"x")
poll = select.poll()
poll.register(0, 0)
poll.poll()
sys.stderr.write("hung up")
"""
    ends: list[socket.socket] = []

    def pass_on(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)

    def forward(connection: socket.socket) -> None:
        with raw_client(server) as onwards:
            ends.extend([connection, onwards])
            back = threading.Thread(target=pass_on, args=(onwards, connection))
            back.start()
            pass_on(connection, onwards)
            with contextlib.suppress(OSError):
                onwards.shutdown(socket.SHUT_RDWR)
            back.join(TIMEOUT)

    with fake_server(forward, forward) as address, worker(address, program, tls=Tls()) as session:
        pid = session.worker_pid
        assert session.link_socket.recv(1) == b"x"
        session.link_socket.sendall(bytes(unread))  # more than the kernel's buffers hold while nobody reads
        assert servers.is_alive(pid)
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        wait_for(lambda: not servers.is_alive(pid), "the worker has seen the hang-up")


def test_tls_stderr_goes_on_after_the_link(start_server: StartServer, tls_options: list[str]) -> None:
    server = start_server(*tls_options)
    program = "import os; os.close(0); os.close(1); os.write(2, b'a' * 3000000); os.write(2, b'end')"
    with worker(server.address, program, tls=Tls()) as session:
        assert read_all(session.link_socket) == b""
        assert read_all(session.stderr_socket) == b"a" * 3000000 + b"end"


# ---------------------------------------------------------------------------------------------------------------- the server


def interpreters() -> list[str]:
    return sorted(servers.interpreters(), key=lambda version: int(version.split(".")[1]))


@pytest.mark.parametrize("version", interpreters())
def test_the_printed_script_on_each_python(
    start_server: StartServer, tmp_path: Path, version: str, tls_options: list[str]
) -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "farwire", "serve", "--print-script"],
        env=dict(os.environ, PYTHONPATH=str(SOURCE)),
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    assert printed == SCRIPT.read_bytes()
    script = tmp_path / "farwire_serve.py"
    script.write_bytes(printed)
    program = (
        "import os, sys; os.write(1, ('%d.%d ' % sys.version_info[:2]).encode() + os.read(0, 9)); os.write(2, b'e')"
    )
    for options, tls in (([], None), (tls_options, Tls())):
        server = start_server(
            *options, python=str(servers.interpreters()[version]), prefix=("env", "-u", "PYTHONPATH"), script=script
        )
        with worker(server.address, program, tls=tls) as session:
            session.link_socket.sendall(b"123456789")
            assert read_all(session.link_socket).decode() == f"{version} 123456789"
            assert read_all(session.stderr_socket) == b"e"
        with pytest.raises(errors.AuthenticationError):
            connect(server.address, b"another secret, used by somebody else", StartRequest(ECHO), TIMEOUT, tls)
        wait_for(lambda: not servers.children(server.process.pid), "no children")  # noqa: B023
        assert server.stop() == 0


@pytest.mark.parametrize("version", interpreters())
def test_spawn_server(version: str) -> None:
    """From the text alone, on an interpreter without any of our files; it ends with its stdin."""
    driver = """
import json, os, sys
text = sys.stdin.read()
namespace = {"__name__": "farwire_serve"}
exec(compile(text, "farwire-serve", "exec"), namespace)
process, host, port = namespace["spawn_server"](text, "127.0.0.1", 0, os.environ.pop("SECRET"))
print(json.dumps([process.pid, host, port]), flush=True)
with open(os.environ["GO_ON"]) as file:
    file.read()
process.stdin.close()
print(json.dumps(process.wait()), flush=True)
"""
    read_end, write_end = os.pipe()
    with subprocess.Popen(
        [str(servers.interpreters()[version]), "-c", driver],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=[read_end],
        env=dict(os.environ, SECRET=SECRET.decode(), GO_ON=f"/dev/fd/{read_end}"),
    ) as process:
        os.close(read_end)
        assert process.stdin
        assert process.stdout
        assert process.stderr
        process.stdin.write(SCRIPT.read_bytes())
        process.stdin.close()
        pid, host, port = json.loads(process.stdout.readline())
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            assert SECRET not in file.read()
        with worker(f"{host}:{port}", LONG) as session:
            assert session.link_socket.recv(100)
            os.close(write_end)
            assert json.loads(process.stdout.readline()) == 0
            assert not servers.is_alive(session.worker_pid)
        process.stderr.read()


def test_spawn_server_that_fails(capfd: pytest.CaptureFixture[str]) -> None:
    before = servers.children(os.getpid())
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(RuntimeError, match="exit status 1"),
    ):
        serve.spawn_server(serve.script_text(), *taken.getsockname(), SECRET)
    assert "cannot listen on 127.0.0.1" in capfd.readouterr().err
    assert servers.children(os.getpid()) == before


def test_exit_on_stdin_eof(start_server: StartServer) -> None:
    server = start_server("--exit-on-stdin-eof", stdin=subprocess.PIPE)
    with worker(server.address, LONG) as session:
        assert session.link_socket.recv(100)
        server.process.stdin.close()  # type: ignore[union-attr]
        assert server.process.wait(TIMEOUT) == 0
        assert not servers.is_alive(session.worker_pid)


def test_exit_on_stdin_eof_without_a_pipe(start_server: StartServer) -> None:
    server = start_server("--exit-on-stdin-eof", stdin=subprocess.DEVNULL, fails=True)
    assert server.process.wait(TIMEOUT) == 1
    assert "needs a pipe" in server.log


STUBBORN = """
import os, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
reader, writer = os.pipe()
child = os.fork()
if child == 0:
    os.write(writer, b"x")
    signal.pause()
os.read(reader, 1)
os.write(1, b"%d\\n" % child)
signal.signal(signal.SIGTERM, signal.SIG_DFL)
signal.pause()
"""


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_the_server_ends_its_workers(
    start_server: StartServer, tls_options: list[str], encrypted: bool, signum: signal.Signals
) -> None:
    """With the children that they leave, even those that ignore SIGTERM."""
    server = start_server(*(tls_options if encrypted else []))
    with worker(server.address, STUBBORN, tls=Tls() if encrypted else None) as session, raw_client(server):
        child = int(session.link_socket.recv(100))
        assert servers.is_alive(child)
        server.process.send_signal(signum)
        assert server.process.wait(TIMEOUT) == 0
        assert not servers.is_alive(session.worker_pid)
        wait_for(lambda: not servers.is_alive(child), "the worker's child has ended")
        assert read_all(session.link_socket) == b""
    with pytest.raises(errors.HostNotFound):
        connect(server.address, SECRET, StartRequest(ECHO), TIMEOUT)


def test_a_worker_that_does_not_end_is_killed(start_server: StartServer) -> None:
    server = start_server()
    program = "import signal, os; signal.signal(signal.SIGTERM, signal.SIG_IGN); os.write(1, b'x'); signal.pause()"
    with worker(server.address, program) as session:
        assert session.link_socket.recv(1) == b"x"
        assert server.stop() == 0
        assert not servers.is_alive(session.worker_pid)


def test_workers_survive_a_killed_server_until_their_client_leaves(start_server: StartServer) -> None:
    server = start_server()
    with worker(server.address) as session:
        server.process.kill()
        server.process.wait(TIMEOUT)
        assert echo(session, b"hello") == b"hello"
        assert servers.is_alive(session.worker_pid)
    wait_for(lambda: not servers.is_alive(session.worker_pid), "the worker has seen the end of its link")


def test_once(start_server: StartServer) -> None:
    server = start_server("--once=2")
    with worker(server.address) as first:
        with worker(server.address) as second:
            assert echo(second, b"hello") == b"hello"
        assert echo(first, b"hello") == b"hello"
        assert server.process.poll() is None
    assert server.process.wait(TIMEOUT) == 0


def test_an_address_in_use(start_server: StartServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = start_server(address=f"127.0.0.1:{taken.getsockname()[1]}", fails=True)
        assert server.process.wait(TIMEOUT) == 1
    assert "Address already in use" in server.log


def test_help_says_what_it_is() -> None:
    for command in (["-m", "farwire", "serve", "--help"], [str(SCRIPT), "--help"]):
        text = subprocess.run(
            [sys.executable, *command],
            env=dict(os.environ, PYTHONPATH=str(SOURCE)),
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        assert "THIS IS A REMOTE SHELL" in text


def test_commands() -> None:
    from farwire.cli import main

    with pytest.raises(SystemExit) as caught:
        main(["unknown"])
    assert caught.value.code == 2
    assert main([]) == 2


def test_connections_are_tuned(start_server: StartServer) -> None:
    server = start_server()
    with worker(server.address) as session:
        for option, value in ((socket.TCP_NODELAY, 1), (socket.TCP_KEEPIDLE, 5), (socket.TCP_KEEPCNT, 2)):
            assert session.link_socket.getsockopt(socket.IPPROTO_TCP, option) == value
        assert session.link_socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        # It would end the connection to a worker that is busy for that long, see tune_socket.
        assert session.link_socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 0
