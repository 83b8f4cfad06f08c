"""Drives one ``Connection`` over one byte stream, for many threads.

Who owns what
-------------
``lock``      the state lock: the connection, the channels' queues and waiters, the flags below. Held for short, never across a
              read, a write, user code or another link's lock.
``reading``   (flag under ``lock`` of the root link) the reader role. Its holder reads the stream and feeds the connection. A thread
              waiting in ``receive()`` takes it (the leader), so that the answer to a request needs no switch of threads. When it reads
              exactly the item it waits for, it takes that away; anything else it leaves in the inbox for the reactor, which also
              reads when data comes and nobody leads. The reader never waits for a writer: what it must send it queues.
``writing``   (flag under ``lock``) the writer role. Its holder owns ``_pending`` and writes all of ``out`` before each fragment of
              ``bulk``. Whoever finds it taken leaves its frames in the queue; the holder looks again after giving the role up.

The roles are flags and not locks because a signal may raise in the main thread between any two calls: a flag and the local
variable that says "mine" are set with no call in between, and ``finally`` gives the role back. For the same reason the results
of reads and writes are stored before a signal can raise (``list += map(write, ...)``, ``for data in reads: break``), and a leader,
which may be the main thread, changes no state but that of the item it takes. No loop stands in a ``with`` or ``try`` whose end must
not be missed: from 3.12 on, the jump back to a loop's beginning may not be covered by it, and a signal raises in that jump. (Before
3.9, one may raise between the end of a ``with`` and the release of its lock. There nothing helps.)

While somebody leads, the reactor does not poll the link (else each answer would wake two threads). It comes back when the leader
has been gone for ``TICK``, or at once when another thread starts to wait.

A relayed link (``via``) has a parent: its bytes are RAW frames of one of the parent's channels. Its root is the link at the bottom,
whose descriptors are polled; leaders lead the root.
"""

from __future__ import annotations

import os
from _collections import deque
from _thread import allocate_lock
from os import read, write
from time import monotonic, sleep

from ..protocol.codec import Decoder, Encoder
from ..protocol.connection import Connection, can_send
from ..protocol.errors import FarwireError, GatewayLost, ProtocolError, of_signal
from ..protocol.frames import (
    ABORT,
    CLOSE,
    CREDIT,
    EOF,
    HEADER,
    HEADER_SIZE,
    HELLO,
    INLINE_MAX,
    ITEM,
    ITEM_COST,
    LARGE,
    MODULES,
    PING,
    PONG,
    RAW,
    WINDOW,
)
from ..protocol.state import OPEN
from .channel import ABORT_DUE, ATOMIC_MAX, BURST, GATHER, Channel, ChannelCore
from .reactor import POLLERR, POLLHUP, POLLIN, POLLOUT, READABLE, poll
from .stream import readv, writev

try:
    from _functools import partial  # functools itself imports much
except ImportError:  # PyPy
    from functools import partial

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .reactor import Reactor

_pack = HEADER.pack
_less_header = int.__sub__  # in C, see _write_some
TICK = 0.003
READ_SIZE = 64 * 1024
# What is read beyond the part of a large item: its successor's header, or a few small frames.
SCRATCH = 1024


class Link:
    """One connection on one stream.

    Args:
        reactor: the process's background thread.
        stream: an ``FdStream``, or a ``RelayedStream`` when ``parent`` is given.
        controller: which end this is.
        owner: gets ``link_event(link, kind, id, code, payload)`` for EXEC, HELLO, REQUEST, REPLY, SIGNAL, GOODBYE and PONG, called
            in the reading thread without locks (for MODULES under ``lock``, at once: whoever needs one may wait for it with that
            lock), and ``link_closed(link, error)`` once. Neither may block.
        gateway: what channels show as ``channel.gateway``.
        pickle_protocol: highest pickle protocol that the peer is known to read.
        parent: the link that relays this one.
    """

    channel_type: Any = Channel  # of the handles that programs get

    def __init__(
        self,
        reactor: Reactor,
        stream: Any,
        controller: bool,
        owner: Any,
        gateway: Any,
        pickle_protocol: int,
        window: int = WINDOW,
        peer_window: int = WINDOW,
        parent: Link | None = None,
    ) -> None:
        self.reactor = reactor
        self.stream = stream
        self.owner = owner
        self.gateway = gateway
        self.parent = parent
        self.root: Link = self if parent is None else parent.root
        self.lock = allocate_lock()
        self.connection = Connection(controller, self._make_core, window, peer_window)
        self.out = self.connection.out
        self.bulk: deque[Any] = deque()
        self.reading = False
        self.writing = False
        self.closed: BaseException | None = None
        self.close_reason: BaseException | None = None
        self.last_heard = monotonic()
        self.sends = 0  # since the last receive, or pause
        self.sent_at = 0.0  # when the last of a stream was sent
        self.encode: Any = None
        self.decode: Any = Decoder(self._channel_by_id).decode
        self.set_pickle_protocol(pickle_protocol)
        self.dispatcher: Any = None  # made with the first callback
        self.later: Any = None  # gives the modules that the worker does not have yet
        self.dropped: deque[Any] = deque()  # cores whose handle was garbage collected
        self.marker = b""  # what precedes the peer's first frame
        self.noise = b""
        self._deferred: list[Callable[[], None]] = []
        self.pending: Any = ()  # or [buffers being written, results of the writes so far]
        self._finishing: Any = None  # the fragment of ``bulk`` that is in _pending
        self._broken = False  # a write failed: nothing more is written, the end of the link comes
        self.flush_asked = False
        self._write_polled = False
        self.inbox: list[bytes] = []  # read by a leader, not yet fed
        self.passive = False  # the reactor does not poll: somebody leads, or led a moment ago
        self.parked = False  # passive without a tick: the leader must wake the reactor when it leaves
        self.leads = 0
        self._leads_seen = 0
        self._leads_polled = -1  # ``leads`` before the reactor polled last
        self.followers = 0  # threads that wait while they do not lead
        self.drain_waiters: list[Callable[[], None]] = []
        # The channels of the links below that carry this one, from the root up.
        self.path: list[ChannelCore] = [] if parent is None else [*parent.path, stream.core]
        # A small frame is written in one indivisible system call.
        self.atomic: bool = stream.atomic != 0 if parent is None else parent.atomic
        if parent is None:
            # Taken one at a time in a for statement, which stores what was read before a signal can raise; at the end of file
            # it is exhausted.
            self.reads = iter(partial(read, stream.read_fd, READ_SIZE), b"")
            self._leader_wake_r, self._leader_wake_w = os.pipe()
            os.set_blocking(self._leader_wake_r, False)
            os.set_blocking(self._leader_wake_w, False)
            self.must_poll = stream.must_poll
            self._scratch = memoryview(bytearray(SCRATCH))
            self._read_poll = poll()
            self._read_poll.register(stream.read_fd, POLLIN)
            lead_poll = poll()
            lead_poll.register(stream.read_fd, POLLIN)
            lead_poll.register(self._leader_wake_r, POLLIN)
            self.lead_poll: Any = lead_poll.poll

    # -- life -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Let the reactor read."""
        if self.parent is None:
            self.reactor.call(self.resume)

    def set_pickle_protocol(self, protocol: int) -> None:
        """The peer reads pickles up to that protocol."""
        self.encode = Encoder(protocol, Channel, self._channel_id).encode

    def need_dispatcher(self) -> None:
        """Before a callback is set; not under the lock."""
        old = self.dispatcher
        if old is None or old.stopped:
            from .dispatcher import Dispatcher

            fresh = Dispatcher(self)
            fresh.start()
            with self.lock:
                if self.dispatcher is old:
                    self.dispatcher = fresh
                else:
                    fresh.stop()

    def send_later(self) -> None:
        """Under the lock: the next frame needs modules that the worker may not have yet."""
        later = self.later
        if later is not None:
            self.later = None
            self.connection.send(MODULES, 0, later())

    def expect_marker(self, marker: bytes) -> None:
        """Skip what comes before ``marker``, keeping the last of it in ``noise``."""
        self.marker = marker

    def _make_core(self, id: int, credit: int, window: int) -> ChannelCore:
        return ChannelCore(self, id, credit, window)

    def _channel_by_id(self, id: int) -> Channel:
        with self.lock:
            core = self.connection.get(id)
            if core is None:
                core = ChannelCore(self, id, 0, 0)
                core.state = 5  # CLOSED: the number is forgotten, so is what it stood for
                core.ended = EOFError("channel %d was closed" % id)
            if self.closed is not None and core.ended is None:
                core.end(self.closed)  # an item is decoded after the end
            channel: Channel = core.handle()
            return channel

    def _channel_id(self, channel: Channel) -> int:
        if channel._core.link is not self:
            from ..protocol.errors import DumpError

            raise DumpError(
                "channel %d belongs to gateway %s and cannot be sent through gateway %s"
                % (channel.id, channel.gateway.id, self.gateway.id)
            )
        return channel._core.id

    def fail(self, error: BaseException) -> None:
        """The link is over: everybody who waits gets ``error``. Keeps the first error."""
        with self.lock:
            if self.closed is not None:
                return
            self.closed = error
            cores = list(self.connection.channels.values())
            self.connection.channels.clear()
            for core in cores:
                if core.large is not None:
                    core.large = None
                core.end(error)
            waiting_bulk = list(self.bulk)
            self.bulk.clear()
            if self._finishing is not None:
                waiting_bulk.append(self._finishing)
            self.out.clear()
            deferred, self._deferred = self._deferred, []
            drain, self.drain_waiters = self.drain_waiters, []
        for fragment in waiting_bulk:
            fragment.finish()
        for callback in deferred:
            callback()
        for callback in drain:
            callback()
        self.wake_leader()
        self.reactor.call(self._closed)

    def _closed(self) -> None:
        if self.parent is None:
            self.reactor.unregister(self.stream.read_fd)
            if self._write_polled:
                self.reactor.unregister(self.stream.write_fd)
        assert self.closed is not None
        self.owner.link_closed(self, self.closed)
        with self.lock:
            if self.dispatcher is not None:
                self.dispatcher.stop()

    def close_stream(self) -> None:
        """Let go of the descriptors, when no thread reads or writes any more; call in the reactor's thread after ``fail``."""
        with self.lock:
            idle = not self.root.reading and not self.writing
        if not idle:
            self.wake_leader()
            self.reactor.later(TICK, self.close_stream)
            return
        if self.stream.closed:
            return
        self.stream.close()
        if self.parent is None:
            os.close(self._leader_wake_r)
            os.close(self._leader_wake_w)
            self._leader_wake_w = -1

    def abandon(self) -> None:
        """In a forked child: the link belongs to the parent process; close our copies of the descriptors, say nothing."""
        self.closed = GatewayLost("the gateway belongs to the parent process of this fork")
        self.lock = allocate_lock()
        for core in self.connection.channels.values():
            core.end(self.closed)
        if not self.stream.closed:
            self.stream.close()
            if self.parent is None:
                os.close(self._leader_wake_r)
                os.close(self._leader_wake_w)
                self._leader_wake_w = -1

    # -- writing ----------------------------------------------------------------------------------------------

    def send_small(self, core: ChannelCore, code: int, payload: bytes) -> bool:
        """Send one item in one frame if credit is there. Returns False if it must wait.

        (``Channel.send`` has the short cut for a frame that can be written at once.)
        """
        size = len(payload)
        frame = _pack(size, core.id, ITEM, code) + payload
        with self.lock:
            if self.closed is not None:
                raise self.lost()
            if not can_send(core):
                raise core.send_error()
            if core.credit < size + ITEM_COST or core.sending_large:
                return False
            core.credit -= size + ITEM_COST
            sends = self.sends = self.sends + 1
            self.out.append(frame)
        if sends <= BURST or len(self.out) >= GATHER or size > ATOMIC_MAX:
            self.flush()
        elif not self.flush_asked:
            self.flush_asked = True
            self.reactor.call(self.flush_gathered)
        return True

    def yield_to_writer(self) -> None:
        """In a worker: let the thread that is writing have the interpreter lock, so that it finds what we have queued.

        The program may go on to a call that keeps the lock for long.
        """
        if not self.connection.controller:
            for _ in range(20):
                if not (self.writing and self.out):
                    break
                sleep(0.0001)

    def flush_gathered(self) -> None:
        self.flush_asked = False
        self.flush()

    def send_frame(self, kind: int, channel: int = 0, payload: bytes = b"", code: int = 0) -> None:
        """Send a frame that needs no credit. Never blocks; does nothing on a closed link."""
        with self.lock:
            if self.closed is not None:
                return
            self.send_later()
            self.connection.send(kind, channel, payload, code)
        self.flush()

    def write_first(self, data: list[bytes]) -> None:
        """Bytes that precede the protocol (the program of a starting worker)."""
        with self.lock:
            self.out[:0] = data
        self.flush()

    def flush(self) -> None:
        """Write what is queued as far as the stream takes it; the reactor goes on with the rest. Never blocks."""
        while (self.out or self.bulk or self.pending) and self.closed is None and not self._broken:
            mine = False
            try:
                with self.lock:
                    if self.writing:
                        return
                    self.writing = mine = True
                all(iter(self._write_some, False))
            finally:
                if mine:
                    self.writing = False
            if self.pending:
                # the stream is full
                self._ask_writable()
                return
            if self.drain_waiters:
                waiters, self.drain_waiters = self.drain_waiters, []
                for callback in waiters:
                    callback()

    def _write_some(self) -> bool:
        """One write by the holder of the writer role. Returns whether to go on."""
        pending = self.pending
        if not pending:
            self._finish()
            with self.lock:
                if self.closed is not None:
                    return False
                if self.out:
                    out = self.out
                    buffers = [b"".join(out)] if len(out) > 1 else out[:]
                    # two stores with nothing in between that could raise
                    self.pending = [buffers, []]
                    del out[:]
                elif self.bulk:
                    fragment = self._finishing = self.bulk[0]
                    self.pending = [fragment.buffers, []]
                    del self.bulk[0]
                else:
                    return False
            pending = self.pending
        buffers, results = pending
        stream = self.stream
        try:
            # What a write took is stored by the C code that asks for it. Results that are there already are of a write after which
            # a signal raised: what it took must not be written again.
            if not results:
                if self.parent is None:
                    results += map(writev, (stream.write_fd,), (buffers,))
                else:
                    stream.write(buffers, results)
        except BlockingIOError:
            return False
        except OSError as exc:
            if of_signal(exc):
                raise
            # The peer is gone. The reader will see the end and know more than "broken pipe"; a write side that breaks while
            # the read side stays open must end the link as well.
            self._broken = True
            self.pending = ()
            self.reactor.call(self._write_broke)
            return False
        done = sum(results)
        if not done:
            return False
        rest = []
        for buffer in buffers:
            size = len(buffer)
            if done >= size:
                done -= size
            elif done:
                rest.append(memoryview(buffer)[done:])
                done = 0
            else:
                rest.append(buffer)
        self.pending = [rest, []] if rest else ()
        if not rest:
            self._finish()
        return True

    def _finish(self) -> None:
        """The fragment that was in ``pending`` is written; may be called again when a signal interrupts it."""
        fragment = self._finishing
        if fragment is not None:
            fragment.finish()
            self._finishing = None

    def _write_broke(self) -> None:
        # give the reader a moment to report the true reason
        def fail() -> None:
            self.fail(GatewayLost("gateway %s: the link broke while writing" % self.gateway.id))

        self.reactor.later(1.0, fail)

    def _ask_writable(self) -> None:
        if self.parent is not None:
            if self.stream.wait_writable(self.flush):
                self.flush()
        elif not self._write_polled:
            self._write_polled = True
            self.reactor.call(self._poll_writable)

    def _poll_writable(self) -> None:
        if self.closed is None and self.stream.write_fd >= 0:
            if self.stream.write_fd == self.stream.read_fd:
                self.reactor.register(self.stream.read_fd, self._socket_ready, self._mask(POLLOUT))
            else:
                self.reactor.register(self.stream.write_fd, self._writable, POLLOUT)

    def _mask(self, mask: int) -> int:
        return mask if self.passive else mask | POLLIN

    def _socket_ready(self, events: int) -> None:
        if events & POLLOUT:
            self._writable(events)
        if events & READABLE:
            self._readable(events)

    def _writable(self, events: int) -> None:
        self._write_polled = False
        if self.stream.write_fd == self.stream.read_fd:
            if self.passive:
                self.reactor.unregister(self.stream.read_fd)
            else:
                self.reactor.register(self.stream.read_fd, self._socket_ready, POLLIN)
        else:
            self.reactor.unregister(self.stream.write_fd)
        self.flush()

    def raw_write(
        self, core: ChannelCore, data: Any, code: int = 0, whole: bool = False, results: list[int] | None = None
    ) -> int:
        """Send bytes of a RAW channel as far as credit and queue allow. Returns the count; never blocks.

        ``whole`` is for who has looked at credit and queue and taken no more bytes than that: other threads may fill the
        queue meanwhile, and the bytes have no other place to be.
        ``results`` gets the count as soon as the bytes are on their way: a signal may raise before this returns.
        """
        if results is None:
            results = []
        mine = False
        try:
            with self.lock:
                if self.closed is not None or not can_send(core):
                    raise self.lost() if self.closed is not None else core.send_error()
                count = min(len(data), core.credit, INLINE_MAX)
                if count <= 0 or (len(self.out) > GATHER and not whole):
                    return 0
                if count < len(data) or type(data) is not bytes:
                    data = bytes(memoryview(data)[:count])
                frame = _pack(count, core.id, RAW, code) + data
                size = [count]
                core.credit -= count
                if (
                    self.atomic
                    and self.parent is None
                    and count <= ATOMIC_MAX
                    and not (self.out or self.writing or self.pending)
                ):
                    self.writing = mine = True
                else:
                    self.out += [frame]
                    results += size
            if mine:
                try:
                    results += map(_less_header, map(write, (self.stream.write_fd,), (frame,)), (HEADER_SIZE,))
                except BlockingIOError:
                    self.pending = [[frame], []]
                    results += size
                except OSError as exc:
                    if of_signal(exc):
                        raise
                    results += size  # the reader reports the end, with the reason
        finally:
            if mine:
                self.writing = False
        if self.out or self.bulk or self.pending:
            self.flush()
        return count

    def raw_forward(self, core: ChannelCore, data: bytes) -> None:
        """``raw_write`` on a root link, in the reactor's thread, where no signal raises, and for no more bytes than the credit."""
        with self.lock:
            mine = (
                self.atomic
                and len(data) <= ATOMIC_MAX
                and core.state == OPEN
                and not (self.out or self.writing or self.pending or self.closed)
            )
            if mine:
                core.credit -= len(data)
                self.writing = True
        if not mine:
            self.raw_write(core, data, 0, True)
            return
        frame = _pack(len(data), core.id, RAW, 0) + data
        try:
            write(self.stream.write_fd, frame)
        except BlockingIOError:
            self.pending = [[frame], []]
        except OSError:  # the reader reports the end, with the reason
            pass
        self.writing = False
        if self.out or self.bulk or self.pending:
            self.flush()

    def write_relayed(self, frame: bytes) -> None:
        """Hand a frame to the link below, by the holder of the writer role, with nothing pending; what it does not take is."""
        results: list[int] = []
        self.pending = [[frame], results]
        self.stream.write((frame,), results)
        if results == [len(frame)]:
            self.pending = ()

    # -- reading ----------------------------------------------------------------------------------------------

    def resume(self) -> None:
        """In the reactor's thread: poll the link (again)."""
        self.passive = self.parked = False
        if self.closed is None:
            fd = self.stream.read_fd
            if fd == self.stream.write_fd:
                self.reactor.register(fd, self._socket_ready, POLLIN | (POLLOUT if self._write_polled else 0))
            else:
                self.reactor.register(fd, self._readable, POLLIN)
            if self.inbox:
                self._readable(0)

    def _readable(self, events: int) -> None:
        """In the reactor's thread: data, or data that a leader left."""
        with self.lock:
            if self.closed is not None:
                self.reactor.unregister(self.stream.read_fd)
                return
            if self.reading:
                leading = True
            else:
                leading = False
                self.reading = True
        if leading:
            if not self.passive:
                self._pause()
            return
        try:
            self.read_once()
        finally:
            self.reading = False
            self._leads_polled = self.leads

    def _pause(self, seconds: float = TICK) -> None:
        """Stop polling while somebody leads, or for so long."""
        self.passive = True
        self._leads_seen = self.leads
        fd = self.stream.read_fd
        if fd == self.stream.write_fd and self._write_polled:
            self.reactor.register(fd, self._socket_ready, POLLOUT)
        else:
            self.reactor.unregister(fd)
        self.reactor.later(seconds, self._tick)

    def _tick(self) -> None:
        if not self.passive or self.closed is not None:
            return
        if self.leads != self._leads_seen:
            self._leads_seen = self.leads
            self.reactor.later(TICK, self._tick)
            return
        with self.lock:
            self.parked = self.reading
        if not self.parked:
            self.resume()

    def read_once(self) -> None:
        """Read what is there and feed it. The caller holds the reader role; called in the reactor (or before it starts)."""
        inbox = self.inbox
        if not inbox:
            if not self.must_poll and self._leads_polled != self.leads and not self._read_poll.poll(0):
                return  # a leader was faster since the reactor looked, and a read would block
            try:
                view = None
                if self.connection.part is not None and not self.marker:
                    view = self.connection.buffer()
                if view is not None:
                    # The rest of the part, straight to its place, and the header after it, which then tells the next place.
                    count = readv(self.stream.read_fd, [view, self._scratch])
                    if count:
                        size = len(view)
                        with self.lock:
                            self.connection.buffer_filled(min(count, size))
                            self._take_events()
                        self._after_feed()
                        if count > size:
                            self.feed(bytes(self._scratch[: count - size]))
                        return
                    data = b""
                else:
                    data = read(self.stream.read_fd, READ_SIZE)
            except BlockingIOError:  # a socket, and a leader was faster
                return
            except OSError as error:
                self.end_of_stream(error)
                return
            if data:
                self.feed(data)
            else:
                self.end_of_stream(None)
            return
        while inbox:
            data = inbox.pop(0)
            if not data:
                self.end_of_stream(None)
                return
            self.feed(data)

    def end_of_stream(self, error: OSError | None) -> None:
        """The peer closed, or the line broke."""
        if error is None:
            text = "gateway %s: the worker closed the link" % self.gateway.id
        else:
            text = "gateway %s: the link broke: %s" % (self.gateway.id, error)
        self.owner.link_ended(self, GatewayLost(text))

    def feed(self, data: bytes) -> None:
        """Take in bytes; the caller holds the reader role of the root."""
        self.last_heard = monotonic()
        if self.marker:
            data = self._skip_noise(data)
            if not data:
                return
        error = None
        # The short cut of a relay: one piece of a relayed link. Without the lock: what it looks at belongs to the reader role.
        core = self.connection.whole_raw(data)
        if core is not None:
            self._raw_arrived(core, data[9], data[HEADER_SIZE:])
            if self.out:
                self.flush()
            return
        with self.lock:
            if self.closed is not None:
                return
            try:
                self.connection.receive_data(data)
            except ProtocolError as exc:
                error = exc
            self._take_events()
        self._after_feed()
        if error is not None:
            self.owner.link_ended(self, ProtocolError("gateway %s: %s" % (self.gateway.id, error)))

    def _skip_noise(self, data: bytes) -> bytes:
        data = self.noise + data
        at = data.find(self.marker)
        if at < 0:
            self.noise = data
            self.owner.link_noise(self)
            return b""
        self.noise = data[:at]
        data = data[at + len(self.marker) :]
        self.marker = b""
        return data

    def _take_events(self) -> None:
        """Under the lock: hand out what ``receive_data`` found."""
        events = self.connection.events
        deferred = self._deferred
        while events:
            kind, core, code, payload = events.popleft()
            if kind == ITEM:
                core.arrived(payload)
            elif kind == LARGE:
                cost = payload.unpaid
                if core.hungry():
                    core.consumed += cost
                    cost = 0
                    self.connection.grant(core)
                core.arrived([(code, payload, cost)])
            elif kind == RAW:
                deferred.append(_Call(self._raw_arrived, core, code, payload))
            elif kind == CREDIT:
                core.wake_senders()
                if core.on_credit is not None:
                    deferred.append(core.on_credit)
            elif kind == EOF:
                core.end(EOFError("channel %d: the other end sends no more" % core.id), False)
            elif kind == CLOSE:
                core.end(_CloseError(self, code, payload) if payload else None)
                if payload and core.sink is None and core.handle_ref is not None:
                    if core.dropped or core.handle_ref() is None:  # it is there as long as its __del__ runs
                        self.dropped.append(core)  # nobody will ask for the error
            elif kind == PING:
                pass  # the answer is queued; that it came is noted in last_heard
            else:
                if kind == MODULES:
                    self.owner.link_event(self, kind, core, code, payload)
                    continue
                if kind == HELLO:
                    self.send_later()
                    self.set_pickle_protocol(int(payload.get("pickle", 4)))
                deferred.append(_Call(self.owner.link_event, self, kind, core, code, payload))

    def _after_feed(self) -> None:
        """Without the lock: act on the events, send what they caused."""
        if self._deferred:
            with self.lock:
                deferred, self._deferred = self._deferred, []
            for callback in deferred:
                callback()
        if self.dropped:
            self.close_dropped()
        if self.out:
            self.flush()

    def _raw_arrived(self, core: ChannelCore, code: int, data: bytes) -> None:
        # The sink as it is now: the frame before this one may have been the EXEC of the service that sets it.
        sink = core.sink
        if sink is not None:
            sink(core, code, data)
        else:
            self.consumed(core, len(data))

    def defer(self, function: Any, *args: Any) -> None:
        """Under the lock: have this called when the lock is free."""
        self._deferred.append(_Call(function, *args))

    def close_dropped(self) -> None:
        """Close the channels whose handles were garbage collected, and say what they were closed with."""
        while self.dropped:
            core = self.dropped.popleft()
            with self.lock:
                if self.closed is None:
                    if core.large is not None:
                        core.large.unpaid = 0
                    self.connection.lift(core)
                    self.connection.send_close(core)
                ended = core.ended
                unseen = hasattr(ended, "decode") and not core.error_taken
                if unseen:
                    core.error_taken = True
            if unseen:
                from .remote_error import report_unseen

                report_unseen(core, ended.decode())
        self.flush()

    # -- waiting ----------------------------------------------------------------------------------------------

    def wait(self, waiter: Any, deadline: float | None) -> bool:
        """Wait until somebody releases ``waiter``; make sure that somebody reads meanwhile. Returns False on timeout."""
        root = self.root
        root.followers += 1
        try:
            if root.inbox or (root.passive and not root.reading):
                root.reactor.call(root.resume)
            if deadline is None:
                waiter.acquire()
                return True
            left = deadline - monotonic()
            return bool(waiter.acquire(True, left) if left > 0 else waiter.acquire(False))
        finally:
            root.followers -= 1

    def ensure_read(self) -> None:
        """Something other than a waiting thread wants what comes in."""
        root = self.root
        if root.passive and not root.reading:
            root.reactor.call(root.resume)

    def lead(self, core: ChannelCore, deadline: float | None) -> Any:
        """Wait for an item of ``core`` by reading the link; the caller took the reader role of the root, and gives it back.

        (``Channel.receive`` has the short cut for a root link without deadline.)
        Returns an entry of the channel's queue when exactly that came, else None: look at the channel again. What came and is
        not that item is left in the inbox, for the reactor.
        """
        root = self.root
        timeout = None
        if deadline is not None:
            timeout = min(2**31 - 1, max(0, int((deadline - monotonic()) * 1000) + 1))
        if not root.lead_poll(timeout):
            return None
        data = None
        try:
            for data in root.reads:
                break
            else:
                root.inbox.append(b"")  # end of file
                return None
            item = data
            for hop in self.path:
                if not hop.link.connection.whole(RAW, item, hop):
                    return None
                item = item[HEADER_SIZE:]
            if not self.connection.whole(ITEM, item, core):
                return None
            data = None
            size = len(item)
            for hop in reversed(self.path):
                hop.link.consumed_at_once(hop, size)
                size += HEADER_SIZE
            self.consumed_at_once(core, len(item) - HEADER_SIZE + ITEM_COST)
            return (item[9], item[HEADER_SIZE:], 0)
        except BlockingIOError:
            root.drain_wake()  # it was only a wake-up
            return None
        except OSError as exc:
            if of_signal(exc):
                raise
            return None  # the reactor will get the same error
        finally:
            if data is not None:
                root.inbox += [data]

    def consumed_at_once(self, core: ChannelCore, cost: int) -> None:
        """Account for what a leader received and takes away without queueing it."""
        with self.lock:
            core.received += cost
            core.consumed += cost
            if (core.consumed - core.granted) * 2 >= core.window:
                self.connection.grant(core)
        if self.out:
            self.flush()

    def consumed(self, core: ChannelCore, count: int) -> None:
        """Bytes of a RAW channel have been dealt with."""
        with self.lock:
            core.consumed += count
            if self.closed is None:
                self.connection.grant(core)

    def unfinished(self) -> bool:
        """Whether the next bytes are not the beginning of a frame: those are for the reactor."""
        return bool(self.connection.unfinished or self.marker)

    def stop_leading(self) -> None:
        """The caller gave the reader role of the root back: see that somebody reads if others wait."""
        root = self.root
        root.leads += 1
        if root.passive and (root.parked or root.followers or root.inbox):
            root.reactor.call(root.resume)

    def wake_leader(self) -> None:
        """Make the thread that leads look at its channel again.

        One that polls is woken by a byte. One that is in a blocking read is woken by the other end's answer to a PING, or by the end
        of file when the link is closed.
        """
        root = self.root
        fd = root._leader_wake_w
        if fd >= 0 and root.reading:
            try:
                write(fd, b"w")
            except BlockingIOError:  # it will wake
                pass
            if root.closed is None and not root.must_poll:
                root.send_frame(PING)

    def drain_wake(self) -> None:
        """A leader was woken for nothing that can be read."""
        try:
            read(self._leader_wake_r, 4096)
        except BlockingIOError:  # another leader took the byte
            pass

    def recover(self, core: ChannelCore | None = None) -> None:
        """An exception came through a call of the program, perhaps out of a signal's handler.

        The bytes in the queues are right whatever it interrupted, but somebody may have been about to see to them, with his flag
        set: the reactor looks after everything.
        """
        link: Link | None = self
        if core is not None and core.sending_large != ABORT_DUE:
            core = None
        while link is not None:
            if (
                link.out
                or link.bulk
                or link.pending
                or link.inbox
                or link.passive
                or link.flush_asked
                or core is not None
            ):
                link.reactor.call(partial(link._recover, core))
                core = None
            link = link.parent

    def _recover(self, core: ChannelCore | None) -> None:
        if self.closed is not None:
            return
        if core is not None:
            self.settle(core)
        self.flush_asked = self._write_polled = False
        self.flush()
        if self.parent is None and not self.reading and (self.passive or self.inbox):
            self.resume()

    def settle(self, core: ChannelCore) -> None:
        """Withdraw the item of which only parts were sent, if there is one. May be called again."""
        if core.sending_large == ABORT_DUE:
            with self.lock:
                self._take_back(core)
                if self.closed is None and can_send(core):
                    self.out.append(_pack(0, core.id, ABORT, 0))
                core.sending_large = 0
                core.wake_senders()
        self.flush()

    def _take_back(self, core: ChannelCore) -> None:
        """Under the lock: the part in the queue, of which not a byte is written, and its credit."""
        bulk = self.bulk
        for index in range(len(bulk)):
            if bulk[index].core is core:
                size = len(bulk[index].buffers[1])
                core.credit += size
                del bulk[index]
                return

    def lost(self) -> BaseException:
        """A fresh error saying how the link ended."""
        error = self.closed
        assert error is not None
        if isinstance(error, FarwireError):
            # GatewayLost.__new__ would find that of EOFError, which refuses to make what is an OSError as well
            new = OSError.__new__ if isinstance(error, OSError) else Exception.__new__
            copy: BaseException = new(error.__class__)
            copy.__dict__.update(error.__dict__)
            copy.args = error.args
            return copy
        return error


class Fragment:
    """A part of a large item, queued for its turn.

    One that the writer is in the midst of is finished even if its sender gives up: a bytearray that is changed meanwhile would change
    bytes of an item that is withdrawn anyway.
    """

    __slots__ = ("_lock", "buffers", "core", "done")

    def __init__(self, buffers: list[Any], core: ChannelCore | None = None) -> None:
        self.buffers = buffers
        self.core = core
        self.done = False
        self._lock: Any = None

    def finish(self) -> None:
        """It is written, or the link is closed. May be called again when a signal interrupts it."""
        self.done = True
        lock = self._lock
        if lock is not None and lock.locked():
            lock.release()

    def wait(self, deadline: float | None) -> bool:
        """Wait for ``finish``. Returns False on timeout."""
        lock = allocate_lock()
        lock.acquire()
        self._lock = lock
        if self.done:
            return True
        if deadline is None:
            lock.acquire()
            return True
        left = deadline - monotonic()
        return bool(lock.acquire(True, left) if left > 0 else lock.acquire(False)) or self.done


class _CloseError:
    """The error that came with a CLOSE, decoded when somebody looks."""

    __slots__ = ("code", "link", "payload")

    def __init__(self, link: Link, code: int, payload: bytes) -> None:
        self.link = link
        self.code = code
        self.payload = payload

    def decode(self) -> BaseException:
        from .remote_error import decode_error

        return decode_error(self.link.decode, self.code, self.payload)


class _Call:
    __slots__ = ("args", "function")

    def __init__(self, function: Any, *args: Any) -> None:
        self.function = function
        self.args = args

    def __call__(self) -> None:
        self.function(*self.args)


__all__ = ["CLOSE", "PING", "PONG", "POLLERR", "POLLHUP", "Fragment", "Link"]
