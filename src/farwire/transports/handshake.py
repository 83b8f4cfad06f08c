"""The client's side of the socket service: connects, proves the secret, asks for a worker.

The rules of the handshake stand at the top of ``farwire.serve``; what both sides compute is shared with it.

    connect("host:8888", secret, StartRequest(stage0), timeout=10, tls=Tls())   ->  Session: two sockets and the worker's pid
    client_handshake(link, stderr, secret, request)                             ->  the same over any two byte streams
"""

from __future__ import annotations

import builtins
import errno
import hmac
import json
import os
import re
import selectors
import socket
import ssl
import threading
import time
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from .. import serve
from ..errors import (
    AuthenticationError,
    DirectoryError,
    HostNotFound,
    NotAPython,
    PythonNotFound,
    SpecError,
    StartError,
    StartTimeout,
)
from ..serve import NO_BINDING, Address

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "Address",
    "ByteStream",
    "Session",
    "StartRequest",
    "Tls",
    "TlsPump",
    "client_handshake",
    "connect",
    "find_secret",
    "parse_address",
    "start_tls",
]

# KIND of the server's error line -> error, hint.
REFUSALS: dict[str, tuple[type[StartError], str]] = {
    "authentication": (
        AuthenticationError,
        "secret_file= or FARWIRE_SECRET must hold what the server was started with",
    ),
    "protocol": (NotAPython, "client and server may be of different versions"),
    "tls": (AuthenticationError, "add tls to the spec"),
    "timeout": (StartTimeout, ""),
    "python-not-found": (PythonNotFound, "check python= in the spec"),
    "directory": (DirectoryError, "check chdir= in the spec"),
    "start": (StartError, ""),
}


class ByteStream(Protocol):
    """What the handshake needs of a connection; both calls block, and raise OSError, EOFError or TimeoutError."""

    def read(self, size: int, /) -> bytes:
        """1 to ``size`` bytes; empty at the end of the stream."""
        ...

    def write(self, data: bytes, /) -> object:
        """Send everything."""
        ...


@dataclass(frozen=True)
class StartRequest:
    """What the server shall start.

    Attributes:
        stage0: the program of ``PYTHON -c``.
        python: a name or path, or a command and its arguments; None for the server's own interpreter.
        chdir: the working directory, made if missing; None for ``pyexecnet-cache``.
        nice: how much nicer than the server.
        env: environment variables; None removes one.
        flags: arguments of the interpreter before ``-c``.
    """

    stage0: str
    python: str | Sequence[str] | None = None
    chdir: str | None = None
    nice: int | None = None
    env: Mapping[str, str | None] = field(default_factory=dict)
    flags: Sequence[str] = ()

    def encode(self) -> bytes:
        """The request as it is sent."""
        python = self.python if self.python is None or isinstance(self.python, str) else list(self.python)
        fields = {
            "stage0": self.stage0,
            "python": python,
            "chdir": self.chdir,
            "nice": self.nice,
            "env": dict(self.env),
            "flags": list(self.flags),
        }
        return json.dumps({name: value for name, value in fields.items() if value}).encode("ascii")


@dataclass(frozen=True)
class Tls:
    """Speak TLS.

    With ``ca`` the server's certificate must be signed by (or be) one in that file, and must be for ``name`` (by default the
    host of the address). Without, any certificate will do, for the handshake proves that the server has both
    this certificate's key and the secret; only then, a weak secret can be guessed by who impersonates the server.
    """

    ca: str | None = None
    name: str | None = None


class TlsPump(threading.Thread):
    """Runs the pumps of a session; ends when each of its connections has ended on either side.

    A daemon, as a gateway that is still open at the exit of the process is ended by an atexit handler, which runs only
    after all other threads have ended. ``Session.close`` waits for it.
    """

    def __init__(self, pumps: Sequence[serve.Pump], name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._pumps = pumps
        _pump_threads.add(self)

    def run(self) -> None:
        """Move bytes until there is no more to move."""
        serve.run_pumps(self._pumps)

    def abandon(self) -> None:
        """In a forked child: close our copies of the sockets. One that stayed open would hide the parent's death from the server."""
        for pump in self._pumps:
            pump.close()


_pump_threads: weakref.WeakSet[TlsPump] = weakref.WeakSet()


def _after_fork() -> None:
    for thread in list(_pump_threads):
        thread.abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@dataclass
class Session:
    """A worker that was started, and the connections to it: plain, blocking sockets, whatever lies between.

    Attributes:
        link_socket: fd 0 and fd 1 of the worker.
        stderr_socket: its fd 2; only to be read.
        worker_pid: its process id on the server's host (before any wrapper in ``python`` forked).
        server: the address, as in messages.
        pump: moves the bytes if TLS lies between.
    """

    link_socket: socket.socket
    stderr_socket: socket.socket
    worker_pid: int
    server: str
    pump: TlsPump | None = None

    def close(self, timeout: float | None = 10.0) -> None:
        """Close both sockets, as far as they have not been detached, and wait for the pump.

        The pump ends when the server has closed as well, or after a few seconds.
        """
        self.link_socket.close()
        self.stderr_socket.close()
        if self.pump is not None:
            self.pump.join(timeout)


def parse_address(text: str) -> Address:
    """Read ``host``, ``host:port``, ``[::1]:port``, ``/path`` or ``unix:path``; SpecError if it is none of these."""
    try:
        return serve.parse_address(text)
    except ValueError as error:
        raise SpecError(str(error)) from error


def find_secret(secret_file: str | None) -> bytes:
    """The secret shared with the server: from the file, else from FARWIRE_SECRET.

    Raises:
        AuthenticationError: there is none, it is empty, or other users can read the file.
    """
    try:
        return serve.read_secret(secret_file, os.environ)
    except serve.ServeError as error:
        raise AuthenticationError(
            str(error), hint=f"secret_file=PATH in the spec, or {serve.SECRET_VARIABLE} in the environment"
        ) from error


# --------------------------------------------------------------------------------------------------------------- handshake


def client_handshake(
    link: ByteStream,
    stderr: ByteStream,
    secret: bytes,
    request: StartRequest,
    *,
    binding: str = NO_BINDING,
    server: str = "",
) -> int:
    """Do the client's part on two fresh connections to one server.

    Both go step by step together, so that the second costs no time.

    Args:
        link: becomes fd 0 and fd 1 of the worker.
        stderr: becomes its fd 2.
        secret: the shared secret.
        request: what to start.
        binding: what ties the proofs to a TLS connection, see ``serve.certificate_binding``.
        server: what was connected to, for messages.

    Returns:
        The worker's process id. The next byte read from either stream is the worker's.

    Raises:
        AuthenticationError: one side did not prove to know the secret.
        NotAPython: the peer is not a farwire server; the error quotes it.
        PythonNotFound, DirectoryError, StartTimeout, StartError: the server could not start it, or went away.
    """
    try:
        return _handshake(link, stderr, secret, request, binding, server)
    except StartError:
        raise
    except builtins.TimeoutError as error:
        raise StartTimeout(
            "the server did not answer in time",
            command=server,
            hint="is it a farwire server, with TLS or without as here?",
        ) from error
    except (EOFError, OSError) as error:
        reason = f": {error}" if isinstance(error, OSError) else ""
        raise StartError(
            f"the server closed the connection during the handshake{reason}",
            command=server,
            hint="the server's log, its stderr, says why",
        ) from error


def _handshake(
    link: ByteStream, stderr: ByteStream, secret: bytes, request: StartRequest, binding: str, server: str
) -> int:
    session = serve.new_nonce(16)
    streams = {"link": link, "stderr": stderr}
    for stream in streams.values():
        stream.write(f"{serve.CLIENT_OPENING}\n".encode("ascii"))
    proofs: dict[str, serve.Proofs] = {}
    for purpose, stream in streams.items():
        server_nonce = _read_hello(stream, server)
        nonce = serve.new_nonce()
        proofs[purpose] = serve.Proofs(secret, purpose, session, server_nonce, nonce, binding)
        proof = proofs[purpose].proof("client")
        stream.write(f"auth {purpose} {session} {nonce} {proof}\n".encode("ascii"))
    for purpose, stream in streams.items():
        line = _read_answer(stream, server)
        if not hmac.compare_digest(line, f"welcome {proofs[purpose].proof('server')}"):
            raise AuthenticationError(
                "the server could not prove that it knows the secret",
                command=server,
                noise=line,
                hint="something else may pretend to be the server; nothing but a proof that cannot be reused was sent to it",
            )
    body = request.encode()
    mac = proofs["link"].start_mac(body)
    link.write(f"start {len(body)} {mac}\n".encode("ascii") + body)
    line = _read_answer(link, server)
    match = re.fullmatch(r"ok ([0-9]+)", line)
    if match is None:
        raise _not_a_server(line, server)
    return int(match.group(1))


def _read_hello(stream: ByteStream, server: str) -> str:
    """The server's nonce."""
    line = _read_answer(stream, server)
    match = re.fullmatch(r"farwire-serve ([0-9]+) (.*)", line)
    if match is None:
        raise _not_a_server(line, server)
    version, rest = match.groups()
    if f"farwire-serve {version}" != serve.PROTOCOL:
        ours = serve.PROTOCOL.rpartition(" ")[2]
        raise StartError(
            f"the server speaks version {version} of the handshake, this farwire version {ours}",
            command=server,
            hint="start the server from the same release: python -m farwire serve --print-script",
        )
    if re.fullmatch("[0-9a-f]{64}", rest) is None:
        raise _not_a_server(line, server)
    return rest


def _read_answer(stream: ByteStream, server: str) -> str:
    """A line that is not an error line."""
    try:
        line = serve.read_line(stream)
    except serve.BadLine as error:
        raise _not_a_server(error.received.decode("ascii", "backslashreplace"), server) from error
    except EOFError as error:
        # Our read_line's EOFError holds what came of the line; a relayed stream's may hold anything.
        received = error.args[0] if error.args else b""
        if isinstance(received, bytes) and received:
            raise _not_a_server(received.decode("ascii", "backslashreplace"), server) from error
        raise
    match = re.fullmatch(r"error ([a-z-]+) (.*)", line)
    if match is None:
        return line
    kind, message = match.groups()
    error_type, hint = REFUSALS.get(kind, (StartError, ""))
    raise error_type(f"the server says: {message}", command=server, hint=hint)


def _not_a_server(noise: str, server: str) -> NotAPython:
    return NotAPython(
        "what answers is not a farwire server",
        command=server,
        noise=noise,
        hint="check the port; a server is started with: python -m farwire serve",
    )


# ----------------------------------------------------------------------------------------------------------------- sockets


def connect(
    address: str | Address, secret: bytes, request: StartRequest, timeout: float | None, tls: Tls | None = None
) -> Session:
    """Connect to a server and have it start a worker.

    Args:
        address: where the server listens, see ``parse_address``.
        secret: the shared secret, see ``find_secret``.
        request: what to start.
        timeout: for all of it, in seconds.
        tls: speak TLS. Without, only loopback addresses and unix sockets are connected to.

    Returns:
        The session; its sockets are the caller's to close.

    Raises:
        SpecError: the address cannot be understood.
        HostNotFound: it does not resolve, or nothing listens there.
        AuthenticationError: see ``client_handshake``; also a certificate that is not trusted, and a plaintext connection
            that would leave this machine.
        StartTimeout, NotAPython, PythonNotFound, DirectoryError, StartError: see ``client_handshake``.
    """
    where = parse_address(address) if isinstance(address, str) else address
    server = f"connect to {where}" + (" with TLS" if tls is not None else "")
    deadline = None if timeout is None else time.monotonic() + timeout
    sockets = _connect_pair(where, deadline, tls is not None, server)
    try:
        for sock in sockets:
            serve.tune_socket(sock)
        if tls is None:
            plain = [serve.SocketStream(sock, deadline) for sock in sockets]
            pid = client_handshake(plain[0], plain[1], secret, request, server=server)
            for stream in plain:
                stream.release()
            return Session(sockets[0], sockets[1], pid, str(where))
        encrypted, binding = start_tls(sockets, deadline, tls, where, server)
        pid = client_handshake(encrypted[0], encrypted[1], secret, request, binding=binding, server=server)
        return _pumped_session(encrypted, pid, str(where))
    except BaseException:
        for sock in sockets:
            sock.close()
        raise


def _pumped_session(streams: Sequence[serve.TlsStream], pid: int, where: str) -> Session:
    (link, far_link), (stderr, far_stderr) = socket.socketpair(), socket.socketpair()
    pumps = [serve.Pump(streams[0], far_link), serve.Pump(streams[1], far_stderr)]
    pump = TlsPump(pumps, f"farwire-tls-{where}")
    try:
        pump.start()
    except BaseException:  # no more threads
        for sock in (link, far_link, stderr, far_stderr):
            sock.close()
        raise
    return Session(link, stderr, pid, where, pump)


def _connect_pair(where: Address, deadline: float | None, encrypted: bool, server: str) -> list[socket.socket]:
    """Two connections to the first of the address's addresses that takes them."""
    candidates: list[tuple[int, object]] = []
    if where.path:
        if not hasattr(socket, "AF_UNIX"):
            raise HostNotFound("this system has no unix sockets", command=server)
        candidates.append((socket.AF_UNIX, where.path))
    else:
        try:
            found = socket.getaddrinfo(where.host, where.port, 0, socket.SOCK_STREAM)
        except OSError as error:
            raise HostNotFound(
                f"the host name {where.host!r} does not resolve: {error.strerror}",
                command=server,
                hint="check the name",
            ) from error
        for family, _kind, _protocol, _name, target in found:
            if not encrypted and not serve.is_loopback(str(target[0])):
                raise AuthenticationError(
                    f"refusing to connect to {target[0]} without TLS: what the worker is sent and answers would cross the"
                    " network readable and changeable",
                    command=server,
                    hint="add tls to the spec and start the server with a certificate, or tunnel with ssh -L",
                )
            candidates.append((family, target))
    failure: OSError | None = None
    for position, candidate in enumerate(candidates):
        # Each of the remaining addresses gets its share: an IPv6 address that leads nowhere must not use up IPv4's time.
        remaining = None if deadline is None else (deadline - time.monotonic()) / (len(candidates) - position)
        try:
            return _connect_both(*candidate, None if remaining is None else time.monotonic() + remaining)
        except OSError as error:
            failure = error
    raise _unreachable(failure or OSError(errno.EHOSTUNREACH, os.strerror(errno.EHOSTUNREACH)), where, server)


def _unreachable(error: OSError, where: Address, server: str) -> StartError:
    if isinstance(error, builtins.TimeoutError) and error.errno is None:
        hint = "is the server running, and the port open?"
        wrapped: StartError = StartTimeout(f"{where} does not answer", command=server, hint=hint)
    elif isinstance(error, PermissionError) and where.path:
        hint = "only the user who started the server may use its socket"
        wrapped = AuthenticationError(f"{where}: {error.strerror}", command=server, hint=hint)
    else:
        hint = "is the server running?"
        wrapped = HostNotFound(f"cannot connect to {where}: {error.strerror}", command=server, hint=hint)
    wrapped.__cause__ = error
    return wrapped


def _connect_both(family: int, target: object, deadline: float | None) -> list[socket.socket]:
    """Connect twice at the same time. OSError, a TimeoutError without errno at the deadline."""
    sockets = [socket.socket(family, socket.SOCK_STREAM) for _ in range(2)]
    try:
        for sock in sockets:
            _start_connect(sock, target, deadline)
        for sock in sockets:
            with selectors.DefaultSelector() as selector:
                selector.register(sock, selectors.EVENT_WRITE)
                if not selector.select(_left(deadline)):
                    raise builtins.TimeoutError
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise OSError(code, os.strerror(code))
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def _start_connect(sock: socket.socket, target: object, deadline: float | None) -> None:
    sock.setblocking(False)
    while True:
        code = sock.connect_ex(target)  # type: ignore[arg-type]  # whatever getaddrinfo returned
        if code in {0, errno.EINPROGRESS, getattr(errno, "WSAEWOULDBLOCK", 0)}:
            return
        # A unix socket whose queue is full; there is nothing that one could wait for.
        if code not in {errno.EAGAIN, errno.EWOULDBLOCK}:
            raise OSError(code, os.strerror(code))
        if _left(deadline) == 0:
            raise builtins.TimeoutError
        time.sleep(0.01)


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


# --------------------------------------------------------------------------------------------------------------------- TLS


def start_tls(
    sockets: Sequence[socket.socket], deadline: float | None, tls: Tls, where: Address, server: str
) -> tuple[list[serve.TlsStream], str]:
    """TLS on two fresh connections to one server.

    Args:
        sockets: the connections, or what has their ``recv``, ``sendall`` and ``settimeout``.
        deadline: on the clock of ``time.monotonic``, or None.
        tls: what the certificate must be.
        where: the address; its host is the name that the certificate must have unless ``tls`` says another.
        server: what was connected to, for messages.

    Returns:
        The two streams, and the BINDING to the certificate that both have shown.

    Raises:
        AuthenticationError: the certificate is not trusted.
        StartTimeout, StartError: there is no TLS server, or it went away.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if tls.ca is None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # the handshake checks the certificate, see Tls
    else:
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # the file may hold the server's certificate itself
        try:
            context.load_verify_locations(os.path.expanduser(tls.ca))
        except OSError as error:  # ssl.SSLError is one
            raise AuthenticationError(f"cannot use the certificates in {tls.ca}: {error}", command=server) from error
    name = tls.name or where.host or "localhost"
    try:
        streams = [serve.TlsStream(sock, deadline, context, server_hostname=name) for sock in sockets]
        for stream in streams:
            stream.start_handshake()
        for stream in streams:
            stream.handshake()
    except StartError:  # a relayed connection that was not made
        raise
    except ssl.SSLCertVerificationError as error:
        raise AuthenticationError(
            f"the server's certificate is not trusted: {error.verify_message}",
            command=server,
            hint="tls_ca= must name the file with its issuer's certificate or itself, tls_name= the name that it is for",
        ) from error
    except ssl.SSLError as error:
        raise StartError(
            f"no TLS connection: {error}", command=server, hint="was the server started with --tls-cert?"
        ) from error
    except builtins.TimeoutError as error:
        raise StartTimeout("the TLS handshake took too long", command=server, hint="is it a farwire server?") from error
    except OSError as error:
        raise StartError(f"the server closed the connection: {error.strerror}", command=server) from error
    bindings = {serve.certificate_binding(stream.tls.getpeercert(binary_form=True) or b"") for stream in streams}
    if len(bindings) != 1:
        raise AuthenticationError("the two connections of a session showed different certificates", command=server)
    return streams, bindings.pop()
