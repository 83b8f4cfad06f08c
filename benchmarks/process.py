"""What processes cost: CPU time, memory, threads; and holding them on one core. Linux only, from outside."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import resource
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import FrameType

MIB = 1 << 20


class Stuck(BaseException):
    """A step took longer than its limit. No ``Exception``, so that the code under test cannot swallow it."""


@contextlib.contextmanager
def limit(seconds: float) -> Iterator[None]:
    """Raise `Stuck` in the main thread when the block takes longer than ``seconds``."""

    def ring(signum: int, frame: FrameType | None) -> None:
        raise Stuck(f"nothing after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# ---------------------------------------------------------------- CPU


def cpu_of(pid: int) -> float:
    """Seconds of CPU that a live process has used, all threads, to the nanosecond."""
    return time.clock_gettime((~pid << 3) | 2)  # the kernel's name for that process's CPU clock


def cpu_of_all(pids: Iterable[int]) -> float:
    """Seconds of CPU used by this process and the given live ones."""
    return time.process_time() + sum(map(cpu_of, pids))


def cpu_with_children() -> float:
    """Seconds of CPU used by this process and by all its children and theirs that have been reaped."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


# ---------------------------------------------------------------- cores


def threads_of(pid: int) -> list[int]:
    """The kernel's ids of a process's threads."""
    return [int(name) for name in os.listdir(f"/proc/{pid}/task")]


@contextlib.contextmanager
def on_one_core(pids: Iterable[int], *, really: bool = True) -> Iterator[None]:
    """Hold every thread of this process and of ``pids`` on one core, so that the wake-up of an idle core plays no part."""
    if not really:
        yield
        return
    allowed = os.sched_getaffinity(0)
    everyone = [os.getpid(), *pids]
    _set_affinity(everyone, {max(allowed)})
    try:
        yield
    finally:
        _set_affinity(everyone, allowed)


def _set_affinity(pids: Iterable[int], cores: set[int]) -> None:
    for pid in pids:
        with contextlib.suppress(FileNotFoundError):
            for thread in threads_of(pid):
                with contextlib.suppress(ProcessLookupError):
                    os.sched_setaffinity(thread, cores)


# ---------------------------------------------------------------- memory


def _kib(path: str, *keys: str) -> float:
    """The sum of some fields of a /proc file that counts in kB, in MiB."""
    total = 0
    for line in Path(path).read_text(encoding="ascii").splitlines():
        key, _, value = line.partition(":")
        if key in keys:
            total += int(value.split()[0])
    return total / 1024


def resident(pid: int) -> float:
    """MiB in memory now."""
    return _kib(f"/proc/{pid}/status", "VmRSS")


def give_back() -> None:
    """Return to the system what this process has freed, as far as it can: what is free already hides growth."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


class Growth:
    """How far the memory of some processes rose above where it stood when this was made, at its highest."""

    def __init__(self, **pids: int) -> None:
        self._pids = pids
        self._before: dict[str, float] = {}
        if os.getpid() in pids.values():
            give_back()
        for name, pid in pids.items():
            Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")  # forget the high-water mark
            self._before[name] = resident(pid)

    def highest(self) -> dict[str, float]:
        """Name -> MiB."""
        return {name: _kib(f"/proc/{pid}/status", "VmHWM") - self._before[name] for name, pid in self._pids.items()}

    def settle(self, longest: float) -> None:
        """Wait until nothing has moved for a second, at most ``longest`` seconds."""
        end, still, last = time.monotonic() + longest, 0, [-1.0] * len(self._pids)
        while still < 4 and time.monotonic() < end:
            time.sleep(0.25)
            now = [resident(pid) for pid in self._pids.values()]
            still = still + 1 if all(abs(a - b) < 0.5 for a, b in zip(now, last, strict=True)) else 0
            last = now


def private(pids: Iterable[int]) -> tuple[float, float]:
    """Memory in MiB that would be free if these processes ended: by USS alone, and with what only they share, once.

    A worker and the guard that it forked share anonymous pages with each other. USS counts those for neither of them,
    though nobody else has them. ``Anonymous - Pss_Anon`` is half of them in each of two processes.
    """
    uss = shared = 0.0
    for pid in pids:
        path = f"/proc/{pid}/smaps_rollup"
        uss += _kib(path, "Private_Clean", "Private_Dirty", "Private_Hugetlb")
        shared += _kib(path, "Anonymous") - _kib(path, "Pss_Anon")
    return uss, uss + shared


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on."""
    text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    return text.rpartition(")")[2].split()


def parent_of(pid: int) -> int:
    """The process that would reap this one."""
    return int(_stat(pid)[1])


def started(pid: int) -> int:
    """When a process was started; with its number this names it for good, and 0 means that there is none (any more)."""
    try:
        fields = _stat(pid)
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0 if fields[0] == "Z" else int(fields[19])


def family_of(worker: int) -> list[int]:
    """A worker, what stands between it and this process (its guard), and what they have started.

    Just the worker's own side when it does not descend from this process (ssh to this very machine).
    """
    above, pid = [worker], parent_of(worker)
    while pid not in {0, 1, os.getpid()}:
        above.append(pid)
        pid = parent_of(pid)
    family = above if pid == os.getpid() else [worker]
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                parents[int(entry)] = parent_of(int(entry))
    for member in family:  # grows meanwhile
        family += [child for child, parent in parents.items() if parent == member and child not in family]
    return family


def kill_leftovers(family: dict[int, int]) -> list[int]:
    """End what the code under test has left behind, of processes given as number -> when started; says which."""
    left = [pid for pid, when in family.items() if when and started(pid) == when]
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return left
