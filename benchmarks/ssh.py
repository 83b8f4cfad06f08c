"""ssh: time, bytes and round trips to the first result.

Bytes are those of the TCP connection, key exchange included, counted by a relay. Round trips are the slope of the time
over the relay's delay (0, 100 and 200 ms there and back; the fastest of the rounds at each), less that of ``ssh host
true``.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .harness import EXECNET, FARWIRE, FLOOR, Bench, Case, Row, Sample, Series, Simple
from .sshd import NoServer, PrivateServer
from .start import answer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .libraries import Library

RELAYED = "farwire-bench-relayed"
TRUE, WAITING = "ssh true", "farwire, waiting"


class Relayed:
    """The relay's process, and an ssh configuration where the host `RELAYED` is ``host`` through it."""

    def __init__(self, config: Path, host: str) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="farwire-bench-")
        said = subprocess.run(["ssh", "-F", config, "-G", host], check=True, capture_output=True, text=True).stdout
        options = [line.partition(" ")[::2] for line in said.splitlines()]
        values = dict(options)
        name, port = values["hostname"], values["port"]
        self.process = subprocess.Popen(
            [sys.executable, "-E", str(Path(__file__).with_name("relay.py")), name, port],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        here = self._read()
        alias = values.get("hostkeyalias") or (name if port == "22" else f"[{name}]:{port}")
        lines = [f"HostName 127.0.0.1\nPort {here}\nHostKeyAlias {alias}\nCheckHostIP no\nUser {values['user']}\n"]
        kept = {"identityfile", "identitiesonly", "userknownhostsfile", "globalknownhostsfile", "batchmode", "loglevel"}
        lines += [f"{key} {value}\n" for key, value in options if key in kept]
        self.config = Path(self.folder.name, "config")
        self.config.write_text(f"Host {RELAYED}\n" + "".join(lines), encoding="utf-8")

    def _read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def _ask(self, line: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        return self._read()

    def delay(self, seconds: float) -> None:
        """One way."""
        self._ask(f"delay {seconds}")

    def sent(self) -> int:
        """Bytes sent towards the host since the last time."""
        return int(self._ask("count").split()[0])

    def close(self) -> None:
        self.process.communicate()
        self.folder.cleanup()


class FirstResult(Case):
    """A library over ssh. ``wait=False`` is farwire's way not to wait for the worker before it sends the task."""

    def __init__(self, library: Library, config: Path, host: str, *, wait: bool, name: str = "") -> None:
        super().__init__(name or library.name)
        self.library, self.wait = library, wait
        self.spec = f"ssh={host}//ssh_config={config}"
        if library.name == EXECNET:
            self.spec += "//python=python3"
        self.group: Any = None

    def run(self) -> Sample:
        self.group = group = self.library.group()
        options = {} if self.wait else {"wait": False}
        begun = time.perf_counter()
        assert group.makegateway(self.spec, **options).remote_exec(answer).receive() == 1
        wall = time.perf_counter() - begun
        group.terminate(timeout=5)
        self.group = None
        return {"wall": wall}

    def close(self) -> None:
        if self.group is not None:  # of a round that failed
            self.group.terminate(timeout=5)


def _command(config: Path, host: str, *command: str) -> Callable[[], Sample]:
    def run() -> Sample:
        begun = time.perf_counter()
        subprocess.run(["ssh", "-F", config, host, *command], check=True, stdin=subprocess.DEVNULL)
        return {"wall": time.perf_counter() - begun}

    return run


def _cases(bench: Bench, config: Path, host: str) -> list[Case]:
    cases: list[Case] = [
        Simple(TRUE, _command(config, host, "true")),
        Simple(FLOOR, _command(config, host, "python3", "-c", "pass")),
    ]
    for library in bench.libraries:
        cases.append(FirstResult(library, config, host, wait=library.name != FARWIRE))
        if library.name == FARWIRE:
            cases.append(FirstResult(library, config, host, wait=True, name=WAITING))
    return cases


class Counted(Case):
    """Another case, and the bytes that it sent."""

    def __init__(self, case: Case, relayed: Relayed) -> None:
        super().__init__(case.name)
        self.case, self.relayed, self.warm = case, relayed, False

    def run(self) -> Sample:
        self.relayed.sent()
        self.case.run()
        return {"sent": self.relayed.sent() / 1e3}

    def close(self) -> None:
        self.case.close()


class Sloped(Case):
    """Another case at several distances: distance in ms -> seconds."""

    def __init__(self, case: Case, relayed: Relayed, there_and_back: tuple[int, ...]) -> None:
        super().__init__(case.name)
        self.case, self.relayed, self.distances, self.warm = case, relayed, there_and_back, False

    def run(self) -> Sample:
        times = {}
        try:
            for distance in self.distances:
                self.relayed.delay(distance / 2000)
                times[str(distance)] = self.case.run()["wall"]
        finally:
            self.relayed.delay(0)
        return times

    def close(self) -> None:
        self.case.close()


def slope_of(rounds: Iterable[Sample]) -> float:
    """Seconds more per second of distance, from the fastest run at each: what else the machine does only adds."""
    rounds = list(rounds)
    best = {int(distance) / 1000: min(taken[distance] for taken in rounds) for distance in rounds[0]}
    mean_x, mean_y = sum(best) / len(best), sum(best.values()) / len(best)
    above = sum((x - mean_x) * (y - mean_y) for x, y in best.items())
    return above / sum((x - mean_x) ** 2 for x in best)


def run(bench: Bench) -> list[Row]:
    """Against the given host, or a private server."""
    server = None
    if bench.ssh_config is not None:
        config, host = bench.ssh_config, bench.ssh_host
    else:
        try:
            server = PrivateServer(bench.sshd)
        except NoServer as error:
            bench.failed("ssh", "the server", error)
            return []
        config, host = server.config, server.host
    relayed = None
    try:
        relayed = Relayed(config, host)
        return _rows(bench, config, host, relayed)
    finally:
        if relayed is not None:
            relayed.close()
        if server is not None:
            server.close()


def _rows(bench: Bench, config: Path, host: str, relayed: Relayed) -> list[Row]:
    named = {EXECNET, FARWIRE, FLOOR}

    def shown(series: dict[str, Series]) -> dict[str, Series]:
        return {name: values for name, values in series.items() if name in named}

    wall = bench.interleave("ssh, time", _cases(bench, config, host), bench.rounds * bench.pick(2, 1)).series(
        "wall", 1e3
    )
    first = Row("ssh to the first result", "ms", shown(wall)).at_most_times(1.15, label="`ssh host python3 -c pass`")
    for name in (TRUE, WAITING):
        if name in wall:
            first.note(f"{name}: {wall[name].median:.0f} ms")
    first.note("farwire: `wait=False`; *waiting* is plain `makegateway(spec)`, which returns when the worker is there")

    counted: list[Case] = [Counted(case, relayed) for case in _cases(bench, relayed.config, RELAYED)]
    sent = bench.interleave("ssh, bytes", counted, bench.at_most(bench.pick(2, 1))).series("sent")
    size = Row("ssh to the first result: sent", "kB", shown(sent)).at_most(16)
    if TRUE in sent:
        size.note(f"{TRUE}: {sent[TRUE].median:.1f} kB")

    distances = (0, 200) if bench.quick else (0, 100, 200)
    sloped: list[Case] = [Sloped(case, relayed, distances) for case in _cases(bench, relayed.config, RELAYED)]
    taken = bench.interleave("ssh, distance", sloped, bench.at_most(bench.pick(3, 1))).taken
    slope = {name: Series({0: slope_of(rounds.values())}) for name, rounds in taken.items()}
    beyond = {n: s.minus(slope[TRUE]) for n, s in slope.items() if TRUE in slope and n != TRUE}
    trips = Row("ssh to the first result: round trips beyond `ssh host true`", "", shown(beyond), ratios=False)
    mine = beyond.get(FARWIRE)
    trips.judge("≤ 1", mine.median if mine else None, lambda v: round(v, 1) <= 1)
    if TRUE in slope:
        trips.note(f"{TRUE} itself: {slope[TRUE].median:.1f}")
    if WAITING in beyond:
        trips.note(f"{WAITING}: {beyond[WAITING].median:.1f}")
    return [first, size, trips]
