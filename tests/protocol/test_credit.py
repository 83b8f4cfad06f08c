"""Credit: nobody sends more than was granted, what was consumed comes back, and nothing that may be sent waits for ever."""

from __future__ import annotations

import random
from typing import Any

import pytest

from farwire.protocol.errors import ProtocolError
from farwire.protocol.frames import (
    ABORT,
    CLOSE,
    CREDIT,
    EXEC,
    INLINE_MAX,
    ITEM,
    ITEM_COST,
    LARGE,
    MAX_PAYLOAD,
    MIN_WINDOW,
    PART,
    RAW,
    WINDOW,
    frame,
)
from protocol.pair import U64, End, Pair, credit, greeted, taken, written

W = MIN_WINDOW
HALF = W // 2


def opened(pair: Pair) -> tuple[Any, Any]:
    """A channel from controller to worker: the sender's and the receiver's view."""
    channel = pair.controller.connection.open()
    return channel, pair.worker.connection.get(channel.id)


def test_constants_fit_each_other() -> None:
    assert 2 * (INLINE_MAX + ITEM_COST) <= MIN_WINDOW <= WINDOW
    assert INLINE_MAX < MAX_PAYLOAD


def test_an_item_costs_its_bytes_and_its_place() -> None:
    worker = greeted(False, W)
    worker.receive_data(frame(EXEC, 1) + frame(ITEM, 1, bytes(1000), 8) + frame(ITEM, 1, b"", 1))
    channel = worker.channels[1]
    assert channel.received == 1000 + 2 * ITEM_COST
    assert channel.consumed == channel.granted == 0
    worker.receive_data(frame(LARGE, 1, U64.pack(5000), 8))
    assert channel.received == 1000 + 3 * ITEM_COST
    worker.receive_data(frame(PART, 1, bytes(2000)))
    assert channel.received == 3000 + 3 * ITEM_COST
    worker.receive_data(frame(RAW, 3, bytes(700)))
    assert worker.channels[3].received == 700


OVERRUNS = {
    "ITEM": [frame(ITEM, 1, bytes(W - ITEM_COST), 8), frame(ITEM, 1, b"", 1)],
    "empty items": [frame(ITEM, 1, b"", 1) * (W // ITEM_COST), frame(ITEM, 1, b"", 1)],
    "one ITEM": [b"", frame(ITEM, 1, bytes(W - ITEM_COST + 1), 8)],
    "LARGE": [frame(ITEM, 1, bytes(W - ITEM_COST), 8), frame(LARGE, 1, U64.pack(1), 8)],
    "PART": [
        frame(LARGE, 1, U64.pack(1 << 30), 8) + frame(PART, 1, bytes(W - ITEM_COST)),
        frame(PART, 1, b"x"),
    ],
    "one PART": [frame(LARGE, 1, U64.pack(1 << 30), 8), frame(PART, 1, bytes(W - ITEM_COST + 1))],
    "RAW": [frame(RAW, 1, bytes(W)), frame(RAW, 1, b"x")],
}


@pytest.mark.parametrize("closing", [False, True])
@pytest.mark.parametrize("name", OVERRUNS)
def test_more_than_the_window_is_refused(name: str, closing: bool) -> None:
    """Also while what comes is dropped: a peer that does not count is no peer."""
    fits, too_much = OVERRUNS[name]
    worker = greeted(False, W)
    worker.receive_data(frame(EXEC, 1))
    if closing:
        worker.send_close(worker.channels[1])
    worker.receive_data(fits)
    assert worker.channels[1].received <= W
    with pytest.raises(ProtocolError, match="more than its credit on channel 1"):
        worker.receive_data(too_much)


def test_a_part_is_refused_before_it_comes() -> None:
    worker = greeted(False, W)
    worker.receive_data(frame(EXEC, 1) + frame(LARGE, 1, U64.pack(1 << 30), 8))
    with pytest.raises(ProtocolError, match="more than its credit"):
        worker.receive_data(frame(PART, 1, bytes(W))[:10])


def test_the_window_of_output() -> None:
    controller = greeted(True, W)
    controller.receive_data(frame(RAW, 0, bytes(W), 1))
    with pytest.raises(ProtocolError, match="more than its credit on channel 0"):
        controller.receive_data(frame(RAW, 0, b"x", 1))


def test_credit_comes_back_at_half_a_window() -> None:
    pair = Pair(W)
    channel, peer = opened(pair)
    for _ in range(4):
        assert pair.controller.send_item(channel, bytes(W // 8 - ITEM_COST))
    pair.pump()
    for _ in range(3):
        pair.worker.take(peer)
        assert not pair.worker.connection.out
    pair.worker.take(peer)
    assert written(pair.worker.connection) == [(CREDIT, 1, 0, U64.pack(HALF))]
    assert (peer.received, peer.consumed, peer.granted) == (HALF, HALF, HALF)


def test_credit_lets_the_sender_go_on() -> None:
    pair = Pair(W)
    channel, peer = opened(pair)
    while pair.controller.send_item(channel, bytes(10_000)):
        pass
    pair.pump()
    while pair.worker.queues[1]:
        pair.worker.take(peer)
    pair.pump()
    assert (CREDIT, 1, 0, None) in pair.controller.events
    assert channel.credit >= HALF
    assert pair.controller.send_item(channel, bytes(10_000))


def test_an_item_larger_than_the_window_passes_only_while_somebody_waits() -> None:
    pair = Pair(W)
    channel, peer = opened(pair)
    total = 5 * W
    sent = 0

    def push(limit: int = total) -> int:
        nonlocal sent
        while count := pair.controller.send_part(channel, bytes(min(limit - sent, 65536))):
            sent += count
            pair.pump()
        return sent

    pair.controller.begin_large(channel, total)
    assert push() == W - ITEM_COST
    assert peer.large is not None
    assert peer.large.filled == W - ITEM_COST

    pair.worker.connection.start_waiting(peer)
    pair.pump()
    assert push(3 * W) == 3 * W

    peer.waiting -= 1  # it gave up: its timeout is over
    stalled = push()
    assert 3 * W + HALF <= stalled <= 4 * W

    pair.worker.connection.start_waiting(peer)
    pair.pump()
    assert push() == total
    assert [(event[0], len(event[3])) for event in pair.worker.events] == [(LARGE, total)]
    pair.worker.take(peer)
    assert peer.consumed == peer.received


def test_a_reader_of_the_link_waits_too() -> None:
    """``leading`` instead of ``waiting``: the thread that waits reads the link itself."""
    pair = Pair(W)
    channel, peer = opened(pair)
    peer.leading = True
    pair.controller.begin_large(channel, 3 * W)
    sent = 0
    while sent < 3 * W:
        count = pair.controller.send_part(channel, bytes(min(3 * W - sent, 65536)))
        assert count
        sent += count
        pair.pump()


def test_an_abort_gives_the_credit_back() -> None:
    pair = Pair(W)
    channel, peer = opened(pair)
    for _ in range(50):
        assert pair.controller.begin_large(channel, 10 * W)
        assert pair.controller.send_part(channel, bytes(HALF - ITEM_COST))
        pair.controller.connection.send(ABORT, channel.id)
        pair.pump()
        assert peer.large is None
    assert peer.received == peer.consumed == peer.granted == 50 * HALF
    assert not [event for event in pair.worker.events if event[0] != CREDIT]


def test_an_abort_after_the_last_part_is_ignored() -> None:
    """The sender was interrupted between its last part and knowing of it."""
    worker = greeted(False, W)
    worker.receive_data(
        frame(EXEC, 1) + frame(LARGE, 1, U64.pack(3), 8) + frame(PART, 1, b"abc") + frame(ABORT, 1) + frame(ABORT, 1)
    )
    assert taken(worker) == [(EXEC, 1, 0, b""), (LARGE, 1, 8, b"abc")]
    assert worker.channels[1].received == 3 + ITEM_COST


def test_a_lifted_window() -> None:
    """Somebody waits for the close: whatever comes is kept, so the sender must never wait."""
    pair = Pair(W)
    channel, peer = opened(pair)
    while pair.controller.send_item(channel, bytes(50_000)):
        pass
    pair.pump()
    pair.worker.connection.lift(peer)
    pair.pump()
    assert peer.consumed == peer.received == peer.granted
    for _ in range(100):
        assert pair.controller.send_item(channel, bytes(INLINE_MAX))
        pair.pump()
        # what was queued before is taken and must not be counted twice
        pair.worker.take(peer)
        assert peer.received >= peer.consumed >= peer.granted
        assert channel.credit <= W


def test_lifting_in_the_midst_of_a_large_item() -> None:
    pair = Pair(W)
    channel, peer = opened(pair)
    pair.controller.begin_large(channel, 4 * W)
    sent = 0
    while count := pair.controller.send_part(channel, bytes(65536)):
        sent += count
        pair.pump()
    pair.worker.connection.lift(peer)
    pair.pump()
    while sent < 4 * W:
        count = pair.controller.send_part(channel, bytes(min(4 * W - sent, 65536)))
        assert count
        sent += count
        pair.pump()
    assert pair.worker.events[-1][0] == LARGE


def test_credit_of_every_channel_is_its_own() -> None:
    pair = Pair(W)
    one, peer_one = opened(pair)
    two, _ = opened(pair)
    while pair.controller.send_item(one, bytes(10_000)):
        pass
    assert two.credit == W
    assert pair.controller.send_item(two, b"goes")
    pair.pump()
    assert pair.worker.events[-1] == (ITEM, two.id, 8, b"goes")
    assert peer_one.received + 10_000 + ITEM_COST > W


def test_more_credit_than_the_window_may_be_given() -> None:
    """A receiver is free to grant ahead."""
    controller = greeted(True, W)
    channel = controller.open()
    controller.receive_data(credit(1, 10 * W))
    assert channel.credit == 11 * W
    controller.receive_data(credit(1, 0))
    assert channel.credit == 11 * W
    assert taken(controller) == [(CREDIT, 1, 0, None)] * 2


def test_a_close_forgets_the_parts() -> None:
    worker = greeted(False, W)
    worker.receive_data(frame(EXEC, 1) + frame(LARGE, 1, U64.pack(100), 8) + frame(PART, 1, bytes(10)))
    channel = worker.channels[1]
    worker.receive_data(frame(CLOSE, 1))
    assert channel.large is None
    assert [event[0] for event in taken(worker)] == [EXEC, CLOSE]


@pytest.mark.parametrize("seed", range(40))
def test_random_traffic_neither_overruns_nor_stalls(seed: int) -> None:
    """Items of all sizes, a receiver that takes its time: everything arrives, in order, within the window."""
    chance = random.Random(seed)
    pair = Pair(W)
    channel, peer = opened(pair)
    sizes = [chance.choice([0, 1, 100, 5000, INLINE_MAX, INLINE_MAX + 1, HALF, W, 2 * W]) for _ in range(60)]
    sender = Sender(pair.controller, channel, sizes)
    got: list[int] = []
    while len(got) < len(sizes):
        progress = sender.step(chance)
        if chance.random() < 0.7 or not progress:
            pair.pump()
        queued = sum(cost for _, cost in pair.worker.queues.get(1, ()))
        partial = peer.large.unpaid if peer.large is not None else 0
        assert queued + partial <= W
        assert peer.received >= peer.consumed >= peer.granted
        assert peer.received - peer.granted <= W
        if chance.random() < 0.3 or not progress:
            if pair.worker.queues.get(1):
                got.append(len(pair.worker.take(peer)))
                progress = True
            elif not peer.waiting:
                pair.worker.connection.start_waiting(peer)
                progress = True
        if peer.waiting and pair.worker.queues.get(1):
            peer.waiting -= 1
        if not progress:
            before = len(pair.worker.events)
            pair.pump()
            assert sender.step(chance) or len(pair.worker.events) > before, "nobody can go on"
    assert got == sizes
    pair.pump()
    assert channel.credit >= HALF


class Sender:
    """Sends items of these sizes, in one frame or in parts, as credit allows."""

    def __init__(self, end: End, channel: Any, sizes: list[int]) -> None:
        self.end = end
        self.channel = channel
        self.sizes = list(sizes)
        self.left = 0

    def step(self, chance: random.Random) -> bool:
        """Returns whether something was sent, or nothing is left to send."""
        if self.left:
            count = self.end.send_part(self.channel, bytes(min(self.left, chance.choice([1000, 65536]))))
            self.left -= count
            return bool(count)
        if not self.sizes:
            return False
        size = self.sizes[0]
        if size <= INLINE_MAX:
            done = self.end.send_item(self.channel, bytes(size))
        else:
            done = self.end.begin_large(self.channel, size)
            self.left = size if done else 0
        if done:
            del self.sizes[0]
        return done
