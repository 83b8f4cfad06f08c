"""The transition table: every row and every row that is not there, at both ends; and the life of channel numbers."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from farwire.protocol import connection as connection_module
from farwire.protocol import state
from farwire.protocol.connection import ChannelState, Connection, can_send
from farwire.protocol.errors import FarwireError, ProtocolError
from farwire.protocol.frames import (
    ABORT,
    CLOSE,
    CREDIT,
    EOF,
    EXEC,
    ITEM,
    LARGE,
    MAX_ANSWERS,
    MAX_CHANNELS,
    MAX_ID,
    MIN_WINDOW,
    NAMES,
    PART,
    PING,
    RAW,
    frame,
)
from farwire.protocol.state import (
    BOTH_EOF,
    CAN_RECEIVE,
    CAN_SEND,
    CLOSED,
    CLOSING,
    EVENT_NAMES,
    LOCAL_EOF,
    OPEN,
    RECEIVED_CLOSE,
    RECEIVED_DATA,
    RECEIVED_EOF,
    REMOTE_EOF,
    SENT_CLOSE,
    SENT_DATA,
    SENT_EOF,
    STATE_NAMES,
    TRANSITIONS,
)
from protocol.pair import U64, Pair, credit, greeted, large, taken, written

STATES = range(len(STATE_NAMES))
EVENTS = range(len(EVENT_NAMES))
ROWS = sorted(TRANSITIONS)
MISSING = [row for row in itertools.product(STATES, EVENTS) if row not in TRANSITIONS]
DATA: dict[int, Callable[[int], bytes]] = {
    ITEM: lambda id: frame(ITEM, id, b"abc", 8),
    LARGE: lambda id: b"".join(large(id, b"abc")),
    RAW: lambda id: frame(RAW, id, b"abc"),
}


def row_id(value: Any) -> str:
    return f"{STATE_NAMES[value[0]]}-{EVENT_NAMES[value[1]].replace(' ', '_')}"


def channel_in(wanted: int, controller: bool, ours: bool) -> tuple[Connection, Any]:
    """A channel of which the connection knows that it is in that state.

    Args:
        wanted: the state.
        controller: which end is looked at.
        ours: whether the channel was opened by that end.
    """
    connection = greeted(controller)
    if ours:
        channel = connection.open()
    else:
        id = 2 if controller else 1
        connection.receive_data(frame(RAW, id))
        channel = connection.get(id)
    if wanted in (LOCAL_EOF, BOTH_EOF):
        connection.send_eof(channel)
    if wanted in (REMOTE_EOF, BOTH_EOF):
        connection.receive_data(frame(EOF, channel.id))
    if wanted in (CLOSING, CLOSED):
        assert connection.send_close(channel)
    if wanted == CLOSED:
        connection.receive_data(frame(CLOSE, channel.id))
    connection.events.clear()
    del connection.out[:]
    assert channel.state == wanted
    return connection, channel


ENDS = pytest.mark.parametrize(
    ("controller", "ours"), list(itertools.product([True, False], repeat=2)), ids=["co", "ct", "wo", "wt"]
)


@ENDS
@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_every_row(row: tuple[int, int], controller: bool, ours: bool) -> None:
    before, event = row
    after = TRANSITIONS[row]
    for kind, data in DATA.items():
        connection, channel = channel_in(before, controller, ours)
        id = channel.id
        dropped = before == CLOSING
        if event == SENT_DATA:
            assert can_send(channel)
        elif event == SENT_EOF:
            connection.send_eof(channel)
            assert written(connection) == [(EOF, id, 0, b"")]
        elif event == SENT_CLOSE:
            assert connection.send_close(channel, b"why", 10)
            assert written(connection) == [(CLOSE, id, 10, b"why")]
        elif event == RECEIVED_DATA:
            connection.receive_data(data(id))
            events = [(event[0], event[1], event[3]) for event in taken(connection)]
            assert events == ([] if dropped else [(kind, id, b"abc")])
            assert not connection.out
        elif event == RECEIVED_EOF:
            connection.receive_data(frame(EOF, id))
            assert taken(connection) == ([] if dropped else [(EOF, id, 0, None)])
            assert not connection.out
        elif event == RECEIVED_CLOSE:
            connection.receive_data(frame(CLOSE, id, b"why", 10))
            assert taken(connection) == [(CLOSE, id, 10, b"why")]
            # each side sends CLOSE once
            assert written(connection) == ([] if dropped else [(CLOSE, id, 0, b"")])
            assert id not in connection.channels
        assert channel.state == after


@ENDS
@pytest.mark.parametrize("row", MISSING, ids=row_id)
def test_every_missing_row(row: tuple[int, int], controller: bool, ours: bool) -> None:
    before, event = row
    for kind, data in DATA.items():
        connection, channel = channel_in(before, controller, ours)
        id = channel.id
        if event == SENT_DATA:
            assert not can_send(channel)
        elif event == SENT_EOF:
            connection.send_eof(channel)
            assert not connection.out
        elif event == SENT_CLOSE:
            assert not connection.send_close(channel, b"why", 10)
            assert not connection.out
        elif before == CLOSED:
            # the number is forgotten
            connection.receive_data(
                {RECEIVED_DATA: data(id), RECEIVED_EOF: frame(EOF, id)}.get(event, frame(CLOSE, id))
            )
            assert written(connection) == ([(CLOSE, id, 0, b"")] if event == RECEIVED_DATA else [])
            assert not connection.events
        else:
            bad = data(id) if event == RECEIVED_DATA else frame(EOF, id)
            expected = f"{EVENT_NAMES[event]} on channel {id} in state {STATE_NAMES[before]}"
            with pytest.raises(ProtocolError, match=expected):
                connection.receive_data(bad)
            assert not connection.events
            assert not connection.out
        assert channel.state == before, NAMES[kind]


def test_the_table_is_sound() -> None:
    for (before, event), after in TRANSITIONS.items():
        assert before != CLOSED, "nothing leads out of CLOSED"
        assert after >= before or event in (RECEIVED_DATA, SENT_DATA), "a channel only ever goes forward"
        if event in (SENT_DATA, RECEIVED_DATA):
            assert after == before
    for each in STATES:
        assert CAN_SEND[each] == ((each, SENT_DATA) in TRANSITIONS)
        assert CAN_RECEIVE[each] == ((each, RECEIVED_DATA) in TRANSITIONS)
        if each != CLOSED:
            assert TRANSITIONS[each, RECEIVED_CLOSE] == CLOSED, "a CLOSE is always understood"
    assert set(TRANSITIONS.values()) == set(STATES), "every state can be reached"


def test_the_table_knows_no_roles() -> None:
    """What one end sends the other receives: the two directions are mirror images, but for what crosses on the way."""
    mirror = {OPEN: OPEN, LOCAL_EOF: REMOTE_EOF, REMOTE_EOF: LOCAL_EOF, BOTH_EOF: BOTH_EOF}
    opposite = {SENT_DATA: RECEIVED_DATA, SENT_EOF: RECEIVED_EOF, RECEIVED_DATA: SENT_DATA, RECEIVED_EOF: SENT_EOF}
    for before, event in itertools.product(mirror, opposite):
        here = TRANSITIONS.get((before, event))
        there = TRANSITIONS.get((mirror[before], opposite[event]))
        assert (None if here is None else mirror[here]) == there


# -- closing ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opener", ["controller", "worker"])
@pytest.mark.parametrize("closer", ["controller", "worker"])
def test_both_ends_forget_a_closed_channel(opener: str, closer: str) -> None:
    pair = Pair()
    here = getattr(pair, opener)
    channel = here.connection.open()
    pair_end = getattr(pair, closer)
    here.send_item(channel, b"abc")
    pair.pump()
    ends = [pair.controller.connection, pair.worker.connection]
    assert all(channel.id in end.channels for end in ends)
    assert pair_end.connection.send_close(pair_end.connection.channels[channel.id])
    pair.pump()
    assert all(list(end.channels) == [0] for end in ends)
    assert pair.worker.events.count((CLOSE, channel.id, 0, b"")) == 1
    assert pair.controller.events.count((CLOSE, channel.id, 0, b"")) == 1


def test_simultaneous_closes() -> None:
    pair = Pair()
    channel = pair.controller.connection.open()
    pair.controller.send_item(channel, b"abc")
    pair.pump()
    peer = pair.worker.connection.channels[channel.id]
    assert pair.controller.connection.send_close(channel, b"c", 7)
    assert pair.worker.connection.send_close(peer, b"w", 7)
    pair.pump()
    assert channel.state == peer.state == CLOSED
    assert pair.controller.events == [(CLOSE, 1, 7, b"w")]
    assert pair.worker.events[-1] == (CLOSE, 1, 7, b"c")
    assert list(pair.controller.connection.channels) == list(pair.worker.connection.channels) == [0]


def test_what_crosses_a_close_is_dropped() -> None:
    pair = Pair()
    channel = pair.controller.connection.open()
    pair.controller.send_item(channel, b"abc")
    pair.pump()
    peer = pair.worker.connection.channels[channel.id]
    pair.controller.connection.send_close(channel)
    pair.worker.send_item(peer, b"too late")
    pair.worker.begin_large(peer, 5)
    pair.worker.send_part(peer, b"late")
    pair.worker.connection.send(ABORT, peer.id)
    pair.worker.connection.send(RAW, peer.id, b"late")
    pair.worker.connection.send_eof(peer)
    pair.pump()
    assert pair.controller.events == [(CLOSE, 1, 0, b"")]
    assert list(pair.controller.connection.channels) == [0]


def test_closing_inside_a_large_item() -> None:
    """A thread sends a large item, another one closes the channel: parts that were queued come after the CLOSE."""
    for controller in (True, False):
        connection, channel = channel_in(OPEN, controller, False)
        connection.receive_data(frame(LARGE, channel.id, U64.pack(100), 8) + frame(PART, channel.id, bytes(10)))
        connection.receive_data(
            frame(CLOSE, channel.id) + frame(PART, channel.id, bytes(50)) + frame(ABORT, channel.id)
        )
        assert taken(connection) == [(CLOSE, channel.id, 0, b"")]
        assert written(connection) == [(CLOSE, channel.id, 0, b"")]
        connection.receive_data(frame(PING))
        assert connection.at_frame_border()


@pytest.mark.parametrize("through_buffer", [False, True])
def test_we_close_inside_a_part(through_buffer: bool) -> None:
    """The rest of that part is dropped wherever it was to be read to."""
    connection, channel = channel_in(OPEN, True, True)
    data = frame(LARGE, channel.id, U64.pack(1000), 8) + frame(PART, channel.id, bytes(1000))
    connection.receive_data(data[:-700])
    view = connection.buffer()
    assert view is not None
    assert len(view) == 700
    connection.send_close(channel)
    if through_buffer:
        # The link reads without the lock; it looks again before it says how much it has read.
        assert connection.buffer() is not None
        connection.buffer_filled(400)
        again = connection.buffer()
        assert again is not None
        assert len(again) == 300
        connection.buffer_filled(300)
        assert connection.buffer() is None
    else:
        connection.receive_data(bytes(700))
    connection.receive_data(frame(CLOSE, channel.id))
    assert taken(connection) == [(CLOSE, channel.id, 0, b"")]
    assert connection.at_frame_border()


def test_no_credit_is_given_after_a_close() -> None:
    """An end sends CLOSE last, also when its program goes on receiving what had come."""
    pair = Pair(MIN_WINDOW)
    channel = pair.controller.connection.open()
    pair.controller.send_item(channel, b"abc")
    pair.pump()
    peer = pair.worker.connection.channels[channel.id]
    while pair.worker.send_item(peer, bytes(1000)):
        pass
    pair.pump()
    pair.controller.connection.send_close(channel)
    while pair.controller.queues.get(channel.id):
        pair.controller.take(channel)
    assert written(pair.controller.connection) == [(CLOSE, 1, 0, b"")]


# -- numbers ------------------------------------------------------------------------------------------------------------


def test_numbers_tell_who_opened() -> None:
    controller, worker = Connection(True), Connection(False)
    assert [controller.open().id for _ in range(3)] == [1, 3, 5]
    assert [worker.open().id for _ in range(3)] == [2, 4, 6]


OPENERS = {ITEM: b"abc", LARGE: U64.pack(3), EOF: b"", RAW: b"abc", CLOSE: b""}
OTHERS = {PART: b"abc", ABORT: b"", CREDIT: U64.pack(3)}


@pytest.mark.parametrize("kind", OPENERS, ids=NAMES.get)
@pytest.mark.parametrize("controller", [True, False])
def test_a_first_frame_opens_the_peers_channel(kind: int, controller: bool) -> None:
    connection = greeted(controller)
    id = 2 if controller else 1
    connection.receive_data(frame(kind, id, OPENERS[kind], 8))
    if kind == CLOSE:
        assert id not in connection.channels
        assert written(connection) == [(CLOSE, id, 0, b"")]
    else:
        assert connection.channels[id].id == id


@pytest.mark.parametrize("kind", OTHERS, ids=NAMES.get)
@pytest.mark.parametrize("controller", [True, False])
def test_what_cannot_be_a_first_frame(kind: int, controller: bool) -> None:
    for id in (1, 2):
        connection = greeted(controller)
        with pytest.raises(ProtocolError, match=f"{NAMES[kind]} on channel {id}, which is not open"):
            connection.receive_data(frame(kind, id, OTHERS[kind], 8))


@pytest.mark.parametrize("kind", OPENERS | OTHERS, ids=NAMES.get)
@pytest.mark.parametrize("controller", [True, False])
def test_the_peer_cannot_open_channels_of_our_numbers(kind: int, controller: bool) -> None:
    connection = greeted(controller)
    connection.open()
    id = connection.next_id
    with pytest.raises(ProtocolError, match=f"{NAMES[kind]} on channel {id}, which is not open"):
        connection.receive_data(frame(kind, id, (OPENERS | OTHERS)[kind], 8))


@pytest.mark.parametrize("kind", OPENERS | OTHERS, ids=NAMES.get)
@ENDS
def test_frames_for_a_forgotten_channel(kind: int, controller: bool, ours: bool) -> None:
    """Data is answered with CLOSE: the sender may wait for credit. The rest is ignored."""
    connection, channel = channel_in(CLOSED, controller, ours)
    connection.receive_data(frame(kind, channel.id, (OPENERS | OTHERS)[kind], 8))
    assert written(connection) == ([(CLOSE, channel.id, 0, b"")] if kind in (ITEM, LARGE, RAW) else [])
    assert not connection.events
    assert list(connection.channels) == [0]
    assert connection.at_frame_border()


def test_items_of_a_forgotten_channel_between_those_of_another() -> None:
    connection, channel = channel_in(CLOSED, True, True)
    other = connection.open()
    items = [frame(ITEM, id, b"abc", 8) for id in (other.id, channel.id, other.id, other.id)]
    connection.receive_data(b"".join(items))
    assert taken(connection) == [(ITEM, other.id, 8, b"abc")] * 3


def test_a_part_for_a_forgotten_channel_is_skipped_in_pieces() -> None:
    connection, channel = channel_in(CLOSED, True, True)
    data = frame(PART, channel.id, bytes(100)) + frame(PING)
    for at in range(len(data)):
        connection.receive_data(data[at : at + 1])
    assert [event[0] for event in taken(connection)] == [PING]


def test_closes_do_not_answer_each_other_for_ever() -> None:
    """Two ends that have both forgotten a channel, each still sending on it."""
    pair = Pair()
    channel = pair.controller.connection.open()
    pair.controller.send_item(channel, b"abc")
    pair.pump()
    pair.controller.connection.send_close(channel)
    pair.pump()
    for kind in (ITEM, RAW, EOF, CLOSE):
        pair.controller.connection.send(kind, channel.id, b"")
        pair.worker.connection.send(kind, channel.id, b"")
    pair.pump()
    assert list(pair.controller.connection.channels) == list(pair.worker.connection.channels) == [0]


def test_numbers_are_given_out_once() -> None:
    worker = greeted(False)
    worker.receive_data(frame(EXEC, 1) + frame(CLOSE, 1))
    with pytest.raises(ProtocolError, match="EXEC on channel 1, which is not new"):
        worker.receive_data(frame(EXEC, 1))


def test_numbers_may_come_up_in_any_order() -> None:
    controller = greeted(True)
    for id in (6, 2, 10, 4, 8):
        controller.receive_data(frame(ITEM, id, b"abc", 8))
    controller.receive_data(frame(CLOSE, 4) + frame(ITEM, 4, b"late", 8))
    assert sorted(controller.channels) == [0, 2, 6, 8, 10]
    assert controller.get(4) is not None  # it waits for somebody who got its number in an item
    assert controller.get(4) is None
    assert controller.get(12).id == 12


def test_all_numbers_are_used_up() -> None:
    controller = greeted(True)
    controller.next_id = MAX_ID
    assert controller.open().id == MAX_ID
    with pytest.raises(FarwireError, match="no more channels"):
        controller.open()


class Slim(ChannelState):
    """As small as can be: there are many."""

    __slots__ = ()


def test_a_peer_may_have_only_so_many_channels_open() -> None:
    controller = greeted(True, make_channel=Slim)
    controller.receive_data(b"".join(frame(EOF, 2 * n) for n in range(1, MAX_CHANNELS + 1)))
    assert len(controller.channels) == MAX_CHANNELS + 1
    # one closes, one may open
    controller.receive_data(frame(CLOSE, 2000) + frame(EOF, 2 * MAX_CHANNELS + 2))
    with pytest.raises(ProtocolError, match=f"channel {2 * MAX_CHANNELS + 4}; at most {MAX_CHANNELS} may be open"):
        controller.receive_data(frame(EOF, 2 * MAX_CHANNELS + 4))


def test_numbers_that_are_left_out_count() -> None:
    for controller in (True, False):
        connection = greeted(controller)
        connection.receive_data(frame(EOF, 2 * MAX_CHANNELS - (0 if controller else 1)))
        with pytest.raises(ProtocolError, match="may be open"):
            connection.receive_data(frame(EOF, 2 * MAX_CHANNELS + 1 + controller))
        connection = greeted(controller)
        with pytest.raises(ProtocolError, match="may be open"):
            connection.receive_data(frame(EOF, MAX_ID - controller))


def test_our_own_channels_have_the_same_limit() -> None:
    """So that the error is here, where the mistake is, and not the end of the link."""
    controller = greeted(True, make_channel=Slim)
    channels = [controller.open() for _ in range(MAX_CHANNELS)]
    with pytest.raises(FarwireError, match="no more channels"):
        controller.open()
    controller.send_close(channels[7])
    with pytest.raises(FarwireError, match="no more channels"):
        controller.open()
    controller.receive_data(frame(CLOSE, channels[7].id))
    assert controller.open().id == 2 * MAX_CHANNELS + 1


def test_an_item_cannot_open_more_either() -> None:
    controller = greeted(True, make_channel=Slim)
    for number in range(MAX_CHANNELS):
        assert controller.get(2 * number + 2)
    with pytest.raises(ProtocolError, match="may be open"):
        controller.get(2 * MAX_CHANNELS + 2)


@pytest.mark.parametrize("number", [0, -1, -2, MAX_ID + 1, MAX_ID + 2, 10**30])
def test_numbers_in_items_that_are_none(number: int) -> None:
    for connection in (greeted(True), greeted(False)):
        assert connection.get(number) is None
        assert list(connection.channels) == [0]


def test_numbers_in_items_that_are_ours() -> None:
    controller = greeted(True)
    channel = controller.open()
    assert controller.get(channel.id) is channel
    assert controller.get(channel.id + 2) is None


# -- channels that travel in items --------------------------------------------------------------------------------------


@pytest.mark.parametrize("opener", ["controller", "worker"])
def test_a_channel_that_was_closed_before_its_number_was_decoded(opener: str) -> None:
    """c = newchannel(); channel.send(c); c.send(...); c.close(): the items must not be lost, and nobody may wait for more."""
    pair = Pair()
    here = getattr(pair, opener)
    there = pair.worker if here is pair.controller else pair.controller
    passed = here.connection.open()
    here.send_item(passed, b"first")
    here.connection.send_close(passed, b"error", 10)
    pair.pump()
    assert there.events == [(ITEM, passed.id, 8, b"first"), (CLOSE, passed.id, 10, b"error")]
    assert list(there.connection.channels) == [0]
    found = there.connection.get(passed.id)
    assert found.state == CLOSED
    assert found.received == 5 + 128
    # once it is with somebody, nothing more is kept for its number
    assert there.connection.get(passed.id) is None


def test_a_channel_that_somebody_had_is_not_kept() -> None:
    controller = greeted(True)
    channel = controller.get(2)
    controller.receive_data(frame(ITEM, 2, b"abc", 8) + frame(CLOSE, 2))
    assert channel.state == CLOSED
    assert controller.get(2) is None


def test_the_channel_of_a_task_is_not_kept() -> None:
    worker = greeted(False)
    worker.receive_data(frame(EXEC, 1) + frame(ITEM, 1, b"abc", 8) + frame(CLOSE, 1))
    assert worker.get(1) is None


def test_closed_channels_are_kept_within_a_window() -> None:
    controller = greeted(True, MIN_WINDOW)
    for number in range(1, 1001):
        controller.receive_data(frame(ITEM, 2 * number, bytes(10_000), 8) + frame(CLOSE, 2 * number))
    kept = [number for number in range(1, 1001) if controller.get(2 * number) is not None]
    assert kept == list(range(1001 - len(kept), 1001)), "the newest"
    assert 10 < len(kept) * (10_000 + 4096) <= MIN_WINDOW


def test_one_channel_is_kept_however_large() -> None:
    controller = greeted(True, MIN_WINDOW)
    controller.receive_data(frame(ITEM, 2, bytes(MIN_WINDOW - 128), 8) + frame(CLOSE, 2, bytes(1000), 10))
    assert controller.get(2).received == MIN_WINDOW


# -- a peer that does not read ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [frame(PING, 0, bytes(64)), frame(ITEM, 1, b"abc", 8)], ids=["PING", "forgotten"])
def test_a_peer_that_does_not_read_its_answers(data: bytes) -> None:
    controller, _ = channel_in(CLOSED, True, True)
    with pytest.raises(ProtocolError, match="the peer does not read"):
        for _ in range(MAX_ANSWERS // 100 + 2):
            controller.receive_data(data * 100)
            controller.events.clear()
    assert len(controller.out) <= MAX_ANSWERS + 1


def test_answers_that_are_read_do_not_count() -> None:
    controller = greeted(True)
    for _ in range(MAX_ANSWERS // 100 * 3):
        controller.receive_data(frame(PING) * 100)
        controller.events.clear()
        del controller.out[:]
    # neither do our own frames, of which there may be many
    controller.out += [b""] * (MAX_ANSWERS + 10)
    controller.receive_data(frame(PING) * 100)


def test_the_module_says_what_the_table_says() -> None:
    """The drawing in the docstring names the states."""
    drawn = state.__doc__ or ""
    assert all(name in drawn for name in STATE_NAMES)
    assert connection_module.__doc__


def test_credit_for_a_channel_that_is_closing_is_harmless() -> None:
    connection, channel = channel_in(CLOSING, True, True)
    connection.receive_data(credit(channel.id, 5))
    assert channel.state == CLOSING
