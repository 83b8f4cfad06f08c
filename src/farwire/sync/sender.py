"""The end that has the source.

``Source`` goes through the tree once and makes the LIST messages, for one receiver or several. A ``Sender`` gives them to one receiver,
then answers what that one asks. Two threads of it: the caller's sends, another one takes what comes in and queues it.

Who owns what: a ``Source`` is written by the thread that runs ``scan``, and read by the senders after LISTED, when it does not
change any more. Each ``Sender`` opens directories by descriptors of its own.
"""

from __future__ import annotations

import os
import stat
import struct

from ..protocol.errors import FarwireError, GatewayLost, ProtocolError
from . import messages as m
from .delta import LARGEST, ROW, Matcher, rows_size
from .files import (
    OPEN_DIRECTORY,
    PREFIX,
    Directories,
    check_platform,
    entries,
    extents,
    is_sparse,
    of_one_file,
    open_file,
    reason,
)
from .listing import BATCH, NOT_LISTED, Batch
from .rules import Rules

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any


class Source:
    """The tree to be sent, or a single file.

    Args:
        path: a directory or a file; a link at its end is followed, links below are not.
        exclude: patterns (see ``rules``).
        keep: asked for each path below the root, as text; what it answers False for is left out.
        problem: told the path below the root, and why, when something has to be left out.

    Raises:
        OSError: there is nothing that can be read.
        ValueError: a pattern is wrong.
    """

    def __init__(
        self,
        path: str,
        exclude: Iterable[str] = (),
        keep: Callable[[str], object] | None = None,
        problem: Callable[[str, str], object] | None = None,
    ) -> None:
        check_platform()
        self.path = path
        self.single: str | None = None
        st = os.stat(path)
        if not stat.S_ISDIR(st.st_mode):
            if not stat.S_ISREG(st.st_mode):
                raise OSError("%s: neither a directory nor a regular file" % path)
            real = os.path.realpath(path)
            self.single = os.path.basename(path)
            self._single_entry = (os.path.basename(real), st)
            self.root_path = os.path.dirname(real)
        else:
            self.root_path = path
        self.mode, self.mtime = stat.S_IMODE(st.st_mode), st.st_mtime_ns
        self.rules = Rules(exclude)
        self.keep = keep
        self.problem = problem or (lambda path, why: None)
        self.dirs = Directories(os.open(self.root_path, OPEN_DIRECTORY & ~os.O_NOFOLLOW))
        self.names: list[list[str]] = []  # by number of the directory
        self.sizes: list[list[int]] = []
        self._inside = tuple({os.fsencode(os.path.abspath(path)) + b"/", os.fsencode(os.path.realpath(path)) + b"/"})
        self._paths: list[str] = []

    def close(self) -> None:
        """Let go of the descriptors."""
        self.dirs.close()

    def directories(self) -> Directories:
        """Descriptors for another thread."""
        again = Directories(os.dup(self.dirs.root))
        again.places = self.dirs.places
        return again

    def start(self, dry_run: bool) -> tuple[Any, ...]:
        """The first message."""
        about = {
            "version": m.VERSION,
            "single": None if self.single is None else os.fsencode(self.single),
            "mode": self.mode,
            "mtime": self.mtime,
            "dry_run": dry_run,
        }
        return (m.START, about)

    def scan(self, emit: Callable[[Any], object]) -> None:
        """Go through the tree and give the messages to ``emit``; LISTED is the last."""
        batch = Batch()
        self._first_names: dict[tuple[int, int], tuple[int, int]] = {}
        waiting: list[tuple[int, int, str, str]] = [(-1, NOT_LISTED, "", "")]
        while waiting:
            parent, index, name, path = waiting.pop()
            number = 0 if parent < 0 else self.dirs.add(parent, name)
            self._paths.append(path)
            self.names.append([])
            self.sizes.append([])
            complete = True
            try:
                found = entries(self.dirs.fd(number)) if self.single is None else [self._single_entry]
                below = self._directory(batch, number, path, found)
            except OSError as error:
                if not number or not of_one_file(error):
                    raise
                self.problem(path, reason(error))
                below, complete = [], False
            waiting += reversed(below)
            batch.directory(number, max(parent, 0), index, len(self.names[number]), complete)
            if len(batch.names) >= BATCH:
                emit(batch.message(m.LIST))
                batch.clear()
        if batch.dirs:
            emit(batch.message(m.LIST))
        del self._first_names
        emit((m.LISTED,))

    def _directory(
        self, batch: Batch, number: int, path: str, found: Iterable[tuple[str, os.stat_result]]
    ) -> list[tuple[int, int, str, str]]:
        """Adds the entries of one directory; returns the directories among them."""
        names, sizes = self.names[number], self.sizes[number]
        modes, mtimes = batch.modes, batch.mtimes
        prefix = path + "/" if path else ""
        full = os.path.join(self.path, path) if path else self.path
        keep, rules = self.keep, self.rules
        if self.single is not None:
            keep, rules = None, Rules(())
        below = []
        for name, st in found:
            if name.startswith(PREFIX):
                continue
            mode = st.st_mode
            if keep is not None and not keep(os.path.join(full, name)):
                continue
            if rules and rules.excludes(prefix + name, stat.S_ISDIR(mode)):
                continue
            index = len(names)
            if stat.S_ISDIR(mode):
                below.append((number, index, name, prefix + name))
            elif stat.S_ISLNK(mode):
                try:
                    target = os.readlink(os.fsencode(name), dir_fd=self.dirs.fd(number))
                except OSError as error:
                    self.problem(prefix + name, reason(error))
                    mode = 0
                else:
                    inside = next((target[len(root) :] for root in self._inside if target.startswith(root)), None)
                    batch.links.append((len(modes), target if inside is None else inside, inside is not None))
            elif not stat.S_ISREG(mode):
                self.problem(prefix + name, "not sent: it is " + _kind(mode))
                mode = 0
            elif st.st_nlink > 1:
                key = (st.st_dev, st.st_ino)
                batch.hard.append((len(modes), *self._first_names.setdefault(key, (number, index))))
            names.append(name)
            sizes.append(st.st_size)
            modes.append(mode)
            mtimes.append(st.st_mtime_ns)
        batch.names += names
        batch.sizes += sizes
        return below

    def relative(self, number: int, index: int) -> str:
        """The path of an entry below the root."""
        path = self._paths[number]
        name = self.names[number][index]
        return path + "/" + name if path else name


def _kind(mode: int) -> str:
    for test, text in (
        (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a character device"),
        (stat.S_ISBLK, "a block device"),
    ):
        if test(mode):
            return text
    return "neither a file nor a directory nor a link"


class Sender:
    """Serves one receiver.

    Args:
        channel: to the receiver.
        source: what is sent.
        event: told what happens: ``event(kind, *values)``, from either thread.

            ``"send", path``              data of this file goes out
            ``"sent", path, done, size``  so much of it is out
            ``"total", bytes``
            ``"ack", bytes, path``        the receiver has this file
            ``"problem", path, reason``
            ``"done", counts, changes``
    """

    def __init__(self, channel: Any, source: Source, event: Callable[..., object], dry_run: bool = False) -> None:
        from queue import Queue

        self.channel = channel
        self.source = source
        self.event = event
        self.dry_run = dry_run
        self.asked: Queue[Any] = Queue()
        self._bytes_in = 0  # of descriptions: of the thread that takes what comes in,
        self._bytes_out = 0  # and of the one that sends
        self._rows_due = 0  # bytes of MORE that are to come
        self.error: BaseException | None = None
        self.over = False
        self.literal = 0
        self._batch: list[tuple[int, int, int, int, bytes]] = []
        self._batch_bytes = 0
        self._dirs: Directories | None = None

    def listen(self) -> None:
        """Start the thread that takes what comes in; it ends with the channel, or with DONE."""
        from threading import Thread

        self._thread = Thread(target=self._take, name="farwire-sync-%d" % self.channel.id, daemon=True)
        self._thread.start()

    def serve(self) -> None:
        """Answer until the receiver is done, after everything has been listed."""
        self._dirs = self.source.directories()
        try:
            while True:
                if self._batch and self.asked.empty():
                    self._flush()
                item = self.asked.get()
                if item is None:
                    break
                if item[0] == m.WANT:
                    for number, indices in item[1]:
                        for index in indices:
                            self._guarded(number, index, self._whole)
                elif item[0] == m.COMPARE:
                    self._flush()
                    self._bytes_out += rows_size(item[3], item[4])
                    self._guarded(item[1], item[2], self._changed, *item[3:])
                # else it is the end of a description that was not needed
        finally:
            self._dirs.close()
        self._thread.join()
        if self.error is not None:
            raise self.error

    def join(self, timeout: float) -> BaseException | None:
        """After a failure of the sending thread: wait for the other, which may know why."""
        self._thread.join(timeout)
        return self.error

    # -- the thread that takes what comes in ---------------------------------------------------------------------

    def _take(self) -> None:
        try:
            while not self.over:
                self._incoming(self.channel.receive())
        except GatewayLost as error:
            self.error = error
        except EOFError:
            self.error = OSError("the receiving end of the sync closed the channel too early")
        except BaseException as error:  # noqa: BLE001 - raised again by the thread that waits for this one
            self.error = error
        finally:
            self.asked.put(None)

    def _incoming(self, item: Any) -> None:
        try:
            kind = item[0]
            if self._rows_due and kind in (m.WANT, m.COMPARE, m.DONE):
                raise ProtocolError("file sync: a description that is not whole")
            if kind == m.WANT:
                wanted = []
                for number, packed in item[1]:
                    indices = [index for (index,) in struct.iter_unpack("<I", packed)]
                    names = self.source.names[_natural(number)]
                    if indices and max(indices) >= len(names):
                        raise ProtocolError("file sync: asked for an entry that is not there")
                    wanted.append((number, indices))
                self.asked.put((kind, wanted))
            elif kind == m.COMPARE:
                _, number, index, basis, block, salt, rows = item
                self.source.names[_natural(number)][_natural(index)]
                if type(salt) is not bytes or type(rows) is not bytes or not 0 < _natural(block) <= LARGEST:
                    raise ProtocolError("file sync: a description that does not fit")
                size = rows_size(_natural(basis), block)
                self._bytes_in += size
                if self._bytes_in - self._bytes_out > m.ASKED_MAX:
                    raise ProtocolError("file sync: too many questions at a time")
                self._rows_due = size
                self._rows(rows)
                self.asked.put(item)
            elif kind == m.MORE:
                self._rows(item[1])
                self.asked.put(item)
            elif kind == m.TOTAL:
                self.event("total", _natural(item[1]))
            elif kind == m.ACK:
                for number, index in item[1]:
                    size = self.source.sizes[_natural(number)][_natural(index)]
                    self.event("ack", size, self.source.relative(number, index))
            elif kind == m.PROBLEM:
                self.event("problem", os.fsdecode(item[1]), str(item[2]))
            elif kind == m.DONE:
                counts = {str(key): int(value) for key, value in item[1].items()}
                self.event("done", counts, [(str(action), os.fsdecode(path)) for action, path in item[2]])
                self.over = True
            else:
                raise ProtocolError("file sync: a message of kind %r" % (kind,))
        except (TypeError, ValueError, IndexError, KeyError, AttributeError, struct.error) as error:
            raise ProtocolError("file sync: a message cannot be read: %r" % (error,)) from None

    def _rows(self, rows: Any) -> None:
        if type(rows) is not bytes or len(rows) > self._rows_due or len(rows) % ROW or (self._rows_due and not rows):
            raise ProtocolError("file sync: a description that does not fit")
        self._rows_due -= len(rows)

    # -- the thread that sends -----------------------------------------------------------------------------------

    def _guarded(self, number: int, index: int, action: Callable[..., None], *values: Any) -> None:
        """One file, exactly one answer, whatever is wrong with it."""
        fd = -1
        assert self._dirs is not None
        try:
            fd, st = open_file(self.source.names[number][index], self._dirs.fd(number))
        except OSError as error:
            if not of_one_file(error):
                raise
            self.event("problem", self.source.relative(number, index), reason(error))
            self._flush()
            self.channel.send((m.SKIP, number, index, reason(error)))
            return
        try:
            action(number, index, fd, st, *values)
        except OSError as error:
            if isinstance(error, FarwireError):  # of the channel
                raise
            self.event("problem", self.source.relative(number, index), reason(error))
            self.channel.send((m.SKIP, number, index, reason(error)))
        finally:
            os.close(fd)

    def _whole(self, number: int, index: int, fd: int, st: os.stat_result) -> None:
        """A file of which the receiver has nothing."""
        if st.st_size > m.SMALL:
            self._flush()
            self._send(number, index, fd, st, [(-1, 0, st.st_size)])
            return
        data = os.read(fd, st.st_size) if st.st_size else b""
        while len(data) < st.st_size:
            more = os.read(fd, st.st_size - len(data))
            if not more:
                break
            data += more
        if len(data) != st.st_size:
            self._report_change(number, index)
        path = self.source.relative(number, index)
        self.event("send", path)
        self.event("sent", path, len(data), len(data))
        self._batch.append((number, index, st.st_mode, st.st_mtime_ns, data))
        self._batch_bytes += len(data)
        if self._batch_bytes >= m.BATCH_BYTES or len(self._batch) >= m.BATCH_FILES:
            self._flush()

    def _flush(self) -> None:
        if self._batch:
            self.literal += self._batch_bytes
            self.channel.send((m.FILES, self._batch))
            self._batch, self._batch_bytes = [], 0

    def _changed(
        self, number: int, index: int, fd: int, st: os.stat_result, basis: int, block: int, salt: bytes, rows: bytes
    ) -> None:
        """A file of which the receiver has an old version."""
        parts = Matcher(fd, st.st_size, basis, block, salt, rows, self._more).parts()
        first = next(parts, None)
        if (first == (0, 0, basis) and st.st_size == basis) or (first is None and not st.st_size and not basis):
            self.channel.send((m.SAME, number, index, st.st_mode, st.st_mtime_ns))
        elif self.dry_run:
            self.channel.send((m.SKIP, number, index, None))
        else:
            self._send(number, index, fd, st, _chain(first, parts))

    def _more(self) -> bytes:
        item = self.asked.get()
        if item is None:  # the channel is closed
            self.asked.put(None)
            raise self.error or GatewayLost("the sync is over")
        rows: bytes = item[1]
        return rows

    def _send(
        self, number: int, index: int, fd: int, st: os.stat_result, parts: Iterable[tuple[int, int, int]]
    ) -> None:
        send, size = self.channel.send, st.st_size
        path = self.source.relative(number, index)
        self.event("send", path)
        send((m.BEGIN, number, index, size))
        sparse = is_sparse(st)
        done = 0
        for origin, start, length in parts:
            if origin >= 0:
                send((m.OLD, origin, length))
                done = start + length
                self.event("sent", path, done, size)
                continue
            for data, begin, end in extents(fd, start, start + length, sparse):
                if not data:
                    send((m.HOLE, end - begin))
                    done = end
                    continue
                while begin < end:
                    chunk = os.pread(fd, min(m.CHUNK, end - begin), begin)
                    if not chunk:
                        break
                    send(chunk)
                    self.literal += len(chunk)
                    begin += len(chunk)
                    done = begin
                    self.event("sent", path, done, size)
        after = os.fstat(fd)
        if done != size or (after.st_mtime_ns, after.st_size) != (st.st_mtime_ns, size):
            self._report_change(number, index)
        send((m.END, st.st_mode, st.st_mtime_ns))
        self.event("sent", path, size, size)

    def _report_change(self, number: int, index: int) -> None:
        """The receiver gets it with the time from before, so the next run looks at it again."""
        self.event("problem", self.source.relative(number, index), "it changed while it was read; sync again")


def _chain(first: Any, rest: Iterable[Any]) -> Iterable[Any]:
    if first is not None:
        yield first
    yield from rest


def _natural(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ProtocolError("file sync: %r where a number belongs" % (value,))
    return value
