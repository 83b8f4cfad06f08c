"""Small round trips while 512 MiB cross the same gateway, against those over a gateway of their own.

The large transfer runs in a second thread, to the worker or from it, as one item or as 512; the small items go back
and forth without a pause until it is through. *Worst* is the longest round trip of a round.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from .harness import EXECNET, FARWIRE, Bench, Case, Row, Sample
from .latency import echo
from .libraries import Library, Party

MIB = 1 << 20


def bulk(channel) -> None:
    """Worker: gives or takes items of so many bytes."""
    while True:
        verb, count, size = channel.receive()
        if verb == "give":
            item = b"x" * size
            channel.send("ready")
            channel.receive()
            for _ in range(count):
                channel.send(item)
            item = None
        else:
            for _ in range(count):
                channel.receive()
            channel.send("taken")


class Fairness(Case):
    """One library, with one gateway for both, or one for each."""

    warm = False

    def __init__(self, library: Library, count: int, size: int, *, out: bool, apart: bool) -> None:
        super().__init__(f"{library.name}, two gateways" if apart else library.name)
        self.library, self.count, self.size, self.out = library, count, size, out
        self.specs = ("popen", "popen") if apart else ("popen",)
        self.party: Party | None = None

    def open(self) -> None:
        self.party = Party(self.library, *self.specs)
        self.bulk = self.party.gateways[0].remote_exec(bulk)
        self.echo = self.party.gateways[-1].remote_exec(echo)
        self.item = b"x" * self.size if self.out else b""
        self._ping()

    def _ping(self) -> int:
        begun = time.perf_counter_ns()
        self.echo.send(7)
        assert self.echo.receive() == 7
        return time.perf_counter_ns() - begun

    def _transfer(self) -> None:
        channel = self.bulk
        if self.out:
            channel.send(("take", self.count, self.size))
            for _ in range(self.count):
                channel.send(self.item)
            assert channel.receive() == "taken"
        else:
            channel.send("go")
            for _ in range(self.count):
                assert len(channel.receive()) == self.size

    def run(self) -> Sample:
        if not self.out:
            self.bulk.send(("give", self.count, self.size))
            assert self.bulk.receive() == "ready"
        over, errors = threading.Event(), []

        def transfer() -> None:
            try:
                self._transfer()
            except Exception as error:
                errors.append(error)
            finally:
                over.set()

        times: list[int] = []
        begun = time.perf_counter()
        threading.Thread(target=transfer, daemon=True).start()
        while not over.is_set():
            times.append(self._ping())
        wall = time.perf_counter() - begun
        if errors:
            raise errors[0]
        times.sort()
        return {"worst": times[-1] / 1e6, "median": times[len(times) // 2] / 1e6, "wall": wall, "pings": len(times)}

    def close(self) -> None:
        self.item = b""
        if self.party is not None:
            self.party.close()


def run(bench: Bench) -> list[Row]:
    """Both directions, one item and 512."""
    rows = []
    total = bench.pick(512, 64)
    for count in (1, total):
        for out in (True, False):
            items = f"one item of {total} MiB" if count == 1 else f"{total} items of 1 MiB"
            what = f"round trips beside {items} " + ("to the worker" if out else "from the worker")
            cases: list[Any] = []
            for lib in bench.libraries:
                cases += [Fairness(lib, count, total // count * MIB, out=out, apart=apart) for apart in (True, False)]
            samples = bench.interleave(what, cases, bench.at_most(3))
            series = {key: samples.series(key) for key in ("worst", "median", "wall", "pings")}
            both = {k: {n: s[n] for n in (EXECNET, FARWIRE) if n in s} for k, s in series.items()}
            worst = Row(f"{what}: worst", "ms", both["worst"]).at_most(20)
            median = Row(f"{what}: median", "ms", both["median"])
            apart_name = f"{FARWIRE}, two gateways"
            ratio = None
            if FARWIRE in both["median"] and apart_name in series["median"]:
                ratio = series["median"][FARWIRE].over(series["median"][apart_name])
            median.judge("≤ 2x two gateways", ratio, lambda v: v <= 2)
            for name, values in series["worst"].items():
                worst.note(f"{name}: worst of all {values.worst:.1f} ms, transfer {series['wall'][name].median:.2f} s")
            for name, values in series["median"].items():
                median.note(f"{name}: {values.median:.3f} ms, {series['pings'][name].median:.0f} round trips")
            if ratio is not None:
                median.note(f"{ratio:.2f}x two gateways")
            rows += [worst, median]
    return rows
