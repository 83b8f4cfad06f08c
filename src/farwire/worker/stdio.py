"""Forwards the process's stdout, so that nothing written before a sudden death is lost.

What ``print`` writes goes into a pipe, from there into memory, from there into the link. A process that is killed takes its memory
along; the pipe and the link live on, for the guard and the controller. So the memory in between is shared with the guard:

    0-8     how many bytes of stdout were forwarded before this chunk
    8-16    the size of the chunk
    16-     the chunk

The size is known before the read (FIONREAD; nobody else reads this pipe), and the place of the chunk is filled with the nonce
first: then the guard sees whether the read took place. It reports the chunk with the count, and the controller takes what it has not got
through the link. The next chunk is read when this one is in the link, in its turn beside large items.

Imported when the process writes something.
"""

from __future__ import annotations

from ..protocol.frames import HEADER, RAW, STDOUT
from ..runtime.link import Fragment
from ..runtime.reactor import POLLIN
from ..runtime.stream import readv

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ..runtime.link import Link
    from ..runtime.reactor import Reactor

try:
    import termios
    from fcntl import ioctl as _ioctl
except ImportError:  # Windows
    ioctl: Any = None
    fionread = 0
else:
    ioctl = _ioctl
    fionread = termios.FIONREAD

CHUNK = 64 * 1024


class Forwarder:
    """Runs in the reactor's thread.

    Args:
        fd: the reading end of the pipe, non-blocking.
        shared: memory that the guard sees, ``16 + CHUNK`` bytes, or None where there is none.
        nonce: fills the place of the next chunk.
    """

    def __init__(self, link: Link, reactor: Reactor, fd: int, shared: Any, nonce: str) -> None:
        self.link = link
        self.reactor = reactor
        self.fd = fd
        self.shared = memoryview(bytearray(16 + CHUNK) if shared is None else shared)
        self.empty = (nonce.encode() * (CHUNK // len(nonce) + 1))[:CHUNK]
        self.count = 0
        self.busy = False  # a chunk is on its way into the link
        self.waits = False  # for credit
        link.connection.control.on_credit = self._credit

    def _credit(self) -> None:
        if self.waits:
            self.waits = False
            self.reactor.call(self.forward)

    def _readable(self, events: int) -> None:
        self.reactor.unregister(self.fd)
        self.forward()

    def available(self) -> int:
        """How many bytes wait in the pipe."""
        if not fionread:
            return CHUNK
        count: bytes = ioctl(self.fd, fionread, b"\0\0\0\0")
        return memoryview(count).cast("i")[0]

    def forward(self) -> None:
        """Send the next chunk, or see to it that this is called again when there is one and room for it."""
        link = self.link
        control = link.connection.control
        if self.busy or link.closed is not None:
            return
        self.waits = True  # before the look at the credit, which another thread may bring in
        room = control.credit
        if room <= 0:
            return
        self.waits = False
        size = min(room, CHUNK, self.available())
        if not size:
            self.reactor.register(self.fd, self._readable, POLLIN)
            return
        shared = self.shared
        shared[16 : 16 + size] = self.empty[:size]
        shared[:16] = self.count.to_bytes(8, "little") + size.to_bytes(8, "little")
        try:
            size = readv(self.fd, [shared[16 : 16 + size]])
        except BlockingIOError:
            size = 0
        if not size:
            self.reactor.register(self.fd, self._readable, POLLIN)
            return
        self.count += size
        self.busy = True
        chunk = _Chunk([HEADER.pack(size, 0, RAW, STDOUT), shared[16 : 16 + size]], self._sent)
        with link.lock:
            control.credit -= size
            link.bulk.append(chunk)
        link.flush()

    def _sent(self) -> None:
        self.busy = False
        self.reactor.call(self.forward)


class _Chunk(Fragment):
    """Takes its turn beside parts of large items."""

    __slots__ = ("_sent",)

    def __init__(self, buffers: list[Any], sent: Callable[[], None]) -> None:
        Fragment.__init__(self, buffers)
        self._sent = sent

    def finish(self) -> None:
        """It is written, or the link is closed."""
        Fragment.finish(self)
        self._sent()
