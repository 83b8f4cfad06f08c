"""File sync: bring a directory to workers, or from one (``RSync``, ``push``, ``pull``).

What happens at both ends is in ``farwire.sync``; this is the controller's part. Who runs what:

* ``RSync.send`` goes through the source in one thread, for all targets. Each target has two threads: one sends, one takes what comes back.
* They report to a queue. The thread that called ``send`` reads it and is the only one that calls the program's functions.
* ``pull`` runs in the caller's thread.

A command ``farwire sync SRC SPEC:DST`` belongs into ``cli/sync.py``: ``push`` and ``pull`` are made for it.
"""

from __future__ import annotations

import os
import sys
import weakref

from .errors import GatewayLost

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable
    from typing import Any

    from .gateway import Gateway
    from .runtime.channel import Channel
    from .sync.sender import Source

    Path = str | os.PathLike[str]

__all__ = ["RSync", "Report", "pull", "push"]

# Runs in the worker. Its importer is given the modules of farwire.sync, once in the life of the worker.
_TASK = """\
import _farwire
modules = channel.receive()
importer = _farwire.__spec__.loader
if modules and "sync" not in importer.modules:
    import marshal, zlib
    importer.modules.update(marshal.loads(modules if modules[:1] != b"x" else zlib.decompress(modules)))
from _farwire.sync.remote import serve
serve(channel)
"""

JOIN_TIME = 5.0

_have_modules: weakref.WeakSet[Gateway] = weakref.WeakSet()


class Report:
    """What a sync did with one target, or would do (``dry_run``).

    Attributes:
        gateway: the gateway of the target (for ``pull``: of the source).
        destination: the path at the target.
        files: files that were sent.
        bytes: their sizes, added up.
        literal: bytes of their contents that travelled.
        matched: bytes that the target had already.
        same: entries that had to be compared only.
        directories, links: those that were made.
        deleted: names that were removed, in deleted directories too.
        problems: ``(path, reason)`` of what could not be synced. Paths are relative to the root.
        changes: ``(action, path)`` of each change; only in a dry run. The actions are "send", "directory", "link",
            "hard link", "mode", "time" and "delete".
    """

    def __init__(self, gateway: Gateway, destination: str) -> None:
        self.gateway = gateway
        self.destination = destination
        self.files = self.bytes = self.literal = self.matched = 0
        self.same = self.directories = self.links = self.deleted = 0
        self.problems: list[tuple[str, str]] = []
        self.changes: list[tuple[str, str]] = []

    def __repr__(self) -> str:
        return (
            f"<Report {self.gateway.id}:{self.destination} {self.files} files, {self.literal} of {self.bytes} bytes sent,"
            f" {self.deleted} deleted, {len(self.problems)} problems>"
        )

    def _done(self, counts: dict[str, int], changes: list[tuple[str, str]]) -> None:
        for name in ("files", "bytes", "literal", "matched", "same", "directories", "links", "deleted"):
            setattr(self, name, counts.get(name, 0))
        self.changes = changes


class _Plan:
    """The messages of the listing, for several threads at the pace of each."""

    def __init__(self) -> None:
        from threading import Condition

        self._changed = Condition()
        self._messages: list[Any] = []
        self._over = False
        self._error: BaseException | None = None

    def add(self, message: Any) -> None:
        with self._changed:
            self._messages.append(message)
            self._changed.notify_all()

    def finish(self, error: BaseException | None = None) -> None:
        with self._changed:
            self._over = True
            self._error = self._error or error
            self._changed.notify_all()

    def __iter__(self) -> Any:
        at = 0
        while True:
            with self._changed:
                while at >= len(self._messages) and not self._over:
                    self._changed.wait()
                if self._error is not None:
                    raise self._error
                if at >= len(self._messages):
                    return
                message = self._messages[at]
            at += 1
            yield message


class _Cancelled(Exception):
    """The listing was given up; the reason is raised elsewhere."""


class _Target:
    def __init__(self, channel: Channel, report: Report, finished: Callable[[], object] | None) -> None:
        self.channel = channel
        self.report = report
        self.finished = finished
        self.error: BaseException | None = None
        self.thread: Any = None
        self.done = False


def _start(gateway: Gateway, role: str, path: str, options: dict[str, Any]) -> Channel:
    """Start the worker's part."""
    from .bootstrap.bundle import extra_bundle

    channel = gateway.remote_exec(_TASK)
    channel.send(None if gateway in _have_modules else extra_bundle("sync", gateway._started.same_python))
    channel.send((role, os.fsencode(path), options))
    return channel


class RSync:
    """Brings a local directory (or file) to one or more workers.

    Files that have the same size and modification time at the target are taken as the same. Of those that differ, only the parts
    that the target has not got are sent. Files are replaced in one step: whoever reads one gets the old or the new, and a
    sync that is cut leaves no half file; the next one goes on from there.

    Modes, modification times, symlinks, hard links and holes are kept; owners, ACLs and extended attributes are not. What is neither
    a file nor a directory nor a link (a FIFO, a device), and what cannot be read, is reported and left out.

    Subclasses may override ``filter`` and ``_report_send_file``. All functions of the program are called by the thread that calls
    ``send``.

    Args:
        sourcedir: a directory, or one file.
        callback: called as ``callback("list", total, channel)`` once for each target, when it is known how many bytes the files to be
            sent have, and as ``callback("ack", bytes, channel)`` for each file when the target has it.
        verbose: print a line for each file that is sent, and, to stderr, one for each that cannot be.
        exclude: patterns in the manner of ``.gitignore``. What they match is neither sent nor, with ``delete``, deleted.
        checksum: compare contents also where size and modification time are equal.
        dry_run: change nothing; the reports say what would be done.
        progress: called as ``progress(gateway, path, done, size)`` with bytes of one file, when some more of it is sent.

    Attributes:
        reports: a ``Report`` for each target of the last ``send``, in the order in which they were added.

    Raises:
        ValueError: a pattern cannot be understood.
    """

    def __init__(
        self,
        sourcedir: Path,
        callback: Callable[[str, int, Channel], object] | None = None,
        verbose: bool = True,
        *,
        exclude: Iterable[str] = (),
        checksum: bool = False,
        dry_run: bool = False,
        progress: Callable[[Gateway, str, int, int], object] | None = None,
    ) -> None:
        if callback is not None and not callable(callback):
            raise TypeError(f"callback is no function: {callback!r}")
        self._sourcedir = os.fsdecode(sourcedir)
        self._callback = callback
        self._verbose = verbose
        self._exclude = _patterns(exclude)
        self._checksum = checksum
        self._dry_run = dry_run
        self._progress = progress
        self._targets: list[_Target] = []
        self.reports: list[Report] = []

    def filter(self, path: str) -> bool:
        """Whether a path (of the source; not its root) is synced. What is not counts as not there: ``delete`` deletes it at the target."""
        return True

    def add_target(
        self,
        gateway: Gateway,
        destdir: Path,
        finishedcallback: Callable[[], object] | None = None,
        delete: bool = False,
    ) -> None:
        """Add a target for the next ``send``.

        Args:
            gateway: to the worker.
            destdir: the directory there that becomes as the source; it is made if it does not exist. Relative to the working directory
                of the worker. For a single file: the path of the file, or a directory for it.
            finishedcallback: called without arguments when this target is done.
            delete: remove what is in ``destdir`` and not in the source.

        Raises:
            GatewayLost: the worker is gone.
        """
        options = {
            "delete": bool(delete),
            "checksum": self._checksum,
            "dry_run": self._dry_run,
            "exclude": self._exclude,
        }
        path = os.fsdecode(destdir)
        channel = _start(gateway, "receive", path, options)
        self._targets.append(_Target(channel, Report(gateway, path), finishedcallback))

    def send(self, raises: bool = True) -> None:
        """Sync all targets that were added since the last time, at the same time. Returns when all are done.

        Args:
            raises: raise an error if there are no targets.

        Raises:
            OSError: there are no targets; the source cannot be read; a target ended too early.
            RemoteError: something went wrong at a target that concerns more than one file (no space left, say).
            GatewayLost: a worker is gone.

        When one target fails, the others go on; then the first error is raised.
        """
        targets, self._targets = self._targets, []
        if not targets:
            if raises:
                raise OSError("no targets: each is good for one send(), so add_target() first")
            return
        self.reports = [target.report for target in targets]
        from queue import Queue

        from .sync.sender import Source

        events: Queue[tuple[Any, ...]] = Queue()
        plan = _Plan()

        def for_all(path: str, why: str) -> None:
            for target in targets:
                events.put((target, "problem", path, why))

        # Most programs ask for none of these, and there is one or more for each file.
        unheard = set()
        if self._progress is None:
            unheard.add("sent")
        if self._callback is None:
            unheard.add("ack")
        if not self._verbose and type(self)._report_send_file is RSync._report_send_file:
            unheard.add("send")
        source: Source | None = None
        try:
            source = Source(
                self._sourcedir,
                self._exclude,
                None if type(self).filter is RSync.filter else self.filter,
                for_all,
            )
            plan.add(source.start(self._dry_run))
            for target in targets:
                _run_target(target, source, plan, events, self._dry_run, unheard)
            source.scan(plan.add)
            plan.finish()
            self._follow(targets, events)
        except BaseException as error:
            plan.finish(_Cancelled())
            for target in targets:
                target.channel.close(None if isinstance(error, Exception) else "the sync was interrupted")
            raise
        finally:
            for target in targets:
                if target.thread is not None:
                    target.thread.join(JOIN_TIME)
            if source is not None:
                source.close()
        _raise_first(targets)

    def _follow(self, targets: list[_Target], events: Any) -> None:
        """Call the program's functions until all targets are done."""
        left = len(targets)
        while left:
            target, kind, *values = events.get()
            report = target.report
            if kind == "end":
                left -= 1
                target.error = values[0]
                if target.error is None:
                    target.channel.close()
                    _have_modules.add(report.gateway)
                    if target.finished is not None:
                        target.finished()
            elif kind == "send":
                self._report_send_file(report.gateway, values[0])
            elif kind == "sent":
                if self._progress is not None:
                    self._progress(report.gateway, *values)
            elif kind == "total":
                if self._callback is not None:
                    self._callback("list", values[0], target.channel)
            elif kind == "ack":
                if self._callback is not None:
                    self._callback("ack", values[0], target.channel)
            elif kind == "problem":
                report.problems.append((values[0], values[1]))
                self._report_problem(report.gateway, values[0], values[1])
            elif kind == "done":
                report._done(*values)

    def _report_send_file(self, gateway: Gateway, modified_rel_path: str) -> None:
        """Called for each file that is sent; prints it if ``verbose``."""
        if self._verbose:
            print(f"{gateway} <= {_printable(modified_rel_path)}")  # noqa: T201 - that is what verbose means

    def _report_problem(self, gateway: Gateway, path: str, reason: str) -> None:
        """Called for each path that cannot be synced; prints it to stderr if ``verbose``."""
        if self._verbose:
            sys.stderr.write(f"{gateway}: not synced: {_printable(path)}: {reason}\n")


def _run_target(
    target: _Target, source: Source, plan: _Plan, events: Any, dry_run: bool, unheard: Container[str]
) -> None:
    from threading import Thread

    from .sync.sender import Sender

    def event(kind: str, *values: Any) -> None:
        if kind not in unheard:
            events.put((target, kind, *values))

    sender = Sender(target.channel, source, event, dry_run)

    def run() -> None:
        error: BaseException | None = None
        try:
            sender.listen()
            try:
                for message in plan:
                    target.channel.send(message)
                sender.serve()
            except OSError as failed:
                # The other thread may know more: why the worker closed the channel.
                raise sender.join(JOIN_TIME) or failed from None
        except _Cancelled as cancelled:
            error = cancelled
        except BaseException as failed:  # noqa: BLE001 - raised by the thread that called send()
            error = failed
        if error is not None and not target.channel.isclosed():
            target.channel.close()
        event("end", error)

    target.thread = Thread(target=run, name=f"farwire-sync-{target.report.gateway.id}", daemon=True)
    target.thread.start()


def _raise_first(targets: list[_Target]) -> None:
    failed = [target for target in targets if target.error is not None]
    if not failed:
        return
    first = failed[0].error
    assert first is not None
    add_note = getattr(first, "add_note", None)  # Python 3.11
    if add_note is not None:
        for target in failed[1:]:
            add_note(f"and {target.report.gateway.id}: {target.error!r}")
    raise first


def _patterns(exclude: Iterable[str]) -> list[str]:
    """As a list, and good ones."""
    patterns = [exclude] if isinstance(exclude, str) else list(exclude)
    if patterns:
        from .sync.rules import Rules

        Rules(patterns)
    return patterns


def _printable(path: str) -> str:
    return path.encode("utf-8", "backslashreplace").decode()


def push(
    gateway: Gateway,
    source: Path,
    destination: Path,
    *,
    delete: bool = False,
    exclude: Iterable[str] = (),
    checksum: bool = False,
    dry_run: bool = False,
    progress: Callable[[Gateway, str, int, int], object] | None = None,
) -> Report:
    """Bring a local directory or file to a worker: ``RSync`` for one target, without output.

    Args and errors are those of ``RSync``, ``RSync.add_target`` and ``RSync.send``.

    Returns:
        What was done, with what could not be (``problems``).
    """
    sync = RSync(source, verbose=False, exclude=exclude, checksum=checksum, dry_run=dry_run, progress=progress)
    sync.add_target(gateway, destination, delete=delete)
    sync.send()
    return sync.reports[0]


def pull(
    gateway: Gateway,
    source: Path,
    destination: Path,
    *,
    delete: bool = False,
    exclude: Iterable[str] = (),
    checksum: bool = False,
    dry_run: bool = False,
    progress: Callable[[Gateway, str, int, int], object] | None = None,
) -> Report:
    """Bring a directory or file of a worker here.

    Nothing that the worker says makes it write, link or delete outside of ``destination``; the set-user-id, set-group-id and sticky
    bits of its files are not taken over. It can fill the disk, and its links may lead anywhere: they are made as they are there.

    Args:
        source: the path there, relative to the working directory of the worker.
        destination: the local directory (for a single file, also the file); it is made if it does not exist.
        delete, exclude, checksum, dry_run, progress: as for ``RSync``.

    Returns:
        What was done, with what could not be (``problems``).

    Raises:
        ValueError: a pattern cannot be understood.
        OSError: the destination cannot be written, or the worker ended too early.
        RemoteError: the source cannot be read.
        ProtocolError: the worker does not keep to the rules.
        GatewayLost: the worker is gone.
    """
    from .sync.receiver import Receiver

    exclude = _patterns(exclude)
    path = os.fsdecode(destination)
    report = Report(gateway, path)
    options = {"delete": delete, "checksum": checksum, "dry_run": dry_run, "exclude": exclude, "mode_mask": 0o777}

    def event(kind: str, *values: Any) -> None:
        if kind == "problem":
            report.problems.append((values[0], values[1]))
        elif kind == "sent" and progress is not None:
            progress(gateway, *values)

    channel = _start(gateway, "send", os.fsdecode(source), {"exclude": exclude, "dry_run": dry_run})
    try:
        receiver = Receiver(channel, path, options, event)
        try:
            receiver.run()
        except GatewayLost:
            raise
        except EOFError:
            raise OSError(f"gateway {gateway.id}: the worker ended the sync too early") from None
    finally:
        channel.close()
    _have_modules.add(gateway)
    report._done(receiver.counts, [(action, os.fsdecode(name)) for action, name in receiver.changes])
    return report
