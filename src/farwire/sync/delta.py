"""Which parts of a file the other end has already.

The end that has an old version (the *basis*) describes it in blocks: for each the first 8 bytes (its *head*) and 8 bytes of a
salted SHA-256. The salt is random and new for each file, so nobody can prepare contents whose hashes agree.

The end that has the new version goes through it with C-speed means only, because a window that rolls byte by byte takes Python a
second for 10 MB:

1. Compare the block here with the block that is due there. While they agree, that is a hash of each byte, once.
2. If not: are the blocks after it as they should be? Then something was changed in its place.
3. If not: something was put in or taken out. Look for the heads of the blocks that are due (``bytes.find``) and, from here on for
   the length of a block, for the head of any block (a dictionary). What has a head is taken for a block if its hash agrees.
4. Nothing found: a stretch of new data. After several such stretches in a row, look at every second, fourth, ... only: most
   likely everything is new.
"""

from __future__ import annotations

import os
from hashlib import sha256

from .files import read_at

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HEAD = 8
HASH = 8
ROW = HEAD + HASH
SALT = 16
SMALLEST = 4096
WHOLE = 65536  # smaller files are one block: they are the same or they are sent
AHEAD = 8  # blocks that are looked at, or looked for, after one that differs
STRETCH = 1 << 20  # how far to look for the heads that are due
CANDIDATES = 64  # per stretch: places that have a head and turn out to be something else
READ = 1 << 20
PIECE = 4 << 20  # of the basis: what is described at a time
LARGEST = 16 << 20
# The tables take 400 bytes for each block; in files with more blocks (beyond 64 GiB) nothing is looked for that has moved.
TABLE_MAX = 65536


def block_size(size: int) -> int:
    """For a file of this size: the description and one block, which is what a small change costs, are about equally large."""
    if size < WHOLE:
        return max(size, 1)
    block = SMALLEST
    while block * block * 4 <= size * ROW and block < LARGEST:
        block *= 2
    return block


def describe(read: Callable[[memoryview, int], int], size: int, block: int, salt: bytes) -> Iterator[bytes]:
    """The basis, block by block, in pieces: so the other end can compare the first while we read on.

    Args:
        read: fills a buffer from an offset; returns how much of it.
    """
    seed = sha256(salt)
    step = max(READ // block, 1) * block
    piece = max(PIECE, size // 64)
    rows: list[bytes] = []
    described = 0
    buffer = memoryview(bytearray(min(step, size)))
    for offset in range(0, size, step):
        data = buffer[: min(step, size - offset)]
        data = data[: read(data, offset)]
        for start in range(0, len(data), block):
            part = data[start : start + block]
            mixed = seed.copy()
            mixed.update(part)
            rows.append(bytes(part[:HEAD]).ljust(HEAD, b"\0"))
            rows.append(mixed.digest()[:HASH])
        if offset + step - described >= piece:
            described = offset + step
            yield b"".join(rows)
            rows = []
    if rows:
        yield b"".join(rows)


def rows_size(size: int, block: int) -> int:
    """Bytes of the whole description."""
    return -(-size // block) * ROW


class Matcher:
    """Finds the parts of a file that the basis has.

    Args:
        fd: the new file.
        size: how much of it counts.
        basis: size of the basis.
        block: size of its blocks.
        salt: what ``describe`` took.
        rows: the first that it gave.
        more: waits for what else it gave, in its order; called only as long as something is to come.
    """

    def __init__(
        self, fd: int, size: int, basis: int, block: int, salt: bytes, rows: bytes, more: Callable[[], bytes]
    ) -> None:
        self.fd = fd
        self.size = size
        self.basis = basis
        self.block = block
        self.seed = sha256(salt)
        self.rows = bytearray(rows)
        self.more = more
        self.count = -(-basis // block)
        self._buffer = memoryview(bytearray(min(max(READ // block, 1) * block, size)))
        self._heads: dict[bytes, int] | None = None
        self._hashes: dict[bytes, int] | None = None

    def parts(self) -> Iterator[tuple[int, int, int]]:
        """``(offset in the basis or -1 for new data, offset in the file, length)``, in order, all of the file.

        Ends early when the file has become shorter.
        """
        if not self.count:
            if self.size:
                yield -1, 0, self.size
            return
        run = (0, 0, 0)  # a part that may still grow
        for origin, start, length in self._matches():
            last, begun, so_far = run
            if so_far and (last < 0) == (origin < 0) and (origin < 0 or last + so_far == origin):
                run = (last, begun, so_far + length)
            else:
                if so_far:
                    yield run
                run = (origin, start, length)
        if run[2]:
            yield run

    def _matches(self) -> Iterator[tuple[int, int, int]]:
        at, due, misses = 0, 0, 0
        block, size = self.block, self.size
        while at < size:
            good = self._run(at, due)
            if good:
                yield due * block, at, good
                at += good
                due += -(-good // block)
                misses = 0
                continue
            length, found = self._search(at, due, misses)
            if not length:
                if found < 0:
                    return  # the file is shorter than it was
                due = found
                continue
            yield -1, at, length
            at += length
            misses = misses + 1 if found < 0 else 0
            due = found if found >= 0 else due + length // block

    def _digest(self, data: bytes | memoryview) -> bytes:
        mixed = self.seed.copy()
        mixed.update(data)
        return mixed.digest()[:HASH]

    def _length(self, index: int) -> int:
        """Of a block of the basis; the last may be shorter."""
        return min(self.block, self.basis - index * self.block) if 0 <= index < self.count else 0

    def _row(self, index: int) -> tuple[bytes, bytes]:
        """Head and hash of a block."""
        end = (index + 1) * ROW
        while len(self.rows) < end:
            self.rows += self.more()
        return bytes(self.rows[end - ROW : end - HASH]), bytes(self.rows[end - HASH : end])

    def _same(self, at: int, index: int) -> bool:
        length = self._length(index)
        if not length or at + length > self.size:
            return False
        data = self._buffer[:length]
        return read_at(self.fd, data, at) == length and self._digest(data) == self._row(index)[1]

    def _run(self, at: int, due: int) -> int:
        """How many bytes from here on are the blocks from ``due`` on; one reading's worth at most."""
        first = self._length(due)
        if not first or at + first > self.size:
            return 0
        data = self._buffer[: self.size - at]
        data = data[: read_at(self.fd, data, at)]
        good = 0
        while True:
            length = self._length(due)
            if not length or good + length > len(data):
                return good
            if self._digest(data[good : good + length]) != self._row(due)[1]:
                return good
            good += length
            due += 1

    def _search(self, at: int, due: int, misses: int) -> tuple[int, int]:
        """What to do where a block differs: ``(length of new data, block after it or -1)``."""
        block, size = self.block, self.size
        for ahead in range(1, AHEAD + 1):
            if due + ahead < self.count and self._same(at + ahead * block, due + ahead):
                return ahead * block, due + ahead
        stretch = min(max(STRETCH, 4 * block), size - at)
        skip = misses >= 4 and misses & (misses - 1)  # at 4, 8, 16, ... stretches without a find, one is searched
        if skip or self.count > TABLE_MAX:
            return stretch, -1
        data = os.pread(self.fd, min(stretch + block, size - at), at)
        if not data:
            return 0, -1
        place, index = self._find(data, due)
        if index >= 0:
            return place, index
        return min(stretch, len(data)), -1

    def _find(self, data: bytes, due: int) -> tuple[int, int]:
        """The first place in ``data`` that is a block of the basis, and that block; or ``(0, -1)``."""
        heads, hashes = self._tables()
        view = memoryview(data)
        places = []
        for index in range(max(due, 0), min(due + AHEAD, self.count)):
            head = self._row(index)[0]
            if head in heads:
                place = data.find(head)
                if place >= 0:
                    places.append(place)
        reach = min(self.block, len(data) - HEAD + 1)
        if len(heads) > AHEAD:
            places += [place for place in range(reach) if data[place : place + HEAD] in heads]
        for place in sorted(set(places))[:CANDIDATES]:
            part = view[place : place + self.block]
            if len(part) == self.block:
                found = hashes.get(self._digest(part), -1)
                if found >= 0:
                    return place, found
        return 0, -1

    def _tables(self) -> tuple[dict[bytes, int], dict[bytes, int]]:
        if self._heads is None or self._hashes is None:
            heads: dict[bytes, int] = {}
            hashes: dict[bytes, int] = {}
            often: dict[bytes, int] = {}
            for index in range(self.basis // self.block):  # a shorter last one is found only where it is due
                head, mixed = self._row(index)
                often[head] = often.get(head, 0) + 1
                heads.setdefault(head, index)
                hashes.setdefault(mixed, index)
            for head, times in often.items():
                if times > 4 or head.count(head[:1]) == HEAD:  # says too little about where it is
                    del heads[head]
            self._heads, self._hashes = heads, hashes
        return self._heads, self._hashes
