"""From the mounted bundle to the end of the worker process.

The main thread runs tasks (``tasks``); the reactor's thread reads the link, forwards stdout, answers questions. The process ends when
the link does, or when the controller said goodbye and the tasks are over.
"""

from __future__ import annotations

import os
import sys
from _thread import get_ident
from os import _exit
from time import monotonic, sleep

from ..protocol.errors import ProtocolError
from ..protocol.frames import (
    EXEC,
    GOODBYE,
    HELLO,
    INFO,
    MODULES,
    REPLY,
    REQUEST,
    SIGNAL,
    STACKS,
    STATUS,
    TASK_SERVICE,
    VERSION,
    frame,
    marker,
)
from ..runtime.link import Link
from ..runtime.reactor import POLLIN, Reactor
from ..runtime.stream import FdStream, enlarge_pipe
from ..runtime.threads import main_thread_ident, remember_main_thread
from .tasks import Tasks, flush_output

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..runtime.channel import Channel
    from .stdio import Forwarder

DRAIN_TIME = 1.0


class WorkerGateway:
    """What ``channel.gateway`` is in a worker.

    Attributes:
        id: the controller's id of this worker, with ``-worker`` appended.
    """

    def __init__(self, worker: Worker, id: str) -> None:
        self._worker = worker
        self.id = id

    def __repr__(self) -> str:
        return "<WorkerGateway %s>" % self.id

    def newchannel(self) -> Channel:
        """A new channel to the controller; it is of use when sent there."""
        link = self._worker.link
        with link.lock:
            channel: Channel = link.connection.open().handle()
            return channel


class Worker:
    """One worker process."""

    def __init__(self, config: dict[str, Any], link_r: int, link_w: int, stdout_r: int, pet_w: int) -> None:
        self.config = config
        self.pet_w = pet_w
        self.stdout_r = stdout_r
        self.stdout: Forwarder | None = None
        self.stdout_waits = False
        self.reactor = Reactor("farwire-io")
        self.gateway = WorkerGateway(self, config["id"] + "-worker")
        self.link = Link(
            self.reactor,
            FdStream(link_r, link_w),
            False,
            self,
            self.gateway,
            config["pickle"],
            config["window"],
            config["window"],
        )
        self.tasks = Tasks(self.link, config["execmodel"])
        self.leaving = False
        self.pid = os.getpid()

    def hello(self) -> bytes:
        """Marker and first frame."""
        version = sys.version_info
        lines = [
            "version=%d" % VERSION,
            "python=%d.%d.%d" % version[:3],
            "implementation=" + sys.implementation.name,
            "pickle=%d" % (5 if version >= (3, 8) else 4),
            "window=%d" % self.config["window"],
            "pid=%d" % os.getpid(),
        ]
        return marker(self.config["nonce"]) + frame(HELLO, 0, "\n".join(lines).encode())

    def run(self) -> None:
        """The main thread, until the end."""
        link = self.link
        link.write_first([self.hello()])
        # The first task is often here already: taking it in now saves a switch of threads.
        link.reading = True
        link.read_once()
        link.reading = False
        self.reactor.call(self._start)
        self.tasks.run(self.reactor.start)
        try:
            self.leave()
        finally:  # a signal's handler may raise
            _exit(0)

    def _start(self) -> None:
        self.link.resume()
        if self.stdout_r >= 0:
            os.set_blocking(self.stdout_r, False)
            enlarge_pipe(self.stdout_r)
            self.reactor.register(self.stdout_r, self._stdout_readable, POLLIN)
        if self.pet_w >= 0:
            self.reactor.register(self.pet_w, self._guard_gone, 0)
        if self.config["heartbeat"]:
            self._heartbeat()

    def _guard_gone(self, events: int) -> None:
        """Somebody killed the guard: then nobody would end our children, or us in a long C call, so we end now."""
        try:
            os.killpg(os.getpid(), 9)
        finally:
            _exit(1)

    # -- stdout -------------------------------------------------------------------------------------------------

    def _stdout_readable(self, events: int) -> None:
        """For the first time: most workers never print."""
        self.reactor.unregister(self.stdout_r)
        if self.config["importer"].later:
            self.stdout_waits = True  # the forwarder comes with the MODULES
        else:
            self._forwarder().forward()

    def _forwarder(self) -> Forwarder:
        if self.stdout is None:
            from .stdio import Forwarder

            config = self.config
            self.stdout = Forwarder(self.link, self.reactor, self.stdout_r, config["shared"], config["nonce"])
        return self.stdout

    # -- the link -----------------------------------------------------------------------------------------------

    def link_event(self, link: Link, kind: int, id: Any, code: int, payload: Any) -> None:
        """A frame for the worker as a whole; called by the reading thread."""
        if kind == EXEC:
            if code == TASK_SERVICE:
                from .relay import start_service

                start_service(self, id, payload)
            else:
                self.tasks.add(id, code, payload)
        elif kind == MODULES:
            self.config["importer"].add(payload)
            if self.stdout_waits:
                self.reactor.call(lambda: self._forwarder().forward())
        elif kind == REQUEST:
            self._answer(id, code)
        elif kind == SIGNAL:
            # not at once: this may be the main thread on its way to its first task
            self.reactor.call(lambda: self._signal(code))
        elif kind == GOODBYE:
            self.tasks.close()

    def _signal(self, signum: int) -> None:
        """To the main thread, so that a call that it waits in is interrupted; a fatal one ends the process anyway."""
        import _signal

        try:
            if hasattr(_signal, "pthread_kill"):
                _signal.pthread_kill(main_thread_ident(), signum)
            else:
                os.kill(os.getpid(), signum)
        except (OSError, ValueError):  # no such signal here
            pass

    def _answer(self, id: int, code: int) -> None:
        from . import introspect

        if code == STATUS:
            answer: Any = introspect.status(self)
        elif code == INFO:
            answer = introspect.info()
        elif code == STACKS:
            answer = introspect.stacks()
        else:
            answer = None  # a newer controller asks for what we do not know
        code, payload = self.link.encode(answer)
        if isinstance(payload, list):
            payload = b"".join(payload)
        self.link.send_frame(REPLY, id, bytes(payload), code)

    def link_ended(self, link: Link, error: BaseException) -> None:
        """The controller is gone: so are we, at once. The guard sees to children, and to us should this hang."""
        if isinstance(error, ProtocolError):
            os.write(2, ("farwire: %s\n" % error).encode("utf-8", "replace"))
        _exit(0 if self.leaving else 1)

    def link_noise(self, link: Link) -> None:
        """Never: a worker expects no marker."""

    def link_closed(self, link: Link, error: BaseException) -> None:
        """Never: ``link_ended`` ends the process."""

    def _heartbeat(self) -> None:
        """Nothing heard for three heartbeats means that the line is cut (the controller pings)."""
        interval = self.config["heartbeat"]
        if monotonic() - self.link.last_heard > 3 * interval:
            _exit(1)
        if self.pet_w >= 0:
            os.write(self.pet_w, b"p")
        self.reactor.later(interval, self._heartbeat)

    # -- the end ------------------------------------------------------------------------------------------------

    def leave(self) -> None:
        """Flush everything; called in the main thread when the tasks are over."""
        import atexit

        self.leaving = True
        try:
            atexit._run_exitfuncs()
        except BaseException:  # noqa: BLE001 - a handler of user code; Python prints it
            pass
        flush_output()
        link = self.link
        deadline = monotonic() + DRAIN_TIME
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        from _thread import allocate_lock

        done = allocate_lock()
        done.acquire()

        def drain() -> None:
            # until the pipe is empty, not until its end: grandchildren may hold it open
            if monotonic() > deadline or link.closed is not None:
                done.release()
                return
            if self.config["importer"].later:
                self.reactor.later(0.002, drain)
                return
            stdout = self._forwarder() if self.stdout_r >= 0 else None
            if link.out or link.bulk or link.pending or link.writing or (stdout is not None and stdout.busy):
                link.flush()
                self.reactor.later(0.002, drain)
            elif stdout is not None and stdout.available():
                stdout.forward()
                self.reactor.later(0.002, drain)
            else:
                done.release()

        link.send_frame(GOODBYE)
        self.reactor.call(drain)
        done.acquire(True, DRAIN_TIME + 0.5)

    def exit_now(self, status: int) -> None:
        """``os._exit`` for user code: what it has sent before is on its way, not in our memory."""
        link = self.link
        left = 100
        while (link.out or link.pending) and link.closed is None and left and os.getpid() == self.pid:
            left -= 1
            if not link.lock.locked():  # else we may be in a signal's handler, in the thread that holds it
                link.flush()
            sleep(0.01)
        _exit(status)

    def after_fork(self) -> None:
        """In a child that user code forked: the link is not ours."""
        self.link.abandon()
        self.reactor.abandon()
        self.tasks.forked = True
        self.config["importer"].later = ()  # they do not come here


def main(config: dict[str, Any], link_r: int, link_w: int, stdout_r: int, pet_w: int, dump_w: int) -> None:
    """Called by the loader, in the main thread."""
    remember_main_thread(get_ident())
    _set_up_faulthandler(config, dump_w, pet_w)
    sys.argv[:] = ["-c"]
    old: Any = sys.stdout
    if hasattr(old, "reconfigure"):
        old.reconfigure(line_buffering=True)
    elif old is not None:  # Python 3.6
        import io

        sys.stdout = io.TextIOWrapper(old.detach(), encoding=old.encoding, errors=old.errors, line_buffering=True)
    worker = Worker(config, link_r, link_w, stdout_r, pet_w)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=worker.after_fork)
    assert main_thread_ident()
    os._exit = worker.exit_now  # type: ignore[assignment]
    if config["prelude"]:
        exec(compile(config["prelude"], "<prelude>", "exec", dont_inherit=True), {"worker": worker})
    worker.run()


def _set_up_faulthandler(config: dict[str, Any], dump_w: int, pet_w: int) -> None:
    """A crash writes its stacks to stderr; the guard's signal writes them to the guard, without the interpreter lock."""
    import faulthandler

    try:
        faulthandler.enable(2)
        if config["dump_signal"] and dump_w >= 0:
            faulthandler.register(config["dump_signal"], dump_w, all_threads=True, chain=False)
            os.write(pet_w, b"d")
    except (AttributeError, OSError, ValueError, RuntimeError):  # PyPy lacks register; fd 2 may be closed
        pass
