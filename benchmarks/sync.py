"""File sync: 2,000 small files and one of 100 MiB, against ``rsync -a`` (the floor) and execnet's RSync.

Each round of a contender: everything to an empty target; again, with nothing changed; again, with 4 KiB changed in the large
file. rsync is a program, so its times include its start (over ssh: the login). The libraries sync through a gateway that is
open, as programs do; what farwire takes with the start of a gateway is in the notes.

Bytes are those of the TCP connection in both directions, less those of ``ssh host true`` for rsync, which logs in each time.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .harness import EXECNET, FARWIRE, FLOOR, Bench, Case, Row, Sample, Series
from .libraries import Library, tell_pid
from .process import Growth, cpu_of_all, cpu_with_children
from .ssh import RELAYED, Relayed
from .sshd import NoServer, PrivateServer

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1 << 20
STEPS = {"first": "to an empty target", "same": "nothing changed", "changed": "4 KiB changed in the large file"}


class Tree:
    """The source."""

    def __init__(self, bench: Bench) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="farwire-bench-sync-")
        self.path = Path(self.folder.name, "source")
        rng = random.Random(1)
        for number in range(bench.pick(2000, 200)):
            file = self.path / f"d{number % 20}" / f"f{number}.py"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(rng.randbytes(rng.randrange(200, 8000)))
        self.size = bench.pick(100, 10)
        with open(self.path / "large", "wb") as large:
            large.writelines(rng.randbytes(MIB) for _ in range(self.size))
        self._rng = rng
        self._time = int(time.time())

    def change(self) -> None:
        """4 KiB in the middle of the large file; in another second, because rsync looks no closer."""
        with open(self.path / "large", "r+b") as large:
            large.seek(self.size * MIB // 2)
            large.write(self._rng.randbytes(4096))
        self._time += 2
        os.utime(self.path / "large", (self._time, self._time))

    def close(self) -> None:
        self.folder.cleanup()


class Place:
    """Where targets are: a folder here, or in the home of a host."""

    def __init__(self, folder: str, config: Path | None = None, host: str = "") -> None:
        self.folder, self.config, self.host = folder, config, host

    @property
    def spec(self) -> str:
        return f"ssh={self.host}//ssh_config={self.config}" if self.host else "popen"

    def clear(self, name: str) -> None:
        if self.host:
            subprocess.run(
                ["ssh", "-F", str(self.config), self.host, f"rm -rf {self.folder}/{name}"],
                check=True,
                stdin=subprocess.DEVNULL,
            )
        else:
            shutil.rmtree(f"{self.folder}/{name}", ignore_errors=True)


class Cycle(Case):
    """One contender: the three steps. ``count``, where bytes are to be counted, gives those since it was last called."""

    warm = False

    def __init__(self, name: str, tree: Tree, place: Place, count: Callable[[], float] | None = None) -> None:
        super().__init__(name)
        self.tree, self.place, self.count = tree, place, count
        self.target = f"{place.folder}/{name}"

    def sync(self) -> None:
        raise NotImplementedError

    def cpu(self) -> float:
        return cpu_with_children()

    def run(self) -> Sample:
        self.place.clear(self.name)
        sample: Sample = {}
        for step in STEPS:
            if step == "changed":
                self.tree.change()
            if self.count is not None:
                self.count()
            cpu, begun = self.cpu(), time.perf_counter()
            self.sync()
            sample[step] = time.perf_counter() - begun
            sample[f"{step} cpu"] = self.cpu() - cpu
            if self.count is not None:
                sample[f"{step} bytes"] = self.count()
        return sample


class Rsync(Cycle):
    """The program."""

    def __init__(self, tree: Tree, place: Place, count: Callable[[], float] | None = None) -> None:
        super().__init__(FLOOR, tree, place, count)
        self.command = ["rsync", "-a"]
        target = self.target
        if place.host:
            self.command += ["-e", f"ssh -F {place.config}"]
            target = f"{place.host}:{target}"
        self.command += [f"{tree.path}/", target]

    def sync(self) -> None:
        subprocess.run(self.command, check=True, stdin=subprocess.DEVNULL)


class ByLibrary(Cycle):
    """RSync of a library, through an open gateway."""

    def __init__(self, library: Library, tree: Tree, place: Place, count: Callable[[], float] | None = None) -> None:
        super().__init__(library.name, tree, place, count)
        self.library = library
        self.group: Any = None
        self.gateway: Any = None
        self.worker = 0

    def open(self) -> None:
        spec = self.place.spec
        if self.library.name == EXECNET and self.place.host:
            spec += "//python=python3"
        self.group = self.library.group()
        self.gateway = self.group.makegateway(spec)
        self.worker = self.gateway.remote_exec(tell_pid).receive()

    def sync(self) -> None:
        rsync = self.library.module.RSync(str(self.tree.path), verbose=False)
        rsync.add_target(self.gateway, self.target)
        rsync.send()

    def cpu(self) -> float:
        return cpu_of_all([] if self.place.host else [self.worker])

    def close(self) -> None:
        if self.group is not None:
            self.group.terminate(timeout=5)


class WithStart(ByLibrary):
    """farwire, with a new gateway for each step."""

    def __init__(self, library: Library, tree: Tree, place: Place) -> None:
        super().__init__(library, tree, place)
        self.name = f"{library.name}, with start"
        self.target = f"{place.folder}/started"

    def open(self) -> None:
        """Nothing is kept open."""

    def sync(self) -> None:
        group = self.library.group()
        try:
            rsync = self.library.module.RSync(str(self.tree.path), verbose=False)
            rsync.add_target(group.makegateway(self.place.spec, wait=False), self.target)
            rsync.send()
        finally:
            group.terminate(timeout=5)

    def cpu(self) -> float:
        return cpu_with_children()


def _cases(bench: Bench, tree: Tree, place: Place, *, quick_only: bool = False) -> list[Case]:
    cases: list[Case] = [Rsync(tree, place)] if bench.floor else []
    for library in bench.libraries:
        cases.append(ByLibrary(library, tree, place))
        if library.name == FARWIRE:
            cases.append(WithStart(library, tree, place))
    return cases


def _rows(bench: Bench, where: str, tree: Tree, place: Place, first: float, others: float) -> list[Row]:
    samples = bench.interleave(f"sync {where}", _cases(bench, tree, place))
    rows = []
    for step, what in STEPS.items():
        series = samples.series(step, 1e3)
        started = series.pop(f"{FARWIRE}, with start", None)
        cpu = {} if place.host else samples.series(f"{step} cpu", 1e3)
        cpu.pop(f"{FARWIRE}, with start", None)
        row = Row(f"sync {where}: {what}", "ms", series, cpu)
        row.at_most_times(first if step == "first" else others, label="`rsync -a`")
        if started is not None:
            row.note(f"farwire with the start of the gateway: {started.median:.0f} ms")
        rows.append(row)
    return rows


def run(bench: Bench) -> list[Row]:
    """On this machine."""
    if shutil.which("rsync") is None:
        raise FileNotFoundError("no rsync on this machine (Debian: rsync)")
    tree = Tree(bench)
    try:
        with tempfile.TemporaryDirectory(prefix="farwire-bench-target-") as folder:
            rows = _rows(bench, "here", tree, Place(folder), 1.5, 1.5)
            return rows + _memory(bench, tree, Place(folder))
    finally:
        tree.close()


def _memory(bench: Bench, tree: Tree, place: Place) -> list[Row]:
    ends: dict[str, dict[str, Series]] = {"controller": {}, "worker": {}}
    for library in bench.libraries:
        case = ByLibrary(library, tree, place)
        case.open()
        try:
            small = library.module.RSync(str(tree.path / "d0"), verbose=False)
            small.add_target(case.gateway, f"{place.folder}/small")
            small.send()
            place.clear(library.name)
            growth = Growth(controller=os.getpid(), worker=case.worker)
            for step in STEPS:
                if step == "changed":
                    tree.change()
                case.sync()
            for end, value in growth.highest().items():
                ends[end][library.name] = Series({0: value})
        finally:
            case.close()
    return [Row(f"sync here: memory, {end}", "MiB", series, ratios=False).at_most(32) for end, series in ends.items()]


def run_ssh(bench: Bench) -> list[Row]:
    """Over ssh."""
    server = None
    if bench.ssh_config is not None:
        config, host = bench.ssh_config, bench.ssh_host
    else:
        try:
            server = PrivateServer(bench.sshd)
        except NoServer as error:
            bench.failed("sync over ssh", "the server", error)
            return []
        config, host = server.config, server.host
    tree = Tree(bench)
    relayed = None
    try:
        made = ["ssh", "-F", str(config), host, "mktemp -d"]
        folder = subprocess.run(
            made, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL
        ).stdout.strip()
        place = Place(folder, config, host)
        rows = _rows(bench, "over ssh", tree, place, 1.0, 1.5)
        relayed = Relayed(config, host)
        rows += _bytes(bench, tree, Place(folder, relayed.config, RELAYED), relayed)
        place.clear("")
        return rows
    finally:
        if relayed is not None:
            relayed.close()
        tree.close()
        if server is not None:
            server.close()


def _bytes(bench: Bench, tree: Tree, place: Place, relayed: Relayed) -> list[Row]:
    def count() -> float:
        return sum(map(int, relayed._ask("count").split())) / 1e3

    count()
    subprocess.run(["ssh", "-F", str(place.config), place.host, "true"], check=True, stdin=subprocess.DEVNULL)
    time.sleep(0.2)
    login = count()
    cases: list[Case] = [Rsync(tree, place, count)] if bench.floor else []
    cases += [ByLibrary(library, tree, place, count) for library in bench.libraries]
    samples = bench.interleave("sync over ssh, bytes", cases, 1)
    rows = []
    for step in ("same", "changed"):
        series = samples.series(f"{step} bytes")
        if FLOOR in series:
            series[FLOOR] = Series({number: value - login for number, value in series[FLOOR].values.items()})
        rows.append(Row(f"sync over ssh: bytes, {STEPS[step]}", "kB", series).at_most_times(2, label="`rsync -a`"))
    return rows
