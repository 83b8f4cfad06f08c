"""One-way streams of small items: CPU per item at both ends together, and the rate.

The floor pickles each item, frames it, and writes and reads in batches of 64 KiB.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from . import floor
from .harness import FLOOR, Bench, Case, Row, Sample
from .latency import ITEMS
from .libraries import Library, Party
from .process import cpu_of_all

if TYPE_CHECKING:
    from collections.abc import Callable

KINDS = {"ints": ("an int", 2.5), "small dicts": ("a small dict", 4.0)}  # -> the item, most CPU in us


def both_ways(channel) -> None:
    """Worker: takes or gives streams, as it is told by (verb, count, item)."""
    receive, send = channel.receive, channel.send
    while True:
        command = receive()
        if command is None:
            return
        verb, count, item = command
        if verb == "pull":
            for _ in range(count):
                last = receive()
            send(last)
        elif item is None:
            for number in range(count):
                send(number)
        else:
            for _ in range(count):
                send(item)


def measure(stream: Callable[[], None], count: int, pids: list[int]) -> Sample:
    """Rate in thousands a second, CPU in us per item."""
    cpu, begun = cpu_of_all(pids), time.perf_counter()
    stream()
    wall = time.perf_counter() - begun
    return {"rate": count / wall / 1e3, "cpu": (cpu_of_all(pids) - cpu) / count * 1e6}


class Floor(Case):
    """Framed pickles."""

    def __init__(self, item: object, count: int, *, out: bool) -> None:
        super().__init__(FLOOR)
        self.item, self.count, self.out = item, count, out

    def open(self) -> None:
        self.pipes = floor.Pipes("stream")

    def run(self) -> Sample:
        reader, writer = self.pipes.reader, self.pipes.writer

        def out() -> None:
            floor.send_pickle(writer, ("pull", self.count, self.item))
            floor.send_stream(writer, self.count, self.item)
            os.read(reader, 1)

        def back() -> None:
            floor.send_pickle(writer, ("push", self.count, self.item))
            floor.receive_stream(reader, self.count)

        return measure(out if self.out else back, self.count, [self.pipes.pid])

    def close(self) -> None:
        self.pipes.close()


class Stream(Case):
    """A library's channel."""

    def __init__(self, library: Library, item: object, count: int, *, out: bool) -> None:
        super().__init__(library.name)
        self.library, self.item, self.count, self.out = library, item, count, out
        self.party: Party | None = None

    def open(self) -> None:
        self.party = Party(self.library)
        self.channel = self.party.exec(both_ways)

    def run(self) -> Sample:
        assert self.party is not None
        send, receive, count, item = self.channel.send, self.channel.receive, self.count, self.item

        def out() -> None:
            send(("pull", count, item))
            if item is None:
                for number in range(count):
                    send(number)
            else:
                for _ in range(count):
                    send(item)
            assert receive() == (count - 1 if item is None else item)

        def back() -> None:
            send(("push", count, item))
            for _ in range(count):
                last = receive()
            assert last == (count - 1 if item is None else item)

        return measure(out if self.out else back, count, self.party.workers)

    def close(self) -> None:
        if self.party is not None:
            self.party.close()


def run(bench: Bench) -> list[Row]:
    """Ints and small dicts, to the worker and from it."""
    rows = []
    count = bench.pick(50_000, 5_000)
    for kind, (single, most) in KINDS.items():
        item = None if single == "an int" else ITEMS[single]
        for out in (True, False):
            what = f"stream of {kind} " + ("to the worker" if out else "from the worker")
            cases: list[Case] = [Floor(item, count, out=out)] if bench.floor else []
            cases += [Stream(lib, item, count, out=out) for lib in bench.libraries]
            samples = bench.interleave(what, cases)
            cpu, rate = samples.series("cpu"), samples.series("rate")
            rows.append(Row(f"{what}: CPU of both ends per item", "us", cpu).at_most(most))
            rows.append(Row(f"{what}: rate", "k/s", rate, higher_is_better=True).at_least_times_better(4))
    return rows
