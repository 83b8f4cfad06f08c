"""Runs tasks: the first in the main thread, more at the same time in threads of their own.

``execmodel=thread``            a task runs in the main thread if that is free, else in a new named thread.
``execmodel=main_thread_only``  tasks run in the main thread, one after another.

``_lock`` guards the queue and the counts. A task that raises ends with its error on its channel and harms nothing else.

Signals raise in the main thread, at any point (``gateway.signal``; handlers of user code). So what the main thread does about a
task is a sequence of steps that may be repeated, each noted on the task when it is done, and an exception between them leads back to
the loop in ``run``, which goes on where it was.
"""

from __future__ import annotations

import sys
from _collections import deque
from _thread import allocate_lock, start_new_thread
from struct import Struct

from ..protocol.errors import ChannelClosed, RemoteError
from ..protocol.frames import TASK_CALL
from ..runtime.threads import import_threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ..runtime.link import Link

# lengths of file name, name, text; first line; format of the keyword arguments
TASK_HEADER = Struct("<IIIIB")


class Task:
    """One task, and how far it is."""

    __slots__ = ("channel", "code", "end", "ended", "error", "flushed", "payload", "started")

    def __init__(self, channel: Any, code: int, payload: bytes) -> None:
        self.channel = channel
        self.code = code
        self.payload = payload
        self.started = False
        self.error: BaseException | None = KeyboardInterrupt()  # until it ended otherwise
        self.flushed = False
        self.end: tuple[bytes, int] | None = None  # what its channel is closed with
        self.ended = False


class Tasks:
    """The tasks of a worker."""

    def __init__(self, link: Link, execmodel: str) -> None:
        self.link = link
        self.execmodel = execmodel
        self.closing = False
        self.forked = False
        self._lock = allocate_lock()
        self._queue: deque[Task] = deque()  # for the main thread; the first is the one it runs
        self._others: set[Task] = set()  # in other threads
        self._wake = allocate_lock()
        self._wake.acquire()

    @property
    def executing(self) -> int:
        """Tasks that run."""
        with self._lock:
            return sum(task.started and not task.ended for tasks in (self._queue, self._others) for task in tasks)

    @property
    def queued(self) -> int:
        """Tasks that wait for the main thread."""
        with self._lock:
            return sum(not task.started for task in self._queue)

    def add(self, core: Any, code: int, payload: bytes) -> None:
        """A task arrived; called by the reading thread."""
        task = Task(core.handle(), code, payload)
        with self._lock:
            if self.closing:
                return
            here = self.execmodel == "main_thread_only" or all(before.ended for before in self._queue)
            if here:
                self._queue.append(task)
            else:
                task.started = True
                self._others.add(task)
        if here:
            self._notify()
            return
        try:
            start_new_thread(self._start_thread, (task,))
        except RuntimeError as exc:
            self._refuse(task, exc)

    def close(self) -> None:
        """No more tasks: when those that run are over, ``run`` returns. Their channels end."""
        with self._lock:
            self.closing = True
            # The first stays also if the main thread has not got to it yet: what was sent before the end is run.
            while len(self._queue) > 1 and not self._queue[-1].started:
                self._queue.pop()
        link = self.link
        with link.lock:
            for core in list(link.connection.channels.values()):
                if core.id and core.sink is None:
                    core.end(EOFError("the controller closes the gateway"), False)
        self._notify()

    def run(self, start: Callable[[], None]) -> None:
        """The main thread: run what is queued, until closed and nothing runs.

        Args:
            start: starts the thread that reads; from then on signals may come.
        """
        import _signal

        task: Task | None = None
        fresh = False
        while True:
            try:
                start()
                with self._lock:
                    task = self._queue[0] if self._queue else None
                    fresh = task is not None and not task.started
                    if task is not None:
                        task.started = True
                    over = task is None and self.closing and not self._others
                if over:
                    _signal.signal(_signal.SIGINT, _signal.SIG_IGN)
                    return
                if task is None:
                    self._wake.acquire()
                    continue
                if fresh:
                    self._run(task)
                self._end(task)
                with self._lock:
                    if self._queue and self._queue[0] is task:
                        del self._queue[0]
            except KeyboardInterrupt:
                # a signal that came while no task ran, or as one ended: it had somebody else in mind
                pass
            except BaseException as exc:  # noqa: BLE001 - of a signal's handler that is user code
                _print_error(exc)
            finally:
                task = None

    def _notify(self) -> None:
        if self._wake.locked():
            try:
                self._wake.release()
            except RuntimeError:  # another thread was faster
                pass

    def _start_thread(self, task: Task) -> None:
        try:
            threading = import_threading()
            thread = threading.Thread(
                target=self._in_thread, args=(task,), name="farwire-task-%d" % task.channel.id, daemon=True
            )
            thread.start()
        except RuntimeError as exc:
            self._refuse(task, exc)

    def _refuse(self, task: Task, exc: RuntimeError) -> None:
        """No more threads can be started."""
        task.error = exc
        task.flushed = True
        self._end(task)
        self._gone(task)

    def _in_thread(self, task: Task) -> None:
        try:
            self._run(task)
            self._end(task)
        finally:
            self._gone(task)

    def _gone(self, task: Task) -> None:
        with self._lock:
            self._others.discard(task)
        self._notify()

    def _run(self, task: Task) -> None:
        try:
            run_task(self.link, task.channel, task.code, task.payload)
            task.error = None
        except BaseException as exc:  # noqa: BLE001 - whatever the task raised belongs to whoever sent it
            task.error = None if _end_of_channel(exc, task.channel) else exc
        if self.forked:
            _end_forked(task.error)

    def _end(self, task: Task) -> None:
        """Tell the controller how the task ended. Steps that are done are not done again."""
        if not task.flushed:
            task.flushed = True
            flush_output()
        if task.end is None:
            if task.error is None:
                task.end = b"", 0
            else:
                from ..runtime.remote_error import encode_error

                try:
                    task.end = encode_error(task.error)
                except BaseException as exc:  # noqa: BLE001 - no end of tries: user code is involved
                    names = type(task.error).__name__, type(exc).__name__
                    task.end = encode_error("the task raised %s; to describe it raised %s" % names)
        # Before the controller hears of the end: a task that it sends then finds the main thread free.
        with self._lock:
            task.ended = True
        link = self.link
        with link.lock:
            told = task.channel._core.close(*task.end)
        error, task.error = task.error, None
        if error is not None and not told and not issubclass(type(error), (ChannelClosed, RemoteError)):
            # the controller had closed or dropped the channel already: it still gets what is written to stderr
            from ..runtime.remote_error import format_exception

            _write_error(format_exception(error))
            flush_output()
        link.flush()
        link.wake_leader()


def flush_output() -> None:
    """What the task printed goes out before the news of its end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BaseException:  # noqa: BLE001 - closed or replaced by the task, with anything
            pass


def run_task(link: Link, channel: Any, code: int, payload: bytes) -> None:
    """Compile and run one task in a namespace of its own."""
    a, b, c, firstline, kwargs_code = TASK_HEADER.unpack_from(payload)
    at = TASK_HEADER.size
    filename = payload[at : at + a].decode()
    name = payload[at + a : at + a + b].decode()
    text = payload[at + a + b : at + a + b + c].decode("utf-8", "surrogatepass")
    kwargs = link.decode(kwargs_code, payload[at + a + b + c :]) if len(payload) > at + a + b + c else {}
    if firstline > 1:
        text = "\n" * (firstline - 1) + text
    namespace = {"channel": channel, "__name__": "__channelexec__", "__builtins__": __builtins__}
    try:
        exec(compile(text, filename, "exec", dont_inherit=True), namespace)
        if code == TASK_CALL:
            function: Any = namespace[name]
            function(channel, **kwargs)
    except BaseException:
        import os

        if not os.path.exists(filename):
            from ..runtime.remote_error import add_source

            add_source(filename, text)
        raise


def _end_of_channel(exc: BaseException, channel: Any) -> bool:
    """Whether a task ended because its channel did: that is no error. An EOFError of other origin is one."""
    if not issubclass(type(exc), EOFError):  # isinstance() would ask the exception, which may lie or raise
        return False
    tb = exc.__traceback__
    while tb is not None and tb.tb_next is not None:
        tb = tb.tb_next
    return (
        tb is not None
        and tb.tb_frame.f_globals.get("__name__", "") == "_farwire.runtime.channel"
        and tb.tb_frame.f_locals.get("self") is channel
    )


def _end_forked(error: BaseException | None) -> None:
    """A child that user code forked came to the end of the task: it must not go on as a second worker."""
    import os

    status: Any = 0
    if isinstance(error, SystemExit):  # as the interpreter does
        status = error.code or 0
        if not isinstance(status, int):
            sys.stderr.write("%s\n" % (status,))
            status = 1
    elif error is not None:
        _print_error(error)
        status = 1
    flush_output()
    os._exit(status & 255)


def _write_error(text: str) -> None:
    try:
        sys.stderr.write(text)
    except BaseException:  # noqa: BLE001 - stderr is closed, or was replaced by user code
        pass


def _print_error(error: BaseException) -> None:
    try:
        import traceback

        traceback.print_exception(type(error), error, error.__traceback__)
    except BaseException:  # noqa: BLE001 - stderr is closed, or was replaced by user code
        pass
