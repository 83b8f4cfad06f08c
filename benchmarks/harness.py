"""Contenders in turn, medians, ratios, verdicts.

A *case* is one contender in one workload: it opens (processes, gateways), runs a round as often as it is asked, each
giving a *sample* (named numbers), and closes. `Bench.interleave` runs the cases of a workload A B C A B C ..., so that
what else goes on at the machine hits all of them alike. A *row* of the table is made from one number of all samples;
its ratios are medians of the ratios within each round.
"""

from __future__ import annotations

import statistics
import sys
import time
import traceback
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from .process import Stuck, limit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from .libraries import Library

Sample = dict[str, float]

FLOOR, EXECNET, FARWIRE = "floor", "execnet", "farwire"


class Case:
    """One contender in one workload."""

    name: str
    every: int = 1  # takes part in each such round only; for contenders that take very long
    warm: bool = True  # a round before the first, not counted

    def __init__(self, name: str) -> None:
        self.name = name

    def open(self) -> None:
        """Start what the rounds need."""

    def run(self) -> Sample:
        """One round."""
        raise NotImplementedError

    def close(self) -> None:
        """End what was started; called also when a round failed."""


class Simple(Case):
    """A case without anything to open or close."""

    def __init__(self, name: str, run: Callable[[], Sample], *, every: int = 1, warm: bool = True) -> None:
        super().__init__(name)
        self._run, self.every, self.warm = run, every, warm

    def run(self) -> Sample:
        return self._run()


class Series:
    """One number of one contender, by round."""

    def __init__(self, values: Mapping[int, float]) -> None:
        self.values = dict(values)

    def __bool__(self) -> bool:
        return bool(self.values)

    @property
    def median(self) -> float:
        return statistics.median(self.values.values())

    @property
    def worst(self) -> float:
        return max(self.values.values())

    def over(self, other: Series) -> float | None:
        """The median of the ratios within each round, or None when there are none."""
        ratios = [v / other.values[n] for n, v in self.values.items() if other.values.get(n)]
        return statistics.median(ratios) if ratios else None

    def minus(self, other: Series) -> Series:
        return Series({n: v - other.values[n] for n, v in self.values.items() if n in other.values})

    def scaled(self, factor: float) -> Series:
        return Series({n: v * factor for n, v in self.values.items()})


@dataclass
class Samples:
    """Everything that one interleaved run of cases gave: contender -> round -> sample."""

    taken: dict[str, dict[int, Sample]] = field(default_factory=dict)

    def series(self, key: str, scale: float = 1.0) -> dict[str, Series]:
        """One number of all contenders that gave it."""
        found = {
            name: Series({n: sample[key] * scale for n, sample in rounds.items() if key in sample})
            for name, rounds in self.taken.items()
        }
        return {name: series for name, series in found.items() if series}


@dataclass
class Check:
    """One target: what was asked for, and what came out."""

    text: str
    value: float | None
    met: bool | None


@dataclass
class Row:
    """One line of the table."""

    what: str
    unit: str
    figures: dict[str, Series]
    cpu: dict[str, Series] = field(default_factory=dict)
    higher_is_better: bool = False
    ratios: bool = True
    checks: list[Check] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def cost_to(self, other: str) -> float | None:
        """How many times what ``other`` needs farwire needs."""
        if FARWIRE not in self.figures or other not in self.figures or not self.ratios:
            return None
        mine, theirs = self.figures[FARWIRE], self.figures[other]
        return theirs.over(mine) if self.higher_is_better else mine.over(theirs)

    def cpu_cost_to(self, other: str) -> float | None:
        """The same for CPU time, which other work on the machine hardly moves."""
        if FARWIRE not in self.cpu or other not in self.cpu:
            return None
        return self.cpu[FARWIRE].over(self.cpu[other])

    def gain_on(self, other: str) -> float | None:
        """How many times better farwire is."""
        cost = self.cost_to(other)
        return 1 / cost if cost else None

    def judge(self, text: str, value: float | None, passes: Callable[[float], bool]) -> Row:
        """Add a target."""
        self.checks.append(Check(text, value, None if value is None else bool(passes(value))))
        return self

    def at_most_times(self, factor: float, other: str = FLOOR, *, label: str = "") -> Row:
        return self.judge(f"≤ {factor:g}x {label or other}", self.cost_to(other), lambda v: v <= factor)

    def at_least_times_better(self, factor: float, other: str = EXECNET) -> Row:
        return self.judge(f"{factor:g}x {other}", self.gain_on(other), lambda v: v >= factor)

    def at_most(self, bound: float, *, of: Mapping[str, Series] | None = None, label: str = "") -> Row:
        """A bound on farwire's own median (``of``: of another number than the row's)."""
        series = (self.figures if of is None else of).get(FARWIRE)
        text = f"{label + ' ' if label else ''}≤ {bound:g} {self.unit}"
        return self.judge(text, series.median if series else None, lambda v: v <= bound)

    def at_most_cpu(self, bound: float) -> Row:
        return self.at_most(bound, of=self.cpu, label="CPU")

    def note(self, text: str) -> Row:
        self.notes.append(text)
        return self

    @property
    def verdict(self) -> str:
        verdicts = [c.met for c in self.checks]
        if not verdicts:
            return ""
        if False in verdicts:
            return "**no**"
        return "?" if None in verdicts else "yes"


@dataclass
class Bench:
    """One run of the program: what it was asked for, and what went wrong so far."""

    rounds: int
    quick: bool
    libraries: list[Library]
    floor: bool = True
    ssh_config: Path | None = None
    ssh_host: str = ""
    sshd: str = ""
    failures: list[str] = field(default_factory=list)

    @property
    def patience(self) -> float:
        """Seconds that one step may take: far more than any needs."""
        return self.pick(60, 20)

    def pick(self, full: int, quick: int) -> int:
        """A size or count, by the kind of run."""
        return quick if self.quick else full

    def at_most(self, rounds: int) -> int:
        """The number of rounds, for workloads that cannot afford many."""
        return max(1, min(self.rounds, rounds))

    def library(self, name: str) -> Library | None:
        return next((lib for lib in self.libraries if lib.name == name), None)

    def log(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def failed(self, what: str, who: str, error: BaseException) -> None:
        """Keep what went wrong; the run goes on without that contender."""
        said = str(error).strip().splitlines() or ["(no message)"]
        text = f"{what}: {who}: {type(error).__name__}: "
        self.failures.append(text + said[-1][:300])
        self.log("FAILED " + text + "\n  ".join(said))
        frames = traceback.extract_tb(error.__traceback__)[-4:]
        self.log("".join(traceback.format_list(frames)).rstrip())

    def interleave(self, what: str, cases: Iterable[Case], rounds: int | None = None) -> Samples:
        """Run the cases in turn; a step that takes longer than `patience` counts as stuck."""
        begun = time.monotonic()
        rounds = self.rounds if rounds is None else rounds
        samples = Samples()
        racing: list[Case] = []
        opened: list[Case] = []
        for case in cases:
            opened.append(case)
            if self._step(what, case, partial(self._open, case)) is not None:
                racing.append(case)
        for number in range(rounds):
            first = number % len(racing) if racing else 0
            for case in racing[first:] + racing[:first]:  # everybody comes after everybody
                if number % case.every:
                    continue
                sample = self._step(what, case, case.run)
                if sample is None:
                    racing.remove(case)
                else:
                    samples.taken.setdefault(case.name, {})[number] = sample
        for case in opened:
            self._step(what, case, partial(self._close, case), 30)
        self.log(f"  {what}: {time.monotonic() - begun:.1f} s")
        return samples

    @staticmethod
    def _open(case: Case) -> Sample:
        case.open()
        return case.run() if case.warm else {}

    @staticmethod
    def _close(case: Case) -> Sample:
        case.close()
        return {}

    def _step(self, what: str, case: Case, step: Callable[[], Sample], seconds: float = 0) -> Sample | None:
        try:
            with limit(seconds or self.patience):
                return step()
        except (Exception, Stuck) as error:
            self.failed(what, case.name, error)
            return None


def percentile(ordered: Sequence[float], share: float) -> float:
    """Of sorted values, the one below which ``share`` of them lie."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
