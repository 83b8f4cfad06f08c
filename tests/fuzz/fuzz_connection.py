"""Invariant: whatever bytes arrive on a link, and wherever they are cut, a Connection makes events of them or raises
ProtocolError; it raises nothing else, keeps no more than the windows and a constant, and takes no longer than the bytes deserve.

    python tests/fuzz/fuzz_connection.py --count 1000000 --seed 1     try so many inputs
    python tests/fuzz/fuzz_connection.py --seed 1 --only 4711         show what one input is and does

Beyond that: a valid session makes exactly the events that it should and never an error, and an input makes the same
events, answers, counts and error whether it comes whole or in pieces, through receive_data() or buffer().

The inputs: valid sessions, valid sessions changed (bits, bytes, frames left out, repeated, exchanged, lengths), frames of
any kind in any order, bytes of no meaning, and a few floods. While some of them come, the program at our end opens, closes,
receives, waits and looks up channels, at any moment. All of it runs under a limit of address space; each input depends on
the seed and its number alone.
"""

from __future__ import annotations

import argparse
import resource
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))

from farwire.protocol.connection import ChannelState, Connection
from farwire.protocol.errors import FarwireError, ProtocolError
from farwire.protocol.frames import (
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
    frame,
)
from farwire.protocol.state import CLOSED, CLOSING, LOCAL_EOF, OPEN, REMOTE_EOF

SECONDS = (
    10.0  # that one input may take; those that flood take the most, about a tenth of a second when the machine is idle
)
ADDRESS_SPACE = 2 << 30  # beyond what the process has when it starts: a lie about a size costs address space
GROWTH = 192 << 20  # that the process may have at its peak: floods of 65536 channels, of answers, of parts
WINDOW = MIN_WINDOW
KINDS = sorted(NAMES)

Event = tuple[int, Any, int, Any]


# -- inputs ---------------------------------------------------------------------------------------------------------------


class Peer:
    """Writes a valid session, and knows what it should come to.

    Args:
        chance: the source of everything.
        worker: which end it plays.
        theirs: numbers of channels that the other end has opened, each with whether that end has closed it.
    """

    def __init__(self, chance: Random, worker: bool, theirs: dict[int, bool]) -> None:
        self.chance = chance
        self.worker = worker
        self.next = 2 if worker else 1
        self.frames: list[bytes] = []
        self.events: list[Event] = []
        self.answers: list[bytes] = []
        # number -> [state of our half, credit, size and parts of a large item under way, whether the other end has closed]
        self.channels: dict[int, list[Any]] = {id: [OPEN, WINDOW, 0, None, closed] for id, closed in theirs.items()}

    def put(self, kind: int, id: int = 0, payload: bytes = b"", code: int = 0) -> None:
        self.frames.append(frame(kind, id, payload, code))

    def event(self, kind: int, id: Any, code: int, payload: Any) -> None:
        self.events.append((kind, id, code, payload))

    def data(self, most: int) -> bytes:
        chance = self.chance
        size = min(most, chance.choice((0, 1, 5, 20, 20, 60, 300)))
        return chance.randbytes(size)

    def hello(self) -> None:
        lines = {"version": "1", "pickle": self.chance.choice("45")}
        if self.chance.random() < 0.8:
            lines["window"] = str(WINDOW)
        if self.chance.random() < 0.3:
            lines["x-" + self.data(5).hex()] = "é=" + self.data(20).hex()
        self.put(HELLO, 0, "\n".join(f"{key}={value}" for key, value in lines.items()).encode())
        self.event(HELLO, None, 0, lines)

    def new(self) -> list[Any]:
        """A channel of ours."""
        chance = self.chance
        id = self.next
        self.next += 2
        if chance.random() < 0.1:
            self.next += 2 * chance.randrange(5)  # their numbers are in items that nobody has decoded yet
        channel = self.channels[id] = [OPEN, WINDOW, 0, None, False]
        if not self.worker and chance.random() < 0.7:
            payload = self.data(300)
            code = chance.choice((1, 2, 3))
            self.put(EXEC, id, payload, code)
            self.event(EXEC, id, code, payload)
        return channel

    def step(self) -> None:
        chance = self.chance
        what = chance.random()
        if what < 0.1 or not self.channels:
            self.new()
            return
        if what < 0.2:
            self.link_frame(chance.randrange(6))
            return
        id = chance.choice(list(self.channels))
        channel = self.channels[id]
        state, credit, left, parts, closed = channel
        if what < 0.27 and not parts:
            payload = self.data(20) if chance.random() < 0.3 else b""
            self.put(CLOSE, id, payload, len(payload) & 255)
            self.event(CLOSE, id, len(payload) & 255, payload)
            if not closed:
                self.answers.append(frame(CLOSE, id))
            del self.channels[id]
            return
        if what < 0.35:
            more = chance.choice((0, 1, 1000, 1 << 40))
            if id in self.mentioned():
                self.put(CREDIT, id, more.to_bytes(8, "little"))
                self.event(CREDIT, id, 0, None)
            return
        if state == REMOTE_EOF:
            return
        if parts is not None:
            if what < 0.45:
                self.put(ABORT, id)
                channel[2:4] = 0, None
                return
            part = self.data(min(left, credit))
            self.put(PART, id, part)
            channel[1] -= len(part)
            channel[2] -= len(part)
            parts[1].append(part)
            if not channel[2]:
                if not closed:
                    self.event(LARGE, id, parts[0], b"".join(parts[1]))
                channel[2:4] = 0, None
            return
        if what < 0.4:
            self.put(EOF, id)
            channel[0] = REMOTE_EOF
            if not closed:
                self.event(EOF, id, 0, None)
        elif what < 0.55:
            payload = self.data(credit)
            channel[1] -= len(payload)
            code = chance.randrange(256)
            self.put(RAW, id, payload, code)
            if not closed:
                self.event(RAW, id, code, payload)
        elif credit < ITEM_COST + 300:
            return
        elif what < 0.7:
            total = chance.choice((1, 10, 100, 1000, 100_000))
            code = chance.randrange(256)
            self.put(LARGE, id, total.to_bytes(8, "little"), code)
            channel[1] -= ITEM_COST
            channel[2:4] = total, (code, [])
        else:
            payload = self.data(300)
            channel[1] -= ITEM_COST + len(payload)
            code = chance.randrange(256)
            self.put(ITEM, id, payload, code)
            if not closed:
                self.event(ITEM, id, code, payload)

    def mentioned(self) -> set[int]:
        """Numbers that the other end knows: its own, and those for which something came."""
        known = {HEADER.unpack_from(data)[1] for data in self.frames}
        return {id for id in self.channels if id in known or (id & 1) == self.worker}

    def link_frame(self, which: int) -> None:
        payload, number, code = self.data(60), self.chance.randrange(1 << 32), self.chance.randrange(256)
        if which == 0:
            self.put(PING, number, payload, code)
            self.answers.append(frame(PONG, number, payload, code))
            self.event(PING, None, code, None)
        elif which == 1:
            self.put(PONG, number, payload, code)
            self.event(PONG, number, code, payload)
        elif which == 2:
            self.put(REPLY, number, payload, code)
            self.event(REPLY, number, code, payload)
        elif which == 3:
            self.put(REQUEST, number, payload, code)
            self.event(REQUEST, number, code, payload)
        elif which == 4:
            self.put(GOODBYE, 0, payload, code)
            self.event(GOODBYE, None, code, payload)
        elif not self.worker and code & 1:
            self.put(SIGNAL, 0, b"", code)
            self.event(SIGNAL, None, code, None)
        elif not self.worker:
            self.put(MODULES, 0, payload, code)
            self.event(MODULES, None, code, payload)


class Input:
    """One input: what it is, and what is done with it."""

    def __init__(self, seed: int, number: int) -> None:
        self.chance = chance = Random(seed << 40 | number)
        self.controller = chance.random() < 0.5  # which end gets it
        self.own: dict[int, bool] = {}
        id = 1 if self.controller else 2
        for _ in range(chance.choice((0, 0, 1, 2, 3))):
            self.own[id] = chance.random() < 0.2
            id += 2
        self.expected: list[Event] | None = None
        self.answers: list[bytes] = []
        self.busy = chance.random() < 0.4
        what = chance.random()
        if what < 0.0002:
            self.what = "flood"
            self.data = flood(chance, self.controller)
            self.busy = False
        elif what < 0.2:
            self.what = "valid"
            peer = self.session()
            self.data = b"".join(peer.frames)
            self.expected, self.answers = peer.events, peer.answers
        elif what < 0.7:
            self.what = "mutated"
            self.data = mutated(chance, self.session().frames)
        elif what < 0.9:
            self.what = "soup"
            self.data = frame(HELLO, 0, b"version=1\nwindow=%d" % WINDOW) + b"".join(soup(chance))
        else:
            self.what = "noise"
            self.data = noise(chance)

    def session(self) -> Peer:
        peer = Peer(self.chance, self.controller, self.own)
        peer.hello()
        for _ in range(self.chance.choice((0, 3, 8, 15, 30))):
            peer.step()
        return peer

    def connection(self) -> Connection:
        connection = Connection(self.controller, window=WINDOW, peer_window=WINDOW)
        for id, closed in self.own.items():
            channel = connection.open()
            assert channel.id == id
            if closed:
                connection.send_close(channel)
        del connection.out[:]
        return connection

    def pieces(self) -> Iterator[bytes]:
        """The input in pieces: in a few, in many, or each byte by itself."""
        data, chance = self.data, self.chance
        size = len(data)
        if size < 300 and chance.random() < 0.1:
            for at in range(size):
                yield data[at : at + 1]
            return
        most = 1 + int(2 * size / chance.choice((2, 3, 6, 20)))
        at = 0
        while at < size:
            end = at + 1 + int(chance.random() * most)
            yield data[at:end]
            at = end


def some_id(chance: Random) -> int:
    return chance.choice((0, 1, 1, 2, 2, 3, 4, 5, 6, 7, 40, 1000, 0xFFFFFFFE, 0xFFFFFFFF))


def some_length(chance: Random) -> int:
    return chance.choice((0, 1, 8, 9, 64, 65, 1000, MAX_PAYLOAD, MAX_PAYLOAD + 1, 0x7FFFFFFF, 0xFFFFFFFF))


def some_total(chance: Random) -> int:
    """The size of a large item: rarely one that takes much address space, which takes time."""
    if chance.random() < 0.9:
        return chance.choice((0, 1, 5, 100, 10_000))
    return chance.choice((1 << 20, 1 << 26, 1 << 32, MAX_ITEM, MAX_ITEM + 1, (1 << 64) - 1))


def soup(chance: Random) -> Iterator[bytes]:
    """Frames that are well-formed, each by itself."""
    few = [some_id(chance) for _ in range(chance.choice((1, 2, 4)))]
    for _ in range(chance.choice((1, 5, 10, 30))):
        kind = chance.choice(KINDS) if chance.random() < 0.4 else chance.choice((ITEM, LARGE, PART, PART, EOF, CLOSE))
        if kind == HELLO and chance.random() < 0.9:
            continue
        if kind == LARGE:
            payload = some_total(chance).to_bytes(8, "little")
        elif kind == CREDIT:
            payload = chance.choice((0, 1, 1 << 20, MAX_ITEM, MAX_ITEM + 1)).to_bytes(8, "little")
        elif chance.random() < 0.01:
            payload = bytes(chance.choice((65536, WINDOW // 2, WINDOW, MAX_PAYLOAD)))
        else:
            payload = chance.randbytes(chance.choice((0, 1, 3, 8, 50)))
        yield frame(kind, chance.choice(few), payload, chance.randrange(256))


def noise(chance: Random) -> bytes:
    what = chance.randrange(4)
    if what == 0:
        return chance.randbytes(chance.choice((1, 10, 11, 30, 300)))
    start = frame(HELLO, 0, b"version=1")
    if what == 1:
        return start + chance.randbytes(chance.choice((10, 11, 30, 300)))
    if what == 2:
        head = HEADER.pack(some_length(chance), some_id(chance), chance.randrange(20), chance.randrange(256))
        return start + head + chance.randbytes(chance.choice((0, 8, 100)))
    return frame(HELLO, some_id(chance) * chance.randrange(2), chance.randbytes(chance.choice((0, 10, 100))))


def mutated(chance: Random, frames: list[bytes]) -> bytes:
    """A session, changed a little."""
    frames = list(frames)
    for _ in range(chance.choice((1, 1, 2, 4))):
        at = chance.randrange(len(frames))
        what = chance.randrange(12)
        one = bytearray(frames[at])
        if what == 0:
            del frames[at]
        elif what == 1:
            frames.insert(chance.randrange(len(frames) + 1), frames[at])
        elif what == 2:
            other = chance.randrange(len(frames))
            frames[at], frames[other] = frames[other], frames[at]
        elif what == 3:
            frames[at : at + 1] = [*soup(chance)]
        elif what == 4 and one:
            frames[at] = bytes(one[: chance.randrange(len(one))])
        elif what == 5 and len(one) >= HEADER_SIZE:
            HEADER.pack_into(one, 0, some_length(chance), *HEADER.unpack_from(one)[1:])
            frames[at] = bytes(one)
        elif what == 6 and len(one) >= HEADER_SIZE:
            length, _, kind, code = HEADER.unpack_from(one)
            HEADER.pack_into(one, 0, length, some_id(chance), kind, code)
            frames[at] = bytes(one)
        elif what == 7 and len(one) >= HEADER_SIZE:
            one[8] = chance.choice(KINDS) if chance.random() < 0.8 else chance.randrange(256)
            frames[at] = bytes(one)
        elif what == 8:
            place = chance.randrange(len(one) + 1)
            one[place:place] = chance.randbytes(chance.choice((1, 2, 10)))
            frames[at] = bytes(one)
        elif one:
            place = chance.randrange(len(one))
            if what == 9:
                one[place] ^= 1 << chance.randrange(8)
            else:
                one[place] = chance.randrange(256)
            frames[at] = bytes(one)
        if not frames:
            return b""
    data = b"".join(frames)
    return data if chance.random() < 0.9 else data[: chance.randrange(len(data) + 1)]


def flood(chance: Random, controller: bool) -> bytes:
    """Much of one thing."""
    id = 2 if controller else 1
    start = frame(HELLO, 0, b"version=1\nwindow=%d" % WINDOW)
    what = chance.randrange(12)
    if what >= 9:  # lies about sizes, for each way to hold an item
        code = (8, 9, 11)[what - 9]
        return start + b"".join(frame(LARGE, id + 2 * n, (1 << 29).to_bytes(8, "little"), code) for n in range(3))
    if what == 0:  # channels
        return start + b"".join(frame(EOF, id + 2 * n) for n in range(MAX_CHANNELS + 1))
    if what == 1:  # channels, opened and closed
        return start + b"".join(frame(ITEM, id + 2 * n, b"x") + frame(CLOSE, id + 2 * n) for n in range(MAX_ANSWERS))
    if what == 2:
        return start + frame(PING, 0, bytes(64)) * (3 * MAX_ANSWERS)
    if what == 3:
        return start + frame(ITEM, id) * (WINDOW // ITEM_COST + 1)
    if what == 4:
        return start + frame(RAW, id, b"x") * (WINDOW + 1)
    if what == 5:  # announced, begun, given up
        one = frame(LARGE, id, (1 << 24).to_bytes(8, "little")) + frame(PART, id, b"x") + frame(ABORT, id)
        return start + one * 500
    if what == 6:
        return start + frame(LARGE, id, (1 << 30).to_bytes(8, "little")) + frame(PART, id, b"x") * WINDOW
    if what == 7:  # for a channel that is forgotten
        return start + frame(CLOSE, id) + frame(ITEM, id, b"x") * (3 * MAX_ANSWERS)
    return start + b"".join(
        frame(LARGE, id + 2 * n, (1 << 30).to_bytes(8, "little")) + frame(PART, id + 2 * n, b"x") for n in range(100)
    )


# -- what is watched ------------------------------------------------------------------------------------------------------


class Broken(AssertionError):
    """The invariant does not hold."""


class Hang(BaseException):
    """An input takes too long."""


def taken(connection: Connection) -> list[Event]:
    """The events, made comparable."""
    found: list[Event] = []
    for kind, channel, code, payload in connection.events:
        number = channel.id if isinstance(channel, ChannelState) else channel
        if kind == ITEM:
            found += [(ITEM, number, item_code, data) for item_code, data, _ in payload]
        elif kind == LARGE:
            found.append((LARGE, number, code, bytes(payload.payload())))
        else:
            found.append((kind, number, code, payload))
    connection.events.clear()
    return found


def check(connection: Connection) -> None:
    """What must be true of a connection at any time."""
    rest = len(connection._rest) + len(connection._gathered)
    if rest > HEADER_SIZE + MAX_PAYLOAD:
        raise Broken(f"{rest} bytes of a frame are kept")
    if len(connection._rest) >= HEADER_SIZE and not connection._fault:
        length, _, kind, _ = HEADER.unpack_from(connection._rest)
        if length > MAX_PAYLOAD or kind not in NAMES:
            raise Broken(f"the rest of a frame of kind {kind} with {length} bytes is awaited")
    for id, channel in connection.channels.items():
        if channel.id != id or channel.state == CLOSED:
            raise Broken(f"{channel!r} is kept as {id}")
        if not channel.received >= channel.consumed >= channel.granted:
            raise Broken(f"{channel!r}: {channel.received=} {channel.consumed=} {channel.granted=}")
        # Of what is beyond the window the connection has said so, with an error.
        if channel.received - channel.granted > channel.window and not connection._fault:
            raise Broken(f"{channel!r}: more than the window is kept")
        if channel.large is not None and channel.state not in (OPEN, LOCAL_EOF):
            raise Broken(f"{channel!r}: in the midst of a large item")
    peers = sum(1 for id in connection.channels if id and id & 1 != connection.parity)
    if peers + len(connection._skipped) != connection._peers or connection._peers > MAX_CHANNELS:
        raise Broken(f"{peers=} {len(connection._skipped)=} {connection._peers=}")
    if connection._early_size > connection.window and len(connection._early) > 1:
        raise Broken(f"closed channels: {connection._early_size} bytes")
    if sum(size for _, size in connection._early.values()) != connection._early_size:
        raise Broken("closed channels are not counted")
    if len(connection.out) > 2 * MAX_ANSWERS + 1000:
        raise Broken(f"{len(connection.out)} frames wait to be sent")
    if any(len(each) > HEADER_SIZE + MAX_PING for each in connection.out):
        raise Broken("a long answer")


def check_counts(connection: Connection) -> None:
    """Before anything is taken: what counts as not consumed is what is there."""
    held: dict[int, int] = {}
    for kind, channel, _, payload in connection.events:
        if kind == ITEM:
            held[channel.id] = held.get(channel.id, 0) + sum(cost for _, _, cost in payload)
        elif kind == LARGE:
            held[channel.id] = held.get(channel.id, 0) + payload.unpaid
        elif kind == RAW:
            held[channel.id] = held.get(channel.id, 0) + len(payload)
    for id, channel in connection.channels.items():
        partial = channel.large.unpaid if channel.large is not None else 0
        if channel.state < CLOSING and channel.received - channel.consumed != held.get(id, 0) + partial:
            raise Broken(f"{channel!r}: {channel.received=} {channel.consumed=} {held.get(id)=} {partial=}")


def feed(connection: Connection, piece: bytes) -> None:
    """As the link does: the bytes of large items are read straight to where they belong."""
    while piece:
        view = connection.buffer()
        if view is None:
            connection.receive_data(piece)
            return
        count = min(len(view), len(piece))
        view[:count] = piece[:count]
        connection.buffer_filled(count)
        piece = piece[count:]


class Program:
    """What the program at our end does meanwhile."""

    def __init__(self, connection: Connection, chance: Random, strange: bool) -> None:
        self.connection = connection
        self.chance = chance
        self.strange = strange  # it also looks up numbers that nobody sent
        self.queues: dict[int, tuple[Any, list[int]]] = {}

    def collect(self) -> None:
        connection = self.connection
        for kind, channel, _, payload in connection.events:
            if kind == ITEM:
                self.queues.setdefault(channel.id, (channel, []))[1].extend(cost for _, _, cost in payload)
            elif kind == LARGE:
                self.queues.setdefault(channel.id, (channel, []))[1].append(payload.unpaid)
                if len(payload.payload()) != payload.total:
                    raise Broken("a large item of another size")
            elif kind == RAW:
                channel.consumed += len(payload)
                connection.grant(channel)
        connection.events.clear()

    def act(self) -> None:
        chance, connection = self.chance, self.connection
        what = chance.randrange(10)
        channel = chance.choice(list(connection.channels.values()))
        if what == 0:
            if self.strange:
                found = connection.get(chance.choice((some_id(chance), some_id(chance), -1, 1 << 70)))
                if found is not None and not 0 < found.id < 1 << 32:
                    raise Broken(f"{found!r} is no channel")
            connection.open()
        elif what == 1 and channel.id:
            connection.send_close(channel, b"why")
        elif what == 2 and channel.id:
            connection.send_eof(channel)
        elif what == 3:
            connection.start_waiting(channel)
        elif what == 4 and channel.waiting:
            channel.waiting -= 1
        elif what == 5 and channel.id and chance.random() < 0.1:
            connection.lift(channel)
        elif what == 6:
            del connection.out[:]
        elif self.queues:
            number = chance.choice(list(self.queues))
            channel, costs = self.queues[number]
            channel.consumed += costs.pop(0)
            connection.grant(channel)
            if not costs:
                del self.queues[number]


def outcome(connection: Connection, error: str) -> Any:
    counted = {
        id: (channel.state, channel.credit, channel.received, channel.consumed, channel.granted)
        for id, channel in connection.channels.items()
    }
    return taken(connection), connection.out, counted, error, connection._highest, connection._skipped


def try_one(one: Input) -> str:
    """Feed an input. Returns the error it made, or nothing; raises Broken when that must not be."""
    whole = one.connection()
    error = ""
    try:
        whole.receive_data(one.data)
    except ProtocolError as exc:
        error = str(exc)
    check(whole)
    if not error:
        check_counts(whole)
    if one.expected is not None and error:
        raise Broken(f"a valid session is refused: {error}")
    if one.what == "flood":
        return error
    first = outcome(whole, error)
    if one.expected is not None and first[0] != one.expected:
        raise Broken(f"a valid session makes other events: {first[0]}, expected {one.expected}")
    if one.expected is not None and first[1] != one.answers:
        raise Broken(f"a valid session gets other answers: {first[1]}, expected {one.answers}")
    del whole  # and with it the address space of large items, of which there is a limit
    in_pieces = one.connection()
    again = ""
    straight = one.chance.random() < 0.5
    try:
        for piece in one.pieces():
            if straight:
                feed(in_pieces, piece)
            else:
                in_pieces.receive_data(piece)
    except ProtocolError as exc:
        again = str(exc)
    check(in_pieces)
    second = outcome(in_pieces, again)
    if second != first and not error.startswith("no memory"):
        raise Broken(f"in pieces it is something else: {second}, whole: {first}")
    if one.busy:
        busy(one)
    return error


def busy(one: Input) -> None:
    """Feed it while the program at our end does things."""
    connection = one.connection()
    program = Program(connection, one.chance, one.expected is None)
    try:
        for piece in one.pieces():
            feed(connection, piece)
            program.collect()
            for _ in range(one.chance.randrange(3)):
                program.act()
            if one.chance.random() < 0.1:
                check(connection)
        check(connection)
    except ProtocolError as exc:
        if one.expected is not None:
            raise Broken(f"a valid session is refused: {exc}") from exc
        program.collect()
        check(connection)
    except FarwireError as exc:
        raise Broken(f"another error: {exc!r}") from exc


def memory() -> int:
    """The most that the process has had in memory, in bytes."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024


def on_alarm(*_: object) -> None:
    raise Hang


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz the taking in of frames.")
    parser.add_argument("--count", type=int, default=100_000, help="number of inputs (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, metavar="NUMBER", help="show this one input and what comes of it")
    options = parser.parse_args()

    if options.only is not None:
        one = Input(options.seed, options.only)
        end = "controller" if one.controller else "worker"
        print(f"{one.what}, for a {end} with channels {one.own}, {len(one.data)} bytes: {one.data[:4000]!r}")
        print(try_one(one) or "no error")
        return 0

    signal.signal(signal.SIGALRM, on_alarm)
    counts: dict[str, list[int]] = {}
    slowest = (0.0, 0)
    before = memory()
    if sys.platform == "linux":
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + ADDRESS_SPACE, size + ADDRESS_SPACE))
    started = last = time.monotonic()
    cpu = time.process_time()
    for number in range(options.count):
        if number == 500:
            before = memory()  # by now all is there that is made once
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            one = Input(options.seed, number)
            error = try_one(one)
        except BaseException as exc:
            signal.setitimer(signal.ITIMER_REAL, 0)
            if isinstance(exc, KeyboardInterrupt):
                raise
            traceback.print_exc()
            print(f"FAILED: input {number}: {type(exc).__name__}; again with --seed {options.seed} --only {number}")
            return 1
        now = time.monotonic()
        slowest = max(slowest, (now - last, number))
        last = now
        count = counts.setdefault(one.what, [0, 0])
        count[bool(error)] += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    seconds = time.monotonic() - started
    cpu = time.process_time() - cpu
    growth = memory() - before
    for what, (good, bad) in sorted(counts.items()):
        print(f"  {what:8} {good:8} without error {bad:8} with ProtocolError")
    print(
        f"{options.count} inputs in {seconds:.1f} s ({options.count / max(seconds, 1e-9):.0f} a second; "
        f"{cpu:.1f} s of CPU time); "
        f"slowest {slowest[0]:.3f} s (input {slowest[1]}); peak memory grew by {growth / (1 << 20):.1f} MiB"
    )
    if growth > GROWTH:
        print(f"FAILED: memory grew by more than {GROWTH >> 20} MiB")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
