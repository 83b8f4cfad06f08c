"""Channels: what the program holds (``Channel``) and what the link keeps (``ChannelCore``).

The link refers to cores, programs refer to handles, and a core refers to its handle weakly: when the program drops the last
handle, the channel closes. A finalizer may run inside any lock, so it only appends to a deque.
"""

from __future__ import annotations

from _collections import deque
from _thread import allocate_lock
from _weakref import ref
from os import write
from time import monotonic

from ..protocol.connection import ChannelState
from ..protocol.errors import ChannelClosed, GatewayLost, RemoteError, TimeoutError, of_signal
from ..protocol.frames import HEADER, HEADER_SIZE, INLINE_MAX, ITEM, ITEM_COST, RAW
from ..protocol.state import CLOSED, CLOSING, OPEN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from .link import Link


_pack = HEADER.pack
_unpack = HEADER.unpack_from
# After this many sends without a receive or a pause, frames are gathered for one write instead of written one by one.
BURST = 3
# Seconds without a send after which the next is none of a stream: what a program sends before a long call that holds the interpreter
# lock is to be on its way before that.
PAUSE = 0.001
GATHER = 256
# Frames up to this size are written at once if the line is free.
ATOMIC_MAX = 2048
# ``ChannelCore.sending_large`` when a part of an item was sent and the rest will not be; when its parts are being sent.
ABORT_DUE = 2
ANNOUNCED = 3
# What a sink gets in the place of a stream's code when no more bytes come.
ENDED = 255


class _NoEndmarker:
    """The default of ``setcallback``: the end is not announced."""

    def __repr__(self) -> str:
        return "NO_ENDMARKER"


NO_ENDMARKER = _NoEndmarker()


class ChannelCore(ChannelState):
    """One channel as the link sees it. Everything in it is guarded by the link's state lock."""

    __slots__ = (
        "callback",
        "callback_done",
        "closers",
        "direct",
        "dropped",
        "ended",
        "endmarker",
        "error_taken",
        "handle_ref",
        "in_callback",
        "items",
        "link",
        "on_credit",
        "receivers",
        "senders",
        "service",
        "sink",
    )

    def __init__(self, link: Link, id: int, credit: int, window: int) -> None:
        ChannelState.__init__(self, id, credit, window)
        self.link = link
        self.items: deque[Any] = deque()  # (code, payload, cost)
        self.receivers: deque[Any] = deque()  # locks of threads that wait for an item,
        self.senders: deque[Any] = deque()  # for credit or their turn,
        self.closers: deque[Any] = deque()  # for the end
        self.ended: Any = None  # why no more items come: an exception, or one still encoded
        self.direct = True  # open for receive(): not closed, not ended, no callback
        self.error_taken = False
        self.callback: Callable[[Any], object] | None = None
        self.callback_done = False
        self.in_callback = False
        self.endmarker: Any = NO_ENDMARKER
        self.sink: Any = None  # takes RAW bytes: sink(core, code, data)
        self.on_credit: Callable[[], None] | None = None
        self.handle_ref: Any = None
        self.service: Any = None  # keeps the handle of a channel that no program holds
        self.dropped = False

    def hungry(self) -> bool:
        """As the protocol asks; what comes after items that nobody has taken yet is not waited for."""
        if self.lifted or self.leading:
            return True
        return not self.items and (self.waiting > 0 if self.callback is None else not self.in_callback)

    def pay_if_hungry(self) -> None:
        """Somebody has become ready for the item that is coming."""
        if self.large is not None and self.hungry():
            self.link.connection.pay_large(self)

    def handle(self) -> Channel:
        """The one handle of this channel; made again if the program dropped the last."""
        found: Any = self.handle_ref() if self.handle_ref is not None else None
        if found is None:
            found = self.link.channel_type(self)
            self.handle_ref = ref(found)
        handle: Channel = found
        return handle

    # All of these are called under the link's lock.

    def arrived(self, entries: Any) -> None:
        """Items are complete."""
        if self.lifted:
            self.link.connection.lift(self)
            entries = [(code, payload, 0) for code, payload, _ in entries]
        if self.dropped:
            return
        self.items.extend(entries)
        if self.callback is not None:
            for _ in entries:
                self.link.dispatcher.submit(self)
        elif self.receivers:
            for _ in entries:
                if self.receivers:
                    self.receivers.popleft().release()
                else:
                    break

    def take(self) -> Any:
        """The next entry, counted as consumed."""
        entry = self.items.popleft()
        self.consumed += entry[2]
        if self.large is not None and self.receivers:
            self.pay_if_hungry()
        if (self.consumed - self.granted) * 2 >= self.window:
            self.link.connection.grant(self)
        return entry

    def receive_error(self) -> BaseException:
        """Why there is nothing to receive and will not be."""
        if self.callback is not None:
            return OSError("cannot receive: channel %d has a callback" % self.id)
        if self.ended is not None:
            return self.end_error()
        return EOFError("channel %d is closed" % self.id)

    def close(self, payload: bytes = b"", code: int = 0) -> bool:
        """Close it from this end. Safe to call again, also when a signal's exception interrupted the first call.

        Returns:
            Whether that is what closed it.
        """
        sent = False
        if self.link.closed is None:
            if payload:
                self.link.send_later()
            sent = self.link.connection.send_close(self, payload, code)
        self.closed_here()
        return sent

    def closed_here(self) -> None:
        """This end closed the channel: wake whoever waits at this end."""
        self.direct = False
        if self.callback is not None:
            self.link.dispatcher.submit(self)
        for waiters in (self.receivers, self.senders, self.closers):
            while waiters:
                waiters.popleft().release()

    def end(self, error: Any, both: bool = True) -> None:
        """No more items come: the other end closed (``both``), or half-closed, or the link is gone."""
        self.direct = False
        if self.ended is None:
            self.ended = error if error is not None else EOFError("channel %d is closed" % self.id)
            if isinstance(error, GatewayLost) or both:
                self.state = CLOSED
            if self.callback is not None:
                self.link.dispatcher.submit(self)
            if self.sink is not None:
                self.link.defer(self.sink, self, ENDED, b"")
        elif both:
            self.state = CLOSED
            if isinstance(self.ended, EOFError) and not isinstance(self.ended, GatewayLost) and error is not None:
                self.ended = error  # half-closed, then closed with an error
        for waiters in (self.receivers, self.senders, self.closers):
            while waiters:
                waiters.popleft().release()

    def add_sender(self) -> Any:
        """A lock that is released when there is credit, or the channel ends."""
        waiter = allocate_lock()
        waiter.acquire()
        self.senders.append(waiter)
        return waiter

    def remove_sender(self, waiter: Any) -> None:
        """The thread of ``waiter`` gave up."""
        if waiter in self.senders:
            self.senders.remove(waiter)
        else:
            self.wake_senders()  # it was woken as it gave up: pass the turn on

    def wake_senders(self) -> None:
        """Credit came, or a large item is through."""
        while self.senders:
            self.senders.popleft().release()

    def send_error(self) -> BaseException:
        """Why nothing can be sent."""
        if self.link.closed is not None:
            return self.link.lost()
        ended = self.ended
        if ended is not None and hasattr(ended, "decode"):
            return ChannelClosed("cannot send: channel %d was closed by an error at the other end" % self.id)
        return ChannelClosed("cannot send: channel %d is closed" % self.id)

    def end_error(self) -> BaseException:
        """What a receiver gets after the last item: an error of the other end once, then EOFError."""
        ended = self.ended
        if hasattr(ended, "decode"):
            ended = self.ended = ended.decode()
        if isinstance(ended, RemoteError):
            if self.error_taken:
                return EOFError("channel %d is closed" % self.id)
            self.error_taken = True
            return ended
        if isinstance(ended, GatewayLost) or ended is self.link.closed:
            return self.link.lost()
        return EOFError(*ended.args)


class Channel:
    """One end of an ordered, flow-controlled, two-way stream of items.

    Made by ``gateway.remote_exec`` and ``gateway.newchannel``, or received: a channel is itself an item and can be sent
    inside any structure. Safe to use from several threads. As a context manager it closes itself at the end.

    Attributes:
        id: number of the channel on its link.
        gateway: the gateway it belongs to.
        RemoteError, TimeoutError: the exception classes, for ``except channel.RemoteError``.
    """

    __slots__ = ("__weakref__", "_core", "gateway", "id")

    RemoteError = RemoteError
    TimeoutError = TimeoutError

    def __init__(self, core: ChannelCore) -> None:
        self._core = core
        self.id = core.id
        self.gateway: Any = core.link.gateway

    def __repr__(self) -> str:
        return "<Channel id=%d %s>" % (self.id, "closed" if self.isclosed() else "open")

    def __setstate__(self, state: Any) -> None:
        # A pickle opcode sets attributes on any object that has no __setstate__; no item may do that to a channel.
        raise TypeError("a channel has no state to set")

    def __reduce__(self) -> Any:
        raise TypeError("a channel can be sent through its own gateway only")

    def __enter__(self) -> Channel:
        return self

    def __exit__(self, *exc: object) -> None:
        if not self.isclosed():
            self.close()

    def __del__(self) -> None:
        core = getattr(self, "_core", None)  # a signal may have raised before there was one
        if core is None:
            return
        link = core.link
        if core.state < CLOSING and core.callback is None and core.sink is None and link.closed is None:
            core.dropped = True
        elif not (hasattr(core.ended, "decode") and core.sink is None and link.connection.controller):
            return
        link.dropped.append(core)  # to be closed, or for its error that nobody has seen
        link.reactor.call(link.close_dropped)

    # -- sending ------------------------------------------------------------------------------------------

    def send(self, item: Any, timeout: float | None = None) -> None:
        """Send an item to the other end.

        Returns when the item is on its way; blocks while the other end's window (8 MiB by default) is used up by items
        that nobody there has received. Two ends that each send more than both windows without receiving block each other;
        ``timeout`` ends that.

        Args:
            item: a value of builtin types (see "Items" in the docs), channels included.
            timeout: seconds to wait for the other end; None waits as long as it takes.

        Raises:
            DumpError: the item holds a value that cannot be sent; nothing was sent.
            TimeoutError: not sent in time; nothing of it arrives.
            ChannelClosed: the channel was closed for sending. (An ``OSError``.)
            GatewayLost: the worker is gone. (An ``OSError``.)
        """
        core = self._core
        link = core.link
        code, payload = link.encode(item)
        if type(payload) is bytes:
            size = len(payload)
            if size <= ATOMIC_MAX:
                frame = _pack(size, core.id, ITEM, code) + payload
                mine = queued = False
                try:
                    with link.lock:
                        if core.state == OPEN and core.credit >= size + ITEM_COST and not core.sending_large:
                            core.credit -= size + ITEM_COST
                            link.sends += 1
                            if link.sends > BURST:
                                now = monotonic()
                                if now - link.sent_at > PAUSE:
                                    link.sends = 1
                                link.sent_at = now
                            if link.sends <= BURST and link.atomic and not (link.out or link.writing or link.pending):
                                # The short cut: the frame can be written at once, whole or not at all.
                                link.writing = mine = True
                            else:
                                queued = True
                                link.out.append(frame)
                    if mine:
                        try:
                            if link.parent is None:
                                write(link.stream.write_fd, frame)
                            else:
                                link.write_relayed(frame)
                        except BlockingIOError:
                            link.pending = [[frame], []]
                        except OSError as exc:
                            if of_signal(exc):
                                raise
                            # The worker is gone; the reader will tell with the reason. What was accepted is lost with it.
                except BaseException:
                    if mine:
                        link.writing = False
                    link.recover()
                    raise
                if mine:
                    link.writing = False
                    if link.out or link.bulk or link.pending:
                        self._flush()
                    return
                if queued:
                    if link.sends <= BURST or len(link.out) >= GATHER:
                        self._flush()
                        if link.writing and link.sends <= BURST:
                            link.yield_to_writer()
                    elif not link.flush_asked:
                        try:
                            link.flush_asked = True
                            link.reactor.call(link.flush_gathered)
                        except BaseException:
                            link.recover()
                            raise
                    return
        try:
            if (
                type(payload) is bytes
                and ATOMIC_MAX < len(payload) <= INLINE_MAX
                and link.send_small(core, code, payload)
            ):
                return
            from .sending import send_waiting

            send_waiting(self, code, payload, timeout)
        except BaseException:
            link.recover(core)
            raise

    def _flush(self) -> None:
        link = self._core.link
        try:
            link.flush()
        except BaseException:  # out of a signal's handler
            link.recover()
            raise

    def send_eof(self) -> None:
        """Say that this end sends no more (half-close). The other end's iteration ends; it may still send.

        Does nothing on a closed channel.
        """
        core = self._core
        link = core.link
        while True:
            with link.lock:
                if not core.sending_large or link.closed is not None:
                    if link.closed is None:
                        link.connection.send_eof(core)
                    break
                waiter = core.add_sender()  # another thread is in the midst of an item
            link.wait(waiter, None)
        self._flush()

    # -- receiving ----------------------------------------------------------------------------------------

    def receive(self, timeout: float | None = None) -> Any:
        """Wait for the next item and return it.

        Args:
            timeout: seconds to wait, 0 to poll; None waits until an item comes or none can come any more.

        Raises:
            TimeoutError: nothing came in time.
            RemoteError: code at the other end raised; raised once, after the items sent before.
            EOFError: the other end closed, or sends no more.
            GatewayLost: the worker is gone. (Also an ``EOFError`` and an ``OSError``.)
            LoadError: the item could not be decoded; the next one can be received.
            OSError: the channel has a callback.
        """
        core = self._core
        link = core.link
        if timeout is None:
            # The short cut: nobody else waits or reads, and the next thing to come is this item.
            root = link.root
            mine = False
            data: Any = None
            entry: Any = None
            try:
                with link.lock:
                    if core.items:
                        if core.direct and not link.out:
                            entry = core.take()
                            link.sends = 0
                    elif (
                        core.direct
                        and core.large is None
                        and not (link.reading or link.followers or link.inbox or link.out or link.connection.unfinished)
                    ):
                        link.sends = 0
                        if link is root:
                            link.reading = mine = True
                if entry is not None:
                    if link.out:
                        link.flush()
                    return link.decode(entry[0], entry[1]) if type(entry[1]) is bytes else decode_entry(link, entry)
                if link is not root and not link.sends and not link.marker:
                    with root.lock:
                        if not (root.reading or root.followers or root.inbox or root.connection.unfinished):
                            root.reading = mine = True
                if mine and core.direct and not core.items:  # it may have come, or ended, between the two locks
                    core.leading = True
                    if root.must_poll:
                        root.lead_poll()
                    for data in root.reads:
                        break
                    item = data
                    if data is not None and len(data) >= HEADER_SIZE:
                        for hop in link.path:
                            size, id, kind, code = _unpack(item)
                            if kind != RAW or id != hop.id or len(item) != size + HEADER_SIZE or size < HEADER_SIZE:
                                break
                            item = item[HEADER_SIZE:]
                        size, id, kind, code = _unpack(item)
                        if kind == ITEM and id == core.id and len(item) == size + HEADER_SIZE and core.direct:
                            payload = item[HEADER_SIZE:]
                            data = None
                            outer = size + HEADER_SIZE
                            for hop in reversed(link.path):
                                hop.received += outer
                                hop.consumed += outer
                                if (hop.consumed - hop.granted) * 2 >= hop.window:
                                    hop.link.consumed(hop, 0)
                                    hop.link.flush()
                                outer += HEADER_SIZE
                            core.received += size + ITEM_COST
                            core.consumed += size + ITEM_COST
                            if (core.consumed - core.granted) * 2 >= core.window:
                                link.consumed(core, 0)
                                link.flush()
                            return link.decode(code, payload)
            except BlockingIOError:  # a wake-up: look again, the long way
                root.drain_wake()
            except OSError as exc:
                if of_signal(exc):
                    raise
                # the line broke; the reactor will get the same error and tell
            except BaseException:  # out of a signal's handler
                link.recover()
                raise
            finally:
                if mine:
                    # up to here nothing is called, so nothing can raise
                    core.leading = False
                    if data is not None:
                        root.inbox += [data]
                    root.reading = False
                    root.leads += 1
                    if root.passive and (root.parked or root.followers or root.inbox):
                        root.reactor.call(root.resume)
        try:
            return self._receive(timeout)
        except BaseException:
            link.recover()
            raise

    def _receive(self, timeout: float | None) -> Any:
        core = self._core
        link = core.link
        waits: list[int] = []
        try:
            entry = self._wait_entry(timeout, waits)
        finally:
            if waits:
                with link.lock:
                    core.waiting -= 1
        if link.out:
            link.flush()
        return decode_entry(link, entry)

    def _wait_entry(self, timeout: float | None, waits: list[int]) -> Any:
        """The next entry; ``waits`` gets one when the core counts this thread among those that wait."""
        core = self._core
        link = core.link
        deadline = None if timeout is None else monotonic() + valid(timeout)
        late = False
        one = [1]
        while True:
            lead = False
            waiter = None
            try:
                with link.lock:
                    link.sends = 0
                    if core.items:
                        return core.take()
                    if core.callback is not None or core.ended is not None or core.state >= CLOSING:
                        raise core.receive_error()
                    if late:
                        raise TimeoutError(self._late(timeout))
                    if not waits:
                        waits += one  # no call in between
                        core.waiting += 1
                        if core.large is not None:
                            link.connection.pay_large(core)
                    if link.parent is None:
                        if not (link.reading or link.followers or link.inbox or link.unfinished()):
                            link.reading = lead = True
                    if not lead:
                        waiter = allocate_lock()
                        waiter.acquire()
                        core.receivers.append(waiter)
                if link.out:
                    link.flush()
                if not lead and link.parent is not None and timeout != 0:
                    root = link.root
                    with root.lock:
                        if not (root.reading or root.followers or root.inbox or root.closed or root.unfinished()):
                            root.reading = lead = True
                    if lead and not core.receivers:
                        continue  # it came between the two locks
                if lead:
                    entry = link.lead(core, deadline)
                    if entry is not None:
                        return entry
            finally:
                if lead:
                    link.root.reading = False  # first, and no call: a signal may raise in any call
                    link.stop_leading()
                    if waiter is not None:
                        self._give_up(waiter)
            if lead:
                late = deadline is not None and monotonic() >= deadline and not link.root.inbox
            elif not self._wait_item(waiter, deadline):
                late = True

    def _wait_item(self, waiter: Any, deadline: float | None) -> bool:
        try:
            if self._core.link.wait(waiter, deadline):
                return True
        except BaseException:
            self._give_up(waiter)
            raise
        self._give_up(waiter)
        return False

    def _give_up(self, waiter: Any) -> None:
        """This thread stops waiting; if an item was announced to it meanwhile, another waiter gets the announcement."""
        core = self._core
        with core.link.lock:
            if waiter in core.receivers:
                core.receivers.remove(waiter)
            elif core.items and core.receivers:
                core.receivers.popleft().release()

    def _late(self, timeout: float | None) -> str:
        return "channel %d of gateway %s: no item within %s seconds" % (self.id, self._core.link.gateway.id, timeout)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        """The next item; the end of the data ends the iteration, a dead worker raises ``GatewayLost``."""
        try:
            return self.receive()
        except GatewayLost:
            raise
        except EOFError:
            raise StopIteration from None

    next = __next__

    def setcallback(self, callback: Callable[[Any], object], endmarker: Any = NO_ENDMARKER) -> None:
        """Call ``callback(item)`` for each item, received or to come, instead of ``receive()``.

        Callbacks of one gateway run one after another in a thread of their own, in order, never in the thread that reads: a slow
        one makes the senders wait (when the window is used up) and delays the other callbacks of that gateway, nothing else.
        A callback that raises closes the channel; the other end gets the error.

        Args:
            callback: called with each item.
            endmarker: if given, ``callback(endmarker)`` is called exactly once when no more items come, for whatever reason.

        Raises:
            OSError: the channel has a callback already.
            RuntimeError: no thread can be started for the callbacks, as while the interpreter ends.
        """
        core = self._core
        link = core.link
        while True:
            if core.callback is not None:
                raise OSError("channel %d has a callback already" % core.id)
            link.need_dispatcher()
            with link.lock:
                if link.dispatcher.stopped or core.callback is not None:
                    continue  # the link ended just now, or another thread was faster
                core.callback = callback
                core.direct = False
                core.endmarker = endmarker
                core.pay_if_hungry()
                count = len(core.items) + (core.ended is not None or core.state >= CLOSING)
                for _ in range(count):
                    link.dispatcher.submit(core)
                if link.closed is not None:
                    link.dispatcher.stop()
                break
        if link.out:
            link.flush()
        link.ensure_read()

    # -- the end ------------------------------------------------------------------------------------------

    def close(self, error: str | BaseException | None = None) -> None:
        """Close the channel at both ends.

        Items that this end received before can still be received; items in flight towards here are dropped. The other end's
        ``receive`` gets what was sent before and then an ``EOFError``, or a ``RemoteError`` when ``error`` is given. Closing a
        closed channel does nothing.

        Args:
            error: a text or an exception to be raised at the other end.

        Raises:
            TypeError: ``error`` is something else.
        """
        core = self._core
        link = core.link
        payload, code = b"", 0
        if error is not None:
            from .remote_error import encode_error

            payload, code = encode_error(error)
        try:
            with link.lock:
                core.close(payload, code)
            link.flush()
            link.wake_leader()
        except BaseException:  # out of a signal's handler
            link.recover()
            raise

    def isclosed(self) -> bool:
        """Whether the channel is closed. A closed channel may still hold items."""
        return self._core.state >= CLOSING

    def waitclose(self, timeout: float | None = None) -> None:
        """Wait until the other end closes the channel, or says that it sends no more.

        Lifts the channel's window: what still comes is kept in memory and can be received after. With a callback, also waits
        until the callback has had everything.

        Raises:
            RemoteError: code at the other end raised.
            TimeoutError: the channel is still open.
            GatewayLost: the worker is gone.
        """
        core = self._core
        link = core.link
        deadline = None if timeout is None else monotonic() + valid(timeout)
        with link.lock:
            if link.closed is None:
                link.connection.lift(core)
        link.flush()
        while True:
            with link.lock:
                link.sends = 0
                over = core.ended is not None or core.state >= CLOSING
                if over and (core.callback is None or core.callback_done or link.dispatcher.in_thread()):
                    if core.ended is None or core.error_taken:
                        return
                    error = core.end_error()
                    if isinstance(error, EOFError) and not isinstance(error, GatewayLost):
                        return
                    raise error
                waiter = allocate_lock()
                waiter.acquire()
                core.closers.append(waiter)
            if not link.wait(waiter, deadline):
                with link.lock:
                    if waiter in core.closers:
                        core.closers.remove(waiter)
                raise TimeoutError(
                    "channel %d of gateway %s: not closed within %s seconds" % (self.id, link.gateway.id, timeout)
                )

    def makefile(self, mode: str = "w", proxyclose: bool = False) -> Any:
        """A file on the channel: ``"w"`` sends each write as an item, ``"r"`` reads items of str (or bytes) as one stream.

        Args:
            mode: ``"w"`` or ``"r"``.
            proxyclose: closing the file closes the channel.

        Raises:
            ValueError: another mode.
        """
        from .channel_file import ChannelFileRead, ChannelFileWrite

        if mode == "w":
            return ChannelFileWrite(self, proxyclose)
        if mode == "r":
            return ChannelFileRead(self, proxyclose)
        raise ValueError("mode %r is not available: use 'w' or 'r'" % (mode,))

    def _getremoteerror(self) -> BaseException | None:
        """The error with which the channel was closed, taken once; for end-marker callbacks."""
        core = self._core
        with core.link.lock:
            if core.ended is None:
                return None
            error = core.end_error()
        if isinstance(error, EOFError) and not isinstance(error, GatewayLost):
            return None
        return error


def decode_entry(link: Link, entry: Any) -> Any:
    """The item of a queue entry; a large one comes as an object that hands out its payload."""
    code, payload, _ = entry
    return link.decode(code, payload if type(payload) is bytes else payload.payload())


def valid(timeout: float) -> float:
    if not timeout >= 0:  # nor is it a NaN
        raise ValueError("timeout must not be negative: %r" % (timeout,))
    return min(timeout, 4e9)  # what a lock takes
