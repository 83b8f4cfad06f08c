"""What is in the source tree, as it travels.

A LIST message has the entries of one or more directories, in columns:

    (LIST, dirs, names, numbers, links, hard, incomplete)

    dirs        three u32 for each directory: number of its parent, index of its entry there, count of its entries.
                Directories are numbered as they come; the root is 0 and its own parent.
    names       zlib; all names joined with "/", the only byte that cannot be in one
    numbers     zlib; for all entries: u32 mode (type and permissions; 0: leave what is there alone), u64 size,
                i64 modification time in ns; as three columns
    links       (position, target, whether it is a path below the root of the sync) for each symlink
    hard        (position, directory, index) for each name of a file that has several: where the first of its names is
    incomplete  numbers of the directories that could not be read: what is not listed may be there all the same

``position`` counts the entries of the message. All of it is checked here before anybody acts on it.
"""

from __future__ import annotations

import os
import stat
import struct
import zlib

from ..protocol.errors import ProtocolError
from .files import PREFIX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

NOT_LISTED = 0xFFFFFFFF  # the index of the root
MAX_INFLATED = 256 << 20  # a message has some thousand entries; only a hostile one unpacks to more
BATCH = 1024  # entries

_DIR = struct.Struct("<III")


class Batch:
    """Collects entries for a LIST message."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Begin the next message."""
        self.dirs: list[bytes] = []
        self.names: list[str] = []
        self.modes: list[int] = []
        self.sizes: list[int] = []
        self.mtimes: list[int] = []
        self.links: list[tuple[int, bytes, bool]] = []
        self.hard: list[tuple[int, int, int]] = []
        self.incomplete: list[int] = []

    def directory(self, number: int, parent: int, index: int, count: int, complete: bool) -> None:
        """The last ``count`` entries are those of this directory."""
        self.dirs.append(_DIR.pack(parent, index, count))
        if not complete:
            self.incomplete.append(number)

    def message(self, kind: int) -> tuple[Any, ...]:
        """The item to send."""
        count = len(self.names)
        numbers = struct.pack("<%dI%dQ%dq" % (count, count, count), *self.modes, *self.sizes, *self.mtimes)
        return (
            kind,
            b"".join(self.dirs),
            zlib.compress(os.fsencode("/".join(self.names)), 1),
            zlib.compress(numbers, 1),
            self.links,
            self.hard,
            self.incomplete,
        )


class Listing:
    """One directory of the source."""

    __slots__ = ("complete", "hard", "index", "links", "modes", "mtimes", "names", "number", "parent", "sizes")

    number: int
    parent: int
    index: int
    names: list[str]
    modes: tuple[int, ...]
    sizes: tuple[int, ...]
    mtimes: tuple[int, ...]
    links: dict[int, tuple[bytes, bool]]
    hard: dict[int, tuple[int, int]]
    complete: bool


def inflate(data: Any) -> bytes:
    """Unpack zlib, within bounds."""
    if type(data) is not bytes:
        raise ProtocolError("file sync: a column is no bytes")
    machine = zlib.decompressobj()
    try:
        found = machine.decompress(data, MAX_INFLATED)
    except zlib.error as error:
        raise ProtocolError("file sync: a column cannot be unpacked: %s" % error) from None
    if not machine.eof or machine.unused_data:
        raise ProtocolError("file sync: a column is too large, or not whole")
    return found


def read(message: Any, first: int) -> Iterator[Listing]:
    """The directories of a LIST message.

    Args:
        first: the number of the first of them.

    Raises:
        ProtocolError: something in it is not as it must be.
    """
    try:
        _, dirs, names, numbers, links, hard, incomplete = message
        heads = list(_DIR.iter_unpack(dirs))
        names = inflate(names)
        numbers = inflate(numbers)
        total = sum(head[2] for head in heads)
        if len(numbers) != total * 20:
            raise ProtocolError("file sync: %d bytes of numbers for %d entries" % (len(numbers), total))
        if b"\0" in names:
            raise ProtocolError("file sync: a name with a null byte")
        all_names = os.fsdecode(names).split("/") if names or total else []
        if len(all_names) != total:
            raise ProtocolError("file sync: %d names for %d entries" % (len(all_names), total))
        columns = struct.unpack("<%dI%dQ%dq" % (total, total, total), numbers)
        by_position = {position: (target, inside) for position, target, inside in links}
        hard_at = {position: (directory, index) for position, directory, index in hard}
        for target, _inside in by_position.values():
            if type(target) is not bytes or not target or b"\0" in target:
                raise ProtocolError("file sync: a link to nowhere")
        not_whole = set(incomplete)
    except ProtocolError:
        raise
    except (TypeError, ValueError, struct.error, UnicodeError) as error:
        raise ProtocolError("file sync: a listing cannot be read: %s" % error) from None
    at = 0
    for number, (parent, index, count) in enumerate(heads, first):
        listing = Listing()
        listing.number = number
        listing.parent = parent
        listing.index = index
        listing.names = own = all_names[at : at + count]
        listing.modes = columns[at : at + count]
        listing.sizes = columns[total + at : total + at + count]
        listing.mtimes = columns[2 * total + at : 2 * total + at + count]
        listing.complete = number not in not_whole
        if links:
            listing.links = {p - at: by_position[p] for p in range(at, at + count) if p in by_position}
        else:
            listing.links = {}
        if hard:
            listing.hard = {p - at: hard_at[p] for p in range(at, at + count) if p in hard_at}
        else:
            listing.hard = {}
        at += count
        seen = set(own)
        if len(seen) != count:
            raise ProtocolError("file sync: a name is listed twice in one directory")
        for bad in ("", ".", ".."):
            if bad in seen:
                raise ProtocolError("file sync: %r as a name" % bad)
        for position, mode in enumerate(listing.modes):
            kind = stat.S_IFMT(mode)
            if kind not in (stat.S_IFREG, stat.S_IFDIR, 0) and (kind != stat.S_IFLNK or position not in listing.links):
                raise ProtocolError("file sync: an entry of mode %o" % mode)
            if own[position].startswith(PREFIX):
                raise ProtocolError("file sync: the name %r is our own" % own[position])
        yield listing
