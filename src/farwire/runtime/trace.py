"""Records the frames of this process's links: into a file, which ``farwire trace`` reads, or as lines on stderr.

Imported only where ``FARWIRE_TRACE`` asks for it; nothing else looks for a trace. On stderr, only the controller's frames are shown, which
are those of its workers too, seen from the other end. To get at the bytes, the names of the system calls in ``link`` and ``channel``
are replaced, once in a process.

A signal may raise anywhere in the main thread (top of ``link``), and a trace that lost some bytes could not find the frames behind them. So
what a read or write took goes into a queue by the same C code that gives it to whoever asked, with no Python code in between, and the
reactor's thread, where no signal raises, does the rest: when it is woken, and every ``TICK`` seconds.

File: ``MAGIC``, the name of the process in UTF-8, a line feed, then records: ``RECORD`` (time, what, zero, number of the link, size) and so
many bytes: for SENT and RECEIVED a frame's header and as much of its payload as is kept, else text.

Who owns what: the queue of a stream is filled by whoever has the role for that direction of the root link; everything else belongs to the
reactor's thread. A record is appended in one write.
"""

from __future__ import annotations

import os
import sys
import time
from _collections import deque
from _operator import itemgetter
from _thread import get_ident
from itertools import chain, repeat, tee
from struct import Struct

from ..protocol.errors import of_signal
from ..protocol.frames import HEADER, HEADER_SIZE, NAMES, RAW, marker
from . import channel as channel_module
from . import link as link_module
from .stream import readv, writev

try:
    from _functools import partial
except ImportError:  # PyPy
    from functools import partial

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from .link import Link

    Data = bytes | memoryview

MAGIC = b"farwire trace 1\n"
RECORD = Struct("<dBBHI")
LINK, SENT, RECEIVED, NOTE = range(4)
KEEP = 512  # bytes of a payload
SHOWN = 120  # characters of a content
TICK = 0.05

_tracer: Tracer | None = None
_written: dict[int, _Stream] = {}  # descriptor -> what goes out there
_received: dict[int, _Stream] = {}


def start(target: str, who: str) -> Tracer:
    """The process's tracer, made with the first call.

    Args:
        target: ``stderr``, or the beginning of the file's path: ``.WHO.PID`` is appended.
        who: what this process is called.

    Raises:
        OSError: the file cannot be made.
    """
    global _tracer
    if _tracer is None:
        _tracer = Tracer(target, who)
        # These names are looked up at each call. (channel_module is typed: the replacement is meant.)
        link: Any = link_module
        channel: Any = channel_module
        channel.write = link.write = _write
        link.read = _read
        link.readv = _readv
        link.map = _map
    return _tracer


class Tracer:
    """Where the records of a process go.

    Attributes:
        path: of the file; empty for stderr.
    """

    def __init__(self, target: str, who: str) -> None:
        self.who = who
        self.path = ""
        self.fd = 2
        self.names: list[str] = []  # of the links, by number
        self.links: dict[int, _TracedLink] = {}  # id() of a link -> it
        self.asked = False  # the reactor is to look at the queues
        self.ticking = False
        if target != "stderr":
            self.path, self.fd = _create(target, who)
            os.write(self.fd, MAGIC + who.encode("utf-8", "backslashreplace") + b"\n")

    def add(self, link: Link, name: str, sent: int, marker: bytes) -> None:
        """Record a link, from before its first byte.

        Args:
            link: a root link, or one relayed by a link that is recorded.
            name: what it is called.
            sent: so many bytes precede the first frame that is sent.
            marker: what precedes the first frame that is received.
        """
        traced = _TracedLink(self, link.reactor, len(self.names), sent, marker)
        self.names.append(name)
        self.links[id(link)] = traced
        self.emit([self.record(LINK, traced.number, name.encode(), time.time())])
        if link.parent is None:
            write_fd, read_fd = link.stream.write_fd, link.stream.read_fd
            _written[write_fd] = traced.sent
            _received[read_fd] = traced.received
            reads, same = tee(iter(partial(os.read, read_fd, link_module.READ_SIZE), b""))
            queued = map(traced.received.queue.append, zip(repeat(sys.maxsize), same, _times()))
            link.reads = map(itemgetter(0), zip(reads, queued))
        elif link.stream.encrypted:
            _trace_plain(link, traced)
        else:
            below = self.links.get(id(link.parent))
            if below is not None:
                below.sent.carried[link.stream.core.id] = traced.sent
                below.received.carried[link.stream.core.id] = traced.received
        fail = link.fail

        def end(error: BaseException) -> None:
            self.drain()
            if self.links.pop(id(link), None) is not None:
                text = "the link ended: %s: %s" % (type(error).__name__, error)
                self.emit([self.record(NOTE, traced.number, text.encode("utf-8", "backslashreplace"), time.time())])
                for streams, stream in ((_written, traced.sent), (_received, traced.received)):
                    for fd in [fd for fd in list(streams) if streams.get(fd) is stream]:
                        del streams[fd]

        def traced_fail(error: BaseException) -> None:
            if get_ident() == link.reactor.ident:
                end(error)
            else:
                link.reactor.call(partial(end, error))
            fail(error)

        link.fail = traced_fail  # type: ignore[method-assign]
        link.reactor.call(partial(self._tick, link.reactor))

    def _tick(self, reactor: Any, again: bool = False) -> None:
        self.drain()
        if again or not self.ticking:
            self.ticking = bool(self.links) and self.fd >= 0
            if self.ticking:
                reactor.later(TICK, partial(self._tick, reactor, True))

    def wake(self, reactor: Any) -> None:
        """Have the queues looked at soon."""
        if get_ident() == reactor.ident:
            self.drain()
        elif not self.asked:
            self.asked = True
            reactor.call(self.drain)

    def drain(self) -> None:
        """In the reactor's thread: record what is in the queues."""
        self.asked = False
        for traced in list(self.links.values()):
            traced.received.drain()
            traced.sent.drain()

    def record(self, what: int, link: int, data: Data, when: float) -> bytes:
        """One record as bytes."""
        return RECORD.pack(when, what, 0, link, len(data)) + data

    def emit(self, records: Sequence[bytes]) -> None:
        """Write records; when that fails, say so and write no more."""
        if self.fd < 0 or not records:
            return
        try:
            if self.path:
                os.write(self.fd, b"".join(records))
            else:
                lines = []
                for record in records:
                    when, what, _, number, _ = RECORD.unpack_from(record)
                    lines.append(line(when, self.who, what, self.names[number], record[RECORD.size :]) + "\n")
                os.write(2, "".join(lines).encode("utf-8", "backslashreplace"))
        except OSError as error:
            if of_signal(error):
                raise
            self.give_up(error)

    def give_up(self, error: BaseException) -> None:
        """The program is worth more than its trace."""
        self.fd = -1
        try:
            os.write(2, ("farwire: %s: the trace ends: %s\n" % (self.who, error)).encode("utf-8", "backslashreplace"))
        except OSError:  # nobody reads stderr
            pass


def _trace_plain(link: Link, traced: _TracedLink) -> None:
    """A relayed link that is encrypted: its frames are not to be found in those of the link below."""
    feed = link.feed
    write = link.stream.write

    def traced_feed(data: bytes) -> None:
        traced.received.put(len(data), data)
        feed(data)

    def traced_write(buffers: Sequence[Data], results: list[int]) -> Any:
        before = len(results)
        try:
            return write(buffers, results)
        finally:
            traced.sent.put(sum(results[before:]), b"".join(buffers))

    link.feed = traced_feed  # type: ignore[method-assign]
    link.stream.write = traced_write


class _TracedLink:
    def __init__(self, tracer: Tracer, reactor: Any, number: int, sent: int, marker: bytes) -> None:
        self.number = number
        self.sent = _Stream(tracer, reactor, SENT, number, sent, b"")
        self.received = _Stream(tracer, reactor, RECEIVED, number, 0, marker)


class _Stream:
    """Finds the frames in one direction of a link. A payload that carries another link is looked into."""

    def __init__(self, tracer: Tracer, reactor: Any, what: int, number: int, skip: int, marker: bytes) -> None:
        self.tracer = tracer
        self.reactor = reactor
        self.what = what
        self.number = number
        self.skip = skip
        self.marker = marker
        self.noise = b""
        self.kept = bytearray()  # header and payload of the frame that is coming, as far as kept
        self.left = 0  # bytes of its payload that are still to come
        self.inner: _Stream | None = None  # what its payload is part of
        self.carried: dict[int, _Stream] = {}  # RAW channel -> the link on it
        self.queue: deque[tuple[int, bytes, float]] = deque()  # count of the bytes that were taken, bytes, time

    def put(self, count: int, data: bytes) -> None:
        """So many bytes of these were read or written."""
        self.queue.append((count, data, time.time()))
        self.tracer.wake(self.reactor)

    def wake(self) -> Iterator[int]:
        """Something is in the queue; yields nothing."""
        self.tracer.wake(self.reactor)
        return
        yield 0

    def drain(self) -> None:
        """In the reactor's thread: record what is in the queue."""
        records: list[bytes] = []
        try:
            while self.queue:
                count, data, when = self.queue.popleft()
                if self.tracer.fd >= 0:
                    self._feed(memoryview(data)[:count], records, when)
        except Exception as error:  # noqa: BLE001 - a fault here is none of the program
            self.tracer.give_up(error)
        self.tracer.emit(records)

    def _feed(self, view: memoryview, records: list[bytes], when: float) -> None:
        if self.skip:
            count = min(self.skip, len(view))
            self.skip -= count
            view = view[count:]
            if not self.skip:
                records.append(self.tracer.record(NOTE, self.number, b"what precedes the first frame is sent", when))
        if self.marker:
            data = self.noise + view
            at = data.find(self.marker)
            if at < 0:
                self.noise = data if len(data) < 1 << 16 else data[-1024:]
                return
            if at:
                text = b"before the worker's first word: " + data[:at][:KEEP]
                records.append(self.tracer.record(NOTE, self.number, text, when))
            view = memoryview(data)[at + len(self.marker) :]
            self.marker = self.noise = b""
        while len(view):
            kept = self.kept
            if len(kept) < HEADER_SIZE:
                count = HEADER_SIZE - len(kept)
                kept += view[:count]
                view = view[count:]
                if len(kept) < HEADER_SIZE:
                    return
                self.left, id, kind, _ = HEADER.unpack(kept)
                self.inner = self.carried.get(id) if kind == RAW else None
            else:
                piece = view[: self.left]
                view = view[len(piece) :]
                self.left -= len(piece)
                room = HEADER_SIZE + KEEP - len(kept)
                if room > 0 and self.inner is None:
                    kept += piece[:room]
                if self.inner is not None:
                    self.inner._feed(piece, records, when)
            if not self.left:
                records.append(self.tracer.record(self.what, self.number, bytes(kept), when))
                self.kept = bytearray()


def _create(prefix: str, who: str) -> tuple[str, int]:
    """Make a new file that only this user can read, whatever is lying about under that name."""
    name = "".join(char if char.isalnum() or char in "-_" else "_" for char in who)
    base = path = "%s.%s.%d" % (prefix, name, os.getpid())
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
    for number in range(1, 100):
        try:
            return path, os.open(path, flags, 0o600)
        except FileExistsError:
            path = "%s.%d" % (base, number)
    raise FileExistsError("%s and 98 others exist" % base)


# -- in the place of the system calls ---------------------------------------------------------------------------------------


def _times() -> Iterator[float]:
    """The time, whenever it is asked."""
    return iter(time.time, None)


def _write(fd: int, data: bytes) -> int:
    if fd not in _written:
        return os.write(fd, data)
    # The count is there, and the bytes in the queue, before Python code runs again.
    (count,) = _map(_write, (fd,), (data,))
    return int(count)


def _map(function: Any, *iterables: Any) -> Any:
    """In ``results += map(write, (fd,), (data,))`` the count is in ``results`` before Python code runs again."""
    if function is _write or function is writev:
        fds, data = iterables
        stream = _written.get(fds[0])
        if stream is not None:
            call: Any = os.write if function is _write else writev
            counts, same = tee(map(call, fds, data))
            # Copies: a view into the program's bytearray must not outlive the write.
            plain = data if function is _write else map(b"".join, data)
            queued: Any = map(stream.queue.append, zip(same, plain, _times()))
            return chain(counts, filter(None, queued), stream.wake())
        if function is _write:
            function = os.write
    return map(function, *iterables)


def _read(fd: int, size: int) -> bytes:
    data = os.read(fd, size)
    stream = _received.get(fd)
    if stream is not None:
        stream.put(len(data), data)
    return data


def _readv(fd: int, buffers: Sequence[Any]) -> int:
    count = int(readv(fd, buffers))
    stream = _received.get(fd)
    if stream is not None:
        stream.put(count, b"".join(buffers))
    return count


# -- in words ---------------------------------------------------------------------------------------------------------------


def line(when: float, who: str, what: int, link: str, data: bytes) -> str:
    """A record as a line."""
    clock = time.strftime("%H:%M:%S", time.localtime(when)) + ("%.6f" % (when % 1))[1:]
    arrow = {SENT: ">", RECEIVED: "<"}.get(what, "-")
    if what in (SENT, RECEIVED):
        text = describe(data)
    elif what == LINK:
        text = "opens"
    else:
        text = _cut(data.decode("utf-8", "backslashreplace").encode("unicode_escape").decode())
    return "%s %s %s %s %s" % (clock, who, arrow, link, text)


def describe(data: bytes) -> str:
    """A frame, of which the end of the payload may be missing, in words."""
    size, id, kind, code = HEADER.unpack_from(data)
    payload = data[HEADER_SIZE:]
    words: list[str] = [NAMES.get(kind) or "kind %d" % kind]
    if id:
        words.append("%s %d" % ("question" if kind in (10, 11) else "channel", id))
    if size:
        words.append("%d bytes" % size)
    try:
        content = _content(kind, id, code, payload, size)
    except Exception as error:  # noqa: BLE001 - whatever the bytes are: a trace is read because something is wrong
        content = "cannot be read: %s: %s" % (type(error).__name__, error)
    return ", ".join(words) + (": " + _cut(content) if content else "")


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def _content(kind: int, id: int, code: int, payload: bytes, size: int) -> str:
    from ..protocol import frames

    whole = len(payload) == size
    if kind == frames.HELLO:
        return ", ".join(repr(payload.decode())[1:-1].split("\\n"))
    if kind == frames.EXEC:
        return _task(code, payload, size)
    if kind in (frames.ITEM, frames.REPLY):
        return _item(code, payload, whole)
    if kind == frames.CLOSE:
        return _error(code, payload, whole) if size else ""
    if kind == frames.LARGE:
        return "an item of %d bytes begins" % int.from_bytes(payload, "little")
    if kind == frames.CREDIT:
        return "%d bytes more" % int.from_bytes(payload, "little")
    if kind == frames.REQUEST:
        return {frames.STATUS: "status", frames.INFO: "info", frames.STACKS: "stacks"}.get(code, "%d" % code)
    if kind == frames.SIGNAL:
        import signal

        try:
            return signal.Signals(code).name
        except ValueError:
            return "%d" % code
    if kind == RAW:
        stream = {frames.STDOUT: "stdout ", frames.STDERR: "stderr "}.get(code, "") if not id else ""
        return stream + repr(payload[:SHOWN])[1:]
    return ""


def _task(code: int, payload: bytes, size: int) -> str:
    from ..protocol import frames

    if code not in (frames.TASK_EXEC, frames.TASK_CALL):
        return "service " + _item(payload[0], payload[1:], len(payload) == size)
    *lengths, line, _ = Struct("<IIIIB").unpack_from(payload)
    at = 17
    parts = []
    for length in lengths:
        parts.append(payload[at : at + length].decode("utf-8", "backslashreplace"))
        at += length
    where, name, text = [repr(part) for part in parts]
    what = "call %s of" % name[1:-1] if code == frames.TASK_CALL else "run"
    return "%s %s, line %d: %s" % (what, where[1:-1], line, text)


# Those of the specification, without what makes a small pickle a large item.
_OPCODES = frozenset(
    """
    PROTO FRAME STOP MEMOIZE BINGET LONG_BINGET MARK POP POP_MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1
    LONG4 BINFLOAT SHORT_BINUNICODE BINUNICODE BINUNICODE8 SHORT_BINBYTES BINBYTES BINBYTES8 BYTEARRAY8 EMPTY_LIST
    APPEND APPENDS EMPTY_TUPLE TUPLE1 TUPLE2 TUPLE3 TUPLE EMPTY_DICT SETITEM SETITEMS EMPTY_SET ADDITEMS FROZENSET
    STACK_GLOBAL REDUCE
    """.split()  # noqa: SIM905 - as a list it would fill forty lines
)


def _item(code: int, payload: bytes, whole: bool) -> str:
    from ..protocol import codec

    if code in (codec.STR, codec.BYTES, codec.BYTEARRAY):
        value: Any = payload
        if code == codec.STR:
            value = payload.decode("utf-8", "backslashreplace")
        return repr(value[:SHOWN]) + ("" if whole else "...")
    if not whole:
        return "begins with %r" % payload[:40]
    if code == codec.PICKLE:
        import pickletools

        if not {opcode.name for opcode, _, _ in pickletools.genops(payload)} <= _OPCODES:
            return "a pickle with opcodes that no item has: %r" % payload[:40]
    import reprlib

    value = codec.Decoder(_Channel).decode(code, payload)
    limited = reprlib.Repr()
    limited.maxstring = limited.maxother = limited.maxlong = 60
    limited.maxdict = limited.maxlist = limited.maxtuple = 10
    return limited.repr(value)


def _error(code: int, payload: bytes, whole: bool) -> str:
    from ..protocol import codec

    if not whole:
        return "with an error: " + _item(code, payload, whole)
    error = codec.Decoder(_Channel).decode(code, payload)
    return "with an error: %s" % (repr("%s: %s" % (error["type"], error["message"]))[1:-1],)


class _Channel:
    def __init__(self, number: int) -> None:
        self.number = number

    def __repr__(self) -> str:
        return "<channel %d>" % self.number


def trace_worker(worker: Any, target: str) -> None:
    """Record a worker's link, from before its first byte; a worker without a trace is better than none."""
    name = worker.gateway.id
    try:
        tracer = start(target, name)
    except OSError as error:
        sys.stderr.write("farwire: %s: no trace: %s\n" % (name, error))
        return
    tracer.add(worker.link, "controller", len(marker(worker.config["nonce"])), b"")
    end = worker.link_ended

    def link_ended(link: Link, error: BaseException) -> None:
        # In the thread that reads; the process ends here.
        tracer.drain()
        end(link, error)

    worker.link_ended = link_ended
