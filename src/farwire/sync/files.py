"""Files below one directory, reached by descriptors: no link on the way is followed, whoever puts one there and when.

Every directory is opened from its parent's descriptor with ``O_NOFOLLOW``; files are named relative to such a descriptor. A path of
several components is never given to the system, so neither ``..`` nor a symlink that appears in the middle leads out of the tree.
"""

from __future__ import annotations

import errno
import os
import stat
from binascii import hexlify
from collections import OrderedDict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

OPEN_DIRECTORY = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0)
# O_NONBLOCK: a FIFO that has taken the place of a file must not make us wait for its writer.
OPEN_FILE = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
OPEN_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)

KEPT_OPEN = 64
PREFIX = ".farwire-sync-"  # of what a sync has in the destination while it runs; never synced, never listed
ASIDE = ".t"  # with this at the end: something that is being removed
COPY = 1 << 20

# What is wrong with one file only: reported, and the sync goes on. Anything else (a full disk, say) ends it.
OF_ONE_FILE = frozenset(
    (
        errno.EACCES,
        errno.EBUSY,
        errno.EEXIST,
        errno.EILSEQ,
        errno.EINVAL,
        errno.EISDIR,
        errno.ELOOP,
        errno.EMLINK,
        errno.ENAMETOOLONG,
        errno.ENODEV,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.ENOTEMPTY,
        errno.ENXIO,
        errno.EOPNOTSUPP,
        errno.EOVERFLOW,
        errno.EPERM,
        errno.ETXTBSY,
        errno.EXDEV,
    )
)


class Changed(OSError):
    """A file is not what it was when it was looked at; concerns this file only."""


def of_one_file(error: OSError) -> bool:
    """Whether the other files can go on."""
    return isinstance(error, Changed) or error.errno in OF_ONE_FILE


def reason(error: OSError) -> str:
    """What happened, without the path, which is told beside it."""
    return error.strerror or str(error)


def check_platform() -> None:
    """Whether the system has what this module is made of.

    Raises:
        OSError: it has not (Windows).
    """
    if os.open not in os.supports_dir_fd or not hasattr(os, "O_NOFOLLOW"):
        raise OSError(errno.ENOSYS, "file sync needs openat() and O_NOFOLLOW, which this system does not have")


class Directories:
    """The directories of a tree, by number; 0 is the root. A few descriptors are kept open.

    A descriptor from ``fd`` is good until the next call of ``fd``.

    Args:
        root: an open directory, which belongs to this object from now on.
    """

    def __init__(self, root: int) -> None:
        self.root = root
        self.places: list[tuple[int, str]] = [(-1, "")]  # number -> number of the parent, name
        self._open: OrderedDict[int, int] = OrderedDict()  # the last used are at the end

    def add(self, parent: int, name: str) -> int:
        """A directory below another; returns its number."""
        self.places.append((parent, name))
        return len(self.places) - 1

    def fd(self, number: int) -> int:
        """An open descriptor.

        Raises:
            OSError: it cannot be opened, or there is something else (a link, say) in its place or on the way.
        """
        kept = self._open
        if number in kept:
            kept.move_to_end(number)
            return kept[number]
        way = []
        while number and number not in kept:
            way.append(number)
            number = self.places[number][0]
        found = kept[number] if number else self.root
        if number:
            kept.move_to_end(number)
        for number in reversed(way):
            found = kept[number] = os.open(self.places[number][1], OPEN_DIRECTORY, dir_fd=found)
            if len(kept) > KEPT_OPEN:
                os.close(kept.popitem(last=False)[1])
        return found

    def path(self, number: int, name: str = "") -> str:
        """The path relative to the root."""
        parts = [name] if name else []
        while number > 0:
            number, part = self.places[number]
            parts.append(part)
        return "/".join(reversed(parts))

    def close(self) -> None:
        """Close all, the root too."""
        while self._open:
            os.close(self._open.popitem()[1])
        if self.root >= 0:
            os.close(self.root)
            self.root = -1


def entries(fd: int) -> Iterator[tuple[str, os.stat_result]]:
    """Names in a directory and what ``lstat`` says of them, in no order. What vanishes meanwhile is left out."""
    if os.scandir in os.supports_fd:
        with os.scandir(fd) as found:
            for entry in found:
                try:
                    yield entry.name, entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
    else:  # Python 3.6
        for name in os.listdir(fd):
            try:
                yield name, os.stat(name, dir_fd=fd, follow_symlinks=False)
            except FileNotFoundError:
                continue


def open_file(name: str, dir_fd: int) -> tuple[int, os.stat_result]:
    """Open a regular file for reading.

    Raises:
        OSError: it cannot be opened, or is something else by now.
    """
    fd = os.open(name, OPEN_FILE, dir_fd=dir_fd)
    st = os.fstat(fd)
    if not stat.S_ISREG(st.st_mode):
        os.close(fd)
        raise Changed("it is no regular file any more")
    return fd, st


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write everything."""
    done = os.write(fd, data)
    if done < len(data):
        view = memoryview(data)
        while done < len(view):
            done += os.write(fd, view[done:])


def read_at(fd: int, view: memoryview, offset: int) -> int:
    """Fill ``view`` from a place of a file; returns how much was there. (A buffer that is used again spares a third of the time.)"""
    done = 0
    while done < len(view):
        if hasattr(os, "preadv"):
            count = os.preadv(fd, [view[done:]], offset + done)
        else:  # Python 3.6
            data = os.pread(fd, len(view) - done, offset + done)
            count = len(data)
            view[done : done + count] = data
        if not count:
            break
        done += count
    return done


def is_sparse(st: os.stat_result) -> bool:
    """Whether looking for holes is worth it."""
    return st.st_size > 65536 and getattr(st, "st_blocks", st.st_size) * 512 < st.st_size and hasattr(os, "SEEK_DATA")


def extents(fd: int, start: int, end: int, sparse: bool) -> Iterator[tuple[bool, int, int]]:
    """The parts of a range of a file: whether it is data (or a hole), from, to."""
    if sparse:
        while start < end:
            try:
                data = min(os.lseek(fd, start, os.SEEK_DATA), end)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    break  # the file system cannot tell
                data = end
            if data > start:
                yield False, start, data
            if data == end:
                return
            start = data
            try:
                data = min(os.lseek(fd, start, os.SEEK_HOLE), end)
            except OSError:  # it has become shorter; whoever reads will see
                break
            if data <= start:
                break
            yield True, start, data
            start = data
    if start < end:
        yield True, start, end


def copy_range(source: int, offset: int, target: int, length: int, sparse: bool) -> None:
    """Copy a part of a file to where the other one stands; holes stay holes.

    Raises:
        Changed: the source is shorter than that by now.
        OSError: as usual.
    """
    for data, start, end in extents(source, offset, offset + length, sparse):
        if not data:
            os.lseek(target, end - start, os.SEEK_CUR)
            continue
        while start < end:
            done = _copy_some(source, start, target, end - start)
            if not done:
                raise Changed("it became shorter while it was copied")
            start += done


def _copy_some(source: int, offset: int, target: int, length: int) -> int:
    copy = getattr(os, "copy_file_range", None)
    if copy is not None:
        try:
            done: int = copy(source, target, min(length, 64 * COPY), offset)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF):
                raise
        else:
            if done:
                return done
    data = os.pread(source, min(length, COPY), offset)
    write_all(target, data)
    return len(data)


def set_mode(name: str, dir_fd: int, mode: int) -> None:
    """``chmod`` of a file or directory, never of what a link leads to."""
    if hasattr(os, "O_PATH"):
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=dir_fd)
        try:
            if stat.S_ISLNK(os.fstat(fd).st_mode):
                raise Changed("there is a link in its place")
            os.chmod("/proc/self/fd/%d" % fd, mode)  # a descriptor of this kind takes no fchmod
        finally:
            os.close(fd)
        return
    fd = os.open(name, OPEN_FILE, dir_fd=dir_fd)
    try:
        os.fchmod(fd, mode)
    finally:
        os.close(fd)


def set_times(name: str, dir_fd: int, mtime: int) -> None:
    """Set the modification time, in nanoseconds, also of a link."""
    os.utime(name, ns=(mtime, mtime), dir_fd=dir_fd, follow_symlinks=False)


def remove(name: str, dir_fd: int, keep: Callable[[str, bool], bool] | None = None, path: str = "") -> int:
    """Remove a file, or a directory and all in it, without following links.

    Args:
        name: what, in the directory ``dir_fd``.
        keep: asked with path and whether it is a directory; what it wants to keep stays, and so do the directories around it.
        path: of ``name``, for ``keep``.

    Returns:
        How many names are gone.
    """
    try:
        os.unlink(name, dir_fd=dir_fd)
        return 1
    except FileNotFoundError:
        return 0
    except OSError as error:
        if error.errno not in (errno.EISDIR, errno.EPERM):
            raise
        try:
            if not stat.S_ISDIR(os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode):
                raise error
        except FileNotFoundError:
            return 0
    return _flatten(name, dir_fd) if keep is None else _remove_but(name, dir_fd, keep, path)


def _flatten(name: str, dir_fd: int) -> int:
    """Remove a directory however deep it is: each directory in it is moved up beside it first.

    What a kill leaves of that has names that ``sweep`` looks for; another sync may do so right now.
    """
    waiting, count = [name], 0
    while waiting:
        current = waiting.pop()
        try:
            fd = open_for_change(current, dir_fd)
        except FileNotFoundError:
            continue
        try:
            for inner, st in list(entries(fd)):
                if stat.S_ISDIR(st.st_mode):
                    aside = PREFIX + hexlify(os.urandom(6)).decode() + ASIDE
                    try:
                        os.rename(inner, aside, src_dir_fd=fd, dst_dir_fd=dir_fd)
                        waiting.append(aside)
                    except OSError:  # it is not ours to move, or a mount point
                        count += _flatten(inner, fd)
                else:
                    count += _gone(os.unlink, inner, fd)
        finally:
            os.close(fd)
        count += _gone(os.rmdir, current, dir_fd)
    return count


def _gone(action: Callable[..., None], name: str, dir_fd: int) -> int:
    try:
        action(name, dir_fd=dir_fd)
    except FileNotFoundError:
        return 0
    return 1


def _remove_but(name: str, dir_fd: int, keep: Callable[[str, bool], bool], path: str) -> int:
    count = 0
    fd = open_for_change(name, dir_fd)
    try:
        for inner, st in list(entries(fd)):
            below = path + "/" + inner
            if not keep(below, stat.S_ISDIR(st.st_mode)):
                count += remove(inner, fd, keep, below)
        left = os.listdir(fd)
    finally:
        os.close(fd)
    if not left:
        os.rmdir(name, dir_fd=dir_fd)
        count += 1
    return count


def open_for_change(name: str, dir_fd: int) -> int:
    """Open a directory whose entries are to change; gives its owner the right to do so."""
    if os.geteuid():
        st = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        if stat.S_ISDIR(st.st_mode) and st.st_mode & 0o700 != 0o700 and st.st_uid == os.geteuid():
            set_mode(name, dir_fd, stat.S_IMODE(st.st_mode) | 0o700)
    return os.open(name, OPEN_DIRECTORY, dir_fd=dir_fd)
