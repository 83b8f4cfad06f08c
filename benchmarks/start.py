"""From ``makegateway("popen")`` to the first result; and fifty at once.

The floor is a bare interpreter with the flags that farwire's own worker was started with, which answers one byte.
CPU is that of both ends, the end of the worker included.
"""

from __future__ import annotations

import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

from .harness import EXECNET, FARWIRE, FLOOR, Bench, Case, Row, Sample, Simple
from .libraries import interpreter_flags
from .process import Stuck, cpu_with_children, limit

if TYPE_CHECKING:
    from .libraries import Library


def answer(channel) -> None:
    """Worker: the shortest task."""
    channel.send(1)


def flags_of_worker(bench: Bench) -> list[str]:
    """See `interpreter_flags`; none when farwire does not run."""
    try:
        with limit(30):
            return interpreter_flags(bench.library(FARWIRE))
    except (Exception, Stuck) as error:
        bench.failed("flags of the interpreter", FARWIRE, error)
        return []


def bare(flags: list[str], count: int) -> Sample:
    """So many bare interpreters, all spawned, then one byte read from each."""
    before, begun = cpu_with_children(), time.perf_counter()
    command = [sys.executable, *flags, "-c", "import os;os.write(1,b'1')"]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) for _ in range(count)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.read(1) == b"1"
    wall = time.perf_counter() - begun
    for process in processes:
        process.communicate()
    return {"wall": wall, "cpu": cpu_with_children() - before}


class Start(Case):
    """Gateways of a library."""

    def __init__(self, library: Library, count: int, *, warm: bool) -> None:
        super().__init__(library.name)
        self.library, self.count, self.warm = library, count, warm
        self.groups: list[Any] = []

    def run(self) -> Sample:
        group = self.library.group()
        self.groups.append(group)
        before, begun = cpu_with_children(), time.perf_counter()
        if self.count == 1:
            assert group.makegateway("popen").remote_exec(answer).receive() == 1
        else:
            gateways = self.library.makegateways(group, [f"{self.count}*popen"])
            channels = [gateway.remote_exec(answer) for gateway in gateways]
            assert [channel.receive() for channel in channels] == [1] * self.count
        wall = time.perf_counter() - begun
        begun = time.perf_counter()
        group.terminate(timeout=10)
        end = time.perf_counter() - begun
        self.groups.remove(group)
        return {"wall": wall, "cpu": cpu_with_children() - before, "end": end}

    def close(self) -> None:
        for group in self.groups:  # of rounds that failed
            group.terminate(timeout=5)


def _rows(bench: Bench, what: str, count: int, rounds: int, within: tuple[float, float], flags: list[str]) -> list[Row]:
    single = count == 1
    cases: list[Case] = [Simple(FLOOR, lambda: bare(flags, count), warm=single)] if bench.floor else []
    cases += [Start(lib, count, warm=single) for lib in bench.libraries]
    samples = bench.interleave(what, cases, rounds)
    row = Row(what, "ms", samples.series("wall", 1e3), samples.series("cpu", 1e3))
    row.at_most_times(within[0]).at_least_times_better(within[1])
    ends = samples.series("end", 1e3)
    for name in (EXECNET, FARWIRE):
        if name in ends:
            row.note(f"{name}: terminate() took {ends[name].median:.0f} ms")
    return [row]


def run(bench: Bench) -> list[Row]:
    """One gateway."""
    flags = flags_of_worker(bench)
    rows = _rows(bench, "makegateway('popen') to the first result", 1, bench.rounds * bench.pick(4, 2), (2, 2.5), flags)
    rows[0].note("flags of the interpreters: " + (" ".join(flags) or "none"))
    return rows


def run_many(bench: Bench) -> list[Row]:
    """Fifty opened together."""
    flags = flags_of_worker(bench)
    count = bench.pick(50, 10)
    what = f"{count} popen gateways opened together, first result of each"
    return _rows(bench, what, count, bench.at_most(bench.pick(5, 2)), (2, 3.5), flags)
