"""What a worker costs while it does nothing, and what ``import`` costs the controller.

The memory of a worker is that of its guard too, and the pages which only these two share count once (see
`process.private`); the floor is a bare interpreter with the same flags that waits for a byte.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from .harness import EXECNET, FARWIRE, FLOOR, Bench, Case, Row, Sample, Simple
from .libraries import Library, Party
from .process import cpu_with_children, family_of, private, threads_of
from .start import flags_of_worker


class Bare(Case):
    """An interpreter that waits."""

    warm = False

    def __init__(self, flags: list[str]) -> None:
        super().__init__(FLOOR)
        self.flags = flags

    def run(self) -> Sample:
        command = [sys.executable, *self.flags, "-c", "import os;os.write(1,b'1');os.read(0,1)"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
            assert process.stdout is not None
            assert process.stdout.read(1) == b"1"
            time.sleep(0.1)
            uss, whole = private([process.pid])
            threads = len(threads_of(process.pid))
            process.communicate()
        return {"uss": uss, "whole": whole, "threads": threads, "worker": uss}


class Idle(Case):
    """A worker that has run one task."""

    warm = False

    def __init__(self, library: Library) -> None:
        super().__init__(library.name)
        self.library = library

    def run(self) -> Sample:
        party = Party(self.library)
        try:
            time.sleep(0.3)
            family = family_of(party.worker)
            uss, whole = private(family)
            return {
                "uss": uss,
                "whole": whole,
                "worker": private([party.worker])[0],
                "processes": len(family),
                "threads": len(threads_of(party.worker)),
            }
        finally:
            party.close()


def _timed(code: str, path: str, cache: str) -> Sample:
    """An interpreter that finds everything compiled, as after an installation."""
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONPYCACHEPREFIX": cache}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    before, begun = cpu_with_children(), time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    return {"wall": time.perf_counter() - begun, "cpu": cpu_with_children() - before}


def _imports(bench: Bench) -> Row:
    what = "import in the controller"
    path = os.pathsep.join(str(Path(lib.module.__file__).parent.parent) for lib in bench.libraries)
    with tempfile.TemporaryDirectory(prefix="farwire-bench-") as cache:
        cases = [Simple("nothing", partial(_timed, "pass", path, cache))]
        cases += [Simple(lib.name, partial(_timed, f"import {lib.name}", path, cache)) for lib in bench.libraries]
        samples = bench.interleave(what, cases, bench.rounds * bench.pick(4, 2))
    wall, cpu = samples.series("wall", 1e3), samples.series("cpu", 1e3)
    beyond = {
        key: {name: series[name].minus(series["nothing"]) for name in (EXECNET, FARWIRE) if name in series}
        for key, series in (("wall", wall), ("cpu", cpu))
        if "nothing" in series
    }
    row = Row(what, "ms", beyond.get("wall", {}), beyond.get("cpu", {})).at_most(12)
    return row.note("beyond `python -c pass`, in a fresh interpreter")


def run(bench: Bench) -> list[Row]:
    """Memory, threads, import."""
    what = "idle worker"
    cases: list[Case] = [Bare(flags_of_worker(bench))] if bench.floor else []
    cases += [Idle(lib) for lib in bench.libraries]
    samples = bench.interleave(what, cases, bench.at_most(5))
    whole, uss, threads = samples.series("whole"), samples.series("uss"), samples.series("threads")
    memory = Row("idle worker: private memory, guard included", "MiB", whole, ratios=False)
    extra = whole[FARWIRE].minus(whole[FLOOR]) if {FARWIRE, FLOOR} <= whole.keys() else None
    memory.judge("≤ floor + 2 MiB", extra.median if extra else None, lambda v: v <= 2)
    for name, series in samples.series("worker").items():
        memory.note(f"{name}: USS of the worker alone {series.median:.1f}, of its family {uss[name].median:.1f} MiB")
    count = Row("idle worker: threads", "", threads, ratios=False)
    mine = threads.get(FARWIRE)
    count.judge("one extra", mine.median - 1 if mine else None, lambda v: v <= 1)
    return [memory, count, _imports(bench)]
