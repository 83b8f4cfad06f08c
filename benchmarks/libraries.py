"""execnet and farwire, behind what the two have in common: groups, gateways, channels.

Functions that run in workers do not annotate ``channel``: execnet sends them as they stand, and the name of the type
would be missing there.
"""

from __future__ import annotations

import contextlib
import importlib
import time
from typing import TYPE_CHECKING, Any

from .process import Stuck, family_of, kill_leftovers, started

if TYPE_CHECKING:
    from collections.abc import Callable


def tell_pid(channel) -> None:
    """Worker: the process that runs tasks."""
    import os

    channel.send(os.getpid())


def tell_flags(channel) -> None:
    """Worker: how its interpreter was called, up to ``-c``."""
    import sys

    line = sys.orig_argv
    channel.send(line[1 : line.index("-c")])


class Library:
    """One of the two."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.module: Any = importlib.import_module(name)

    @property
    def version(self) -> str:
        return str(getattr(self.module, "__version__", "?"))

    def group(self) -> Any:
        return self.module.Group()

    def makegateways(self, group: Any, specs: list[str]) -> list[Any]:
        """Several at once where the library can; ``specs`` may be like ``50*popen``."""
        if hasattr(group, "makegateways"):
            group.makegateways(specs)
            return list(group)
        for spec in specs:
            count, star, single = spec.partition("*")
            for _ in range(int(count) if star else 1):
                group.makegateway(single if star else spec)
        return list(group)


class Party:
    """A group of a library's own, its gateways' workers, and an end that always comes."""

    def __init__(self, library: Library, *specs: str) -> None:
        self.library = library
        self.group = library.group()
        self.gateways: list[Any] = []
        self.workers: list[int] = []
        try:
            for spec in specs or ("popen",):
                gateway = self.group.makegateway(spec)
                self.gateways.append(gateway)
                self.workers.append(gateway.remote_exec(tell_pid).receive())
        except (Exception, Stuck):
            self.close()
            raise

    @property
    def gateway(self) -> Any:
        """The last one: where several are, the others lead to it."""
        return self.gateways[-1]

    @property
    def worker(self) -> int:
        return self.workers[-1]

    def exec(self, function: Callable[..., None], **kwargs: Any) -> Any:
        """Run a function in the last worker."""
        return self.gateway.remote_exec(function, **kwargs)

    def close(self) -> None:
        """End the gateways; what outlives that by a second is killed, and an error raised."""
        family: dict[int, int] = {}
        for worker in self.workers:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                family.update({pid: started(pid) for pid in family_of(worker)})
        try:
            self.group.terminate(timeout=5)
        finally:
            end = time.monotonic() + 1
            while any(when and started(pid) == when for pid, when in family.items()) and time.monotonic() < end:
                time.sleep(0.02)
            left = kill_leftovers(family)
        if left:
            raise RuntimeError(f"{len(left)} processes outlived terminate()")


def interpreter_flags(library: Library | None) -> list[str]:
    """The flags that farwire gives to the interpreters it starts; a bare one gets the same."""
    if library is None:
        return []
    party = Party(library)
    try:
        return list(party.exec(tell_flags).receive())
    finally:
        party.close()


def find(name: str) -> Library | None:
    """A library, or None when it is not there or not usable (yet)."""
    try:
        library = Library(name)
    except ImportError:
        return None
    return library if hasattr(library.module, "Group") else None


__all__ = ["Library", "Party", "find", "interpreter_flags", "tell_pid"]
