r"""The socket service: a server that starts a Python interpreter for whoever proves to know its secret.

THIS IS A REMOTE SHELL. Whoever knows the secret runs any code as the user who started the server.
It listens on loopback unless it is told otherwise, always demands a secret, and refuses to leave loopback without TLS.

This file stands alone: standard library only, nothing of farwire imported, CPython 3.6 or later. Copy it to a host and run
``python farwire_serve.py``, or print it there first with ``python -m farwire serve --print-script``.

Handshake
---------

A gateway uses two connections of the same client: the *link*, which becomes fd 0 and fd 1 of the interpreter, and *stderr*, which
becomes its fd 2, so that the last words of a crash arrive whatever happens to the protocol on the link. The client opens both at the
same time and names them with one random session. Lines are ASCII, at most 1024 bytes, and end with a newline::

    client -> server   farwire-client 1                                     at once, without waiting for the server
    server -> client   farwire-serve 1 NONCE                                at once, without waiting for the client
    client -> server   auth PURPOSE SESSION NONCE PROOF                     PURPOSE is "link" or "stderr"
    server -> client   welcome PROOF                                        (stderr: the end of the handshake)
    client -> server   start LENGTH MAC, then LENGTH bytes of JSON          (link only)
    server -> client   ok PID                                               from here on the bytes are the worker's
    server -> client   error KIND MESSAGE                                   instead of any of its lines; then it closes

That is three round trips after the connection's own (two for stderr, at the same time). The client proves itself first: a server that
proved itself to anybody would hand out material for guessing weak secrets. The request comes last because its environment may hold
secrets, and only a server that proved itself may see them.

NONCE is 32 fresh random bytes of each side in hexadecimal, SESSION is 16. Each PROOF is HMAC-SHA256, keyed with the secret, of the lines
"farwire-serve 1", ROLE, PURPOSE, SESSION, server's NONCE, client's NONCE, BINDING. ROLE is "client" or "server", so that no proof can be
sent back to its author; BINDING is "tls-sha256:" and the SHA-256 of the server's certificate, or "-" without TLS, so that a man in the
middle with a certificate of his own gets proofs that are worth nothing. MAC is HMAC-SHA256 of the JSON, keyed with the same HMAC
for the ROLE "start".

The JSON object: ``stage0`` (the program, required), ``python`` (null, a name or path, or a list: command and
arguments), ``flags`` (list), ``chdir``, ``nice``, ``env`` (name -> value, null removes it). KIND is one of
``authentication``, ``protocol``, ``tls``, ``timeout``, ``python-not-found``, ``directory``, ``start``. What fails after
``ok`` (exec itself) is written to the stderr connection as a line ``farwire-serve: error KIND MESSAGE``.

Over TLS the same bytes travel as application data. close_notify ends one direction; a connection that ends without it was cut.

Processes
---------

The server is one process with one thread. It forks a process for every connection, like sshd, so no client can hold up another
or leave anything behind, and no fork or exec happens beside a thread::

    server --+-- connection "link"    handshake, then it *is* the worker: exec PYTHON -c STAGE0
             |                        (with TLS it stays, pumps between TLS and a socketpair, and forks the worker)
             +-- connection "stderr"  handshake, hands its socket to the server, which hands it to the link's process
                                      (with TLS it stays and pumps, and hands over one end of a socketpair)

``ok`` is written before exec: exec cannot be known to have succeeded before the program may already have written to the link.
"""

import argparse
import array
import errno
import hashlib
import hmac
import ipaddress
import json
import linecache
import os
import re
import select
import selectors
import shutil
import signal
import socket
import ssl
import stat
import sys
import time
import traceback
from typing import Any, Callable, Dict, Iterable, List, Mapping, NamedTuple, NoReturn, Optional, Sequence, Tuple, Union

PROTOCOL = "farwire-serve 1"
CLIENT_OPENING = "farwire-client 1"
DEFAULT_PORT = 8888  # execnet's
DEFAULT_DIRECTORY = "pyexecnet-cache"  # py.execnet's
SECRET_VARIABLE = "FARWIRE_SECRET"  # noqa: S105 -- the name of one, not one
NO_BINDING = "-"

LINE_LIMIT = 1024  # the longest line of the protocol, an error, has about 900 bytes
MESSAGE_LIMIT = 800
REQUEST_LIMIT = 1 << 20  # an environment of that size does not pass exec anyway
SHORT_SECRET = 16  # bytes; a shorter one can be guessed by whoever impersonates a server, hence a warning
HANDSHAKE_TIMEOUT = 10.0
FAILURE_DELAY = 0.5  # with max_pending processes this allows an attacker about 130 guesses a second
MAX_PENDING = 64
PENDING_GRACE = 1.0  # when all places are taken, the oldest connection loses its own after so long
STOP_GRACE = 5.0
PUMP_STOP_GRACE = 3.0  # less than STOP_GRACE: the pump must be done before the server kills it
SIGNALS = (signal.SIGTERM, signal.SIGINT) + ((signal.SIGCHLD,) if hasattr(signal, "SIGCHLD") else ())


class ServeError(Exception):
    """The server cannot run as it was told to; the text says why and what to do."""


class Refused(Exception):
    """A connection is refused.

    Attributes:
        kind: the KIND of the error line, see the top of this file.
        message: what the client is told.
    """

    def __init__(self, kind: str, message: str) -> None:
        self.kind = kind
        self.message = message
        super().__init__(f"{kind}: {message}")


class BadLine(Exception):
    """What arrived is not a line of the protocol; ``received`` is what it begins with."""

    def __init__(self, received: bytes) -> None:
        self.received = received
        super().__init__(f"not a line of the protocol: {received!r}")


# ---------------------------------------------------------------------------------------------------------------- addresses


class Address(NamedTuple):
    """Where a server listens: a host and port, or the path of a unix socket."""

    host: str
    port: int
    path: str

    def __str__(self) -> str:
        if self.path:
            return "unix:" + self.path
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str, default_port: int = DEFAULT_PORT) -> Address:
    """Read ``host``, ``host:port``, ``[::1]:port``, ``/path/of/socket`` or ``unix:path``.

    Params:
        text: the address.
        default_port: the port if the text has none.

    Returns:
        The address; the host is not resolved.

    Raises:
        ValueError: the text is none of these.
    """
    if text.startswith("unix:"):
        if not text[5:]:
            raise ValueError(f"address {text!r} has no path after 'unix:'")
        return Address("", 0, os.path.expanduser(text[5:]))
    if text.startswith(("/", "./", "../", "~")):
        return Address("", 0, os.path.expanduser(text))
    match = re.match(r"(?:\[([^\[\]]*)\]|([^:\[\]]*))(?::([0-9]+))?\Z", text)
    if match is None:
        hint = "; write an IPv6 address in brackets: [::1]:8888" if text.count(":") > 1 else ""
        raise ValueError(f"address {text!r} is not host:port, [ipv6]:port or a path{hint}")
    host = match.group(1) or match.group(2)
    if not host:
        raise ValueError(f"address {text!r} has no host; every interface is 0.0.0.0 or [::]")
    port = default_port if match.group(3) is None else int(match.group(3))
    if port > 65535:
        raise ValueError(f"address {text!r}: there is no port {port}")
    return Address(host, port, "")


def is_loopback(host: str) -> bool:
    """Tell whether a numeric IP address never leaves this machine."""
    address = ipaddress.ip_address(host.split("%", maxsplit=1)[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def socket_address(name: object) -> Address:
    """The address in what ``getsockname`` or ``getpeername`` returned."""
    if isinstance(name, tuple):
        return Address(str(name[0]), int(name[1]), "")
    return Address("", 0, os.fsdecode(name) if isinstance(name, (str, bytes)) and name else "(unnamed)")


def tune_socket(sock: socket.socket) -> None:
    """Send small messages at once, and notice a silently cut connection in about 15 s. Nothing for unix sockets.

    Not with TCP_USER_TIMEOUT: it also ends a connection whose peer answers every probe but has its receive window
    closed for that long, and so would a worker whose C code holds the interpreter lock for 15 s. TCP_RTO_MAX_MS
    (Linux 6.15) bounds the 15 retransmissions to about 15 s without that; elsewhere unacknowledged data takes the
    system's own time, and only an idle connection is checked so quickly.
    """
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    idle = getattr(socket, "TCP_KEEPIDLE", 0x10 if sys.platform == "darwin" else None)  # macOS: TCP_KEEPALIVE
    options: List[Tuple[Optional[int], int]] = [
        (idle, 5),
        (getattr(socket, "TCP_KEEPINTVL", None), 5),
        (getattr(socket, "TCP_KEEPCNT", None), 2),
        (44 if sys.platform.startswith("linux") else None, 1000),  # TCP_RTO_MAX_MS; Python has no name for it yet
    ]
    for option, value in options:
        if option is not None:
            try:
                sock.setsockopt(socket.IPPROTO_TCP, option, value)
            except OSError:
                continue  # a kernel without that option: its own pace is what there is


# ------------------------------------------------------------------------------------------------------------------- secret


def read_secret(path: Optional[str], environ: Mapping[str, str]) -> bytes:
    """Find the shared secret.

    Params:
        path: a file that holds it; surrounding white space does not count.
        environ: where to look for FARWIRE_SECRET if there is no path.

    Returns:
        The secret, never empty.

    Raises:
        ServeError: there is none, it is empty, or others could read the file; the text says what to do.
    """
    if path:
        try:
            with open(os.path.expanduser(path), "rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                secret = file.read().strip()
        except OSError as error:
            raise ServeError(f"cannot read the secret file {path}: {error.strerror}") from error
        if os.name == "posix" and stat.S_ISREG(mode) and mode & 0o077:
            raise ServeError(f"other users can read the secret file {path}; run: chmod 600 {path}")
        if not secret:
            raise ServeError(f"the secret file {path} is empty")
        return secret
    text = environ.get(SECRET_VARIABLE)
    if text is None:
        raise ServeError(
            f"no secret: name a file that holds it (secret_file= in a spec, --secret-file at the server), "
            f"or set the variable {SECRET_VARIABLE}"
        )
    secret = text.strip().encode("utf-8", "surrogateescape")
    if not secret:
        raise ServeError(f"the variable {SECRET_VARIABLE} is empty")
    return secret


def new_nonce(size: int = 32) -> str:
    """That many fresh random bytes, in hexadecimal."""
    return os.urandom(size).hex()


class Proofs:
    """What both ends prove on one connection to know, and how; the rules stand at the top of this file."""

    def __init__(
        self, secret: bytes, purpose: str, session: str, server_nonce: str, client_nonce: str, binding: str
    ) -> None:
        if not secret:
            raise ValueError("an empty secret proves nothing")
        self._secret = secret
        self._context = (purpose, session, server_nonce, client_nonce, binding)

    def _mac(self, role: str) -> "hmac.HMAC":
        # No part can hold a newline, and the number of parts is fixed: two different contexts never give one text.
        text = "\n".join((PROTOCOL, role) + self._context)
        return hmac.new(self._secret, text.encode("ascii"), hashlib.sha256)

    def proof(self, role: str) -> str:
        """The PROOF of "client" or "server"."""
        return self._mac(role).hexdigest()

    def start_mac(self, body: bytes) -> str:
        """The MAC of a start request."""
        return hmac.new(self._mac("start").digest(), body, hashlib.sha256).hexdigest()


def certificate_binding(der: bytes) -> str:
    """The BINDING for a server's certificate."""
    return "tls-sha256:" + hashlib.sha256(der).hexdigest()


# ------------------------------------------------------------------------------------------------------------ byte streams


class SocketStream:
    """Blocking reads and writes on a socket, all of them under one deadline.

    Attributes:
        sock: the socket.
        deadline: on the clock of ``time.monotonic``; None for no limit.
        can_peek: whether ``peek`` shows what ``read`` will return.
    """

    can_peek = True

    def __init__(self, sock: socket.socket, deadline: Optional[float]) -> None:
        self.sock = sock
        self.deadline = deadline

    def _arm(self) -> None:
        remaining = None if self.deadline is None else self.deadline - time.monotonic()
        if remaining is not None and remaining <= 0:
            raise TimeoutError("the handshake took too long")
        self.sock.settimeout(remaining)

    def _receive(self, size: int) -> bytes:
        self._arm()
        try:
            return self.sock.recv(size)
        except socket.timeout:
            raise TimeoutError("the handshake took too long") from None

    def _send(self, data: bytes) -> None:
        self._arm()
        try:
            self.sock.sendall(data)
        except socket.timeout:
            raise TimeoutError("the handshake took too long") from None

    def peek(self, size: int) -> bytes:
        """Up to that many of the next bytes, without taking them; empty at the end of the stream."""
        self._arm()
        try:
            return self.sock.recv(size, socket.MSG_PEEK)
        except socket.timeout:
            raise TimeoutError("the handshake took too long") from None

    def read(self, size: int) -> bytes:
        """1 to ``size`` bytes; empty at the end of the stream. TimeoutError at the deadline, OSError if the connection broke."""
        return self._receive(size)

    def write(self, data: bytes) -> None:
        """Send everything. TimeoutError at the deadline, OSError if the connection broke."""
        self._send(data)

    def release(self) -> None:
        """Make the socket what a worker expects: blocking, without any deadline.

        The mode belongs to the connection, not to the descriptor: the worker would inherit it.
        """
        self.deadline = None
        self.sock.settimeout(None)


class TlsStream(SocketStream):
    """The same over TLS, ready to be handed to a ``Pump``.

    TLS works on memory here, not on the socket: between the handshake and the pump no byte may be lost in the buffers of either.
    """

    can_peek = False

    def __init__(
        self,
        sock: socket.socket,
        deadline: Optional[float],
        context: ssl.SSLContext,
        server_side: bool = False,
        server_hostname: Optional[str] = None,
    ) -> None:
        super().__init__(sock, deadline)
        self.incoming = ssl.MemoryBIO()
        self.outgoing = ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side, server_hostname)

    def _run(self, operation: "Callable[..., Any]", *args: object) -> Any:
        while True:
            try:
                result = operation(*args)
            except ssl.SSLWantReadError:
                self._flush()
                data = self._receive(65536)
                if data:
                    self.incoming.write(data)
                else:
                    self.incoming.write_eof()  # the operation raises SSLEOFError on its next try
            except ssl.SSLError:
                self._flush()  # the alert that tells the peer why
                raise
            else:
                self._flush()
                return result

    def _flush(self) -> None:
        data = self.outgoing.read()
        if data:
            self._send(data)

    def start_handshake(self) -> None:
        """Send the first message of the TLS handshake without waiting for an answer (client)."""
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()

    def handshake(self) -> None:
        """Do the TLS handshake. ssl.SSLError if it fails, also TimeoutError and OSError."""
        self._run(self.tls.do_handshake)

    def read(self, size: int) -> bytes:
        """1 to ``size`` bytes; empty at the end of the stream, also at one that was cut."""
        try:
            return bytes(self._run(self.tls.read, size))
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            return b""

    def write(self, data: bytes) -> None:
        """Send everything. TimeoutError at the deadline, OSError if the connection broke."""
        view = memoryview(data)
        while view:
            view = view[self._run(self.tls.write, view) :]


_NOT_TEXT = re.compile(rb"[^ -~]")
# Compiled here, once: every connection has a process of its own.
_AUTH = re.compile(r"auth (link|stderr) ([0-9a-f]{32}) ([0-9a-f]{64}) ([0-9a-f]{64})\Z")
_START = re.compile(r"start ([0-9]{1,8}) ([0-9a-f]{64})\Z")


def read_line(stream: Any, limit: int = LINE_LIMIT) -> str:
    """Read one line of the handshake, and nothing of what follows: that may belong to the worker.

    Params:
        stream: anything with ``read(size) -> bytes``; read byte by byte unless it can peek.
        limit: how long the line may be.

    Returns:
        The line without its newline.

    Raises:
        EOFError: the stream ended; its argument is what arrived of the line.
        BadLine: too long, or not printable ASCII.
        TimeoutError, OSError: from the stream.
    """
    line = bytearray()
    can_peek = getattr(stream, "can_peek", False)
    while True:
        size = 1
        if can_peek:
            ahead = stream.peek(limit)
            size = ahead.find(b"\n") + 1 or len(ahead) or 1
        data = stream.read(size)
        if not data:
            raise EOFError(bytes(line))
        line += data
        text = line[:-1] if data.endswith(b"\n") else line
        # At the first wrong byte, so that nobody waits for the newline of a TLS greeting.
        if len(text) > limit or _NOT_TEXT.search(text):
            raise BadLine(bytes(line))
        if text is not line:
            return text.decode("ascii")


def read_exactly(stream: Any, size: int) -> bytes:
    """Read that many bytes; EOFError if the stream ends before."""
    data = bytearray()
    while len(data) < size:
        chunk = stream.read(size - len(data))
        if not chunk:
            raise EOFError(bytes(data))
        data += chunk
    return bytes(data)


def one_line(text: str) -> str:
    """The text as printable ASCII on one line, cut to MESSAGE_LIMIT: for the wire, and so that no client writes log lines."""
    return text.encode("unicode_escape").decode("ascii").replace("\\\\", "\\")[:MESSAGE_LIMIT]


# ---------------------------------------------------------------------------------------------------------------- TLS pump


class Pump:
    r"""Moves bytes between a TLS connection and a plain socket whose other end belongs to somebody who knows nothing of TLS.

        peer  <==TCP==>  incoming/outgoing (memory)  tls  <-->  plain  <==socketpair==>  worker or gateway

    * End of file on one side becomes end of file on the other, one direction at a time (close_notify, SHUT_WR).
    * A cut connection closes the plain socket at once.
    * A plain socket that nobody reads any more ends the connection, after what was written to it has left.
    * At most OUTBOUND_LIMIT and INBOUND_LIMIT bytes wait; beyond that the side that sends is not read. The connection is read far
      ahead because only its end says that it is cut, and a worker that reads nothing must learn that too. What farwire sends
      ahead is limited by its own flow control (8 MiB for each channel).

    Single-threaded, never blocks: call ``step`` when a socket of ``wants()`` is ready, until ``finished()``.
    """

    OUTBOUND_LIMIT = 1 << 20
    INBOUND_LIMIT = 1 << 26
    CHUNK = 1 << 16
    LINGER = 5.0  # seconds; closing earlier with input unread would make TCP discard output on its way

    def __init__(self, stream: TlsStream, plain: socket.socket) -> None:
        self._net = stream.sock
        self._tls = stream.tls
        self._incoming = stream.incoming
        self._outgoing = stream.outgoing
        self._plain = plain
        self._to_plain = bytearray()
        self._to_net = bytearray()
        self._inbound_open = True  # the peer may still send
        self._outbound_open = True  # the plain side may still send
        self._plain_writable = True  # somebody may still read the plain side
        self._plain_shut = False
        self._net_shut = False
        self._linger_until: Optional[float] = None
        self._cut = False
        self._net.setblocking(False)
        self._plain.setblocking(False)

    def wants(self) -> "List[Tuple[socket.socket, int]]":
        """The sockets to wait for, with selectors' events; sockets with nothing to wait for are left out."""
        net = plain = 0
        if self._inbound_open and len(self._to_plain) < self.INBOUND_LIMIT:
            net |= selectors.EVENT_READ
        if self._to_net:
            net |= selectors.EVENT_WRITE
        if self._outbound_open and len(self._to_net) < self.OUTBOUND_LIMIT:
            plain |= selectors.EVENT_READ
        if self._to_plain:
            plain |= selectors.EVENT_WRITE
        return [(sock, events) for sock, events in ((self._net, net), (self._plain, plain)) if events]

    def patience(self) -> Optional[float]:
        """How many seconds to wait at most before the next ``step``; None for as long as it takes."""
        return None if self._linger_until is None else max(0.0, self._linger_until - time.monotonic())

    def finished(self) -> bool:
        """Whether there is nothing left to move."""
        if self._cut:
            return True
        if not self._net_shut:
            return False
        if not self._inbound_open and not self._to_plain:
            return True
        return self._linger_until is not None and time.monotonic() >= self._linger_until

    def close(self) -> None:
        """Close both sockets."""
        self._net.close()
        self._plain.close()

    def step(self) -> None:
        """Move whatever can be moved without waiting. Ends the pump instead of raising when a connection breaks."""
        self._receive()
        while self._decrypt():
            self._deliver()
            if self._to_plain:
                break
        self._deliver()
        self._collect()
        self._transmit()
        if self._net_shut and not self._plain_writable and self._linger_until is None:
            self._linger_until = time.monotonic() + self.LINGER

    def _receive(self) -> None:
        if not self._inbound_open or len(self._to_plain) >= self.INBOUND_LIMIT:
            return
        try:
            data = self._net.recv(self.CHUNK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._cut = True
            return
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def _decrypt(self) -> bool:
        """Take what TLS has; True if it was anything."""
        moved = False
        while self._inbound_open and len(self._to_plain) < self.INBOUND_LIMIT:
            try:
                data = self._tls.read(self.CHUNK)
            except ssl.SSLWantReadError:
                break
            except ssl.SSLZeroReturnError:
                data = b""
            except ssl.SSLError:  # the connection ended without close_notify, or was tampered with
                self._cut = True
                break
            if not data:
                self._inbound_open = False
                break
            moved = True
            if self._plain_writable:
                self._to_plain += data
        return moved

    def _deliver(self) -> None:
        while self._to_plain:
            try:
                sent = self._plain.send(self._to_plain[: self.CHUNK])
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                self._nobody_reads()
                return
            del self._to_plain[:sent]
        if not self._inbound_open and self._plain_writable and not self._plain_shut:
            self._plain_shut = True
            try:
                self._plain.shutdown(socket.SHUT_WR)
            except OSError:
                self._nobody_reads()

    def _nobody_reads(self) -> None:
        self._plain_writable = False
        self._to_plain.clear()

    def _collect(self) -> None:
        if not self._outbound_open or len(self._to_net) >= self.OUTBOUND_LIMIT or self._cut:
            return
        try:
            data = self._plain.recv(self.CHUNK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:  # closed with something of ours unread; what it had sent before has been received
            data = b""
        try:
            if data:
                view = memoryview(data)
                while view:
                    view = view[self._tls.write(view) :]
            else:
                self._outbound_open = False
                # close_notify. Nothing readable may be left in memory: unwrap() then looks for the peer's close_notify and
                # takes anything else for an error.
                self._decrypt()
                self._tls.unwrap()
        except ssl.SSLWantReadError:
            return  # sent; the peer's close_notify comes when its own direction ends
        except ssl.SSLError:
            self._cut = True

    def _transmit(self) -> None:
        self._to_net += self._outgoing.read()
        while self._to_net:
            try:
                sent = self._net.send(self._to_net[: self.CHUNK])
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                self._cut = True
                return
            del self._to_net[:sent]
        if not self._outbound_open and not self._net_shut:
            self._net_shut = True
            try:
                self._net.shutdown(socket.SHUT_WR)
            except OSError:
                self._cut = True


def run_pumps(pumps: Iterable[Pump]) -> None:
    """Run pumps until all are finished; their sockets are closed then, or when this is left by an exception."""
    active = list(pumps)
    watched: Dict[socket.socket, int] = {}
    selector = selectors.DefaultSelector()
    try:
        while True:
            wanted: Dict[socket.socket, int] = {}
            patience: Optional[float] = None
            for pump in list(active):
                pump.step()
                if pump.finished():
                    active.remove(pump)
                    continue
                wanted.update(pump.wants())
                own = pump.patience()
                patience = own if patience is None else patience if own is None else min(own, patience)
            for sock in [sock for sock in watched if sock not in wanted]:
                selector.unregister(sock)
                del watched[sock]
            for sock, events in wanted.items():
                if sock not in watched:
                    selector.register(sock, events)
                elif watched[sock] != events:
                    selector.modify(sock, events)
                watched[sock] = events
            for pump in pumps:
                if pump not in active:
                    pump.close()
            if not active:
                return
            selector.select(patience)
    finally:
        selector.close()
        for pump in pumps:
            pump.close()


# ------------------------------------------------------------------------------------------------------------------ groups


def signal_group(pid: int, signum: int) -> None:
    """Send a signal to the process group that ``pid``, a child not yet reaped, leads or is about to lead."""
    try:
        os.killpg(pid, signum)
    except ProcessLookupError:
        # Forked a moment ago, not in its own session yet; unreaped, so the number is still its own.
        os.kill(pid, signum)
    except PermissionError:
        pass  # macOS says so of a group whose only member is dead


def stop_groups(pids: Iterable[int], grace: float) -> None:
    """Terminate children and their process groups, kill what is left after ``grace`` seconds, reap the children.

    A group is killed before its leader is reaped: afterwards its number may belong to somebody else.
    """
    waiting = set(pids)
    for pid in waiting:
        signal_group(pid, signal.SIGTERM)
    deadline = time.monotonic() + grace
    while waiting:
        for pid in sorted(waiting):
            if time.monotonic() >= deadline:
                signal_group(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            elif hasattr(os, "waitid"):
                if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                    continue
                signal_group(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            else:  # macOS: one cannot look without reaping; the group is killed at once afterwards
                if os.waitpid(pid, os.WNOHANG)[0] == 0:
                    continue
                try:
                    os.killpg(pid, signal.SIGKILL)
                except (ProcessLookupError, PermissionError):
                    pass  # the group died with its leader
            waiting.remove(pid)
        if waiting:
            time.sleep(0.02)


def describe_status(status: int) -> str:
    """How a process ended, from what waitpid says."""
    return f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"status {os.WEXITSTATUS(status)}"


class Log:
    """Lines on the server's stderr, through a descriptor of their own: fd 2 becomes the worker's."""

    def __init__(self) -> None:
        self._fd = os.dup(2)

    def __call__(self, text: str) -> None:
        """Write one line. A log that nobody reads must not end the service, so write errors are ignored."""
        try:
            os.write(self._fd, f"farwire-serve: {one_line(text)}\n".encode("ascii"))
        except OSError:
            pass


# -------------------------------------------------------------------------------------------------- one connection's process


class Config(NamedTuple):
    """What the process of a connection has to know."""

    secret: bytes
    context: Optional[ssl.SSLContext]
    binding: str
    directory: str
    handshake_timeout: float
    failure_delay: float


class StartRequest:
    """A client's start request, checked.

    Attributes:
        stage0, command (list or None), flags, chdir, nice, env: see the top of this file.
    """

    def __init__(self, body: bytes) -> None:
        """Refused if the body is not a proper request."""
        try:
            fields = json.loads(body.decode("ascii"))
        except ValueError as error:
            raise Refused("start", f"the request is not JSON: {error}") from error
        if not isinstance(fields, dict):
            raise Refused("start", "the request is not a JSON object")
        self.stage0: str = self._text(fields, "stage0")
        if not self.stage0:
            raise Refused("start", "the request has no stage0")
        python = fields.pop("python", None)
        if isinstance(python, str):
            python = [python]
        self.command: Optional[List[str]] = self._texts("python", python) if python else None
        self.flags = self._texts("flags", fields.pop("flags", None) or [])
        self.chdir: str = self._text(fields, "chdir")
        self.nice = fields.pop("nice", None) or 0
        if not isinstance(self.nice, int):
            raise Refused("start", "nice is not an integer")
        env = fields.pop("env", None) or {}
        if not isinstance(env, dict) or not all("=" not in name and name for name in env):
            raise Refused("start", "env is not a mapping of names to values")
        self._texts("env", list(env) + [value for value in env.values() if value is not None])
        self.env: Dict[str, Optional[str]] = env
        if fields:
            raise Refused("start", f"the request has unknown keys: {', '.join(sorted(fields))}")

    @staticmethod
    def _texts(name: str, values: object) -> "List[str]":
        if not isinstance(values, list) or not all(isinstance(value, str) and "\0" not in value for value in values):
            raise Refused("start", f"{name} is not text, or holds a NUL")
        return values

    @classmethod
    def _text(cls, fields: "Dict[str, Any]", name: str) -> str:
        return cls._texts(name, [fields.pop(name, None) or ""])[0]


class Launch(NamedTuple):
    """A program about to be executed, in the directory that is current already."""

    path: str
    argv: "List[str]"
    env: "Dict[str, str]"


def prepare_launch(request: StartRequest, directory: str, environ: Mapping[str, str]) -> Launch:
    """Enter the directory, take the niceness, find the interpreter.

    Params:
        request: what the client asked for.
        directory: what relative directories are relative to.
        environ: the server's environment.

    Returns:
        What to execute.

    Raises:
        Refused: that is not possible; "directory", "python-not-found" or "start".
    """
    path = os.path.join(directory, os.path.expanduser(request.chdir or DEFAULT_DIRECTORY))
    try:
        os.makedirs(path, exist_ok=True)
        os.chdir(path)
    except OSError as error:
        raise Refused("directory", f"cannot create or enter {path}: {error.strerror}") from error
    if request.nice:
        try:
            os.nice(request.nice)
        except OSError as error:
            raise Refused("start", f"cannot change niceness by {request.nice}: {error.strerror}") from error
    env = dict(environ)
    for name, value in request.env.items():
        if value is None:
            env.pop(name, None)
        else:
            env[name] = value
    command = request.command or [sys.executable]
    if not command[0]:
        raise Refused("python-not-found", "the server does not know its own interpreter; name one with python=")
    name = os.path.expanduser(command[0])
    program = shutil.which(name, path=env.get("PATH", os.defpath))
    if program is None and os.path.dirname(name):
        reason = "is not executable" if os.path.exists(name) else "does not exist"
        raise Refused("python-not-found", f"{name} {reason} on the server's host")
    if program is None:
        raise Refused("python-not-found", f"no {name!r} on the server's PATH, {env.get('PATH', os.defpath)}")
    # The full path also as argv[0]: an interpreter finds its virtual environment by it.
    program = os.path.abspath(program)
    return Launch(program, [program] + command[1:] + request.flags + ["-c", request.stage0], env)


def execute(launch: Launch, link: int, stderr: int, log: Log) -> NoReturn:
    """Become the worker. An error is told on its stderr, the only place that is left for it."""
    try:
        for signum in SIGNALS + (signal.SIGPIPE, getattr(signal, "SIGXFSZ", signal.SIGPIPE)):
            signal.signal(signum, signal.SIG_DFL)  # Python ignores SIGPIPE and SIGXFSZ, and exec would hand that on
        os.dup2(link, 0)
        os.dup2(link, 1)
        os.dup2(stderr, 2)
        os.execve(launch.path, launch.argv, launch.env)
    except (OSError, ValueError) as error:
        # E2BIG is the environment's or stage 0's fault, a ValueError an environment that cannot be encoded.
        kind = "start" if isinstance(error, ValueError) or error.errno == errno.E2BIG else "python-not-found"
        text = f"cannot execute {launch.path}: {error}"
        log(text)
        os.write(2, f"farwire-serve: error {kind} {one_line(text)}\n".encode("ascii"))
    finally:
        os._exit(127)


def send_descriptor(control: socket.socket, data: bytes, fd: int) -> None:
    """Send a few bytes with a descriptor over a unix socket."""
    control.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])


def receive_descriptor(control: socket.socket, size: int) -> "Tuple[bytes, int]":
    """The reverse; the descriptor is -1 if none came."""
    item = array.array("i").itemsize
    data, ancillary, _flags, _address = control.recvmsg(size, socket.CMSG_SPACE(item))
    for level, kind, payload in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS) and len(payload) >= item:
            fd = array.array("i", payload[:item])[0]
            os.set_inheritable(fd, False)  # recvmsg leaves it inheritable
            return data, fd
    return data, -1


def admit(stream: SocketStream, secret: bytes, binding: str) -> "Tuple[str, str, Proofs]":
    """The server's part of the mutual authentication.

    Params:
        stream: the connection.
        secret: the shared secret.
        binding: the BINDING of the connection.

    Returns:
        PURPOSE, SESSION and the proofs of a client that proved itself; ``welcome`` is still to be sent.

    Raises:
        Refused: "authentication" or "protocol".
        EOFError, TimeoutError, OSError: the client went away.
    """
    nonce = new_nonce()
    stream.write(f"{PROTOCOL} {nonce}\n".encode("ascii"))
    try:
        opening = read_line(stream)
        if opening != CLIENT_OPENING:
            raise Refused("protocol", f"a farwire server expects {CLIENT_OPENING!r}, not {opening[:80]!r}")
        line = read_line(stream)
    except BadLine as error:
        raise Refused(
            "protocol", f"a farwire server expects {CLIENT_OPENING!r}, not {error.received[:80]!r}"
        ) from error
    match = _AUTH.match(line)
    if match is None:
        raise Refused("protocol", f"not an auth line: {line[:80]!r}")
    purpose, session, client_nonce, proof = match.groups()
    proofs = Proofs(secret, purpose, session, nonce, client_nonce, binding)
    if not hmac.compare_digest(proof, proofs.proof("client")):
        hint = "" if binding == NO_BINDING else ", or the connection does not end at this server's certificate"
        raise Refused("authentication", f"the secret is not this server's{hint}")
    return purpose, session, proofs


def read_request(stream: SocketStream, proofs: Proofs) -> StartRequest:
    """Read the start request and check its MAC. Refused, EOFError, TimeoutError, OSError."""
    try:
        line = read_line(stream)
    except BadLine as error:
        raise Refused("protocol", f"not a start line: {error.received[:80]!r}") from error
    match = _START.match(line)
    if match is None:
        raise Refused("protocol", f"not a start line: {line[:80]!r}")
    size = int(match.group(1))
    if size > REQUEST_LIMIT:
        raise Refused("start", f"a request of {size} bytes; at most {REQUEST_LIMIT} are accepted")
    body = read_exactly(stream, size)
    if not hmac.compare_digest(match.group(2), proofs.start_mac(body)):
        raise Refused("authentication", "the start request was changed on its way")
    return StartRequest(body)


class Terminated(BaseException):
    """SIGTERM arrived at the process of a TLS connection."""


class Connection:
    """One connection, in a process of its own; ``control`` leads to the server.

    Messages on ``control``, each from one write: "L" or "S" and the session, once authenticated, for a link and for stderr (with
    the descriptor to be the worker's); the answer is one byte, for a link with the descriptor of its stderr.
    """

    def __init__(self, config: Config, sock: socket.socket, peer: str, control: socket.socket, log: Log) -> None:
        self._config = config
        self._sock = sock
        self._peer = peer
        self._control = control
        self._log = log
        self._stream = SocketStream(sock, time.monotonic() + config.handshake_timeout)

    def run(self) -> int:
        """Serve the connection; returns the exit status of the process, or never (it becomes the worker)."""
        try:
            tune_socket(self._sock)
            if self._config.context is not None:
                self._start_tls(self._config.context)
            purpose, session, proofs = admit(self._stream, self._config.secret, self._config.binding)
            welcome = f"welcome {proofs.proof('server')}\n".encode("ascii")
            if purpose == "stderr":
                self._serve_stderr(session, welcome)
            else:
                self._serve_link(session, welcome, proofs)
        except Refused as refusal:
            self._refuse(refusal.kind, refusal.message)
        except TimeoutError:
            self._refuse("timeout", f"no complete handshake within {self._config.handshake_timeout:g} s")
        except EOFError:
            self._log(f"{self._peer}: closed during the handshake")
        except OSError as error:  # ssl.SSLError is one
            self._log(f"{self._peer}: {error}")
        else:
            return 0
        return 1

    def _start_tls(self, context: ssl.SSLContext) -> None:
        first = self._stream.peek(1)
        if not first:
            raise EOFError
        if first != b"\x16":  # TLS's "handshake"; told in plain text, for the client speaks that
            raise Refused("tls", "this server speaks TLS only")
        stream = TlsStream(self._sock, self._stream.deadline, context, server_side=True)
        stream.handshake()
        self._stream = stream

    def _refuse(self, kind: str, message: str) -> None:
        self._log(f"{self._peer}: refused: {kind}: {message}")
        if kind in ("authentication", "protocol"):
            time.sleep(self._config.failure_delay)  # this holds one of max_pending places, and so limits guessing
        self._stream.deadline = time.monotonic() + 1
        try:
            self._stream.write(f"error {kind} {one_line(message)}\n".encode("ascii"))
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._log(f"{self._peer}: went away before it was told: {error}")

    def _serve_stderr(self, session: str, welcome: bytes) -> None:
        message = b"S" + bytes.fromhex(session)
        if not isinstance(self._stream, TlsStream):
            # Before the descriptor leaves: from then on the connection is the worker's.
            self._stream.write(welcome)
            self._stream.release()
            send_descriptor(self._control, message, self._sock.fileno())
            self._control.recv(1)  # macOS may drop a descriptor in flight when its sender ends
            return
        ours, theirs = socket.socketpair()
        send_descriptor(self._control, message, theirs.fileno())
        self._control.recv(1)
        theirs.close()
        self._stream.write(welcome)
        self._detach()
        run_pumps([Pump(self._stream, ours)])

    def _serve_link(self, session: str, welcome: bytes, proofs: Proofs) -> None:
        self._control.sendall(b"L" + bytes.fromhex(session))
        self._stream.write(welcome)
        request = read_request(self._stream, proofs)
        self._control.settimeout(max(0.001, (self._stream.deadline or 0) - time.monotonic()))
        try:
            _data, stderr = receive_descriptor(self._control, 1)
        except socket.timeout:
            stderr = -1
        if stderr < 0:
            raise Refused("start", "the client opened no second connection for the worker's stderr")
        launch = prepare_launch(request, self._config.directory, os.environ)
        if isinstance(self._stream, TlsStream):
            self._run_behind_tls(self._stream, launch, stderr)
            return
        pid = os.getpid()
        self._log(f"{self._peer}: pid {pid} runs {launch.path}")
        self._stream.write(f"ok {pid}\n".encode("ascii"))
        self._stream.release()
        execute(launch, self._sock.fileno(), stderr, self._log)

    def _run_behind_tls(self, stream: TlsStream, launch: Launch, stderr: int) -> None:
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            try:
                os.setsid()
                execute(launch, theirs.fileno(), stderr, self._log)
            finally:
                os._exit(127)

        def terminate(_signum: int, _frame: object) -> None:
            raise Terminated

        try:
            signal.signal(signal.SIGTERM, terminate)
            theirs.close()
            os.close(stderr)
            self._log(f"{self._peer}: pid {pid} runs {launch.path}")
            stream.write(f"ok {pid}\n".encode("ascii"))
            self._detach()
            run_pumps([Pump(stream, ours)])
            ours.close()
            _pid, status = os.waitpid(pid, 0)  # without a link it ends; however long it takes, it is ours to reap
            self._log(f"{self._peer}: pid {pid} ended, {describe_status(status)}")
        except BaseException as error:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            stop_groups([pid], PUMP_STOP_GRACE)
            if not isinstance(error, Terminated):
                raise

    def _detach(self) -> None:
        """Let go of the server's stdio and control: a pump may outlive the server, and nobody should wait for it to end."""
        self._control.close()
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1):
            os.dup2(null, fd)
        os.close(null)


# ------------------------------------------------------------------------------------------------------------------- server


class Child:
    """A connection's process, as the server sees it.

    Attributes:
        pid, peer, since: which one, for whom, since when.
        control: the server's end of its control socket.
        kind: "pending" until authenticated, then "link" or "stderr".
    """

    def __init__(self, pid: int, peer: str, control: socket.socket) -> None:
        self.pid = pid
        self.peer = peer
        self.control = control
        self.since = time.monotonic()
        self.kind = "pending"


class Server:
    """Accepts connections, forks their processes, brings the two connections of a session together, reaps.

    Params:
        listeners: listening sockets; ``run`` closes them.
        config: for the processes.
        max_pending: how many connections may be unauthenticated at the same time.
        once: end after so many gateways; 0 for never.
        stdin_is_lifetime: end when fd 0 reaches end of file.
    """

    def __init__(
        self,
        listeners: "Sequence[socket.socket]",
        config: Config,
        max_pending: int = MAX_PENDING,
        once: int = 0,
        stdin_is_lifetime: bool = False,
    ) -> None:
        self._listeners = list(listeners)
        self._config = config
        self._max_pending = max_pending
        self._once = once
        self._stdin_is_lifetime = stdin_is_lifetime
        self._log = Log()
        self._selector = selectors.DefaultSelector()
        self._children: Dict[int, Child] = {}
        self._links: Dict[bytes, Child] = {}  # session -> the process that waits for its stderr
        self._parked: Dict[bytes, Tuple[int, float]] = {}  # session -> (descriptor of its stderr, when to drop it)
        self._accepting = False
        self._accept_after = 0.0
        self._gateways = 0
        self._stopping = False
        self._wakeup: Tuple[socket.socket, socket.socket] = socket.socketpair()

    def run(self, announce: Callable[[], object]) -> None:
        """Serve until SIGTERM, SIGINT, the end of stdin or of ``once``; then end every process that was started.

        ``announce`` is called when signals have their effect: whoever waits for the announcement may send one at once.
        """
        try:
            self._prepare()
            announce()
            while not self._stopping:
                self._choose_accepting()
                for key, _events in self._selector.select(self._patience()):
                    key.data(key.fileobj)
                self._expire()
                if self._once and self._gateways >= self._once and not self._children:
                    break
        finally:
            self._shut_down()

    def _prepare(self) -> None:
        for sock in [*self._wakeup, *self._listeners]:
            sock.setblocking(False)
        signal.set_wakeup_fd(self._wakeup[1].fileno())
        for signum in SIGNALS:
            signal.signal(signum, lambda _signum, _frame: None)  # the byte in the wake-up socket is what counts
        self._selector.register(self._wakeup[0], selectors.EVENT_READ, self._on_signal)
        if self._stdin_is_lifetime:
            try:
                self._selector.register(0, selectors.EVENT_READ, self._on_stdin)
            except (OSError, ValueError) as error:
                raise ServeError("--exit-on-stdin-eof needs a pipe or a terminal as stdin") from error

    def _on_signal(self, sock: socket.socket) -> None:
        for signum in sock.recv(4096):
            if signum in (signal.SIGTERM, signal.SIGINT):
                self._stopping = True
        self._reap()

    def _on_stdin(self, fd: int) -> None:
        if not os.read(fd, 4096):
            self._stopping = True

    # -- accepting

    def _pending(self) -> "List[Child]":
        return [child for child in self._children.values() if child.kind == "pending"]

    def _choose_accepting(self) -> None:
        """Listen only while there is a place for another unauthenticated connection; the kernel queues the rest."""
        wanted = (
            len(self._pending()) < self._max_pending
            and time.monotonic() >= self._accept_after
            and not (self._once and self._gateways >= self._once)
        )
        if wanted != self._accepting:
            self._accepting = wanted
            for sock in self._listeners:
                if wanted:
                    self._selector.register(sock, selectors.EVENT_READ, self._on_connection)
                else:
                    self._selector.unregister(sock)

    def _on_connection(self, listener: socket.socket) -> None:
        try:
            sock, _address = listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionError):
            return  # it went away again
        except OSError as error:
            self._log(f"cannot accept: {error.strerror}")
            self._accept_after = time.monotonic() + 0.5  # out of descriptors, say; the connection stays in the queue
            return
        try:
            self._start_child(sock)
        except OSError as error:
            self._log(f"cannot serve a connection: {error.strerror}")
        finally:
            sock.close()

    def _start_child(self, sock: socket.socket) -> None:
        peer = str(socket_address(sock.getpeername()))
        ours, theirs = socket.socketpair()
        # A signal between fork and the reset of the handlers would write into the wake-up socket that both processes share.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            pid = os.fork()
            if pid == 0:
                self._be_child(sock, peer, ours, theirs, mask)
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        self._children[pid] = child = Child(pid, peer, ours)
        self._selector.register(ours, selectors.EVENT_READ, lambda _sock: self._on_control(child))

    def _be_child(
        self, sock: socket.socket, peer: str, ours: socket.socket, theirs: socket.socket, mask: "Iterable[int]"
    ) -> NoReturn:
        status = 1
        try:
            os.setsid()
            signal.set_wakeup_fd(-1)
            for signum in SIGNALS:
                signal.signal(signum, signal.SIG_DFL)
            # A pump lives long: it must not keep the port, or the connections of others, open.
            self._selector.close()
            for other in [ours] + list(self._wakeup) + self._listeners + [c.control for c in self._children.values()]:
                other.close()
            for fd, _expiry in self._parked.values():
                os.close(fd)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            status = Connection(self._config, sock, peer, theirs, self._log).run()
        except BaseException:  # noqa: BLE001 -- whatever it is, this process must not go on as a second server
            self._log(f"{peer}: a defect in the server")
            for line in traceback.format_exc().splitlines():
                self._log(line)
        finally:
            os._exit(status)

    # -- bringing link and stderr together

    def _on_control(self, child: Child) -> None:
        if child.control.fileno() < 0:
            return  # reaped by an earlier event of the same round
        try:
            message, fd = receive_descriptor(child.control, 17)
        except ConnectionError:
            message, fd = b"", -1
        kind, session = message[:1], message[1:]
        if kind == b"S" and fd >= 0 and session not in self._parked:
            child.kind = "stderr"
            self._parked[session] = (fd, time.monotonic() + self._config.handshake_timeout)
            self._answer(child, None)
        elif kind == b"L" and session not in self._links:
            child.kind = "link"
            self._links[session] = child
            self._gateways += 1
        else:
            if message:
                self._log(f"{child.peer}: session used twice")
            if fd >= 0:
                os.close(fd)
            self._forget(child)
            return
        if session in self._links and session in self._parked:
            descriptor, _expiry = self._parked.pop(session)
            self._answer(self._links[session], descriptor)
            os.close(descriptor)

    def _answer(self, child: Child, fd: Optional[int]) -> None:
        try:
            if fd is None:
                child.control.sendall(b"k")
            else:
                send_descriptor(child.control, b"k", fd)
        except ConnectionError:
            self._log(f"{child.peer}: gone before its session was complete")

    def _forget(self, child: Child) -> None:
        """Close the control socket: the process is on its own (it is the worker, or a pump), or dead."""
        if child.control.fileno() >= 0:
            self._selector.unregister(child.control)
            child.control.close()
        for session in [session for session, link in self._links.items() if link is child]:
            del self._links[session]

    # -- time and death

    def _patience(self) -> Optional[float]:
        times = [expiry for _fd, expiry in self._parked.values()]
        if not self._accepting:
            times += [self._accept_after] if self._accept_after > time.monotonic() else []
            times += [child.since + PENDING_GRACE for child in self._pending()]
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _expire(self) -> None:
        now = time.monotonic()
        for session, (fd, expiry) in list(self._parked.items()):
            if now >= expiry:
                os.close(fd)
                del self._parked[session]
        pending = self._pending()
        if len(pending) >= self._max_pending:
            oldest = min(pending, key=lambda child: child.since)
            if now >= oldest.since + PENDING_GRACE:
                self._log(f"{oldest.peer}: dropped, too many unauthenticated connections")
                signal_group(oldest.pid, signal.SIGKILL)
                oldest.kind = "dropped"

    def _reap(self) -> None:
        while True:
            try:
                # Any child: as process 1 of a container the server inherits orphans.
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            child = self._children.get(pid)
            if child is not None:
                if child.kind == "link" and self._config.context is None:  # with TLS it was the pump, see there
                    self._log(f"{child.peer}: pid {pid} ended, {describe_status(status)}")
                self._forget(child)
                del self._children[pid]

    def _shut_down(self) -> None:
        """Stop listening and end all processes: links first, for pumps carry the last words of their stderr."""
        for sock in self._listeners:
            sock.close()
        for signum in SIGNALS:
            signal.signal(signum, signal.SIG_DFL if signum == getattr(signal, "SIGCHLD", None) else signal.SIG_IGN)
        signal.set_wakeup_fd(-1)
        children = list(self._children.values())
        stop_groups([child.pid for child in children if child.kind == "link"], STOP_GRACE)
        stop_groups([child.pid for child in children if child.kind != "link"], 0.5)
        for child in children:
            self._forget(child)
        self._children.clear()
        for fd, _expiry in self._parked.values():
            os.close(fd)
        self._selector.close()
        for sock in self._wakeup:
            sock.close()


# --------------------------------------------------------------------------------------------------------------- listening


class Listener(NamedTuple):
    """A listening socket, and the unix socket file to remove at the end: path, device and inode; or None."""

    sock: socket.socket
    file: "Optional[Tuple[str, int, int]]"


def listen(address: Address) -> "List[Listener]":
    """Listen at an address; a host name may stand for several.

    Raises:
        ServeError: that is not possible.
    """
    if address.path:
        return [listen_unix(address.path)]
    try:
        found = socket.getaddrinfo(address.host, address.port, 0, socket.SOCK_STREAM, 0, socket.AI_PASSIVE)
    except OSError as error:
        raise ServeError(f"cannot resolve {address.host}: {error.strerror}") from error
    listeners: List[Listener] = []
    port = address.port
    for family, kind, protocol, _name, where in dict.fromkeys(found):
        sock = socket.socket(family, kind, protocol)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # or [::] would take IPv4's port as well
        try:
            sock.bind((where[0], port) + where[2:])
            sock.listen(1024)  # two connections for each gateway of a large group
        except OSError as error:
            for listener in listeners:
                listener.sock.close()
            sock.close()
            raise ServeError(f"cannot listen on {address}: {error.strerror}") from error
        port = sock.getsockname()[1]  # the same for all if the first was free to choose
        listeners.append(Listener(sock, None))
    return listeners


def listen_unix(path: str) -> Listener:
    """Listen on a unix socket that only its owner can connect to. ServeError if that is not possible."""
    if not hasattr(socket, "AF_UNIX"):
        raise ServeError("this system has no unix sockets")
    path = os.path.abspath(path)
    try:
        if os.path.lexists(path):
            remove_stale_socket(path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        umask = os.umask(0o177)  # from the start: a chmod afterwards would leave a moment for others
        try:
            sock.bind(path)
        finally:
            os.umask(umask)
        sock.listen(1024)
        made = os.lstat(path)
    except OSError as error:
        raise ServeError(f"cannot listen on unix:{path}: {error.strerror or error}") from error
    return Listener(sock, (path, made.st_dev, made.st_ino))


def remove_stale_socket(path: str) -> None:
    """Remove a socket that nobody listens on. ServeError if it is anything else."""
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        raise ServeError(f"{path} exists and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass  # somebody listens, and is busy
    raise ServeError(f"another server listens on unix:{path}")


def activated_sockets(environ: "Any") -> "List[Listener]":
    """The sockets that systemd, or whoever keeps to its LISTEN_FDS protocol, has passed; the variables are removed.

    Raises:
        ServeError: one of them is not a listening stream socket.
    """
    pid, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdigit():
        return []
    listeners = []
    for fd in range(3, 3 + int(count)):
        os.set_inheritable(fd, False)
        try:
            probe = socket.socket(socket.AF_INET, socket.SOCK_STREAM, fileno=fd)
        except OSError as error:
            raise ServeError(f"LISTEN_FDS: descriptor {fd} is not a socket") from error
        # Python 3.6 cannot detect the family; the name has it, whatever the object believes.
        name = probe.getsockname()
        listening = probe.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        probe.detach()
        if not listening:
            raise ServeError(f"LISTEN_FDS: descriptor {fd} does not listen; a systemd socket unit needs Accept=no")
        if not isinstance(name, tuple):
            family = socket.AF_UNIX
        else:
            family = socket.AF_INET6 if len(name) == 4 else socket.AF_INET
        listeners.append(Listener(socket.socket(family, socket.SOCK_STREAM, fileno=fd), None))
    return listeners


def require_loopback(listeners: "Iterable[Listener]") -> None:
    """ServeError if one of the sockets could be reached from another machine."""
    for listener in listeners:
        address = socket_address(listener.sock.getsockname())
        if not address.path and not is_loopback(address.host):
            raise ServeError(
                f"refusing to listen on {address} without TLS: other machines can reach it, and everything, also what"
                " workers are sent, would cross the network readable and changeable. Give --tls-cert and --tls-key, or"
                " listen on 127.0.0.1 and reach it with 'ssh -L'."
            )


def load_tls(certificate: str, key: Optional[str]) -> "Tuple[ssl.SSLContext, str]":
    """The server's TLS context and BINDING.

    Raises:
        ServeError: a file cannot be read, or is not what it should be.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if hasattr(ssl, "TLSVersion"):
        context.minimum_version = ssl.TLSVersion.TLSv1_2
    else:  # Python 3.6
        context.options |= ssl.OP_NO_SSLv2 | ssl.OP_NO_SSLv3 | ssl.OP_NO_TLSv1 | ssl.OP_NO_TLSv1_1
    try:
        context.load_cert_chain(certificate, key)
        with open(certificate, encoding="ascii", errors="replace") as file:
            match = re.search(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", file.read(), re.DOTALL)
    except OSError as error:  # ssl.SSLError is one
        raise ServeError(
            f"cannot use the certificate {certificate} with the key {key or certificate}: {error}"
        ) from error
    if match is None:
        raise ServeError(f"there is no certificate in {certificate}")
    # The first is the server's own, the others are its issuers'.
    return context, certificate_binding(ssl.PEM_cert_to_DER_cert(match.group()))


def default_base() -> str:
    """Where relative working directories are: the current directory, or home if that cannot be written to."""
    here = os.getcwd()
    return here if here != "/" and os.access(here, os.W_OK | os.X_OK) else os.path.expanduser("~")


# ------------------------------------------------------------------------------------------------------------ spawn_server


def script_text() -> str:
    """The text of this file. ServeError if it runs from text that is in no file."""
    text = "".join(linecache.getlines(globals().get("__file__", ""), globals()))
    if not text:
        raise ServeError("the text of the server is not in a file here")
    return text


_BOOT = "import sys;exec(compile(sys.stdin.buffer.read(int(sys.stdin.buffer.readline())),'farwire-serve','exec'))"


def spawn_server(
    script_text: str, host: str, port: int, secret: "Union[str, bytes]", timeout: float = 30.0
) -> "Tuple[Any, str, int]":
    """Start a server from the text of this file, in a child process that lives as long as its stdin stays open.

    Nothing is written to disk, and the secret is in no argument. For code that runs in a worker.

    Params:
        script_text: the text of this file.
        host, port: where it shall listen; port 0 for a free one.
        secret: the shared secret.
        timeout: how long it may take.

    Returns:
        The ``subprocess.Popen`` (close its ``stdin`` to end the server), the host and the port.

    Raises:
        RuntimeError: the server did not start; it has said why on stderr.
    """
    import subprocess

    address = Address(host, port, "")
    script = script_text.encode("utf-8")
    secret = secret.encode("utf-8") if isinstance(secret, str) else secret
    options = ["--secret-stdin", "--exit-on-stdin-eof", str(address)]
    process = subprocess.Popen(
        [sys.executable, "-c", _BOOT] + options, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    if process.stdin is None or process.stdout is None:
        raise AssertionError("Popen was asked for pipes")
    line = b""
    try:
        process.stdin.write(b"%d\n%s%s\n" % (len(script), script, secret))
        process.stdin.flush()
        if select.select([process.stdout], [], [], timeout)[0]:
            line = process.stdout.readline()  # written with one call
    except BrokenPipeError:
        pass  # it ended already; without a line, that is told below
    prefix = b"listening on "
    if not line.startswith(prefix):
        process.kill()
        process.stdin.close()
        process.stdout.close()
        raise RuntimeError(f"the server did not start at {address}: exit status {process.wait()}, see its stderr")
    process.stdout.close()
    where = parse_address(line[len(prefix) :].decode("ascii").strip())
    return process, where.host, where.port


# ------------------------------------------------------------------------------------------------------------ command line


def build_parser(prog: Optional[str] = None) -> argparse.ArgumentParser:
    """The options of the server."""
    parser = argparse.ArgumentParser(
        prog=prog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Start Python interpreters for farwire clients that know the secret.\n\n"
        "THIS IS A REMOTE SHELL: whoever knows the secret runs any code as the user\n"
        "who starts this server. Give the secret to nobody whom you would not give\n"
        "that user's password.",
        epilog="ADDRESS is host:port, [ipv6]:port, or the path of a unix socket (with a / in it,\n"
        "or unix:path); port 0 takes a free one. With systemd socket activation\n"
        "(LISTEN_FDS) leave it out. One line 'listening on ADDRESS' per socket goes to\n"
        "stdout, the log to stderr. A good secret:\n"
        '    (umask 077; python3 -c "import secrets;print(secrets.token_hex(32))" > secret)',
    )
    add = parser.add_argument
    add("address", metavar="ADDRESS", nargs="?", help=f"where to listen (default: 127.0.0.1:{DEFAULT_PORT})")
    secret = parser.add_mutually_exclusive_group()
    secret.add_argument(
        "--secret-file", metavar="FILE", help=f"holds the secret (default: the variable {SECRET_VARIABLE})"
    )
    secret.add_argument("--secret-stdin", action="store_true", help="the secret is the first line of stdin")
    add("--tls-cert", metavar="FILE", help="speak TLS with this certificate (PEM); needed to leave loopback")
    add("--tls-key", metavar="FILE", help="its private key (default: in the file of the certificate)")
    add("--directory", metavar="DIR", help="relative working directories are in here (default: the current, or home)")
    add("--handshake-timeout", metavar="SECONDS", type=float, default=HANDSHAKE_TIMEOUT, help="default: %(default)g")
    add("--failure-delay", metavar="SECONDS", type=float, default=FAILURE_DELAY, help="default: %(default)g")
    add(
        "--max-pending",
        metavar="N",
        type=int,
        default=MAX_PENDING,
        help="unauthenticated connections; default: %(default)d",
    )
    add("--once", metavar="N", type=int, default=0, help="exit after N gateways")
    add("--exit-on-stdin-eof", action="store_true", help="exit when stdin reaches end of file")
    add("--print-script", action="store_true", help="print this server as one file for Python 3.6 or later, and exit")
    return parser


def serve(options: argparse.Namespace) -> int:
    """Run a server as the options say.

    Returns:
        The exit status, 0.

    Raises:
        ServeError: it cannot run like that.
    """
    if not hasattr(os, "fork") or not hasattr(socket, "AF_UNIX"):
        raise ServeError("the server needs fork and unix sockets, which this system does not have")
    if options.secret_stdin:
        secret = sys.stdin.buffer.readline().strip()
        if not secret:
            raise ServeError("the first line of stdin, the secret, is empty")
    else:
        secret = read_secret(options.secret_file, os.environ)
    os.environ.pop(SECRET_VARIABLE, None)  # not for the workers
    if options.tls_key and not options.tls_cert:
        raise ServeError("--tls-key without --tls-cert")
    base = os.path.abspath(os.path.expanduser(options.directory)) if options.directory else default_base()
    for fd in open_descriptors():
        os.set_inheritable(fd, False)  # nothing that the server happens to have inherited is for the workers
    listeners = activated_sockets(os.environ)
    if listeners and options.address:
        raise ServeError("an address and LISTEN_FDS: one of them")
    context, binding = load_tls(options.tls_cert, options.tls_key) if options.tls_cert else (None, NO_BINDING)
    if not listeners:
        try:
            address = parse_address(options.address or f"127.0.0.1:{DEFAULT_PORT}")
        except ValueError as error:
            raise ServeError(str(error)) from error
        listeners = listen(address)
    try:
        if context is None:
            require_loopback(listeners)
        config = Config(secret, context, binding, base, options.handshake_timeout, options.failure_delay)
        server = Server(
            [listener.sock for listener in listeners],
            config,
            options.max_pending,
            options.once,
            options.exit_on_stdin_eof,
        )
        if len(secret) < SHORT_SECRET:
            Log()(f"warning: a secret of less than {SHORT_SECRET} bytes can be guessed by whoever listens in")
        # One write, so that whoever waits for the lines gets them together.
        names = [socket_address(listener.sock.getsockname()) for listener in listeners]
        lines = "".join(f"listening on {name}\n" for name in names).encode("utf-8", "surrogateescape")
        server.run(lambda: os.write(1, lines))
    finally:
        for listener in listeners:
            listener.sock.close()
            if listener.file is not None:
                remove_own_socket(*listener.file)
    return 0


def remove_own_socket(path: str, device: int, inode: int) -> None:
    """Remove a unix socket unless it is gone or a successor has put its own there."""
    try:
        found = os.lstat(path)
        if (found.st_dev, found.st_ino) == (device, inode):
            os.unlink(path)
    except FileNotFoundError:
        return


def open_descriptors() -> "List[int]":
    """The descriptors above 2 that are open, as far as the system tells; 0, 1 and 2 are made to exist."""
    while True:
        fd = os.open(os.devnull, os.O_RDWR)  # started without stdio: a connection must not become fd 0
        if fd > 2:
            os.close(fd)
            break
    names = os.listdir("/dev/fd") if os.path.isdir("/dev/fd") else [str(fd) for fd in range(256)]
    found = []
    for fd in sorted(int(name) for name in names if name.isdigit()):
        try:
            os.fstat(fd)
        except OSError:
            continue  # closed, such as the one that listed the directory
        if fd > 2:
            found.append(fd)
    return found


def main(argv: "Optional[Sequence[str]]" = None, prog: Optional[str] = None) -> int:
    """Run the server from the command line.

    Params:
        argv: the arguments, without the program's name; None for those of the process.
        prog: the program's name in messages.

    Returns:
        The exit status: 0, or 1 if the server could not run; 2, for wrong options, is raised by argparse.
    """
    return run(build_parser(prog).parse_args(argv))


def run(options: argparse.Namespace) -> int:
    """Do what the options say, with errors told on stderr; returns the exit status, 1 for an error."""
    try:
        if options.print_script:
            sys.stdout.write(script_text())
            return 0
        return serve(options)
    except ServeError as error:
        print(f"farwire-serve: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
