"""``socket=``: a server started with ``python -m farwire serve``, reached over TCP or a unix socket, directly or through a gateway.

Two connections: the link, which is fd 0 and 1 of the worker, and its stderr. How they begin stands in ``handshake``; what follows is
what pipes would carry.

    here            descriptors of our own; with TLS, a thread moves the bytes (``handshake.TlsPump``)
    through via=    the gateway's worker connects and passes bytes on; handshake and TLS are ours and run on those bytes
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
from _thread import allocate_lock
from time import monotonic

from ..bootstrap.stage0 import SOURCE
from ..errors import AuthenticationError, HostNotFound, StartError, StartTimeout
from ..runtime.channel import ENDED
from ..runtime.stream import FdStream
from ..serve import NO_BINDING, SocketStream, TlsStream, is_loopback
from . import handshake
from .base import Boot, Started
from .via import RawInput, RelayedProcess, RelayedStream, start_service

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from .handshake import Address, StartRequest, Tls
    from .via import Sink


class Socket:
    """Asks a server for a worker. chdir, nice and env take effect before the interpreter starts.

    Args:
        secret: the secret shared with the server; None to look for it where the spec or the environment says.
    """

    # A far server may fall silent, and TCP alone may take a quarter of an hour to notice.
    heartbeat = 5.0

    def __init__(self, secret: bytes | None = None) -> None:
        self._secret = secret

    def start(self, boot: Boot, via: Any) -> Started:
        """Connect, here or through a gateway; returns when the server has started the interpreter.

        Raises:
            SpecError: the address cannot be understood.
            StartError: the server cannot be reached, does not share our secret, or cannot start the interpreter.
        """
        spec = boot.spec
        assert spec.socket is not None
        address = handshake.parse_address(spec.socket)
        tls = handshake.Tls(spec.tls_ca, spec.tls_name) if spec.tls or spec.tls_ca or spec.tls_name else None
        request = handshake.StartRequest(SOURCE, chdir=spec.chdir, nice=spec.nice, env=spec.env)
        try:
            secret = self._secret or handshake.find_secret(spec.secret_file)
            if via is None:
                return _start_here(boot, address, secret, request, tls)
            return _start_relayed(boot, via, address, secret, request, tls)
        except StartError as error:
            if not error.gateway_id:  # the handshake knows of no gateways
                error.gateway_id = boot.id
                error.args = (f"gateway {boot.id}: {error}",)
            raise


def _shown(address: Address, tls: Tls | None) -> str:
    return f"connect to {address}" + (" with TLS" if tls is not None else "")


# ------------------------------------------------------------------------------------------------------------------- here


def _start_here(boot: Boot, address: Address, secret: bytes, request: StartRequest, tls: Tls | None) -> Started:
    session = handshake.connect(address, secret, request, boot.timeout, tls)
    fd = session.link_socket.detach()
    stream = FdStream(fd, fd)
    return Started(
        stream,
        session.stderr_socket.detach(),
        SessionProcess(stream),
        _shown(address, tls),
        boot.bytes(code=False),
        address=session.server,
    )


class SessionProcess:
    """In the place of a process: what a server started ends when its link does.

    Attributes:
        returncode: None, for nobody tells; how the worker ended is its guard's to say.
    """

    def __init__(self, stream: FdStream) -> None:
        self.worker_pid = 0
        self.returncode: int | None = None
        self._stream = stream

    def poll(self) -> int | None:
        """There is nothing here to wait for: 0."""
        return 0

    def wait(self, deadline: float) -> bool:
        """The same."""
        return True

    def terminate(self) -> None:
        """Nothing: the gateway sends a signal through the link."""

    def kill(self) -> None:
        """End the link, so that the guard kills the worker; to be called where the stream is closed, in the reactor's thread."""
        if not self._stream.closed:
            with socket.socket(fileno=os.dup(self._stream.read_fd)) as sock, contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


# -------------------------------------------------------------------------------------------------------- through a gateway


def _start_relayed(
    boot: Boot, via: Any, address: Address, secret: bytes, request: StartRequest, tls: Tls | None
) -> Started:
    shown = f"via {via.id}: {_shown(address, tls)}"
    # Only what cannot be anything but loopback there: names are that host's to resolve.
    if tls is None and not address.path and address.host != "localhost" and not _is_loopback(address.host):
        raise AuthenticationError(
            f"refusing to connect to {address.host} without TLS: what the worker is sent and answers would cross the"
            " network readable and changeable",
            command=shown,
            hint="add tls to the spec and start the server with a certificate",
        )
    deadline = monotonic() + boot.timeout
    target = address.path or [address.host, address.port]
    inputs = start_service(boot, via, {"service": "relay", "connect": target, "timeout": boot.timeout})
    try:
        ends = [RelayedSocket(each, deadline, shown) for each in inputs]
        streams: list[SocketStream]
        encrypted: Any = ()
        binding = NO_BINDING
        if tls is None:
            streams = [SocketStream(end, deadline) for end in ends]  # type: ignore[arg-type]
        else:
            encrypted, binding = handshake.start_tls(ends, deadline, tls, address, shown)  # type: ignore[arg-type]
            streams = list(encrypted)
        handshake.client_handshake(streams[0], streams[1], secret, request, binding=binding, server=shown)
    except BaseException:
        for each in inputs:
            each.core.handle().close()
        raise
    source, stderr = inputs
    stream = RelayedStream(source)
    if tls is not None:
        filters = [TlsFilter(each, stream) for each, stream in zip(inputs, encrypted, strict=True)]
        stream = TlsRelayedStream(source, filters[0])
        stderr = filters[1]  # type: ignore[assignment]
    return Started(
        stream,
        -1,
        RelayedProcess(source.link, source.core),
        shown,
        boot.bytes(code=False),
        parent=source.link,
        stderr_input=stderr,
        address=str(address),
    )


def _is_loopback(host: str) -> bool:
    try:
        return is_loopback(host)
    except ValueError:  # a name
        return False


class RelayedSocket:
    """What a handshake needs of a socket, on a relayed connection."""

    def __init__(self, source: RawInput, deadline: float, server: str) -> None:
        self._input = source
        self._stream = RelayedStream(source)
        self._deadline: float | None = deadline
        self._server = server

    def settimeout(self, seconds: float | None) -> None:
        """For the calls that follow."""
        self._deadline = None if seconds is None else monotonic() + seconds

    def recv(self, size: int, flags: int = 0) -> bytes:
        """As ``socket.recv``, with no other flag than MSG_PEEK.

        Raises:
            StartError: the relay could not connect; the subclass says why.
        """
        data = self._input.read(size, self._deadline, peek=flags == socket.MSG_PEEK)
        if not data:
            self._raise_end()
        return data

    def _raise_end(self) -> None:
        """Why it ended, unless the server closed the connection."""
        link, core = self._input.link, self._input.core
        if link.closed is not None:
            raise StartError(f"the gateway on the way is gone: {link.closed}", command=self._server) from link.closed
        if not hasattr(core.ended, "decode"):
            return
        error = core.ended.decode()
        reason = f"cannot connect: {error.message}"
        if error.typename.endswith("gaierror"):
            raise HostNotFound(f"the host name does not resolve there: {error.message}", command=self._server)
        if error.typename in {"TimeoutError", "socket.timeout"}:
            raise StartTimeout(reason, command=self._server, hint="is the server running, and the port open?")
        if error.typename == "PermissionError":
            hint = "only the user who started the server may use its socket"
            raise AuthenticationError(reason, command=self._server, hint=hint)
        raise HostNotFound(reason, command=self._server, hint="is the server running?")

    def sendall(self, data: bytes) -> None:
        """Send everything."""
        view = memoryview(data)
        while view:
            view = view[self._stream.write([view]) :]
            if view:
                waiter = allocate_lock()
                waiter.acquire()
                if not self._stream.wait_writable(_Release(waiter)) and not self._input.link.wait(
                    waiter, self._deadline
                ):
                    raise TimeoutError("the handshake took too long")


class _Release:
    """Releases a lock, the first time it is called."""

    def __init__(self, lock: Any) -> None:
        self._lock = lock

    def __call__(self) -> None:
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()


RECORD = 16384  # the largest that TLS has


class TlsFilter:
    """TLS on a relayed connection, after the handshake: in the place of its ``RawInput``, and what ``TlsRelayedStream`` writes with."""

    def __init__(self, source: RawInput, stream: TlsStream) -> None:
        self.link = source.link
        self.core = source.core
        self._source = source
        self._stream = RelayedStream(source)
        self._tls = stream.tls
        self._incoming = stream.incoming
        self._outgoing = stream.outgoing
        self._lock = allocate_lock()  # one thread reads, another writes, and neither waits while it holds this
        self._taken: list[bytes] = []  # encrypted,
        self._rest = b""  # not taken by the link yet,
        self._counts: list[int] = []  # but for so many of its first bytes
        self._asked = False  # the link below will call _writable
        self._callback: Callable[[], None] | None = None
        self._sink: Sink | None = None

    def attach(self, sink: Sink) -> None:
        """As ``RawInput.attach``."""
        self._sink = sink
        self._decrypt(self.core, 0, b"")  # what came with the last words of the handshake
        self._source.attach(self._decrypt)

    def _decrypt(self, core: Any, code: int, data: bytes) -> None:
        sink = self._sink
        assert sink is not None
        if code == ENDED:
            sink(core, ENDED, b"")
            return
        plain = b""
        ended = False
        with self._lock:
            self._incoming.write(data)
            try:
                while more := self._tls.read(65536):
                    plain += more
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError:  # close_notify, or the line was tampered with
                ended = True
        # The sink gives back credit for what it gets; the rest is overhead.
        self.link.consumed(core, len(data) - len(plain))
        if plain:
            sink(core, 0, plain)
        if ended:
            sink(core, ENDED, b"")
            core.handle().close()

    def write(self, buffers: Sequence[bytes | memoryview], results: list[int]) -> int:
        """Encrypt as much as the link below takes soon. Returns the count; ``results`` as ``Link.raw_write`` says."""
        try:
            with self._lock:
                return self._encrypt(buffers, results)
        except BaseException:
            # Out of a signal's handler: what is encrypted counts as written, so nobody else would see to it.
            self._write_soon()
            raise

    def _encrypt(self, buffers: Sequence[bytes | memoryview], results: list[int]) -> int:
        total = 0
        if not self._transmit():
            return 0
        for buffer in buffers:
            view = memoryview(buffer)
            while view:
                # All of it becomes one record. The write is Python code, in which a signal may raise when that is done.
                size = [min(len(view), RECORD)]
                try:
                    self._tls.write(view[:RECORD])
                finally:
                    if self._outgoing.pending:
                        results += size
                total += size[0]
                view = view[RECORD:]
                if not self._transmit():
                    return total
        return total

    def wait_writable(self, callback: Callable[[], None]) -> bool:
        """As ``RelayedStream.wait_writable``."""
        with self._lock:
            if self._transmit():
                return True
            self._callback = callback
            return False

    def _transmit(self) -> bool:
        """Hand over what is encrypted; whether that was all. If not, the link below calls when it takes more."""
        # A signal may raise after any call. So what is read there, where it is gone then, and what the link took is stored by the
        # C code that asks for it, and between two stores that belong together there is no call.
        self._taken += map(self._outgoing.read, (1 << 20,))
        self._rest += b"".join(self._taken)
        del self._taken[:]
        while True:
            done = sum(self._counts)
            self._rest = self._rest[done:]
            del self._counts[:]
            if not self._rest:
                return True
            if not self._stream.write([self._rest], self._counts):
                if self._asked:
                    return False
                now = self._stream.wait_writable(self._write_soon)
                self._asked = True
                if not now:
                    return False

    def _write_soon(self) -> None:
        # Not at once: whoever calls may be in the midst of writing for us.
        self.link.reactor.call(self._writable)

    def _writable(self) -> None:
        callback = None
        with self._lock:
            self._asked = False
            try:
                if self._transmit():
                    callback, self._callback = self._callback, None
            except OSError:  # the channel was closed: whoever reads gets to know
                return
        if callback is not None:
            callback()


class TlsRelayedStream(RelayedStream):
    """A relayed stream with TLS on it."""

    encrypted = True

    def __init__(self, source: RawInput, tls: TlsFilter) -> None:
        super().__init__(source)
        self.input = tls

    def write(self, buffers: Sequence[bytes | memoryview], results: list[int] | None = None) -> int:
        """As ``RelayedStream.write``."""
        count: int = self.input.write(buffers, [] if results is None else results)
        return count

    def wait_writable(self, callback: Callable[[], None]) -> bool:
        """As ``RelayedStream.wait_writable``."""
        now: bool = self.input.wait_writable(callback)
        return now
