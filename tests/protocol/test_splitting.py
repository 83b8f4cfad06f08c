"""Where the bytes are cut makes no difference: at every byte, in every two, at random, and read straight into large items."""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from farwire.protocol.connection import Connection
from farwire.protocol.errors import ProtocolError
from farwire.protocol.frames import (
    ABORT,
    CLOSE,
    CREDIT,
    EOF,
    EXEC,
    GOODBYE,
    HEADER,
    HELLO,
    ITEM,
    LARGE,
    MODULES,
    NAMES,
    PART,
    PING,
    PONG,
    RAW,
    REPLY,
    REQUEST,
    SIGNAL,
    STATUS,
    STDOUT,
    TASK_CALL,
    frame,
)
from protocol.pair import U64, credit, feed_pieces, greeted, hello, large, parse, taken, totals

TO_WORKER = [
    frame(HELLO, 0, hello(300_000, pickle=5)),
    frame(EXEC, 1, b"a task", TASK_CALL),
    frame(ITEM, 1, b"one", 7),
    frame(ITEM, 1, b"", 1),
    frame(PING, 0, b"time"),
    *large(3, b"0123456789" * 3, 8, 13)[:2],
    frame(ITEM, 1, b"between the parts", 8),
    *large(3, b"0123456789" * 3, 8, 13)[2:],
    frame(LARGE, 5, U64.pack(100), 11),
    frame(PART, 5, b""),
    frame(PART, 5, b"never finished"),
    frame(ABORT, 5),
    frame(ITEM, 5, b"but this", 8),
    credit(1, 12345),
    frame(MODULES, 0, b"the rest"),
    frame(REQUEST, 9, b"", STATUS),
    frame(RAW, 7, b"raw bytes", 0),
    frame(EOF, 1),
    frame(SIGNAL, 0, b"", 2),
    frame(CLOSE, 3, b"an error", 10),
    frame(PART, 3, b"queued before it"),
    frame(ITEM, 3, b"not for anybody", 8),
    frame(CLOSE, 1),
    frame(GOODBYE),
]
TO_CONTROLLER = [
    frame(HELLO, 0, hello(300_000, pickle=4, python="3.6.15")),
    frame(RAW, 0, b"printed\n", STDOUT),
    frame(ITEM, 1, b"\x01\0\0\0\0\0\0\0", 4),
    *large(1, bytes(range(100)), 9, 30),
    frame(ITEM, 2, b"the worker's own", 8),
    frame(REPLY, 9, b"an answer", 10),
    frame(PONG, 0, b"time"),
    frame(ITEM, 3, b"crosses our close", 8),
    *large(3, b"so does this", 8, 5),
    frame(CLOSE, 3),
    frame(EOF, 2),
    frame(CLOSE, 1, b"an error", 10),
    frame(GOODBYE),
]
FAULTS = {
    "unknown kind": frame(99),
    "too long": HEADER.pack(1 << 21, 1, ITEM, 8),
    "overrun": frame(ITEM, 7, bytes(300_000), 8),
    "overrun by parts": frame(LARGE, 7, U64.pack(400_000), 8) + frame(PART, 7, bytes(300_000)),
    "part of nothing": frame(PART, 7, b"x"),
    "second hello": frame(HELLO, 0, hello()),
    "bad credit": frame(CREDIT, 7, b"x"),
}


def a_worker() -> Connection:
    return Connection(False, window=300_000, peer_window=300_000)


def a_controller() -> Connection:
    connection = Connection(True, window=300_000, peer_window=300_000)
    connection.open()
    connection.send_close(connection.open())
    return connection


SESSIONS: dict[str, tuple[Callable[[], Connection], bytes]] = {
    "worker": (a_worker, b"".join(TO_WORKER)),
    "controller": (a_controller, b"".join(TO_CONTROLLER)),
    **{name: (a_worker, b"".join(TO_WORKER[:-1]) + fault + frame(GOODBYE)) for name, fault in FAULTS.items()},
}


def outcome(make: Callable[[], Connection], feed: Callable[[Connection], Any]) -> Any:
    """Everything that can be seen of a connection after it was fed."""
    connection = make()
    error = ""
    try:
        feed(connection)
    except ProtocolError as exc:
        error = str(exc)
    border = connection.at_frame_border() or bool(error)
    return taken(connection), connection.out, totals(connection), error, border


def test_the_sessions_have_every_kind() -> None:
    kinds = {each[0] for each in parse(b"".join(TO_WORKER + TO_CONTROLLER))}
    assert kinds == set(NAMES)


@pytest.mark.parametrize("name", SESSIONS)
def test_one_byte_at_a_time(name: str) -> None:
    make, data = SESSIONS[name]
    whole = outcome(make, lambda connection: connection.receive_data(data))
    assert bool(whole[3]) == (name in FAULTS)
    pieces = [data[at : at + 1] for at in range(len(data))]

    def feed(connection: Connection) -> None:
        for piece in pieces:
            connection.receive_data(piece)

    assert outcome(make, feed) == whole
    assert outcome(make, lambda connection: feed_pieces(connection, pieces)) == whole


@pytest.mark.parametrize("name", ["worker", "controller"])
def test_every_cut_in_two(name: str) -> None:
    make, data = SESSIONS[name]
    whole = outcome(make, lambda connection: connection.receive_data(data))
    assert whole[4]
    for at in range(len(data) + 1):
        pieces = [data[:at], data[at:]]

        def feed(connection: Connection, pieces: list[bytes] = pieces) -> None:
            for piece in pieces:
                connection.receive_data(piece)

        assert outcome(make, feed) == whole, at
        assert outcome(make, lambda connection, pieces=pieces: feed_pieces(connection, pieces)) == whole, at


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_cut_in_two(name: str) -> None:
    """The fault may be found sooner in pieces, but never later, and what came before it is the same."""
    make, data = SESSIONS[name]
    whole = outcome(make, lambda connection: connection.receive_data(data))
    begin = len(b"".join(TO_WORKER[:-1]))
    for at in range(begin - 5, begin + 30):

        def feed(connection: Connection, at: int = at) -> None:
            connection.receive_data(data[:at])
            connection.receive_data(data[at:])

        assert outcome(make, feed) == whole, at


@pytest.mark.parametrize("seed", range(20))
def test_random_cuts(seed: int) -> None:
    chance = random.Random(seed)
    for name, (make, data) in SESSIONS.items():
        whole = outcome(make, lambda connection, data=data: connection.receive_data(data))
        pieces = []
        rest = data
        while rest:
            size = chance.choice([1, 2, 9, 10, 11, 30, 100])
            pieces.append(rest[:size])
            rest = rest[size:]
        assert outcome(make, lambda connection, pieces=pieces: feed_pieces(connection, pieces)) == whole, name


def test_a_large_item_read_into_its_place() -> None:
    """The link asks where the next bytes belong, and gets the memory of the item itself."""
    connection = a_controller()
    connection.receive_data(frame(HELLO, 0, hello(300_000)))
    assert connection.buffer() is None
    data = bytes(range(250)) * 1000
    first, part = large(1, data, 8, 1 << 20)
    connection.receive_data(first + part[:11])
    view = connection.buffer()
    assert view is not None
    assert len(view) == len(data) - 1
    assert not view.readonly
    view[:100] = data[1:101]
    connection.buffer_filled(100)
    # both ways may alternate
    connection.receive_data(data[101:200])
    view = connection.buffer()
    assert view is not None
    view[:] = data[200:]
    connection.buffer_filled(len(view))
    del view
    assert connection.buffer() is None
    connection.receive_data(frame(ITEM, 1, b"next", 8))
    connection.events.popleft()
    _, channel, code, item = connection.events.popleft()
    assert (channel.id, code) == (1, 8)
    assert item.payload() == data
    # what was allocated once is handed out, not copied
    assert item.payload() is item.payload()


@pytest.mark.parametrize("code", [8, 9, 11], ids=["BYTES", "BYTEARRAY", "PICKLE_BUFFERS"])
@pytest.mark.parametrize("size", [1, 200_000, 9_000_000])
def test_what_large_items_are_received_into(code: int, size: int) -> None:
    connection = greeted(True, 1 << 25)
    connection.open()
    data = random.Random(size).randbytes(size)
    connection.receive_data(b"".join(large(1, data, code)))
    payload = connection.events.popleft()[3].payload()
    assert payload == data
    if code == 11 or (code == 9 and size < 1 << 23):
        memoryview(payload)[:1] = b"x"  # the item will keep it
    else:
        assert type(payload) is bytes


@pytest.mark.parametrize("code", [8, 9, 10, 11])
def test_a_lie_about_a_size_takes_no_memory(code: int) -> None:
    resource = pytest.importorskip("resource")
    connections = [greeted(True) for _ in range(4)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for connection in connections:
        connection.receive_data(frame(LARGE, 2, U64.pack(1 << 28), code) + frame(PART, 2, b"x"))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 16  # KiB, or bytes on macOS
    del connections


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_large_item_is_not_shared_with_a_forked_child() -> None:
    connection = greeted(True)
    connection.receive_data(b"".join(large(2, bytes(100_000), 11)))
    payload = connection.events.popleft()[3].payload()
    with warnings.catch_warnings():
        # other tests may have left threads; the child does not care
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if not pid:
        payload[0] = 1
        os._exit(0)
    os.waitpid(pid, 0)
    assert payload[0] == 0
