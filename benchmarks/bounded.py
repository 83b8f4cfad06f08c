"""Memory while nobody reads, or reads slowly: how far it grows at both ends, and at the hop of ``via``.

A stream of items of 1 MiB that nobody reads, 300 MiB of it; then, for five seconds, as many small items as can be
sent to a reader that takes a thousand a second. In each direction. Afterwards the unread stream is read, and counted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .harness import Bench, Case, Row, Sample, Samples, Series
from .latency import ITEMS
from .libraries import Library, Party
from .process import Growth, limit
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


class Stream:
    """One kind of stream in one direction, from this process; once."""

    def __init__(self, library: Library, specs: list[str], *, out: bool) -> None:
        self.out = out
        self.party = Party(library, *specs)

    def run(self) -> Sample:
        """Place -> growth in MiB."""
        return self._out() if self.out else self._back()

    def _out(self) -> Sample:
        raise NotImplementedError

    def _back(self) -> Sample:
        raise NotImplementedError

    def growth(self) -> Growth:
        names = ["hop", "worker"][-len(self.party.workers) :]
        return Growth(controller=os.getpid(), **dict(zip(names, self.party.workers, strict=True)))


class Unread(Stream):
    """Large items that nobody reads, for a while."""

    count, size = 300, 1 << 20

    def _back(self) -> Sample:
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


class Flood(Stream):
    """Small items, faster than they are read."""

    def __init__(self, library: Library, specs: list[str], item: object, seconds: float, *, out: bool) -> None:
        super().__init__(library, specs, out=out)
        self.item, self.seconds = item, seconds

    def _back(self) -> Sample:
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


class Apart(Case):
    """A stream in a controller of its own: memory that this one has free already would hide the growth."""

    warm = False

    def __init__(self, library: Library, **job: Any) -> None:
        super().__init__(library.name)
        self.job = {"library": library.name, **job}

    def run(self) -> Sample:
        command = [sys.executable, "-m", "benchmarks.bounded", json.dumps(self.job)]
        path = os.pathsep.join(entry for entry in sys.path if entry)
        root = Path(__file__).resolve().parent.parent
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, cwd=root, env={**os.environ, "PYTHONPATH": path}
        )
        if done.returncode:
            raise RuntimeError(done.stderr.strip()[-2000:] or f"exit status {done.returncode}")
        sample: Sample = json.loads(done.stdout)
        return sample


def main(library: str, specs: list[str], single: str | None, seconds: float, patience: float, *, out: bool) -> None:
    """The controller of `Apart`. ``single``: the item to flood with; none for the stream that nobody reads."""
    with limit(patience):
        module = Library(library)
        stream = Flood(module, specs, ITEMS[single], seconds, out=out) if single else Unread(module, specs, out=out)
        try:
            print(json.dumps(stream.run()))
        finally:
            stream.party.close()


def run(bench: Bench) -> list[Row]:
    """All of them, over popen and over popen via popen."""
    rows = []
    seconds = bench.pick(5, 1)

    def race(what: str, **job: Any) -> None:
        rows.append(_row(what, bench.interleave(what, [Apart(lib, **job) for lib in bench.libraries], 1)))

    for path, specs in (("popen", ["popen"]), ("via", ["popen//id=hop", "popen//via=hop"])):
        for out in (True, False):
            way = "to the worker" if out else "from the worker"
            job = {"specs": specs, "seconds": seconds, "patience": bench.patience - 8, "out": out}
            race(f"300 MiB unread, {way}, {path}", single=None, **job)
            for kind, (single, _) in KINDS.items():
                if kind == "ints" or not (path == "via" or bench.quick):
                    race(f"{seconds} s of {kind} to a slow reader, {way}, {path}", single=single, **job)
    return rows


def _row(what: str, samples: Samples) -> Row:
    places = ["controller", "hop", "worker"]
    highest = {
        name: Series({n: max(sample.values()) for n, sample in taken.items()}) for name, taken in samples.taken.items()
    }
    row = Row(f"{what}: growth", "MiB", highest, ratios=False).at_most(BOUND)
    for name, taken in samples.taken.items():
        sample = taken[0]
        row.note(f"{name}: " + ", ".join(f"{place} {sample[place]:.1f}" for place in places if place in sample))
    return row


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
