"""Runs tasks: the first in the main thread, more at the same time in threads of their own.

``execmodel=thread``            a task runs in the main thread if that is free, else in a new named thread.
``execmodel=main_thread_only``  tasks run in the main thread, one after another.

``_lock`` guards the queue and the counts. A task that raises ends with its error on its channel and harms nothing else.
"""

from __future__ import annotations

import sys
from _thread import allocate_lock, get_ident, interrupt_main, start_new_thread
from collections import deque
from struct import Struct

from ..protocol.frames import TASK_CALL
from ..runtime.threads import main_thread_ident

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..runtime.link import Link

# lengths of file name, name, text; first line; format of the keyword arguments
TASK_HEADER = Struct("<IIIIB")


class Tasks:
    """The tasks of a worker."""

    def __init__(self, link: Link, execmodel: str) -> None:
        self.link = link
        self.execmodel = execmodel
        self.executing = 0
        self.closing = False
        self.forked = False
        self._lock = allocate_lock()
        self._queue: deque[Any] = deque()
        self._main_busy = False
        self._wake = allocate_lock()
        self._wake.acquire()

    @property
    def queued(self) -> int:
        """Tasks that wait for the main thread."""
        return len(self._queue)

    def add(self, core: Any, code: int, payload: bytes) -> None:
        """A task arrived; called by the reading thread."""
        channel = core.handle()
        with self._lock:
            if self.closing:
                return
            self.executing += 1
            here = self.execmodel == "main_thread_only" or not (self._main_busy or self._queue)
            if here:
                self._queue.append((channel, code, payload))
        if here:
            self._notify()
        else:
            start_new_thread(self._run_in_thread, (channel, code, payload))

    def close(self) -> None:
        """No more tasks: when those that run are over, ``run`` returns. Their channels end."""
        with self._lock:
            self.closing = True
            queued = list(self._queue)
            self._queue.clear()
            self.executing -= len(queued)
        link = self.link
        with link.lock:
            for core in list(link.connection.channels.values()):
                if core.id and core.sink is None:
                    core.end(EOFError("the controller closes the gateway"), False)
        self._notify()

    def interrupt(self) -> None:
        """Raise KeyboardInterrupt in the task that the main thread runs."""
        if self._main_busy:
            interrupt_main()

    def run(self) -> None:
        """The main thread: run what is queued, until closed and nothing runs."""
        while True:
            try:
                with self._lock:
                    task = self._queue.popleft() if self._queue else None
                    self._main_busy = task is not None
                    if task is None and self.closing and not self.executing:
                        return
                if task is None:
                    self._wake.acquire()
                else:
                    self._run_one(*task)
            except KeyboardInterrupt:
                # a signal that came while no task ran, or as one ended: it had somebody else in mind
                pass
            finally:
                task = None

    def _notify(self) -> None:
        if self._wake.locked():
            try:
                self._wake.release()
            except RuntimeError:  # another thread was faster
                pass

    def _run_in_thread(self, channel: Any, code: int, payload: bytes) -> None:
        threading = import_threading()
        thread = threading.Thread(
            target=self._run_one, args=(channel, code, payload), name="farwire-task-%d" % channel.id, daemon=True
        )
        thread.start()

    def _run_one(self, channel: Any, code: int, payload: bytes) -> None:
        error = None
        try:
            run_task(self.link, channel, code, payload)
        except BaseException as exc:  # whatever the task raised belongs to whoever sent it
            if not _end_of_channel(exc):
                error = exc
        if self.forked:
            _end_forked(error)
        try:
            for stream in (sys.stdout, sys.stderr):
                try:
                    stream.flush()
                except (OSError, ValueError, AttributeError):  # closed or replaced by the task
                    pass
            try:
                channel.close(error)
            except BaseException as exc:  # formatting ran user code that raised
                channel.close("the task raised %s, and describing it raised %r" % (type(error).__name__, exc))
        finally:
            # in any case, or no later task would run (execnet's main_thread_only hangs after an exception)
            with self._lock:
                self.executing -= 1
                if get_ident() == main_thread_ident():
                    self._main_busy = False
            self._notify()


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


def _end_of_channel(exc: BaseException) -> bool:
    """Whether a task ended because its channel did: that is no error. An EOFError of other origin is one."""
    if not isinstance(exc, EOFError):
        return False
    tb = exc.__traceback__
    while tb is not None and tb.tb_next is not None:
        tb = tb.tb_next
    return tb is not None and tb.tb_frame.f_globals.get("__name__", "") == "_farwire.runtime.channel"


def _end_forked(error: BaseException | None) -> None:
    """A child that user code forked came to the end of the task: it must not go on as a second worker."""
    import os

    if error is not None:
        import traceback

        traceback.print_exception(type(error), error, error.__traceback__)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(0 if error is None else 1)


def import_threading() -> Any:
    """``threading``, knowing which thread is the main one.

    Before 3.13 the thread that imports it first is taken for the main thread; here that may be any.
    """
    with _import_lock:
        import threading

        main = threading.main_thread()
        ident = main_thread_ident()
        if main.ident != ident and sys.version_info < (3, 13):
            active: Any = threading._active  # type: ignore[attr-defined]
            active.pop(main.ident, None)
            main._ident = ident  # type: ignore[attr-defined]
            active[ident] = main
        return threading


_import_lock = allocate_lock()
