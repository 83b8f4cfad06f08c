"""pytest-xdist on execnet and on farwire: 2,000 tests that do nothing, and the start of its workers.

The floor is pytest without xdist. Each run is a process of its own, as users have it; CPU is that of all its processes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from .harness import EXECNET, FARWIRE, FLOOR, Bench, Case, Row, Sample
from .process import cpu_with_children

TESTS = """
import pytest

@pytest.mark.parametrize("number", range({count}))
def test(number):
    pass
"""
ARGUMENTS = {
    FLOOR: ["-p", "no:xdist", "-p", "no:xdist.looponfail"],
    EXECNET: ["-n", "2"],
    FARWIRE: ["-p", "farwire.pytest_plugin", "-n", "2"],
}


class Pytest(Case):
    """One run of pytest."""

    def __init__(self, name: str, count: int) -> None:
        super().__init__(name)
        self.count = count
        self.folder = tempfile.TemporaryDirectory(prefix="farwire-bench-")

    def open(self) -> None:
        folder = Path(self.folder.name)
        (folder / "pytest.ini").write_text("[pytest]\n")
        # Twenty files, as it is in projects.
        for number in range(20):
            (folder / f"test_{number}.py").write_text(TESTS.format(count=self.count // 20))

    def run(self) -> Sample:
        env = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
        source = str(Path(__file__).resolve().parent.parent / "src")
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [source, env.get("PYTHONPATH")]))
        env.pop("PYTHONDONTWRITEBYTECODE", None)  # everybody's modules are compiled once
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *ARGUMENTS[self.name]]
        before, begun = cpu_with_children(), time.perf_counter()
        done = subprocess.run(
            command, cwd=self.folder.name, env=env, capture_output=True, text=True, check=False, timeout=120
        )
        wall = time.perf_counter() - begun
        if done.returncode or f"{self.count} passed" not in done.stdout:
            raise RuntimeError(done.stdout[-1000:] + done.stderr[-1000:])
        return {"wall": wall, "cpu": cpu_with_children() - before}

    def close(self) -> None:
        self.folder.cleanup()


class Workers(Case):
    """What xdist does to have two workers, up to their import of execnet; the rest is pytest's."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.execnet: Any = None

    def open(self) -> None:
        if self.name == EXECNET:
            import execnet
        else:
            import farwire.compat as execnet
        self.execnet = execnet

    def run(self) -> Sample:
        execnet = self.execnet
        before, begun = cpu_with_children(), time.perf_counter()
        group = execnet.Group(execmodel="main_thread_only")
        specs = [execnet.XSpec("execmodel=main_thread_only//popen") for _ in range(2)]
        for spec in specs:
            group.allocate_id(spec)
        if self.name == FARWIRE:
            group.start_early(specs)
        channels = []
        for spec in specs:
            gateway = group.makegateway(spec)
            gateway._rinfo()
            channels.append(gateway.remote_exec("import execnet; execnet.dumps, execnet.DumpError; channel.send(1)"))
        assert [channel.receive() for channel in channels] == [1, 1]
        wall = time.perf_counter() - begun
        group.terminate(timeout=10)
        return {"wall": wall, "cpu": cpu_with_children() - before}


def run(bench: Bench) -> list[Row]:
    """Both."""
    names = [lib.name for lib in bench.libraries]
    count = bench.pick(2000, 100)
    contenders = ([FLOOR] if bench.floor else []) + names
    samples = bench.interleave("pytest -n 2", [Pytest(name, count) for name in contenders])
    tests = Row(f"pytest -n 2 of {count:,} tests", "s", samples.series("wall"), samples.series("cpu"))
    tests.judge("≤ 0.8x execnet", tests.cost_to(EXECNET), lambda v: v <= 0.8)
    tests.judge("CPU ≤ 0.8x execnet", tests.cpu_cost_to(EXECNET), lambda v: v <= 0.8)
    samples = bench.interleave("xdist's workers", [Workers(name) for name in names], bench.rounds * bench.pick(3, 1))
    start = Row("two workers of pytest-xdist", "ms", samples.series("wall", 1e3), samples.series("cpu", 1e3))
    start.judge("≤ 0.5x execnet", start.cost_to(EXECNET), lambda v: v <= 0.5)
    return [tests, start]
