"""Memory while nobody reads, or reads slowly: how far it grows at both ends, and at the hop of ``via``.

A stream of items of 1 MiB that nobody reads, 300 MiB of it; then, for five seconds, as many small items as can be
sent to a reader that takes a thousand a second. In each direction. Afterwards the unread stream is read, and counted.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Any

from .harness import Bench, Case, Row, Sample, Series
from .latency import ITEMS
from .libraries import Library, Party
from .process import Growth
from .stream import KINDS

if TYPE_CHECKING:
    from collections.abc import Callable

BOUND = 16


def give_stream(channel, count, size) -> None:
    """Worker: large items, once told to."""
    item = b"x" * size
    channel.send("ready")
    channel.receive()
    for _ in range(count):
        channel.send(item)


def take_stream(channel) -> None:
    """Worker: reads its channel only when told to over another; says how many items there were."""
    control = channel.receive()
    control.send("ready")
    count = control.receive()
    for _ in range(count):
        channel.receive()
    control.send(count)


def flood(channel, item, seconds) -> None:
    """Worker: small items for some time."""
    import time

    channel.send("ready")
    channel.receive()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        channel.send(item)


def read_slowly(channel) -> None:
    """Worker: about a thousand items a second."""
    import time

    channel.send("ready")
    while True:
        channel.receive()
        time.sleep(0.001)


class Bounded(Case):
    """One kind of stream in one direction; once."""

    warm = False

    def __init__(self, library: Library, specs: tuple[str, ...], *, out: bool) -> None:
        super().__init__(library.name)
        self.library, self.specs, self.out = library, specs, out
        self.party: Party | None = None

    def open(self) -> None:
        self.party = Party(self.library, *self.specs)

    def growth(self) -> Growth:
        assert self.party is not None
        names = ["hop", "worker"][-len(self.party.workers) :]
        return Growth(controller=os.getpid(), **dict(zip(names, self.party.workers, strict=False)))

    def close(self) -> None:
        if self.party is not None:
            self.party.close()


class Unread(Bounded):
    """Large items that nobody reads, for a while."""

    count, size = 300, 1 << 20

    def run(self) -> Sample:
        return self._out() if self.out else self._back()

    def _back(self) -> Sample:
        assert self.party is not None
        channel = self.party.exec(give_stream, count=self.count, size=self.size)
        assert channel.receive() == "ready"
        growth = self.growth()
        channel.send("go")
        growth.settle(20)
        highest = growth.highest()
        for _ in range(self.count):
            assert len(channel.receive()) == self.size
        return highest

    def _out(self) -> Sample:
        assert self.party is not None
        channel, control = self.party.exec(take_stream), self.party.gateway.newchannel()
        channel.send(control)
        assert control.receive() == "ready"
        item = b"x" * self.size
        growth = self.growth()
        sender = in_background(lambda: [channel.send(item) for _ in range(self.count)])
        growth.settle(20)
        highest = growth.highest()
        control.send(self.count)
        assert control.receive() == self.count
        sender.join()
        return highest


class Flood(Bounded):
    """Small items, faster than they are read."""

    def __init__(self, library: Library, specs: tuple[str, ...], item: object, seconds: float, *, out: bool) -> None:
        super().__init__(library, specs, out=out)
        self.item, self.seconds = item, seconds

    def run(self) -> Sample:
        return self._out() if self.out else self._back()

    def _back(self) -> Sample:
        assert self.party is not None
        channel = self.party.exec(flood, item=self.item, seconds=self.seconds)
        assert channel.receive() == "ready"
        growth = self.growth()
        channel.send("go")
        end = time.monotonic() + self.seconds
        while time.monotonic() < end:
            channel.receive()
            time.sleep(0.001)
        return growth.highest()

    def _out(self) -> Sample:
        assert self.party is not None
        channel = self.party.exec(read_slowly)
        assert channel.receive() == "ready"
        growth = self.growth()
        end = time.monotonic() + self.seconds

        def send() -> None:
            while time.monotonic() < end:
                channel.send(self.item)

        in_background(send)
        time.sleep(max(0.0, end - time.monotonic()))
        return growth.highest()


def in_background(function: Callable[[], Any]) -> threading.Thread:
    """A thread that ends quietly when its channel goes."""

    def body() -> None:
        try:
            function()
        except (OSError, EOFError):
            pass  # terminate() came while it waited for somebody to read

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    return thread


def run(bench: Bench) -> list[Row]:
    """All of them, over popen and over popen via popen."""
    rows = []
    seconds = bench.pick(5, 1)
    for path, specs in (("popen", ("popen",)), ("via", ("popen//id=hop", "popen//via=hop"))):
        for out in (True, False):
            way = "to the worker" if out else "from the worker"
            rows += _rows(bench, f"300 MiB unread, {way}, {path}", [Unread(x, specs, out=out) for x in bench.libraries])
            for kind, (single, _) in KINDS.items():
                if kind != "ints" and (path == "via" or bench.quick):
                    continue
                cases = [Flood(x, specs, ITEMS[single], seconds, out=out) for x in bench.libraries]
                rows += _rows(bench, f"{seconds} s of {kind} to a slow reader, {way}, {path}", cases)
    return rows


def _rows(bench: Bench, what: str, cases: list[Any]) -> list[Row]:
    samples = bench.interleave(what, cases, 1)
    places = ["controller", "hop", "worker"]
    highest = {
        name: Series({n: max(sample.values()) for n, sample in taken.items()}) for name, taken in samples.taken.items()
    }
    row = Row(f"{what}: growth", "MiB", highest, ratios=False).at_most(BOUND)
    for name, taken in samples.taken.items():
        sample = taken[0]
        row.note(f"{name}: " + ", ".join(f"{place} {sample[place]:.1f}" for place in places if place in sample))
    return [row]
