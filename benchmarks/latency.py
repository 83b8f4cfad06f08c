"""Round trips of a small item over popen; and over ``via``, which adds a hop.

Both ends run plain threads. *One core*: every thread of all processes is held on one core, so that the time an idle
core takes to wake up, which differs between machines and says nothing about the program, plays no part.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from . import floor
from .harness import EXECNET, FARWIRE, FLOOR, Bench, Case, Row, Sample, percentile
from .libraries import Library, Party
from .process import cpu_of_all, on_one_core

if TYPE_CHECKING:
    from collections.abc import Callable

ITEMS: dict[str, object] = {"an int": 12345, "a small dict": {"id": 7, "op": "run", "args": [1, 2.5, "x"], "ok": True}}


def echo(channel) -> None:
    """Worker: give back what comes."""
    receive, send = channel.receive, channel.send
    while True:
        item = receive()
        if item is None:
            return
        send(item)


def measure(ping: Callable[[], object], count: int, pids: list[int], *, one_core: bool) -> Sample:
    """Median, 99th percentile and CPU of ``count`` round trips, in us."""
    clock, times = time.perf_counter_ns, []
    with on_one_core(pids, really=one_core):
        for _ in range(100):
            ping()
        cpu = cpu_of_all(pids)
        for _ in range(count):
            begun = clock()
            ping()
            times.append(clock() - begun)
        cpu = cpu_of_all(pids) - cpu
    times.sort()
    p99 = percentile(times, 0.99)
    median = times[count // 2]
    return {"median": median / 1e3, "p99": p99 / 1e3, "spread": p99 / median, "cpu": cpu / count * 1e6}


class Floor(Case):
    """Two bare Pythons; as bare bytes, or framed and pickled."""

    def __init__(self, name: str, item: object, count: int, *, one_core: bool, framed: bool = False) -> None:
        super().__init__(name)
        self.item, self.count, self.one_core, self.framed = item, count, one_core, framed

    def open(self) -> None:
        self.pipes = floor.Pipes("echo_framed" if self.framed else "echo_raw")

    def run(self) -> Sample:
        reader, writer, item, data = self.pipes.reader, self.pipes.writer, self.item, b"x" * 16

        def raw() -> bytes:
            os.write(writer, data)
            return os.read(reader, 4096)

        def framed() -> object:
            return floor.ping_framed(reader, writer, item)

        return measure(framed if self.framed else raw, self.count, [self.pipes.pid], one_core=self.one_core)

    def close(self) -> None:
        self.pipes.close()


class RoundTrip(Case):
    """A library's channel, to the last of some gateways."""

    def __init__(self, library: Library, item: object, count: int, *specs: str, one_core: bool, name: str = "") -> None:
        super().__init__(name or library.name)
        self.library, self.item, self.count, self.specs, self.one_core = library, item, count, specs, one_core
        self.party: Party | None = None

    def open(self) -> None:
        self.party = Party(self.library, *self.specs)
        self.channel = self.party.exec(echo)

    def run(self) -> Sample:
        assert self.party is not None
        send, receive, item = self.channel.send, self.channel.receive, self.item

        def ping() -> object:
            send(item)
            return receive()

        assert ping() == item
        return measure(ping, self.count, self.party.workers, one_core=self.one_core)

    def close(self) -> None:
        if self.party is not None:
            self.party.close()


def run(bench: Bench) -> list[Row]:
    """Round trips over popen."""
    rows = []
    count = bench.pick(3000, 500)
    for one_core in (True, False):
        for kind, item in ITEMS.items():
            what = f"round trip of {kind}, " + ("one core" if one_core else "free")
            cases: list[Case] = []
            if bench.floor:
                cases.append(Floor(FLOOR, item, count, one_core=one_core))
                cases.append(Floor("framed", item, count, one_core=one_core, framed=True))
            cases += [RoundTrip(lib, item, count, "popen", one_core=one_core) for lib in bench.libraries]
            samples = bench.interleave(what, cases)
            median, cpu, p99, spread = (samples.series(key) for key in ("median", "cpu", "p99", "spread"))
            row = Row(what, "us", median, cpu)
            tail = Row(f"{what}: p99", "us", p99)
            if one_core:
                row.at_most_times(2).at_least_times_better(7)
                mine = spread.get(FARWIRE)
                tail.judge("≤ 10x its median", mine.median if mine else None, lambda v: v <= 10)
            if "framed" in median:
                row.note(f"framed, pickled and read in one thread: {median['framed'].median:.1f} us")
            rows += [row, tail]
    return rows


def run_via(bench: Bench) -> list[Row]:
    """Round trips through another worker, against those with that worker."""
    rows = []
    count = bench.pick(3000, 500)
    item = ITEMS["an int"]
    for one_core in (True, False):
        what = "round trip of an int over via, " + ("one core" if one_core else "free")
        cases = []
        for lib in bench.libraries:
            cases.append(RoundTrip(lib, item, count, "popen", one_core=one_core, name=f"{lib.name} direct"))
            cases.append(RoundTrip(lib, item, count, "popen//id=hop", "popen//via=hop", one_core=one_core))
        samples = bench.interleave(what, cases)
        median, cpu = samples.series("median"), samples.series("cpu")
        row = Row(what, "us", {k: v for k, v in median.items() if k in {EXECNET, FARWIRE}}, cpu)
        ratios = {
            name: median[name].over(median[f"{name} direct"])
            for name in (EXECNET, FARWIRE)
            if name in median and f"{name} direct" in median
        }
        for name, ratio in ratios.items():
            row.note(f"{name}: {ratio:.2f}x its direct round trip")
        row.judge("≤ 2.2x direct", ratios.get(FARWIRE), lambda v: v <= 2.2)
        rows.append(row)
    return rows
