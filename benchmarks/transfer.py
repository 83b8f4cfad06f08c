"""One large item at a time, to the worker or from it: the cases shared by bulk, structured and arrays.

The receiver says when it has the item, rebuilt; the time runs until the controller knows. Memory is the highest
resident size at each end, over what it was before (the sender has the item then, the receiver has not).
"""

from __future__ import annotations

import os
import time
from typing import Any

from . import floor
from .harness import FLOOR, Case, Sample
from .libraries import Library, Party
from .process import Growth, cpu_of_all


def serve(channel) -> None:
    """Worker: gives and takes what it is told to."""
    kept = None
    while True:
        command, size = channel.receive()
        if command == "make bytes":
            kept = b"x" * size
        elif command == "make array":
            import numpy as np

            kept = np.arange(size // 8, dtype=np.float64)
        elif command == "keep":
            kept = channel.receive()
        elif command == "give":
            channel.send(kept)
            continue
        elif command == "give array as bytes":
            channel.send(kept.tobytes())
            continue
        elif command == "take":
            item = channel.receive()
            channel.send(len(item))
            del item
            continue
        elif command == "take array as bytes":
            import numpy as np

            item = np.frombuffer(channel.receive())
            channel.send(len(item))
            del item
            continue
        channel.send(None)


class Transfer(Case):
    """What the two kinds of contenders have in common. ``kind``: bytes, pickle (any other item), array."""

    party: Any

    def __init__(self, name: str, kind: str, item: Any, *, out: bool) -> None:
        super().__init__(name)
        self.kind, self.item, self.out = kind, item, out
        self.size = item.nbytes if kind == "array" else len(item)

    def give(self) -> None:
        """To the worker."""
        raise NotImplementedError

    def take(self) -> Any:
        """From the worker; returns the item."""
        raise NotImplementedError

    def wait_idle(self) -> None:
        """Until the worker has let go of what it had before."""
        raise NotImplementedError

    def pid(self) -> int:
        raise NotImplementedError

    def run(self) -> Sample:
        self.wait_idle()
        pid = self.pid()
        growth = Growth(near=os.getpid(), far=pid)
        cpu, begun = cpu_of_all([pid]), time.perf_counter()
        if self.out:
            self.give()
            wall = time.perf_counter() - begun
        else:
            item = self.take()
            wall = time.perf_counter() - begun
            assert len(item) == len(self.item)
            assert item[-1] == self.item[-1]
            del item
        highest = growth.highest()
        sender, receiver = ("near", "far") if self.out else ("far", "near")
        return {
            "wall": wall,
            "cpu": cpu_of_all([pid]) - cpu,
            "sender": highest[sender],
            "receiver": highest[receiver] - self.size / (1 << 20),
        }


class Floor(Transfer):
    """Two bare Pythons with pipes of the largest size."""

    def __init__(self, kind: str, item: Any, *, out: bool) -> None:
        super().__init__(FLOOR, kind, item, out=out)
        self.pipes: floor.Pipes | None = None

    def open(self) -> None:
        self.pipes = pipes = floor.Pipes("transfer", largest=True, site=self.kind == "array")
        self.source = os.fdopen(pipes.reader, "rb", closefd=False)
        if self.out:
            return
        if self.kind == "pickle":
            os.write(pipes.writer, b"k")
            floor.send_pickle(pipes.writer, self.item)
        else:
            os.write(pipes.writer, (b"m" if self.kind == "bytes" else b"a") + floor.LONG.pack(self.size))
        assert self.source.read(1) == b"+"

    def pid(self) -> int:
        assert self.pipes is not None
        return self.pipes.pid

    def wait_idle(self) -> None:
        assert self.pipes is not None
        os.write(self.pipes.writer, b"?")
        assert self.source.read(1) == b"+"

    def give(self) -> None:
        assert self.pipes is not None
        writer = self.pipes.writer
        if self.kind == "pickle":
            os.write(writer, b"P")
            floor.send_pickle(writer, self.item)
        else:
            os.write(writer, (b"R" if self.kind == "bytes" else b"A") + floor.LONG.pack(self.size))
            floor.write_all(writer, self.item if self.kind == "bytes" else self.item.data.cast("B"))
        assert self.source.read(1) == b"+"

    def take(self) -> Any:
        assert self.pipes is not None
        if self.kind == "pickle":
            os.write(self.pipes.writer, b"p")
            return floor.receive_pickle(self.source)
        os.write(self.pipes.writer, b"r")
        if self.kind == "bytes":
            return self.source.read(self.size)
        import numpy as np

        array = np.empty(self.size // 8)
        assert self.source.readinto(array.data.cast("B")) == self.size
        return array

    def close(self) -> None:
        if self.pipes is not None:
            self.source.close()
            self.pipes.close()


class Channel(Transfer):
    """A library's channel. execnet knows no arrays: it gets their bytes, and makes an array of them at the other end."""

    def __init__(self, library: Library, kind: str, item: Any, *, out: bool, every: int = 1) -> None:
        super().__init__(library.name, kind, item, out=out)
        self.library, self.every = library, every
        self.warm = every == 1
        self.as_bytes = kind == "array" and library.name == "execnet"
        self.party: Party | None = None

    def open(self) -> None:
        self.party = Party(self.library)
        self.channel = self.party.exec(serve)
        if self.out:
            return
        if self.kind == "pickle":
            self.channel.send(("keep", 0))
            self.channel.send(self.item)
        else:
            self.channel.send((f"make {self.kind}", self.size))
        assert self.channel.receive() is None

    def pid(self) -> int:
        assert self.party is not None
        return self.party.worker

    def wait_idle(self) -> None:
        self.channel.send(("nothing", 0))
        assert self.channel.receive() is None

    def give(self) -> None:
        send = self.channel.send
        if self.as_bytes:
            send(("take array as bytes", 0))
            send(self.item.tobytes())
        else:
            send(("take", 0))
            send(self.item)
        assert self.channel.receive() == len(self.item)

    def take(self) -> Any:
        if self.as_bytes:
            import numpy as np

            self.channel.send(("give array as bytes", 0))
            return np.frombuffer(self.channel.receive())
        self.channel.send(("give", 0))
        return self.channel.receive()

    def close(self) -> None:
        if self.party is not None:
            self.party.close()
