"""Every kind of frame goes there and back; what is no frame is refused."""

from __future__ import annotations

from typing import Any

import pytest

from farwire.protocol import frames
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
    INFO,
    ITEM,
    LARGE,
    MAX_ID,
    MAX_ITEM,
    MAX_PAYLOAD,
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
    STATUS,
    STDERR,
    STDOUT,
    TASK_CALL,
    WINDOW,
    frame,
    marker,
)
from protocol.pair import U64, Pair, credit, greeted, hello, large, parse, taken, written

# Kind -> what is fed after the opening of a channel 1, and the events that it makes.
ROUND_TRIPS: dict[int, tuple[list[bytes], list[Any]]] = {
    ITEM: ([frame(ITEM, 1, b"abc", 7)], [(ITEM, 1, 7, b"abc")]),
    LARGE: (large(1, b"abcdef", 11, 4), [(LARGE, 1, 11, b"abcdef")]),
    PART: ([frame(LARGE, 1, U64.pack(2), 8), frame(PART, 1, b"a")], []),
    ABORT: ([*large(1, b"abcdef", 8, 4)[:-1], frame(ABORT, 1), frame(ITEM, 1, b"", 1)], [(ITEM, 1, 1, b"")]),
    CREDIT: ([credit(1, 1000)], [(CREDIT, 1, 0, None)]),
    EOF: ([frame(EOF, 1)], [(EOF, 1, 0, None)]),
    CLOSE: ([frame(CLOSE, 1, b"why", 10)], [(CLOSE, 1, 10, b"why")]),
    REQUEST: ([frame(REQUEST, 77, b"", STATUS)], [(REQUEST, 77, STATUS, b"")]),
    REPLY: ([frame(REPLY, 77, b"answer", 10)], [(REPLY, 77, 10, b"answer")]),
    PING: ([frame(PING, 0, b"12345678")], [(PING, None, 0, None)]),
    PONG: ([frame(PONG, 0, b"12345678")], [(PONG, 0, 0, b"12345678")]),
    SIGNAL: ([frame(SIGNAL, 0, b"", 2)], [(SIGNAL, None, 2, None)]),
    GOODBYE: ([frame(GOODBYE)], [(GOODBYE, None, 0, b"")]),
    MODULES: ([frame(MODULES, 0, b"zlib")], [(MODULES, None, 0, b"zlib")]),
    RAW: ([frame(RAW, 1, b"raw", 0), frame(RAW, 0, b"out", STDOUT)], [(RAW, 1, 0, b"raw"), (RAW, 0, STDOUT, b"out")]),
}


def test_every_kind_has_a_name_and_a_number_of_its_own() -> None:
    assert sorted(NAMES) == list(range(1, 18))
    assert {getattr(frames, name): name for name in NAMES.values()} == NAMES
    assert set(ROUND_TRIPS) | {HELLO, EXEC} == set(NAMES)


@pytest.mark.parametrize("kind", ROUND_TRIPS, ids=NAMES.get)
def test_round_trip(kind: int) -> None:
    worker = greeted(False)
    worker.receive_data(frame(EXEC, 1, b"task", TASK_CALL))
    assert taken(worker) == [(EXEC, 1, TASK_CALL, b"task")]
    data, events = ROUND_TRIPS[kind]
    assert kind in {each[0] for each in parse(b"".join(data))}
    worker.receive_data(b"".join(data))
    assert taken(worker) == events
    assert worker.at_frame_border()


def test_a_hello_is_lines_of_key_and_value() -> None:
    connection = Connection(True)
    connection.receive_data(frame(HELLO, 0, b"version=1\nwindow=300000\npickle=4\nnew=a=b\nodd"))
    ((kind, channel, code, payload),) = taken(connection)
    assert (kind, channel, code) == (HELLO, None, 0)
    assert payload == {"version": "1", "window": "300000", "pickle": "4", "new": "a=b", "odd": ""}
    assert connection.hello is payload
    assert connection.peer_window == 300000


def test_a_hello_may_say_no_more_than_the_version() -> None:
    connection = Connection(True)
    connection.receive_data(frame(HELLO, 0, b"version=1"))
    assert connection.hello == {"version": "1", "pickle": "4"}
    assert connection.peer_window == WINDOW


def test_a_small_window_counts_as_the_smallest_at_both_ends() -> None:
    connection = Connection(True, window=1000, peer_window=1000)
    channel = connection.open()
    assert (channel.credit, channel.window) == (MIN_WINDOW, MIN_WINDOW)
    connection.receive_data(frame(HELLO, 0, b"version=1\nwindow=1000"))
    assert channel.credit == connection.open().credit == connection.control.credit == MIN_WINDOW


def test_a_hello_of_a_newer_pickle_is_met_with_ours() -> None:
    connection = Connection(True)
    connection.receive_data(frame(HELLO, 0, b"version=1\npickle=6"))
    assert connection.hello is not None
    assert connection.hello["pickle"] == "5"


BAD_HELLOS = {
    b"": "version none",
    b"version=2\nwindow=100000000": "version 2 of the protocol, this is version 1",
    b"version=": "version  of",
    b"version=1 ": "version 1 ",
    b"version=" + b"9" * 5000: "version " + "9" * 20 + " of",
    b"\xff\xfe": "version none",
    b"version=1\nwindow=0": "at least 1 is needed",
    b"version=1\nwindow=%d" % (MAX_ITEM + 1): "window",
    b"version=1\nwindow=-1": "window",
    b"version=1\nwindow=1e9": "window",
    b"version=1\nwindow=\xc2\xb2": "window",
    # converting so many digits would take some Pythons a minute
    b"version=1\nwindow=" + b"9" * 60_000: "window",
    b"version=1\npickle=3": "pickle=3",
    b"version=1\npickle=five": "pickle=five",
    b"version=1\n" + b"x" * 65536: "HELLO of 65546 bytes",
}


@pytest.mark.parametrize("payload", BAD_HELLOS, ids=lambda payload: repr(payload[:30]))
def test_a_bad_hello(payload: bytes) -> None:
    with pytest.raises(ProtocolError, match=BAD_HELLOS[payload]):
        Connection(True).receive_data(frame(HELLO, 0, payload))


def test_a_hello_on_a_channel() -> None:
    with pytest.raises(ProtocolError, match="on channel 1"):
        Connection(False).receive_data(frame(HELLO, 1, hello()))


def test_a_second_hello() -> None:
    with pytest.raises(ProtocolError, match="a second HELLO"):
        greeted(True).receive_data(frame(HELLO, 0, hello()))


@pytest.mark.parametrize("kind", [kind for kind in NAMES if kind != HELLO], ids=NAMES.get)
def test_nothing_comes_before_the_hello(kind: int) -> None:
    for size in (10, 5, 1):
        connection = Connection(False)
        data = frame(kind, 1, b"12345678")[:10]
        with pytest.raises(ProtocolError, match=f"{NAMES[kind]} frame before HELLO"):
            for at in range(0, 10, size):
                connection.receive_data(data[at : at + size])
        assert not connection.events


def test_a_hello_changes_the_credit_of_channels_that_are_open() -> None:
    """The controller sends its first tasks before it has heard of the worker."""
    controller = Connection(True)
    channel = controller.open()
    channel.credit -= 1000
    controller.receive_data(frame(HELLO, 0, hello(WINDOW // 2)))
    assert channel.credit == WINDOW // 2 - 1000
    assert controller.control.credit == WINDOW // 2
    assert controller.open().credit == WINDOW // 2


# -- what is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", NAMES, ids=NAMES.get)
@pytest.mark.parametrize("length", [MAX_PAYLOAD + 1, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_length_beyond_the_limit_is_refused_at_once(kind: int, length: int) -> None:
    """Before any of that payload has come, so that nobody waits for four gigabytes."""
    worker = Connection(False) if kind == HELLO else greeted(False)
    if kind != HELLO:
        worker.receive_data(frame(EXEC, 1) + frame(LARGE, 1, U64.pack(1 << 33), 8))
    with pytest.raises(ProtocolError, match=f"{NAMES[kind]} frame of {length} bytes; at most {MAX_PAYLOAD} are"):
        worker.receive_data(HEADER.pack(length, 1, kind, 0))


def test_a_length_beyond_the_limit_is_refused_when_all_of_it_comes_at_once() -> None:
    worker = greeted(False)
    worker.receive_data(frame(EXEC, 1))
    with pytest.raises(ProtocolError, match="ITEM frame of"):
        worker.receive_data(frame(ITEM, 1, b"a", 8) + frame(ITEM, 1, bytes(MAX_PAYLOAD + 1), 8))
    assert taken(worker) == [(EXEC, 1, 0, b""), (ITEM, 1, 8, b"a")]


def test_the_largest_frame() -> None:
    worker = greeted(False)
    worker.receive_data(frame(EXEC, 1) + frame(ITEM, 1, bytes(MAX_PAYLOAD), 8) + frame(ITEM, 1, b"", 1))
    assert [(event[0], len(event[3])) for event in taken(worker)] == [(EXEC, 0), (ITEM, MAX_PAYLOAD), (ITEM, 0)]


@pytest.mark.parametrize("kind", [0, 18, 99, 255])
@pytest.mark.parametrize("length", [0, 0xFFFFFFFF])
def test_an_unknown_kind(kind: int, length: int) -> None:
    with pytest.raises(ProtocolError, match=f"unknown frame kind {kind}"):
        greeted(False).receive_data(HEADER.pack(length, 0, kind, 0))


@pytest.mark.parametrize(
    "garbage",
    [
        b"HTTP/1.1 400 Bad Request\r\n",
        b"bash: line 1: python: command not found\n",
        b"SSH-2.0-OpenSSH_9.2p1 Debian\r\n",
        b"Traceback (most recent call last):\n",
        bytes(100),
        b"\xff" * 100,
    ],
)
def test_garbage(garbage: bytes) -> None:
    """What a program that is no worker may say; whether it speaks first or in the midst."""
    for connection in (Connection(True), greeted(True), greeted(False)):
        with pytest.raises(ProtocolError):
            connection.receive_data(garbage)
        assert not connection.events
        assert not connection.out


@pytest.mark.parametrize("kind", [LARGE, CREDIT], ids=NAMES.get)
@pytest.mark.parametrize("size", [0, 7, 9])
def test_numbers_have_eight_bytes(kind: int, size: int) -> None:
    worker = greeted(False)
    worker.receive_data(frame(EXEC, 1))
    with pytest.raises(ProtocolError, match=f"{NAMES[kind]} of {size} bytes"):
        worker.receive_data(frame(kind, 1, bytes(size)))


def test_the_size_of_an_item_has_limits() -> None:
    for total in (0, 1001, MAX_ITEM + 1, (1 << 64) - 1):
        worker = greeted(False, max_item=1000)
        worker.receive_data(frame(EXEC, 1))
        with pytest.raises(ProtocolError, match=f"an item of {total} bytes; at most 1000"):
            worker.receive_data(frame(LARGE, 1, U64.pack(total), 8))


def test_an_item_that_memory_cannot_hold() -> None:
    worker = greeted(False, max_item=(1 << 64) - 1)
    worker.receive_data(frame(EXEC, 1))
    with pytest.raises(ProtocolError, match="no memory"):
        worker.receive_data(frame(LARGE, 1, U64.pack((1 << 64) - 1), 8))


def test_credit_has_a_limit() -> None:
    worker = greeted(False)
    worker.receive_data(frame(EXEC, 1))
    with pytest.raises(ProtocolError, match="CREDIT for"):
        worker.receive_data(credit(1, MAX_ITEM + 1))


@pytest.mark.parametrize("kind", [EXEC, SIGNAL, MODULES], ids=NAMES.get)
def test_what_only_a_controller_may_send(kind: int) -> None:
    controller = greeted(True)
    with pytest.raises(ProtocolError, match=f"{NAMES[kind]} from a worker"):
        controller.receive_data(frame(kind, 2, b"", 9))
    assert not controller.events


def test_a_long_ping() -> None:
    worker = greeted(False)
    worker.receive_data(frame(PING, 0, bytes(64)))
    with pytest.raises(ProtocolError, match="PING frame of 65 bytes; at most 64 are"):
        worker.receive_data(frame(PING, 0, bytes(65)))


def test_a_ping_comes_back() -> None:
    worker = greeted(False)
    worker.receive_data(frame(PING, 3, b"now", 9))
    assert written(worker) == [(PONG, 3, 9, b"now")]


BAD_SEQUENCES = {
    "PART without LARGE": [frame(PART, 1, b"x")],
    "more parts than announced": [frame(LARGE, 1, U64.pack(3), 8), frame(PART, 1, b"ab"), frame(PART, 1, b"cd")],
    "more in one part than announced": [frame(LARGE, 1, U64.pack(3), 8), frame(PART, 1, b"abcd")],
    "PART after the last": [*large(1, b"abc"), frame(PART, 1, b"d")],
    "PART after ABORT": [frame(LARGE, 1, U64.pack(3), 8), frame(ABORT, 1), frame(PART, 1, b"a")],
    "ITEM inside a large item": [frame(LARGE, 1, U64.pack(3), 8), frame(ITEM, 1, b"a", 8)],
    "LARGE inside a large item": [frame(LARGE, 1, U64.pack(3), 8), frame(LARGE, 1, U64.pack(3), 8)],
    "EOF inside a large item": [frame(LARGE, 1, U64.pack(3), 8), frame(EOF, 1)],
    "EXEC on an open channel": [frame(EXEC, 1)],
    "EXEC on a number of the worker's": [frame(EXEC, 2)],
    "EXEC on channel 0": [frame(EXEC, 0)],
    "EXEC on a number that was used": [frame(CLOSE, 1), frame(EXEC, 1)],
    "ITEM on channel 0": [frame(ITEM, 0, b"a", 8)],
    "LARGE on channel 0": [frame(LARGE, 0, U64.pack(3), 8)],
    "PART on channel 0": [frame(PART, 0, b"a")],
    "EOF of channel 0": [frame(EOF, 0)],
    "CLOSE of channel 0": [frame(CLOSE, 0)],
}


@pytest.mark.parametrize("name", BAD_SEQUENCES)
def test_a_bad_sequence(name: str) -> None:
    worker = greeted(False)
    worker.receive_data(frame(EXEC, 1))
    before = BAD_SEQUENCES[name][:-1]
    worker.receive_data(b"".join(before))
    with pytest.raises(ProtocolError) as caught:
        worker.receive_data(BAD_SEQUENCES[name][-1])
    number = parse(BAD_SEQUENCES[name][-1])[0][1]
    assert f"channel {number}" in str(caught.value)


def test_after_a_fault_nothing_more_is_taken_in() -> None:
    worker = greeted(False)
    with pytest.raises(ProtocolError, match="unknown frame kind 99") as first:
        worker.receive_data(frame(EXEC, 1) + frame(99) + frame(EXEC, 3))
    for data in (frame(EXEC, 5), b"", b"x"):
        with pytest.raises(ProtocolError) as again:
            worker.receive_data(data)
        assert str(again.value) == str(first.value)
    assert taken(worker) == [(EXEC, 1, 0, b"")]


def test_a_frame_that_comes_byte_by_byte_is_not_copied_for_each() -> None:
    """A megabyte in pieces of one byte would be half a terabyte of copies."""
    worker = greeted(False)
    worker.receive_data(frame(EXEC, 1))
    worker.events.clear()
    data = frame(ITEM, 1, bytes(MAX_PAYLOAD), 8)
    for at in range(len(data)):
        worker.receive_data(data[at : at + 1])
    ((_, _, _, payload),) = taken(worker)
    assert len(payload) == MAX_PAYLOAD


def test_the_marker_is_in_nothing_that_is_sent() -> None:
    from farwire.bootstrap import bundle, stage0

    nonce = "0123456789abcdef" * 2
    mark = marker(nonce)
    assert mark == b"\0farwire\0fedcba9876543210fedcba9876543210\0"
    code = bundle.code_bundle()
    assert b"\0farwire\0" not in code
    assert "\0farwire\0" not in stage0.SOURCE + stage0.CODE


def test_streams_of_channel_0() -> None:
    pair = Pair()
    pair.worker.connection.send(RAW, 0, b"out\n", STDOUT)
    pair.worker.connection.send(RAW, 0, b"err\n", STDERR)
    pair.pump()
    assert pair.controller.events == [(RAW, 0, STDOUT, b"out\n"), (RAW, 0, STDERR, b"err\n")]


def test_a_question_and_its_answer() -> None:
    pair = Pair()
    pair.controller.connection.send(REQUEST, MAX_ID, b"", INFO)
    pair.pump()
    assert pair.worker.events == [(REQUEST, MAX_ID, INFO, b"")]
    pair.worker.connection.send(REPLY, MAX_ID, b"me", 8)
    pair.pump()
    assert pair.controller.events == [(REPLY, MAX_ID, 8, b"me")]


def test_goodbye_is_remembered() -> None:
    worker = greeted(False)
    assert not worker.goodbye_received
    worker.receive_data(frame(GOODBYE))
    assert worker.goodbye_received
