"""One end of a link as pure state: bytes in, events out; requests in, bytes out. No I/O, no clock, no threads.

    receive_data(bytes) ---> events      (kind, channel, code, payload)
    send_*() ---> out                    small frames, in order
             \\--> bulk                   fragments of large items, one per turn

The driver (``runtime.link``) calls every method under its state lock, writes all of ``out`` before each fragment of
``bulk``, and takes events from ``events``. ``receive_data`` raises ``ProtocolError`` and nothing else, whatever comes in, and
memory stays within the windows that were granted: this is fuzzed.

Credit: every channel and direction has a window in bytes. An item costs its payload and ``ITEM_COST``. The receiver counts three
running totals, received >= consumed >= granted, and sends CREDIT once half a window has been consumed. While somebody waits
for an item that is still incomplete, its parts count as consumed when they arrive, so an item larger than the window passes.
"""

from __future__ import annotations

from _collections import deque
from io import BytesIO
from struct import Struct

from .codec import BYTEARRAY, PICKLE_BUFFERS
from .errors import FarwireError, ProtocolError
from .frames import (
    ABORT,
    CLOSE,
    CREDIT,
    EOF,
    EXEC,
    GOODBYE,
    HEADER,
    HEADER_SIZE,
    HELLO,
    ITEM,
    ITEM_COST,
    LARGE,
    MAX_ANSWERS,
    MAX_CHANNELS,
    MAX_HELLO,
    MAX_ID,
    MAX_ITEM,
    MAX_PAYLOAD,
    MAX_PING,
    MIN_WINDOW,
    MODULES,
    NAMES,
    PART,
    PING,
    PONG,
    RAW,
    REPLY,
    REQUEST,
    SIGNAL,
    VERSION,
    WINDOW,
)
from .state import (
    CAN_RECEIVE,
    CAN_SEND,
    CLOSING,
    EVENT_NAMES,
    OPEN,
    RECEIVED_CLOSE,
    RECEIVED_DATA,
    RECEIVED_EOF,
    SENT_CLOSE,
    SENT_EOF,
    STATE_NAMES,
    TRANSITIONS,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Union

    Buffer = Union[bytes, bytearray, memoryview]
    Event = tuple[int, Any, int, Any]

_unpack = HEADER.unpack_from
_pack = HEADER.pack
_U64 = Struct("<Q")


class Large:
    """An item of which parts have arrived."""

    __slots__ = ("code", "filled", "owner", "total", "unpaid")

    def __init__(self, code: int, total: int) -> None:
        self.code = code
        self.total = total
        self.filled = 0
        self.unpaid = ITEM_COST  # cost that was received and not yet counted as consumed
        # In each case but the bytearray the pages exist when they are filled: a lie about the size costs address space only.
        if code == PICKLE_BUFFERS:
            # The arrays of the item will look into it. Not a BytesIO: see codec.WRITABLE.
            self.owner: Any = _private_memory(total)
        elif code == BYTEARRAY and total <= WINDOW:
            # Filled with zeros at once; so a larger one is copied from what has come.
            self.owner = bytearray(total)
        else:
            # bytes(n) is calloc. BytesIO holds the only reference, so getbuffer() writes into it and getvalue() later
            # returns it: no copy.
            self.owner = BytesIO(bytes(total))

    def space(self, size: int) -> memoryview:
        """Where the next bytes belong. Not to be kept: a BytesIO must not be garbage while there are views of it."""
        owner = self.owner
        view: memoryview = owner.getbuffer() if type(owner) is BytesIO else memoryview(owner)
        return view[self.filled : self.filled + size]

    def payload(self) -> Any:
        """The whole item, for the codec; the buffer is handed over."""
        owner = self.owner
        if type(owner) is BytesIO:
            return owner.getvalue()
        return owner if type(owner) is bytearray else memoryview(owner)


def _private_memory(size: int) -> Any:
    """Pages that a forked child does not share."""
    import mmap

    if not hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(-1, size)
    memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(memory, "madvise") and hasattr(mmap, "MADV_HUGEPAGE"):
        # As NumPy does for arrays of its own: filling pages of 4 kB for the first time takes longer than the transfer.
        try:
            memory.madvise(mmap.MADV_HUGEPAGE)
        except OSError:  # a kernel without
            pass
    return memory


class ChannelState:
    """What the protocol knows of one channel. The runtime's channel derives from it."""

    __slots__ = (
        "claimed",
        "consumed",
        "credit",
        "granted",
        "id",
        "large",
        "leading",
        "lifted",
        "received",
        "sending_large",
        "state",
        "waiting",
        "window",
    )

    def __init__(self, id: int, credit: int, window: int) -> None:
        self.id = id
        self.state = OPEN
        self.credit = credit  # bytes we may still send
        self.window = window  # bytes the peer may have sent and we not granted back
        self.received = 0
        self.consumed = 0
        self.granted = 0
        self.waiting = 0  # how many wait for an item to be completed,
        self.leading = False  # or read the link themselves meanwhile
        self.lifted = False  # grant everything at once: somebody waits for the close, or nobody reads
        self.large: Large | None = None
        self.sending_large = 0
        self.claimed = False  # somebody here has, or had, the channel; else only its number came so far

    def hungry(self) -> bool:
        """Whether somebody waits for the item that is coming, so that its parts are consumed as they arrive."""
        return bool(self.lifted or self.leading or self.waiting)

    def __repr__(self) -> str:
        return "<%s %d %s>" % (type(self).__name__, self.id, STATE_NAMES[self.state])


class Connection:
    """One end of a link.

    Args:
        controller: which end this is. It decides the parity of the channel numbers that this end gives out (odd at
            the controller) and who may send EXEC and SIGNAL.
        make_channel: called as ``make_channel(id, credit, window)`` for every channel, also those the peer opens.
        window: bytes granted to the peer per channel; MIN_WINDOW if that is more.
        peer_window: bytes the peer grants to us per channel, likewise; its hello corrects it.
        max_item: largest item accepted, in bytes.
    """

    def __init__(
        self,
        controller: bool,
        make_channel: Callable[[int, int, int], ChannelState] = ChannelState,
        window: int = WINDOW,
        peer_window: int = WINDOW,
        max_item: int = MAX_ITEM,
    ) -> None:
        self.controller = controller
        self.parity = 1 if controller else 0
        self.make_channel = make_channel
        self.window = window = max(window, MIN_WINDOW)
        self.peer_window = peer_window = max(peer_window, MIN_WINDOW)
        self.max_item = max_item
        self.next_id = 1 if controller else 2
        self.channels: dict[int, Any] = {}
        self.events: deque[Event] = deque()
        self.out: list[bytes] = []
        self.hello: dict[str, str] | None = None  # the peer's
        self.goodbye_received = False
        self._own = 0  # how many channels of our numbers are open,
        self._peers = 0  # and of the peer's
        # Numbers are given out in order and never twice. Of the peer's, this is the highest that came up, and those below it that
        # did not come up yet; all others below are open or have been closed.
        self._highest = 0 if controller else -1
        self._skipped: set[int] = set()
        # Closed before anybody here got hold of them: the item with the number is still in a queue.
        self._early: dict[int, tuple[Any, int]] = {}
        self._early_size = 0
        self._answers = 0
        self._guarded = True  # before the first frame and after a fault
        self._fault = ""
        self.unfinished = False  # whether something incomplete is kept:
        self._rest = b""  # the beginning of a frame that is not complete,
        self._gathered = bytearray()  # what came after it, when it came in small pieces,
        self._missing = 0  # and how many bytes more it takes to go on
        self.part: Any = None  # the channel whose PART is being filled,
        self._part_left = 0  # and how many bytes of that frame are to come
        self.control: Any = make_channel(0, peer_window, window)
        self.channels[0] = self.control

    # -- sending ----------------------------------------------------------------------------------------------

    def open(self) -> Any:
        """A new channel of this end.

        Raises:
            FarwireError: too many are open, or all numbers have been used.
        """
        id = self.next_id
        if self._own >= MAX_CHANNELS or id > MAX_ID:
            raise FarwireError(
                "no more channels can be opened on this link: %d are open, %d have been" % (self._own, (id - 1) // 2)
            )
        self.next_id += 2
        self._own += 1
        channel = self.channels[id] = self.make_channel(id, self.peer_window, self.window)
        channel.claimed = True
        return channel

    def get(self, id: int) -> Any:
        """The channel of a number that came in an item.

        A number of the peer's that has not come up yet opens the channel here. Returns None when the channel is closed and
        forgotten, or the number is none.

        Raises:
            ProtocolError: the peer has too many channels open.
        """
        channel = None
        if 0 < id <= MAX_ID:
            channel = self.channels.get(id)
            if channel is None:
                if id in self._early:
                    channel, size = self._early.pop(id)
                    self._early_size -= size
                elif id & 1 != self.parity and not self._forgotten(id):
                    channel = self._first(id)
            if channel is not None:
                channel.claimed = True
        return channel

    def _forgotten(self, id: int) -> bool:
        """Of a number that is not in ``channels``: whether it was."""
        if id & 1 == self.parity:
            return id < self.next_id
        return id <= self._highest and id not in self._skipped

    def _first(self, id: int) -> Any:
        """Open the peer's channel of a number that comes up for the first time."""
        if id > self._highest:
            new = (id - self._highest) // 2
            if self._peers + new > MAX_CHANNELS:
                raise ProtocolError("the peer opens channel %d; at most %d may be open" % (id, MAX_CHANNELS))
            self._peers += new
            self._skipped.update(range(self._highest + 2, id, 2))
            self._highest = id
        else:
            self._skipped.remove(id)
        channel = self.channels[id] = self.make_channel(id, self.peer_window, self.window)
        return channel

    def _keep(self, channel: Any, size: int) -> None:
        """Keep a closed channel for whoever will decode the item with its number; the oldest ones go when it gets too much."""
        size += 4096 + channel.received - channel.consumed
        self._early[channel.id] = (channel, size)
        self._early_size += size
        while self._early_size > self.window and len(self._early) > 1:
            self._early_size -= self._early.pop(next(iter(self._early)))[1]

    def _answer(self, frame: bytes) -> None:
        """Queue what the peer makes us send."""
        out = self.out
        if not out:
            self._answers = 0
        self._answers += 1
        if self._answers > MAX_ANSWERS and len(out) > MAX_ANSWERS:
            raise ProtocolError("the peer does not read: %d answers wait to be sent" % len(out))
        out.append(frame)

    def send(self, kind: int, channel: int = 0, payload: bytes = b"", code: int = 0) -> None:
        """Queue a frame that needs no credit."""
        self.out.append(_pack(len(payload), channel, kind, code) + payload)

    def send_eof(self, channel: Any) -> None:
        """Say that this end sends no more on the channel. Does nothing if it has said so."""
        new = TRANSITIONS.get((channel.state, SENT_EOF))
        if new is not None:
            frame = _pack(0, channel.id, EOF, 0)
            # nothing between these two can raise, not even a signal's handler; so in send_close
            channel.state = new
            self.out.append(frame)

    def send_close(self, channel: Any, payload: bytes = b"", code: int = 0) -> bool:
        """Close the channel. Returns whether it was not closed before."""
        new = TRANSITIONS.get((channel.state, SENT_CLOSE))
        if new is None:
            return False
        frame = _pack(len(payload), channel.id, CLOSE, code) + payload
        channel.large = None
        channel.state = new
        self.out.append(frame)
        return True

    def grant(self, channel: Any) -> None:
        """Give back credit for what was consumed, if it is worth a frame."""
        if channel.lifted:
            channel.consumed = channel.received
        more = channel.consumed - channel.granted
        if more * 2 >= channel.window and channel.state < CLOSING:
            channel.granted += more
            self.out.append(_pack(8, channel.id, CREDIT, 0) + _U64.pack(more))

    def start_waiting(self, channel: Any) -> None:
        """Somebody waits for an item: what has come of an incomplete one is paid for now."""
        channel.waiting += 1
        self.pay_large(channel)

    def lift(self, channel: Any) -> None:
        """From now on everything received counts as consumed at once."""
        channel.lifted = True
        channel.consumed = channel.received
        if channel.large is not None:
            channel.large.unpaid = 0
        self.grant(channel)

    def pay_large(self, channel: Any) -> None:
        large = channel.large
        if large is not None and large.unpaid:
            channel.consumed += large.unpaid
            large.unpaid = 0
            self.grant(channel)

    # -- receiving --------------------------------------------------------------------------------------------

    def whole(self, kind: int, data: bytes, channel: Any) -> bool:
        """Is this chunk exactly one complete frame of that kind for that channel, with nothing before it?

        The short cut of a thread that waits for this very frame; changes nothing.
        """
        if len(data) < HEADER_SIZE or self.unfinished:
            return False
        length, id, got, _ = _unpack(data)
        return (
            got == kind
            and id == channel.id
            and length + HEADER_SIZE == len(data)
            and CAN_RECEIVE[channel.state]
            and channel.state != CLOSING
            and channel.large is None
        )

    def whole_raw(self, data: bytes) -> Any:
        """The channel of this chunk, if it is exactly one RAW frame with nothing before it; then it counts as received.

        Needs no lock: what it looks at, ``received`` included, changes in the reading thread only.
        """
        if len(data) < HEADER_SIZE or data[8] != RAW or self.unfinished:
            return None
        length, id, _, _ = _unpack(data)
        if length + HEADER_SIZE != len(data):
            return None
        channel = self.channels.get(id)
        if channel is None or channel.state != OPEN or channel.received + length - channel.granted > channel.window:
            return None  # receive_data finds out what is wrong
        channel.received += length
        return channel

    def buffer(self) -> memoryview | None:
        """Where the next bytes belong, if they are the rest of ``part``, of a large item: read straight into it."""
        if self.part is None:
            return None
        large: Any = self.part.large
        if large is None:  # closed meanwhile, perhaps since this was last asked: the rest is read and dropped
            return memoryview(bytearray(min(self._part_left, 65536)))
        space: memoryview = large.space(self._part_left)
        return space

    def buffer_filled(self, count: int) -> None:
        """So many bytes were read into ``buffer()``."""
        if self.part.large is not None:
            self._part_arrived(self.part, count)
        self._part_left -= count
        if not self._part_left:
            self.part = None
            self.unfinished = False

    def receive_data(self, data: bytes) -> None:
        """Take in bytes from the peer; append to ``events`` what they mean.

        Raises:
            ProtocolError: the bytes are not the protocol. Events before the fault are in ``events``; every further call raises
                the same.
        """
        if len(data) > MAX_PAYLOAD:
            # so that a frame which is complete below is never too long, and only the others need be looked at
            for at in range(0, len(data), MAX_PAYLOAD):
                self.receive_data(data[at : at + MAX_PAYLOAD])
            return
        try:
            if self._guarded:
                self._guard(data)
            pos = 0
            if self.part is not None:
                pos = min(self._part_left, len(data))
                self._part_bytes(self.part, data, 0, pos)
                self._part_left -= pos
                if self._part_left:
                    return
                self.part = None
                self.unfinished = False
            elif self._rest:
                if len(data) < self._missing:
                    self._missing -= len(data)
                    self._gathered += data
                    return
                data = b"".join((self._rest, self._gathered, data))
                self._rest = b""
                del self._gathered[:]
                self.unfinished = False
            end = len(data)
            channels = self.channels
            # Items of one channel that follow each other are one event; ``room`` is what is left of the channel's window.
            channel: Any = None
            run_id = -1
            run: list[Any] = []
            room = stop = 0
            while end - pos >= HEADER_SIZE:
                length, id, kind, code = _unpack(data, pos)
                start = pos + HEADER_SIZE
                stop = start + length
                if kind == ITEM:
                    if stop > end:
                        if length > MAX_PAYLOAD:
                            raise _too_long(kind, length)
                        break
                    if id != run_id:
                        if length > MAX_PAYLOAD:
                            raise _too_long(kind, length)
                        channel = channels.get(id)
                        if channel is None:
                            channel = self._unknown(id, kind)
                            if channel is None:
                                pos = stop
                                run_id = -1
                                continue
                        if channel.large is not None:
                            raise ProtocolError("ITEM inside a large item on channel %d" % id)
                        if not CAN_RECEIVE[channel.state] or not id:
                            raise _illegal(channel, RECEIVED_DATA)
                        if channel.state == CLOSING:
                            channel.received += length + ITEM_COST
                            channel.consumed += length + ITEM_COST
                            if channel.received - channel.granted > channel.window:
                                raise _overrun(channel)
                            pos = stop
                            run_id = -1
                            continue
                        run_id = id
                        run = []
                        self.events.append((ITEM, channel, 0, run))
                        room = channel.window - channel.received + channel.granted
                    cost = length + ITEM_COST
                    room -= cost
                    channel.received += cost  # pyright: ignore[reportOptionalMemberAccess]  # there is one: run_id names it
                    if room < 0:
                        raise _overrun(channel)
                    run.append((code, data[start:stop], cost))
                    pos = stop
                    continue
                run_id = -1
                if kind == PART:
                    if length > MAX_PAYLOAD:
                        raise _too_long(kind, length)
                    channel = channels.get(id)
                    if channel is None:
                        channel = self._unknown(id, kind)
                    self._check_part(channel, id, length)
                    have = min(stop, end) - start
                    if channel is not None:
                        self._part_bytes(channel, data, start, start + have)
                    pos = start + have
                    if have < length:
                        self.part = channel if channel is not None else _NOBODY
                        self._part_left = length - have
                        self.unfinished = True
                        return
                    continue
                handler = _HANDLERS.get(kind)
                if handler is None:
                    raise ProtocolError("unknown frame kind %d" % kind)
                if length > MAX_PAYLOAD:
                    raise _too_long(kind, length)
                if stop > end:
                    break
                handler(self, kind, id, code, data[start:stop])
                pos = stop
            if pos < end:
                self._rest = data[pos:]
                self._missing = (stop if end - pos >= HEADER_SIZE else pos + HEADER_SIZE) - end
                self.unfinished = True
        except ProtocolError as error:
            self._fault = str(error)
            self._guarded = True
            raise

    def _guard(self, data: bytes) -> None:
        """Before the peer's HELLO: nothing else may come first. After a fault: nothing more."""
        if self._fault:
            raise ProtocolError(self._fault)
        head = b"".join((self._rest, self._gathered, data[:HEADER_SIZE]))
        if len(head) >= HEADER_SIZE and head[8] != HELLO:
            raise ProtocolError("%s frame before HELLO" % NAMES.get(head[8], "unknown"))

    def at_frame_border(self) -> bool:
        """Whether all that came in was complete frames."""
        return not self.unfinished

    def _unknown(self, id: int, kind: int) -> Any:
        """The channel of a frame that may be the first of its number, or None when that is forgotten."""
        if not self._forgotten(id):
            if id & 1 != self.parity and kind not in (PART, ABORT, CREDIT):
                return self._first(id)
            raise ProtocolError("%s on channel %d, which is not open" % (NAMES[kind], id))
        if kind in (ITEM, LARGE, RAW):
            # The peer got hold of the number after we closed it, or did not know yet.
            self._answer(_pack(0, id, CLOSE, 0))
        return None

    def _check_part(self, channel: Any, id: int, length: int) -> None:
        if channel is None:
            return
        large = channel.large
        if large is None:
            if channel.state != CLOSING:
                raise ProtocolError("PART without LARGE on channel %d" % id)
        elif large.filled + length > large.total:
            raise ProtocolError("more parts than announced on channel %d" % id)
        channel.received += length
        if channel.received - channel.granted > channel.window:
            raise _overrun(channel)
        if large is None or channel.hungry():
            channel.consumed += length
            self.grant(channel)
        else:
            large.unpaid += length

    def _part_bytes(self, channel: Any, data: bytes, start: int, stop: int) -> None:
        large = channel.large
        if large is None or stop == start:
            return
        large.space(stop - start)[:] = memoryview(data)[start:stop]
        self._part_arrived(channel, stop - start)

    def _part_arrived(self, channel: Any, count: int) -> None:
        large = channel.large
        large.filled += count
        if large.filled == large.total:
            channel.large = None
            self.events.append((LARGE, channel, large.code, large))

    def _on_large(self, kind: int, id: int, code: int, payload: bytes) -> None:
        channel = self.channels.get(id) or self._unknown(id, kind)
        if len(payload) != 8:
            raise ProtocolError("LARGE of %d bytes" % len(payload))
        if channel is None:
            return
        (total,) = _U64.unpack(payload)
        if not CAN_RECEIVE[channel.state] or not id:
            raise _illegal(channel, RECEIVED_DATA)
        if channel.large is not None:
            raise ProtocolError("LARGE inside a large item on channel %d" % id)
        if not 0 < total <= self.max_item:
            raise ProtocolError("an item of %d bytes; at most %d are accepted" % (total, self.max_item))
        channel.received += ITEM_COST
        if channel.received - channel.granted > channel.window:
            raise _overrun(channel)
        if channel.state == CLOSING:
            channel.consumed += ITEM_COST
            return
        try:
            channel.large = Large(code, total)
        except (MemoryError, OverflowError, OSError, ValueError):
            raise ProtocolError("no memory for an item of %d bytes" % total) from None
        if channel.hungry():
            self.pay_large(channel)

    def _on_abort(self, kind: int, id: int, code: int, payload: bytes) -> None:
        channel = self.channels.get(id) or self._unknown(id, kind)
        # There may be none: the sender was interrupted just after the last part.
        if channel is not None and channel.large is not None:
            channel.consumed += channel.large.unpaid
            channel.large = None
            self.grant(channel)

    def _on_raw(self, kind: int, id: int, code: int, payload: bytes) -> None:
        channel = self.channels.get(id) or self._unknown(id, kind)
        if channel is None:
            return
        if not CAN_RECEIVE[channel.state]:
            raise _illegal(channel, RECEIVED_DATA)
        channel.received += len(payload)
        if channel.received - channel.granted > channel.window:
            raise _overrun(channel)
        if channel.state != CLOSING:
            self.events.append((RAW, channel, code, payload))

    def _on_credit(self, kind: int, id: int, code: int, payload: bytes) -> None:
        if len(payload) != 8:
            raise ProtocolError("CREDIT of %d bytes" % len(payload))
        channel = self.channels.get(id) or self._unknown(id, kind)
        if channel is None:
            return
        (more,) = _U64.unpack(payload)
        if more > MAX_ITEM:
            raise ProtocolError("CREDIT for %d bytes" % more)
        channel.credit += more
        self.events.append((CREDIT, channel, code, None))

    def _on_eof(self, kind: int, id: int, code: int, payload: bytes) -> None:
        channel = self.channels.get(id) or self._unknown(id, kind)
        if channel is None:
            return
        new = TRANSITIONS.get((channel.state, RECEIVED_EOF))
        if new is None or not id or channel.large is not None:
            raise _illegal(channel, RECEIVED_EOF)
        channel.state = new
        if new != CLOSING:
            self.events.append((EOF, channel, code, None))

    def _on_close(self, kind: int, id: int, code: int, payload: bytes) -> None:
        channel = self.channels.get(id) or self._unknown(id, kind)
        if channel is None:
            return
        if not id:
            raise ProtocolError("CLOSE of channel 0")
        was = channel.state
        channel.state = TRANSITIONS[was, RECEIVED_CLOSE]
        channel.large = None
        del self.channels[id]
        if id & 1 == self.parity:
            self._own -= 1
        else:
            self._peers -= 1
            if not channel.claimed:
                self._keep(channel, len(payload))
        if was != CLOSING:
            self._answer(_pack(0, id, CLOSE, 0))
        self.events.append((CLOSE, channel, code, payload))

    def _on_exec(self, kind: int, id: int, code: int, payload: bytes) -> None:
        if self.controller:
            raise ProtocolError("EXEC from a worker")
        if id & 1 == self.parity or id in self.channels or self._forgotten(id):
            raise ProtocolError("EXEC on channel %d, which is not new" % id)
        channel = self._first(id)
        channel.claimed = True
        self.events.append((EXEC, channel, code, payload))

    def _on_hello(self, kind: int, id: int, code: int, payload: bytes) -> None:
        if self.hello is not None:
            raise ProtocolError("a second HELLO")
        if id or len(payload) > MAX_HELLO:
            raise ProtocolError("HELLO of %d bytes on channel %d" % (len(payload), id))
        hello = {}
        for line in payload.decode("utf-8", "replace").split("\n"):
            key, _, value = line.partition("=")
            hello[key] = value
        version = hello.get("version", "none")
        if version != str(VERSION):
            raise ProtocolError(
                "the peer speaks version %.20s of the protocol, this is version %d" % (version, VERSION)
            )
        window = max(MIN_WINDOW, _number(hello, "window", WINDOW, 1))
        # An end that reads more than this version has is sent what this version has.
        hello["pickle"] = str(min(_number(hello, "pickle", 4, 4), 5))
        for channel in self.channels.values():
            channel.credit += window - self.peer_window
        self.peer_window = window
        self.hello = hello
        self._guarded = False
        self.events.append((HELLO, None, code, hello))

    def _on_ping(self, kind: int, id: int, code: int, payload: bytes) -> None:
        if len(payload) > MAX_PING:
            raise _too_long(kind, len(payload), MAX_PING)
        self._answer(_pack(len(payload), id, PONG, code) + payload)
        self.events.append((PING, None, code, None))

    def _on_signal(self, kind: int, id: int, code: int, payload: bytes) -> None:
        if self.controller:
            raise ProtocolError("SIGNAL from a worker")
        self.events.append((SIGNAL, None, code, None))

    def _on_modules(self, kind: int, id: int, code: int, payload: bytes) -> None:
        if self.controller:
            raise ProtocolError("MODULES from a worker")
        self.events.append((MODULES, None, code, payload))

    def _on_goodbye(self, kind: int, id: int, code: int, payload: bytes) -> None:
        self.goodbye_received = True
        self.events.append((GOODBYE, None, code, payload))

    def _on_link_event(self, kind: int, id: int, code: int, payload: bytes) -> None:
        self.events.append((kind, id, code, payload))


# Kinds that are rare enough to be looked up; ITEM and PART are handled in receive_data itself.
_HANDLERS = {
    HELLO: Connection._on_hello,
    EXEC: Connection._on_exec,
    LARGE: Connection._on_large,
    ABORT: Connection._on_abort,
    CREDIT: Connection._on_credit,
    EOF: Connection._on_eof,
    CLOSE: Connection._on_close,
    REQUEST: Connection._on_link_event,
    REPLY: Connection._on_link_event,
    PING: Connection._on_ping,
    PONG: Connection._on_link_event,
    SIGNAL: Connection._on_signal,
    GOODBYE: Connection._on_goodbye,
    RAW: Connection._on_raw,
    MODULES: Connection._on_modules,
}


class _Nobody:
    """Takes the rest of a part that is for a forgotten channel."""

    large = None


_NOBODY = _Nobody()


def can_send(channel: Any) -> bool:
    """Whether the state of the channel lets items out."""
    return CAN_SEND[channel.state]


def _number(hello: dict[str, str], key: str, default: int, least: int) -> int:
    """A number in a HELLO, at most MAX_ITEM."""
    text = hello.get(key, str(default))
    number = int(text) if len(text) <= 15 and text.isdecimal() else -1
    if not least <= number <= MAX_ITEM:
        raise ProtocolError("HELLO with %s=%.20s; at least %d is needed" % (key, text, least))
    return number


def _too_long(kind: int, length: int, limit: int = MAX_PAYLOAD) -> ProtocolError:
    return ProtocolError("%s frame of %d bytes; at most %d are allowed" % (NAMES[kind], length, limit))


def _illegal(channel: Any, event: int) -> ProtocolError:
    return ProtocolError("%s on channel %d in state %s" % (EVENT_NAMES[event], channel.id, STATE_NAMES[channel.state]))


def _overrun(channel: Any) -> ProtocolError:
    return ProtocolError("the peer sent more than its credit on channel %d" % channel.id)
