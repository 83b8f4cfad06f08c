"""The end that has the destination: compares, asks, writes, and puts things into place.

One thread. All of the destination is reached by descriptors (see ``files``), and everything that comes in is checked before it is used:
the other end may be hostile, and must not get anything written, removed or linked outside of the destination.

The order of things
-------------------
While the listing comes in: directories are made, links are put in their places, modes and times of files that are the same are set. Then
files, each in its place as soon as it is complete. At the end, when nothing can fail any more for want of data: hard links,
deletions, modes and times of directories. A sync that is cut has removed nothing but what was in the way of something else.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections import deque
from functools import partial

from ..protocol.errors import ProtocolError
from . import messages as m
from .delta import SALT, block_size, describe, rows_size
from .files import (
    OPEN_DIRECTORY,
    PREFIX,
    Changed,
    Directories,
    check_platform,
    copy_range,
    entries,
    is_sparse,
    of_one_file,
    open_file,
    read_at,
    reason,
    remove,
    set_mode,
    set_times,
    write_all,
)
from .listing import NOT_LISTED, Listing, read
from .rules import Rules
from .staging import WORTH, Staging, partial_name, sweep

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

COMPARE_SIZE = 128  # of one without its rows
NONE, WANTED, COMPARED = 0, 1, 2  # what was asked about an entry, and is not answered


class _File:
    """The large file that comes in."""

    __slots__ = ("basis", "basis_was", "dir", "fd", "index", "name", "path", "size", "staged", "written")

    def __init__(self, number: int, index: int, name: str, path: str, size: int, staged: str) -> None:
        self.dir = number
        self.index = index
        self.name = name
        self.path = path
        self.size = size
        self.staged = staged
        self.fd = -1  # it cannot be written, and what comes is dropped
        self.written = 0
        self.basis: list[tuple[int, int, bool]] = []  # (descriptor, up to where, sparse), in order
        self.basis_was: list[tuple[int, int, int]] = []  # what they were when they were described


class Receiver:
    """Brings one destination up to date.

    Args:
        channel: to the sender.
        destination: the directory (or, for a single file, the file).
        options: ``delete``, ``checksum``, ``dry_run``, ``changes``: bool; ``exclude``: patterns; ``mode_mask``: the mode bits that are
            taken over.
        event: told what happens (see ``Sender``): ``"send"``, ``"sent"``, ``"total"``, ``"ack"``, ``"problem"``.
    """

    def __init__(self, channel: Any, destination: str, options: dict[str, Any], event: Callable[..., object]) -> None:
        check_platform()
        self.channel = channel
        self.destination = destination
        self.event = event
        self.delete = bool(options.get("delete"))
        self.checksum = bool(options.get("checksum"))
        self.dry_run = bool(options.get("dry_run"))
        self.mask = int(options.get("mode_mask", 0o7777))
        self.rules = Rules(options.get("exclude", ()))
        self.tell_changes = self.dry_run or bool(options.get("changes"))
        self.root_user = not os.geteuid()
        names = "files bytes literal matched directories links deleted same"
        self.counts: dict[str, int] = dict.fromkeys(names.split(), 0)
        self.changes: list[tuple[str, bytes]] = []
        self.single: str | None = None
        self.listed = False
        self.total = 0
        self.names: dict[int, list[str]] = {}  # of directories in which something was asked for
        self.asked: dict[int, bytearray] = {}
        self.open_questions = 0
        self.to_compare: deque[tuple[int, int]] = deque()
        # What a COMPARE is open about: its size, what the files were, size of what a killed sync had (0: the file itself was described).
        self.described: dict[tuple[int, int], tuple[int, list[tuple[int, int, int]], int]] = {}
        self.described_bytes = 0
        self.owners: dict[tuple[int, int], tuple[int, int]] = {}
        # Directories whose listing is to come: name, whether it was there, whether it has to be changed, mode, time.
        self.expected: dict[tuple[int, int], tuple[str, bool, bool, int, int]] = {}
        self.wanted: dict[int, tuple[int, int]] = {}  # directory -> mode and time that it gets at the end
        self.dirty: set[int] = {0}
        self.fresh: set[int] = set()
        self.absent: set[int] = set()  # directories that a dry run did not make, or that could not be made
        self.to_delete: list[tuple[int, str]] = []
        self.hard: list[tuple[int, str, tuple[int, int]]] = []
        self.hard_names: dict[
            tuple[int, int], str
        ] = {}  # the first names of files with several; "": it could not be synced
        self.file: _File | None = None
        self.done_files: list[tuple[int, int]] = []

    # -- the whole -----------------------------------------------------------------------------------------------

    def run(self) -> dict[str, int]:
        """Until the destination is as the source; returns the counts.

        Raises:
            ProtocolError: the sender said something that makes no sense, or that it must not.
            OSError: something went wrong that concerns not only one file.
        """
        start = self.channel.receive()
        try:
            kind, about = start
            single, mode, mtime = about["single"], about["mode"], about["mtime"]
            if kind != m.START or about["version"] != m.VERSION or type(mode) is not int or type(mtime) is not int:
                raise ProtocolError("file sync: the other end speaks another version")
            self.dry_run = self.dry_run or bool(about["dry_run"])
            if single is not None and (type(single) is not bytes or b"/" in single or single in (b"", b".", b"..")):
                raise ProtocolError("file sync: %r as a name" % (single,))
        except (TypeError, ValueError, KeyError) as error:
            raise ProtocolError("file sync: no beginning: %r" % (error,)) from None
        self._open_root(None if single is None else os.fsdecode(single))
        if self.single is None:
            self.wanted[0] = (mode, mtime)
        try:
            self._work()
            if not self.dry_run:
                self._finish_directories()
        finally:
            self.dirs.close()
        self._acknowledge(True)
        self.channel.send((m.DONE, self.counts, self.changes))
        return self.counts

    def _work(self) -> None:
        whole = False
        try:
            while not (self.listed and not self.open_questions):
                self._incoming(self.channel.receive())
                self._ask()
            self._finish()
            whole = True
        finally:
            self._close_file()
            if self.staging is not None:
                failed = []
                try:
                    self.staging.close(whole)
                except OSError as error:
                    failed.append((self.staging.name, error))
                failed += self.staging.clean()
                if whole:  # else something worse is on its way
                    for name, why in failed:
                        self._fail(name, why)

    def _open_root(self, single: str | None) -> None:
        path = self.destination
        if single is not None:
            if os.path.isdir(path):
                self.single = single
            else:
                path, self.single = os.path.split(path)
                if self.single in ("", ".", ".."):
                    raise NotADirectoryError(errno.ENOTDIR, "there is no such directory", self.destination)
        path = os.path.abspath(path)
        self.staging: Staging | None = None
        self.root = path
        try:
            fd = os.open(path, OPEN_DIRECTORY & ~os.O_NOFOLLOW)
        except FileNotFoundError:
            if self.dry_run:
                fd = -1
            else:
                os.makedirs(path, exist_ok=True)
                fd = os.open(path, OPEN_DIRECTORY & ~os.O_NOFOLLOW)
            self.fresh.add(0)
        self.dirs = Directories(fd)
        self.known = 0  # directories listed so far
        if fd < 0:
            self.absent.add(0)
        elif not self.dry_run:
            try:
                self._open_staging(fd)
            except BaseException:
                self.dirs.close()
                raise

    def _open_staging(self, fd: int) -> None:
        self.staging = Staging(fd)
        st = os.fstat(fd)
        if not self.root_user and st.st_mode & 0o700 != 0o700 and st.st_uid == os.geteuid():
            os.fchmod(fd, stat.S_IMODE(st.st_mode) | 0o700)
        if self.single is not None:
            self.staging.adopt([name for name in os.listdir(fd) if name.startswith(PREFIX)])

    def _incoming(self, item: Any) -> None:
        if type(item) is bytes:
            self._data(item)
            return
        kind = item[0] if type(item) is tuple and item else None
        handler = self._HANDLERS.get(kind) if type(kind) is int else None
        if handler is None:
            raise ProtocolError("file sync: a message that is none")
        if self.file is not None and kind not in (m.OLD, m.HOLE, m.END, m.PROBLEM, m.SKIP):
            raise ProtocolError("file sync: a file was begun and not ended")
        try:
            handler(self, item)
        except (TypeError, ValueError, KeyError, IndexError, OverflowError, struct.error) as error:
            raise ProtocolError("file sync: a message cannot be read: %r" % (error,)) from error

    def _problem(self, path: str, why: str) -> None:
        self.event("problem", path, why)
        self.channel.send((m.PROBLEM, os.fsencode(path), why))

    def _change(self, action: str, path: str) -> None:
        if self.tell_changes:
            self.changes.append((action, os.fsencode(path)))

    # -- the listing ---------------------------------------------------------------------------------------------

    def _list(self, item: Any) -> None:
        if self.listed:
            raise ProtocolError("file sync: a listing after the last")
        wanted = []
        for listing in read(item, self.known):
            indices = self._directory(listing)
            self.known += 1
            if indices:
                wanted.append((listing.number, struct.pack("<%dI" % len(indices), *indices)))
        if wanted and not self.dry_run:
            self.channel.send((m.WANT, wanted))

    def _directory(self, listing: Listing) -> list[int]:
        """Compare one directory; returns the indices of files of which nothing is there."""
        number = listing.number
        if number:
            self._enter(listing)
        elif listing.index != NOT_LISTED:
            raise ProtocolError("file sync: the first directory is not the root")
        path = self.dirs.path(number)
        prefix = path + "/" if path else ""
        if self.single is not None:
            if number or len(listing.names) != 1 or not stat.S_ISREG(listing.modes[0]):
                raise ProtocolError("file sync: a single file was announced")
            listing.names[0] = self.single
        if number in self.absent:
            here: dict[str, os.stat_result] = {}
        else:
            try:
                fd = self.dirs.fd(number)
                if self.single is not None:
                    try:
                        here = {self.single: os.stat(self.single, dir_fd=fd, follow_symlinks=False)}
                    except FileNotFoundError:
                        here = {}
                else:
                    here = {} if number in self.fresh and number else dict(entries(fd))
            except OSError as error:
                if not number or not of_one_file(error):
                    raise
                self._problem(path, reason(error))
                self.absent.add(number)
                self.wanted.pop(number, None)
                here = {}
        if number in self.absent and not self.dry_run:
            return self._pass_over(listing)
        self.fresh.discard(number)
        if not number and self.single is None and self.staging is not None:
            self.staging.adopt([name for name in here if name.startswith(PREFIX)])
        return self._compare(listing, here, prefix)

    def _enter(self, listing: Listing) -> None:
        key = (listing.parent, listing.index)
        if key not in self.expected:
            raise ProtocolError("file sync: a listing of what is no directory, or twice")
        name, there, differs, mode, mtime = self.expected.pop(key)
        number = self.dirs.add(listing.parent, name)
        if number != listing.number:
            raise ProtocolError("file sync: directories are out of order")
        if not there:
            if listing.parent in self.absent or self.dry_run or name == "":
                self.absent.add(number)
            self.fresh.add(number)
        if number not in self.absent:
            self.wanted[number] = (mode, mtime)
            if differs:
                self.dirty.add(number)

    def _pass_over(self, listing: Listing) -> list[int]:
        """A directory that could not be made: so nothing in it can."""
        for index, mode in enumerate(listing.modes):
            if stat.S_ISDIR(mode):
                self.expected[listing.number, index] = ("", False, False, 0, 0)
        for first in listing.hard.values():
            self.hard_names.setdefault(first, "")
        return []

    def _compare(self, listing: Listing, here: dict[str, os.stat_result], prefix: str) -> list[int]:
        number, checksum, mask = listing.number, self.checksum, self.mask
        take = here.pop
        wanted: list[int] = []
        flags = bytearray(len(listing.names))
        same = 0
        for index, (name, mode, size, mtime) in enumerate(
            zip(listing.names, listing.modes, listing.sizes, listing.mtimes)
        ):
            st = take(name, None)
            kind = mode & 0o170000
            if kind == 0o100000:
                if listing.hard and index in listing.hard:
                    first = listing.hard[index]
                    if first != (number, index):
                        if first not in self.hard_names:
                            raise ProtocolError("file sync: a link to what is not listed")
                        self.hard.append((number, name, first))
                        continue
                    self.hard_names[first] = name
                if st is None or not stat.S_ISREG(st.st_mode):
                    if size >= WORTH and self.staging is not None and self.staging.has_partial(prefix + name):
                        flags[index] = COMPARED
                        self.to_compare.append((number, index))
                    else:
                        wanted.append(index)
                        flags[index] = WANTED
                elif (
                    size == st.st_size
                    and mtime == st.st_mtime_ns
                    and not checksum
                    and (not (mode ^ st.st_mode) & mask or st.st_nlink == 1)
                ):
                    same += 1
                    if (mode ^ st.st_mode) & mask:
                        self._set_mode(number, name, prefix, mode)
                    continue
                elif size != st.st_size and min(size, st.st_size) < m.SMALL:
                    wanted.append(index)
                    flags[index] = WANTED
                else:
                    flags[index] = COMPARED
                    self.to_compare.append((number, index))
                self.total += size
                if st is not None and self.root_user and (st.st_uid, st.st_gid) != (0, 0):
                    self.owners[number, index] = (st.st_uid, st.st_gid)
            elif kind == 0o040000:
                there = st is not None and stat.S_ISDIR(st.st_mode)
                self._subdirectory(number, index, name, prefix, mode, mtime, st, there)
            elif kind == 0o120000:
                self._link(number, name, prefix, mtime, st, *listing.links[index])
        self.counts["same"] += same
        if wanted or any(flags):
            self.names[number] = listing.names
            self.asked[number] = flags
            self.open_questions += len(flags) - flags.count(NONE)
        if self.dry_run and wanted:
            for index in wanted:
                self._would_send(number, index, prefix + listing.names[index])
        if here and self.single is None:
            self._extra(number, here, prefix, listing.complete)
        return wanted

    def _would_send(self, number: int, index: int, path: str) -> None:
        self.counts["files"] += 1
        self._change("send", path)
        self._answered(number, index)

    def _extra(self, number: int, here: dict[str, os.stat_result], prefix: str, complete: bool) -> None:
        """What the source does not have."""
        for name, st in here.items():
            if name.startswith(PREFIX):
                if number and not self.dry_run:
                    self.dirty.add(number)
                    try:
                        sweep(name, self.dirs.fd(number))
                    except OSError as error:
                        self._fail(prefix + name, error)
            elif self.delete and complete:
                if not self.rules or not self.rules.excludes(prefix + name, stat.S_ISDIR(st.st_mode)):
                    self.to_delete.append((number, name))

    def _set_mode(self, number: int, name: str, prefix: str, mode: int) -> None:
        self._change("mode", prefix + name)
        if self.dry_run:
            return
        try:
            set_mode(name, self.dirs.fd(number), mode & self.mask)
        except OSError as error:
            self._fail(prefix + name, error)

    def _fail(self, path: str, error: OSError) -> None:
        """Something went wrong with one path."""
        if not of_one_file(error):
            raise error
        self._problem(path, reason(error))

    def _subdirectory(
        self,
        number: int,
        index: int,
        name: str,
        prefix: str,
        mode: int,
        mtime: int,
        st: os.stat_result | None,
        there: bool,
    ) -> None:
        if there:
            assert st is not None
            differs = mtime != st.st_mtime_ns
            if (mode ^ st.st_mode) & self.mask:
                differs = True
                self._change("mode", prefix + name)
            if not self.root_user and st.st_mode & 0o700 != 0o700 and not self.dry_run:
                differs = True
                try:
                    set_mode(name, self.dirs.fd(number), stat.S_IMODE(st.st_mode) | 0o700)
                except OSError as error:
                    self._fail(prefix + name, error)
            self.expected[number, index] = (name, True, differs, mode, mtime)
            return
        self._change("directory", prefix + name)
        self.counts["directories"] += 1
        if not self.dry_run:
            try:
                fd = self.dirs.fd(number)
                if st is not None:
                    assert self.staging is not None
                    self.staging.move_out(fd, name)
                os.mkdir(name, 0o700, dir_fd=fd)
                self.dirty.add(number)
            except OSError as error:
                self._fail(prefix + name, error)
                name = ""
        self.expected[number, index] = (name, False, True, mode, mtime)

    def _link(
        self, number: int, name: str, prefix: str, mtime: int, st: os.stat_result | None, target: bytes, inside: bool
    ) -> None:
        if inside:
            target = os.path.join(os.fsencode(self.root), target)
        try:
            if st is not None and stat.S_ISLNK(st.st_mode):
                fd = self.dirs.fd(number)
                if os.readlink(os.fsencode(name), dir_fd=fd) == target:
                    self.counts["same"] += 1
                    if st.st_mtime_ns != mtime and not self.dry_run:
                        set_times(name, fd, mtime)
                    return
            self._change("link", prefix + name)
            self.counts["links"] += 1
            if self.dry_run:
                return
            assert self.staging is not None
            staging = self.staging.open()
            try:
                os.symlink(target, b"new", dir_fd=staging)
            except FileExistsError:
                os.unlink("new", dir_fd=staging)
                os.symlink(target, b"new", dir_fd=staging)
            set_times("new", staging, mtime)
            self.staging.move_in("new", self.dirs.fd(number), name)
            self.dirty.add(number)
        except OSError as error:
            self._fail(prefix + name, error)

    def _end_of_list(self, item: Any) -> None:
        if self.expected or not self.known or self.listed:
            raise ProtocolError("file sync: the listing is not whole")
        self.listed = True
        self.event("total", self.total)
        self.channel.send((m.TOTAL, self.total))

    # -- questions -----------------------------------------------------------------------------------------------

    def _ask(self) -> None:
        """Send as many descriptions of old versions as may be open."""
        while self.to_compare and self.described_bytes < m.ASKED:
            number, index = self.to_compare.popleft()
            name = self.names[number][index]
            basis, parts, cut = self._basis(number, name)
            was = [_identity(part[0]) for part in parts]
            block = block_size(basis)
            size = rows_size(basis, block)
            self.described[number, index] = (size + COMPARE_SIZE, was, basis if cut else 0)
            self.described_bytes += size + COMPARE_SIZE
            try:
                self._describe(number, index, basis, block, size, parts)
            finally:
                _close_parts(parts)

    def _describe(
        self, number: int, index: int, basis: int, block: int, size: int, parts: list[tuple[int, int, bool]]
    ) -> None:
        """Send the COMPARE and its MOREs."""
        salt = os.urandom(SALT)
        send = self.channel.send
        sent = -1
        pieces = describe(partial(_read_parts, parts), basis, block, salt)
        while sent < size:
            try:
                rows = next(pieces, b"")
            except OSError as error:
                self._fail(self.dirs.path(number, self.names[number][index]), error)
                rows = bytes(size - max(sent, 0))  # agrees with nothing
            if sent < 0:
                sent = 0
                send((m.COMPARE, number, index, basis, block, salt, rows))
            else:
                send((m.MORE, rows))
            sent += len(rows)

    def _basis(self, number: int, name: str) -> tuple[int, list[tuple[int, int, bool]], bool]:
        """What there is of a file: what a killed sync had of it, then the old version from there on.

        Returns:
            Its size, the parts, and whether there is something of a killed sync in it.
        """
        parts: list[tuple[int, int, bool]] = []
        size = 0
        cut = self.staging.partial(self.dirs.path(number, name)) if self.staging is not None else None
        if cut is not None:
            fd, st = cut
            size = st.st_size
            parts.append((fd, size, is_sparse(st)))
        try:
            fd, st = open_file(name, self.dirs.fd(number))
        except OSError:  # unreadable, or gone: then it is sent whole, and fails or succeeds when it is put in its place
            return size, parts, cut is not None
        if st.st_size > size:
            size = st.st_size
            parts.append((fd, size, is_sparse(st)))
        else:
            os.close(fd)
        return size, parts, cut is not None

    def _check_asked(self, number: Any, index: Any) -> str:
        """The name of an entry about which a question is open."""
        if type(number) is not int or type(index) is not int or index < 0:
            raise ProtocolError("file sync: an answer that is none")
        flags = self.asked.get(number)
        if flags is None or index >= len(flags) or not flags[index]:
            raise ProtocolError("file sync: an answer to what was not asked")
        return self.names[number][index]

    def _answered(self, number: int, index: int) -> None:
        self.asked[number][index] = NONE
        self.open_questions -= 1
        if not any(self.asked[number]):
            del self.asked[number], self.names[number]
        described = self.described.pop((number, index), None)
        if described is not None:
            self.described_bytes -= described[0]
        self.owners.pop((number, index), None)

    def _acknowledge(self, now: bool = False) -> None:
        if self.done_files and (now or len(self.done_files) >= m.BATCH_FILES):
            self.channel.send((m.ACK, self.done_files))
            self.done_files = []

    def _has(self, number: int, index: int, size: int, path: str) -> None:
        self.done_files.append((number, index))
        self.event("ack", size, path)

    # -- answers -------------------------------------------------------------------------------------------------

    def _files(self, item: Any) -> None:
        if self.dry_run:
            raise ProtocolError("file sync: data in a dry run")
        for number, index, mode, mtime, data in item[1]:
            name = self._check_asked(number, index)
            if type(data) is not bytes or type(mode) is not int or type(mtime) is not int:
                raise ProtocolError("file sync: a file that is none")
            self._small(number, index, name, mode, mtime, data)
            self._answered(number, index)
        self._acknowledge(True)

    def _small(self, number: int, index: int, name: str, mode: int, mtime: int, data: bytes) -> None:
        path = self.dirs.path(number, name)
        assert self.staging is not None
        try:
            self.event("send", path)
            self.staging.open()
            fd = self.staging.create("new")
            try:
                if data:
                    write_all(fd, data)
                self._attributes(fd, number, index, mode, mtime)
            finally:
                os.close(fd)
            self.staging.move_in("new", self.dirs.fd(number), name)
        except OSError as error:
            self._lose(number, index, path, error)
            return
        self._placed(number, index, path, len(data))
        self.counts["literal"] += len(data)
        self.event("sent", path, len(data), len(data))

    def _lose(self, number: int, index: int, path: str, error: OSError) -> None:
        """A file cannot be written."""
        self._lose_name(number, index)
        self._fail(path, error)

    def _lose_name(self, number: int, index: int) -> None:
        """What is there is not what the other names of this file are to be linked to."""
        if (number, index) in self.hard_names:
            self.hard_names[number, index] = ""

    def _attributes(self, fd: int, number: int, index: int, mode: int, mtime: int) -> None:
        owner = self.owners.get((number, index))
        if owner is not None:
            os.fchown(fd, *owner)
        os.fchmod(fd, mode & self.mask)
        os.utime(fd, ns=(mtime, mtime))

    def _placed(self, number: int, index: int, path: str, size: int) -> None:
        self.dirty.add(number)
        self.counts["files"] += 1
        self.counts["bytes"] += size
        self._change("send", path)
        self._has(number, index, size, path)

    def _begin(self, item: Any) -> None:
        _, number, index, size = item
        name = self._check_asked(number, index)
        if type(size) is not int or size < 0 or self.dry_run:
            raise ProtocolError("file sync: a file of size %r" % (size,))
        path = self.dirs.path(number, name)
        staged = partial_name(path)
        assert self.staging is not None
        self.event("send", path)
        file = self.file = _File(number, index, name, path, size, staged)
        try:
            if (number, index) in self.described:
                file.basis = self._basis(number, name)[1]
                file.basis_was = self.described[number, index][1]
                if [_identity(part[0]) for part in file.basis] != file.basis_was:
                    raise Changed("the old version was changed at the destination meanwhile; sync again")
            file.fd = self.staging.create(staged)
        except OSError as error:
            self._lose(number, index, path, error)

    def _current(self, length: Any) -> _File:
        file = self.file
        if file is None or type(length) is not int or length < 0 or file.written + length > file.size:
            raise ProtocolError("file sync: more data than was announced")
        return file

    def _guard(self, file: _File, action: Callable[..., object], *values: Any) -> None:
        """Write to the file that comes in; if that fails, the rest of it is dropped."""
        if file.fd < 0:
            return
        try:
            action(*values)
        except OSError as error:
            os.close(file.fd)
            file.fd = -1
            self._lose(file.dir, file.index, file.path, error)

    def _data(self, data: bytes) -> None:
        file = self._current(len(data))
        self._guard(file, write_all, file.fd, data)
        file.written += len(data)
        self.counts["literal"] += len(data)
        self.event("sent", file.path, file.written, file.size)

    def _hole(self, item: Any) -> None:
        file = self._current(item[1])
        self._guard(file, os.lseek, file.fd, item[1], os.SEEK_CUR)
        file.written += item[1]

    def _old(self, item: Any) -> None:
        _, offset, length = item
        file = self._current(length)
        end = file.basis[-1][1] if file.basis else 0
        if type(offset) is not int or offset < 0 or offset + length > end:
            raise ProtocolError("file sync: a part of an old version that is not there")
        self._guard(file, _copy_parts, file.basis, offset, file.fd, length)
        file.written += length
        self.counts["matched"] += length
        self.event("sent", file.path, file.written, file.size)

    def _end(self, item: Any) -> None:
        _, mode, mtime = item
        file = self._current(0)
        if type(mode) is not int or type(mtime) is not int:
            raise ProtocolError("file sync: a file without an end")
        self._guard(file, self._complete, file, mode, mtime)
        number, index = file.dir, file.index
        if file.fd >= 0:
            self._placed(number, index, file.path, file.written)
        self._close_file()
        self._answered(number, index)
        self._acknowledge(True)

    def _complete(self, file: _File, mode: int, mtime: int) -> None:
        assert self.staging is not None
        os.ftruncate(file.fd, file.written)
        if [_identity(part[0]) for part in file.basis] != file.basis_was:
            raise Changed("the old version was changed at the destination meanwhile; sync again")
        self._attributes(file.fd, file.dir, file.index, mode, mtime)
        self.staging.move_in(file.staged, self.dirs.fd(file.dir), file.name)
        self.staging.drop_partial(file.path)

    def _close_file(self) -> None:
        file, self.file = self.file, None
        if file is not None:
            _close_parts(file.basis)
            if file.fd >= 0:
                os.close(file.fd)

    def _same(self, item: Any) -> None:
        _, number, index, mode, mtime = item
        name = self._check_asked(number, index)
        path = self.dirs.path(number, name)
        if type(mode) is not int or type(mtime) is not int:
            raise ProtocolError("file sync: a file that is none")
        cut = self.described[number, index][2] if (number, index) in self.described else 0
        if cut:  # a killed sync had all of it
            self._begin((m.BEGIN, number, index, cut))
            self._old((m.OLD, 0, cut))
            self._end((m.END, mode, mtime))
            return
        self.counts["same"] += 1
        size = 0
        try:
            fd = self.dirs.fd(number)
            st = os.stat(name, dir_fd=fd, follow_symlinks=False)
            size = st.st_size
            if not stat.S_ISREG(st.st_mode):
                raise Changed("it is no regular file any more")
            other_mode = (mode ^ st.st_mode) & self.mask
            if st.st_nlink > 1 and (other_mode or st.st_mtime_ns != mtime) and not self.dry_run:
                # Its other names may be those of other files of the source: this one becomes a file of its own.
                self._copy(name, fd, mode, mtime)
                assert self.staging is not None
                self.staging.move_in("link", self.dirs.fd(number), name)
                self.dirty.add(number)
            else:
                if other_mode:
                    self._set_mode(number, name, self.dirs.path(number) + "/" if number else "", mode)
                if st.st_mtime_ns != mtime:
                    self._change("time", path)
                    if not self.dry_run:
                        set_times(name, fd, mtime)
        except OSError as error:
            self._fail(path, error)
        else:
            self._has(number, index, size, path)
        self._answered(number, index)
        self._acknowledge()

    def _skip(self, item: Any) -> None:
        _, number, index, why = item
        name = self._check_asked(number, index)
        path = self.dirs.path(number, name)
        if self.file is not None:
            if (self.file.dir, self.file.index) != (number, index):
                raise ProtocolError("file sync: a file was begun and not ended")
            self._close_file()
        if why is None:
            self._would_send(number, index, path)
            return
        self._lose_name(number, index)
        self._answered(number, index)  # the sender tells about it in a PROBLEM

    def _their_problem(self, item: Any) -> None:
        _, path, why = item
        self.event("problem", os.fsdecode(path), str(why))

    _HANDLERS: dict[int, Callable[[Receiver, Any], None]] = {  # noqa: RUF012 - never changes; ClassVar is in typing
        m.LIST: _list,
        m.LISTED: _end_of_list,
        m.FILES: _files,
        m.BEGIN: _begin,
        m.OLD: _old,
        m.HOLE: _hole,
        m.END: _end,
        m.SAME: _same,
        m.SKIP: _skip,
        m.PROBLEM: _their_problem,
    }

    # -- the end -------------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        for number, name, first in self.hard:
            if not self.hard_names[first]:
                self._problem(self.dirs.path(number, name), "it is the same file as one that could not be synced")
                continue
            try:
                self._hard_link(number, name, first[0], self.hard_names[first])
            except OSError as error:
                self._fail(self.dirs.path(number, name), error)
        for number, name in self.to_delete:
            path = self.dirs.path(number, name)
            self._change("delete", path)
            if self.dry_run:
                self.counts["deleted"] += 1
                continue
            try:
                keep = self.rules.excludes if self.rules else None
                self.counts["deleted"] += remove(name, self.dirs.fd(number), keep, path)
                self.dirty.add(number)
            except OSError as error:
                self._fail(path, error)

    def _hard_link(self, number: int, name: str, first_number: int, first: str) -> None:
        if number in self.absent or first_number in self.absent:
            if self.dry_run:
                self._change("hard link", self.dirs.path(number, name))
            return
        try:
            there = os.stat(name, dir_fd=self.dirs.fd(number), follow_symlinks=False)
        except FileNotFoundError:
            there = None
        fd = self.dirs.fd(first_number)
        try:
            st = os.stat(first, dir_fd=fd, follow_symlinks=False)
        except FileNotFoundError:
            if self.dry_run:
                self._change("hard link", self.dirs.path(number, name))
                return
            raise
        if there is not None and (there.st_dev, there.st_ino) == (st.st_dev, st.st_ino):
            self.counts["same"] += 1
            return
        self._change("hard link", self.dirs.path(number, name))
        self.counts["links"] += 1
        if self.dry_run:
            return
        assert self.staging is not None
        staging = self.staging.open()
        try:
            os.link(first, "link", src_dir_fd=fd, dst_dir_fd=staging, follow_symlinks=False)
        except OSError as error:
            if error.errno not in (
                errno.EPERM,
                errno.EMLINK,
                errno.EXDEV,
                errno.EOPNOTSUPP,
                errno.ENOSYS,
                errno.EINVAL,
            ):
                raise
            self._copy(first, fd, st.st_mode, st.st_mtime_ns)  # no hard links here (EINVAL: of PyPy)
        self.staging.move_in("link", self.dirs.fd(number), name)
        self.dirty.add(number)

    def _copy(self, name: str, dir_fd: int, mode: int, mtime: int) -> None:
        """Copy a file of the destination to the name ``link`` in the staging directory."""
        assert self.staging is not None
        source, st = open_file(name, dir_fd)
        try:
            target = self.staging.create("link")
            try:
                copy_range(source, 0, target, st.st_size, is_sparse(st))
                os.ftruncate(target, st.st_size)
                if self.root_user and (st.st_uid, st.st_gid) != (0, 0):
                    os.fchown(target, st.st_uid, st.st_gid)
                os.fchmod(target, mode & self.mask)
                os.utime(target, ns=(mtime, mtime))
            finally:
                os.close(target)
        finally:
            os.close(source)

    def _finish_directories(self) -> None:
        """Modes and times, from the leaves to the root: what is done in a directory changes its time."""
        for number in sorted(self.dirty & self.wanted.keys(), reverse=True):
            mode, mtime = self.wanted[number]
            try:
                fd = self.dirs.fd(number)
                st = os.fstat(fd)
                if (mode ^ st.st_mode) & self.mask:
                    os.fchmod(fd, mode & self.mask)
                if st.st_mtime_ns != mtime:
                    os.utime(fd, ns=(mtime, mtime))
            except OSError as error:
                self._fail(self.dirs.path(number) or ".", error)


def _identity(fd: int) -> tuple[int, int, int]:
    st = os.fstat(fd)
    return st.st_size, st.st_mtime_ns, st.st_ctime_ns


def _read_parts(parts: list[tuple[int, int, bool]], view: memoryview, at: int) -> int:
    done = 0
    for fd, end, _ in parts:
        if done < len(view) and at < end:
            part = view[done : done + end - at]
            if read_at(fd, part, at) < len(part):
                raise Changed("it became shorter while it was read")
            done += len(part)
            at += len(part)
    return done


def _copy_parts(parts: list[tuple[int, int, bool]], at: int, target: int, length: int) -> None:
    for fd, end, sparse in parts:
        if length and at < end:
            count = min(length, end - at)
            copy_range(fd, at, target, count, sparse)
            at += count
            length -= count


def _close_parts(parts: list[tuple[int, int, bool]]) -> None:
    while parts:
        os.close(parts.pop()[0])
