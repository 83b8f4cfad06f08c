"""Two connections joined by bytes: what one queues, the other is fed. No thread, no clock, no descriptor."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from io import BytesIO
from struct import Struct
from typing import Any

from farwire.protocol.connection import ChannelState, Connection
from farwire.protocol.frames import (
    CREDIT,
    HEADER,
    HEADER_SIZE,
    HELLO,
    ITEM,
    ITEM_COST,
    LARGE,
    PART,
    VERSION,
    WINDOW,
    frame,
)

U64 = Struct("<Q")
Event = tuple[int, Any, int, Any]
Frame = tuple[int, int, int, bytes]  # kind, channel, code, payload


def hello(window: int = WINDOW, **more: object) -> bytes:
    """The payload of a HELLO."""
    return "\n".join(f"{key}={value}" for key, value in {"version": VERSION, "window": window, **more}.items()).encode()


def greeted(controller: bool, window: int = WINDOW, **kwargs: Any) -> Connection:
    """A connection whose peer has said its hello, with nothing left to take."""
    connection = Connection(controller, window=window, peer_window=window, **kwargs)
    connection.receive_data(frame(HELLO, 0, hello(window)))
    connection.events.clear()
    return connection


def large(channel: int, data: bytes, code: int = 8, size: int = 65536) -> list[bytes]:
    """The frames of a large item."""
    parts = [frame(PART, channel, data[at : at + size]) for at in range(0, len(data), size)]
    return [frame(LARGE, channel, U64.pack(len(data)), code), *parts]


def credit(channel: int, more: int) -> bytes:
    return frame(CREDIT, channel, U64.pack(more))


def parse(data: bytes) -> list[Frame]:
    """Complete frames, read without help of the connection."""
    found = []
    while data:
        length, channel, kind, code = HEADER.unpack_from(data)
        assert len(data) >= HEADER_SIZE + length, "the last frame is not complete"
        found.append((kind, channel, code, data[HEADER_SIZE : HEADER_SIZE + length]))
        data = data[HEADER_SIZE + length :]
    return found


def written(connection: Connection) -> list[Frame]:
    """What the connection wants to send, taken from it."""
    data = b"".join(connection.out)
    del connection.out[:]
    return parse(data)


def taken(connection: Connection) -> list[Event]:
    """The events so far, taken from the connection and made comparable: channels as numbers, every item as bytes."""
    found: list[Event] = []
    while connection.events:
        kind, channel, code, payload = connection.events.popleft()
        if isinstance(channel, ChannelState):
            channel = channel.id
        if kind == ITEM:
            # those that came in a row are one event
            for item_code, data, cost in payload:
                assert cost == len(data) + ITEM_COST
                found.append((ITEM, channel, item_code, bytes(data)))
        elif kind == LARGE:
            found.append((LARGE, channel, code, bytes(payload.payload())))
        else:
            found.append((kind, channel, code, payload))
    return found


def totals(connection: Connection) -> dict[int, tuple[int, ...]]:
    """All that is counted, of all channels."""
    return {
        id: (each.state, each.credit, each.received, each.consumed, each.granted)
        for id, each in connection.channels.items()
    }


def feed_pieces(connection: Connection, pieces: Iterable[bytes]) -> None:
    """Feed as the link does: what belongs into the buffer of a large item is read straight into it."""
    for piece in pieces:
        stream = BytesIO(piece)
        while True:
            view = connection.buffer()
            if view is not None:
                count = stream.readinto(view)
                if not count:
                    break
                connection.buffer_filled(count)
                continue
            data = stream.read(65536)
            if not data:
                break
            connection.receive_data(data)


@dataclass
class End:
    """One end: the connection, and what its program has received and not taken."""

    connection: Connection
    events: list[Event] = field(default_factory=list)
    queues: dict[int, list[tuple[bytes, int]]] = field(default_factory=dict)

    def collect(self) -> None:
        """As the link does: queue the items, each with what it costs."""
        connection = self.connection
        while connection.events:
            kind, channel, code, payload = connection.events.popleft()
            if kind == ITEM:
                for item_code, data, cost in payload:
                    self.queues.setdefault(channel.id, []).append((data, cost))
                    self.events.append((ITEM, channel.id, item_code, data))
            elif kind == LARGE:
                cost = payload.unpaid
                data = bytes(payload.payload())
                self.queues.setdefault(channel.id, []).append((data, cost))
                self.events.append((LARGE, channel.id, code, data))
            else:
                id = channel.id if isinstance(channel, ChannelState) else channel
                self.events.append((kind, id, code, payload))

    def take(self, channel: Any) -> bytes:
        """Receive an item that has come."""
        data, cost = self.queues[channel.id].pop(0)
        channel.consumed += cost
        self.connection.grant(channel)
        return data

    def send_item(self, channel: Any, data: bytes, code: int = 8) -> bool:
        """Send an item in one frame, if credit is there."""
        cost = len(data) + ITEM_COST
        if channel.credit < cost:
            return False
        channel.credit -= cost
        self.connection.send(ITEM, channel.id, data, code)
        return True

    def send_part(self, channel: Any, data: bytes) -> int:
        """Send as much of a part as there is credit for."""
        count = min(len(data), channel.credit)
        if count:
            channel.credit -= count
            self.connection.send(PART, channel.id, data[:count])
        return count

    def begin_large(self, channel: Any, total: int, code: int = 8) -> bool:
        """Announce a large item, if credit is there."""
        if channel.credit < ITEM_COST:
            return False
        channel.credit -= ITEM_COST
        self.connection.send(LARGE, channel.id, U64.pack(total), code)
        return True


class Pair:
    """A controller and a worker that have said hello."""

    def __init__(self, window: int = WINDOW, **kwargs: Any) -> None:
        self.controller = End(Connection(True, window=window, peer_window=window, **kwargs))
        self.worker = End(Connection(False, window=window, peer_window=window, **kwargs))
        for end in (self.controller, self.worker):
            end.connection.send(HELLO, 0, hello(window))
        self.pump()
        for end in (self.controller, self.worker):
            end.events.clear()

    def pump(self) -> None:
        """Carry bytes both ways until there are none."""
        ends = (self.controller.connection, self.worker.connection)
        for turn in range(1000):
            moved = False
            for here, there in (ends, ends[::-1]):
                data = b"".join(here.out)
                del here.out[:]
                if data:
                    moved = True
                    there.receive_data(data)
            self.controller.collect()
            self.worker.collect()
            if not moved:
                return
        raise AssertionError("the two go on answering each other")

    def peer_of(self, channel: Any, end: End) -> Any:
        """The other end's view of a channel."""
        other = self.worker if end is self.controller else self.controller
        return other.connection.channels.get(channel.id)
