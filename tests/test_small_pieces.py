"""Bytes that wait are charged as bytes: in whatever pieces they come, they take about as much memory."""

from __future__ import annotations

import os
import threading
import tracemalloc
from types import SimpleNamespace
from typing import Any

from farwire.output import OutputPump
from farwire.runtime.channel import ENDED
from farwire.runtime.reactor import Reactor
from farwire.transports.via import RawInput
from farwire.worker.relay import Inlet

COUNT = 40_000


class Written:
    """Sums up what it is told."""

    def __init__(self) -> None:
        self.total = 0

    def __call__(self, count: int) -> None:
        self.total += count


def test_output_that_waits_for_a_blocked_sink() -> None:
    """Two gateways and both streams in turn, byte by byte: the memory is bounded, order and credit are right."""
    block = threading.Event()
    got: dict[tuple[str, str], bytes] = {}
    pieces = 0

    def sink(gateway_id: str, stream: str, data: bytes) -> None:
        nonlocal pieces
        block.wait(30)
        pieces += 1
        got[gateway_id, stream] = got.get((gateway_id, stream), b"") + data

    pump = OutputPump()
    written = {(gateway, stream): Written() for gateway in ("gw0", "gw1") for stream in ("stdout", "stderr")}
    tracemalloc.start()
    try:
        for number in range(COUNT):
            for (gateway, stream), each in written.items():
                pump.put(sink, gateway, stream, b"%d" % (number % 10), each)
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert held < 8 * COUNT
    block.set()
    assert pump.drain({"gw0", "gw1"}, 20)
    pump.stop(5)
    for key, each in written.items():
        assert got[key] == b"0123456789" * (COUNT // 10)
        assert each.total == COUNT
    assert pieces < COUNT // 100


def test_pieces_of_different_owners_are_not_merged() -> None:
    block = threading.Event()
    first: list[bytes] = []
    second: list[bytes] = []

    def one(gateway_id: str, stream: str, data: bytes) -> None:
        block.wait(30)
        first.append(data)

    pump = OutputPump()
    a, b = Written(), Written()
    pump.put(one, "gw0", "stdout", b"blocks", None)
    pump.put(one, "gw0", "stdout", b"1", a)
    pump.put(one, "gw0", "stdout", b"2", b)
    pump.put(lambda gateway_id, stream, data: second.append(data), "gw0", "stdout", b"3", b)
    block.set()
    assert pump.drain({"gw0"}, 20)
    pump.stop(5)
    assert first == [b"blocks", b"1", b"2"]
    assert second == [b"3"]
    assert (a.total, b.total) == (1, 2)


class FakeLink:
    """As much of a link as an inlet asks for."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.closed = None
        self.out: list[bytes] = []
        self.connection = SimpleNamespace(grant=lambda core: None)

    def flush(self) -> None:
        """Nothing to write."""


def test_what_a_relay_holds_for_a_pipe() -> None:
    """Before the command's pipe is there, and while it is full."""
    reactor = Reactor("test-reactor")
    link = FakeLink()
    core: Any = SimpleNamespace(consumed=0, granted=0, window=8 << 20)
    inlet = Inlet(SimpleNamespace(reactor=reactor, link=link), core, bool)  # type: ignore[arg-type]
    calls = reactor._calls
    tracemalloc.start()
    try:
        for number in range(COUNT):
            inlet.put(core, 0, b"%d" % (number % 10))
            calls.clear()
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert held < 2 * COUNT
    read_fd, write_fd = os.pipe()
    os.set_blocking(write_fd, False)
    inlet.open(write_fd)
    reactor.start()
    data = b""
    while len(data) < COUNT:
        data += os.read(read_fd, 65536)
    assert data == b"0123456789" * (COUNT // 10)
    done = threading.Event()
    reactor.call(inlet.close)
    reactor.call(done.set)
    assert done.wait(10)
    reactor.stop()
    os.close(read_fd)
    assert core.consumed == COUNT


def test_what_waits_for_a_relayed_gateway() -> None:
    """The status that ends a relayed stderr stays apart from its text."""
    core = SimpleNamespace(sink=None)
    source = RawInput(FakeLink(), core)
    for number in range(10_000):
        core.sink(core, 0, b"%d" % (number % 10))
    core.sink(core, 2, b"7")
    core.sink(core, ENDED, b"")
    got: list[tuple[int, bytes]] = []
    source.attach(lambda core, code, data: got.append((code, data)))
    assert b"".join(data for code, data in got if code == 0) == b"0123456789" * 1000
    assert len(got) < 10
    assert got[-2:] == [(2, b"7"), (ENDED, b"")]
