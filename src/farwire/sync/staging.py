"""Where new files are written before they take their places: a directory of our own in the root of the destination.

A file is written here under another name and renamed into its place when it is complete; so whoever looks finds the old file or
the new one, however this process ends. The directory is made when it is needed first, ``.farwire-sync-`` and a random part, mode 0700;
its owner holds a lock on it (``flock``, which ends with the process, and so tells a sync that runs from what a killed one left behind).

The next sync into the same root adopts what was left: the large files in it are partial ones, and are a basis for what is sent
then (the sync goes on where it was cut); everything that is still there at the end is removed.

    HASH     the large file that is being written, by the hash of its path
    HASH.p   what a killed sync had of it
    new      a small file
    N.t      what was in the way of something of another type
"""

from __future__ import annotations

import errno
import os
import stat
from binascii import hexlify
from hashlib import sha256

from .files import ASIDE, OPEN_DIRECTORY, OPEN_FILE, OPEN_NEW, PREFIX, entries, open_file, remove, write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

# Smaller remains are not worth a name: they are sent again.
WORTH = 1 << 18


def _lock(fd: int) -> bool | None:
    """Whether it is ours now; False if a living sync holds it, None where locks do not exist."""
    import fcntl  # not on Windows, where `check_platform` has refused already

    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES) else None
    return True


def sweep(name: str, dir_fd: int) -> None:
    """Remove what a killed sync left under a name of ours, unless a living one still holds it."""
    try:
        fd = os.open(name, OPEN_FILE, dir_fd=dir_fd)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link
            os.unlink(name, dir_fd=dir_fd)
        return
    try:
        if os.fstat(fd).st_uid == os.geteuid() and _lock(fd):
            remove(name, dir_fd)
    finally:
        os.close(fd)


class Staging:
    """The staging directory of one sync.

    Args:
        root: descriptor of the root of the destination; stays the caller's.
    """

    def __init__(self, root: int) -> None:
        self.root = root
        self.fd = -1
        self.name = ""
        self.found: list[str] = []  # staging directories that were there
        self._trash = 0
        self._partials: set[str] = set()

    def adopt(self, names: Iterable[str]) -> None:
        """Take over what killed syncs left; called once, with the names in the root that begin with our prefix."""
        for name in names:
            self.found.append(name)
            if self.fd < 0 and not name.endswith(ASIDE):
                try:
                    fd = os.open(name, OPEN_DIRECTORY, dir_fd=self.root)
                except OSError:  # no directory: `sweep` deals with it
                    continue
                if os.fstat(fd).st_uid == os.geteuid() and _lock(fd):
                    self.fd, self.name = fd, name
                    try:
                        self._sort_out()
                    except OSError:  # something in it cannot be removed; `clean` will tell
                        self.fd = -1
                if self.fd != fd:
                    os.close(fd)

    def _sort_out(self) -> None:
        os.fchmod(self.fd, 0o700)
        for name, st in list(entries(self.fd)):
            if stat.S_ISREG(st.st_mode) and st.st_size >= WORTH and st.st_nlink == 1 and _is_partial(name):
                if not name.endswith(".p"):
                    try:
                        before = os.stat(name + ".p", dir_fd=self.fd, follow_symlinks=False).st_size
                    except FileNotFoundError:
                        before = -1
                    if st.st_size > before:
                        os.rename(name, name + ".p", src_dir_fd=self.fd, dst_dir_fd=self.fd)
                    else:
                        os.unlink(name, dir_fd=self.fd)
            else:
                remove(name, self.fd)
        self._partials = set(os.listdir(self.fd))

    def open(self) -> int:
        """The descriptor of the directory, made if need be."""
        while self.fd < 0:
            name = PREFIX + hexlify(os.urandom(6)).decode()
            try:
                os.mkdir(name, 0o700, dir_fd=self.root)
            except FileExistsError:
                continue
            fd = os.open(name, OPEN_DIRECTORY, dir_fd=self.root)
            # Another sync that begins now may have taken it for a remain before the lock was on it, and remove it.
            if _lock(fd) is False or not os.fstat(fd).st_nlink:
                os.close(fd)
                continue
            self.fd, self.name = fd, name
        return self.fd

    def create(self, name: str) -> int:
        """A new file, open for writing and reading."""
        staging = self.open()
        try:
            return os.open(name, OPEN_NEW, 0o600, dir_fd=staging)
        except FileExistsError:
            os.unlink(name, dir_fd=staging)
            return os.open(name, OPEN_NEW, 0o600, dir_fd=staging)

    def has_partial(self, path: str) -> bool:
        """Whether a killed sync had some of a file."""
        return partial_name(path) + ".p" in self._partials if self._partials else False

    def partial(self, path: str) -> tuple[int, os.stat_result] | None:
        """What a killed sync had of a file, open; or None."""
        if self.fd < 0:
            return None
        try:
            return open_file(partial_name(path) + ".p", self.fd)
        except OSError:  # there is none, or it is damaged: then the file is sent whole
            return None

    def drop_partial(self, path: str) -> None:
        """It is not needed any more."""
        if self.fd >= 0:
            try:
                os.unlink(partial_name(path) + ".p", dir_fd=self.fd)
            except FileNotFoundError:
                pass

    def move_in(self, name: str, dir_fd: int, target: str) -> None:
        """Rename a finished file or link into its place; something of another type there is moved out of the way."""
        staging = self.open()
        try:
            os.rename(name, target, src_dir_fd=staging, dst_dir_fd=dir_fd)
        except OSError as error:
            if error.errno in (errno.EISDIR, errno.ENOTEMPTY, errno.EEXIST):
                self.move_out(dir_fd, target)
                os.rename(name, target, src_dir_fd=staging, dst_dir_fd=dir_fd)
            elif error.errno == errno.EXDEV:
                self._move_across(name, dir_fd, target)
            else:
                raise

    def _move_across(self, name: str, dir_fd: int, target: str) -> None:
        """The place is on another file system: copy to a name beside it first. ``sweep`` finds what a kill leaves of that."""
        staging = self.open()
        beside = PREFIX + hexlify(os.urandom(6)).decode()
        st = os.stat(name, dir_fd=staging, follow_symlinks=False)
        if stat.S_ISLNK(st.st_mode):
            os.symlink(os.readlink(name, dir_fd=staging), beside, dir_fd=dir_fd)
        else:
            source, st = open_file(name, staging)
            try:
                fd = os.open(beside, OPEN_NEW, 0o600, dir_fd=dir_fd)
                try:
                    _lock(fd)
                    while True:
                        data = os.read(source, 1 << 20)
                        if not data:
                            break
                        write_all(fd, data)
                    os.fchmod(fd, stat.S_IMODE(st.st_mode))
                    os.utime(fd, ns=(st.st_mtime_ns, st.st_mtime_ns))
                finally:
                    os.close(fd)
            finally:
                os.close(source)
        os.rename(beside, target, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
        os.unlink(name, dir_fd=staging)

    def move_out(self, dir_fd: int, name: str) -> None:
        """Take something out of the tree; it is removed at the end."""
        self._trash += 1
        try:
            os.rename(name, "%d.t" % self._trash, src_dir_fd=dir_fd, dst_dir_fd=self.open())
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EACCES):
                raise
            remove(name, dir_fd)

    def close(self, whole: bool) -> None:
        """The end: remove everything, or (``whole`` is False: the sync failed) leave the partial files to the next run."""
        if self.fd < 0:
            return
        if not whole:
            self._sort_out()
        if whole or not os.listdir(self.fd):
            remove(self.name, self.root)
        os.close(self.fd)
        self.fd = -1

    def clean(self) -> list[tuple[str, OSError]]:
        """Remove what other syncs left in the root, and nobody adopted; returns what cannot be removed, and why."""
        failed = []
        for name in self.found:
            try:
                sweep(name, self.root)
            except OSError as error:
                failed.append((name, error))
        return failed


def partial_name(path: str) -> str:
    """The name of a large file while it is written."""
    return sha256(os.fsencode(path)).hexdigest()[:32]


def _is_partial(name: str) -> bool:
    name = name[:-2] if name.endswith(".p") else name
    return len(name) == 32 and not set(name) - set("0123456789abcdef")
