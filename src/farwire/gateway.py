"""The controller's handle to one worker: start, tasks, questions, death, end.

States: starting -> live -> closed, and only forward. ``_lock`` guards the state and the waiters; it is never held across I/O. The
reactor's thread moves the state when the hello comes, when the link ends, when the start takes too long; whoever waits is woken by
``_closed`` or ``_ready``.

When the link ends, the reason is worth more than the fact: the guard's report on stderr, the exit status, the last of stderr. So the
end waits for stderr and the process (``REPORT_TIME`` at most) before anybody is told.
"""

from __future__ import annotations

import os
from _thread import allocate_lock
from _weakrefset import WeakSet  # weakref and threading would cost the import of farwire half as much again
from time import monotonic

from .errors import GatewayLost, ProtocolError, StartError, TimeoutError
from .protocol.codec import PICKLE
from .protocol.frames import (
    EXEC,
    GOODBYE,
    HELLO,
    INFO,
    PING,
    REPLY,
    REQUEST,
    SIGNAL,
    STACKS,
    STATUS,
    STDOUT,
    TASK_CALL,
    TASK_EXEC,
    VERSION,
    frame,
    marker,
)
from .runtime.channel import ENDED, Channel
from .runtime.link import Link
from .runtime.reactor import POLLIN, Reactor
from .runtime.threads import remember_main_thread
from .source import make_task
from .supervisor import describe_status, describe_wait_status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import ModuleType, TracebackType
    from typing import Any

    from .group import Group
    from .output import Output, OutputPump
    from .transports.base import Boot, Started
    from .xspec import XSpec

SIGKILL, SIGTERM = 9, 15  # the same everywhere; importing ``signal`` costs the import of farwire a fifth
START_TIMEOUT = 30.0
EXIT_TIMEOUT = 3.0
REPORT_TIME = 2.0
NOISE_SHOWN = 4096
STDERR_KEPT = 8192
# Seconds without a sign of life, at the least, before a gateway is given up. The guard, which answers for a worker that cannot, looks
# once in a second and notices at the second look.
LEAST_SILENCE = 5.0
REPORT_MAX = 2 << 20

_reactor: Reactor | None = None
_pump: OutputPump | None = None
_gateways: WeakSet[Gateway] = WeakSet()
_process_lock = allocate_lock()


def the_reactor() -> Reactor:
    """The process's background thread for all gateways, started with the first."""
    global _reactor
    import threading

    with _process_lock:
        if _reactor is None or _reactor.stopped:
            remember_main_thread(threading.main_thread().ident or 0)
            _reactor = Reactor("farwire-reactor")
            _reactor.start()
        return _reactor


def the_pump() -> OutputPump:
    """The process's output thread."""
    global _pump
    with _process_lock:
        if _pump is None:
            from .output import OutputPump

            _pump = OutputPump()
        return _pump


def stop_threads(timeout: float) -> None:
    """At the end of the process: write the last output, end both threads."""
    if _pump is not None:
        _pump.stop(timeout)
    reactor = _reactor
    if reactor is not None and not reactor.stopped:
        reactor.stop()


def _after_fork() -> None:
    """In a forked child the gateways belong to the parent: let go of descriptors without a word to the workers."""
    global _reactor, _pump, _process_lock
    _process_lock = allocate_lock()
    for gateway in list(_gateways):
        gateway._abandon()
    _gateways.clear()
    if _reactor is not None and not _reactor.stopped:
        _reactor.abandon()
    _reactor = _pump = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class RInfo:
    """Answers of a worker, as attributes."""

    def __init__(self, **kwargs: Any) -> None:
        self.__dict__.update(kwargs)

    def __repr__(self) -> str:
        return "<RInfo %s>" % ", ".join(f"{key}={value!r}" for key, value in sorted(self.__dict__.items()))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"the worker's answer has no {name!r}")


class Gateway:
    """One worker. Made by ``makegateway``.

    Attributes:
        id: its name in the group.
        spec: the ``XSpec`` it was made from.
        group: the group it belongs to.
        remoteaddress: host or address, for transports that have one.
    """

    def __init__(self, spec: XSpec, group: Group, boot: Boot, started: Started, output: Output) -> None:
        self.id: str = boot.id
        self.spec = spec
        self.group = group
        if started.address:
            self.remoteaddress = started.address
        self._started = started
        self._boot = boot
        self._process = started.process
        self._output = output
        self._lock = allocate_lock()
        self._state = "starting"
        self._ready = Event()
        self._closed = Event()
        self._error: BaseException | None = None
        self._leaving = False
        self._ending = False
        self._hello: dict[str, str] = {}
        self._stderr_tail = b""
        self._stderr_open = False
        self._way_lost: GatewayLost | None = None  # what ended the gateway through which this one goes
        self._worker_status: int | None = None
        self._stacks = ""
        self._stacks_at = 0.0
        self._stacks_parts = b""
        self._stdout_rest = b""
        self._stdout_chunk = b""
        self._stdout_count = 0
        self._requests: dict[int, Any] = {}
        self._next_request = 1
        self._info: RInfo | None = None
        self._pinged_at = 0.0
        self._unanswered = 0
        self._alive_at = 0.0  # when the guard said that the worker is there though it does not answer
        self._start_timer: Any = None
        self._reactor = the_reactor()
        self._link = Link(
            self._reactor,
            started.stream,
            True,
            self,
            self,
            5 if started.same_python else 4,
            boot.window,
            boot.window,
            started.parent,
        )
        self._marks = _GuardReports(boot.nonce, self._guard_report)
        self._stderr_backlog = 0
        self._stderr_waits = False
        self._stderr_held = b""
        _gateways.add(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} id={self.id} {self._state} {str(self.spec)!r}>"

    def __enter__(self) -> Gateway:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.exit()

    # -- start --------------------------------------------------------------------------------------------------

    def _open(self, timeout: float | None) -> None:
        """Send everything; the answer comes to ``link_event``."""
        link = self._link
        link.expect_marker(marker(self._boot.nonce))
        if self._boot.spec.stdio != "none":
            self._output_pump()  # at the end of the interpreter no thread can be started any more
        hello = f"version={VERSION}\nwindow={self._boot.window}\npickle=5".encode()
        link.connection.control.sink = self._stdout
        started = self._started
        if self._boot.trace:
            self._start_trace()
        if started.parent is None:
            self._stderr_open = started.stderr_fd >= 0  # before the link may end, which waits for stderr
            if self._stderr_open:
                os.set_blocking(started.stderr_fd, False)
                self._reactor.call(self._register_stderr)
            link.write_first([*started.first, frame(HELLO, 0, hello)])
            self._keep_later()
            link.start()
        else:
            self._stderr_open = True
            link.write_first([*started.first, frame(HELLO, 0, hello)])
            self._keep_later()
            started.stderr_input.attach(self._relayed_stderr)
            started.stream.input.attach(self._relayed)
        seconds = START_TIMEOUT if timeout is None else timeout

        def arm() -> None:
            self._start_timer = self._reactor.later(seconds, lambda: self._start_timed_out(seconds))

        self._reactor.call(arm)

    def _start_trace(self) -> None:
        from .runtime.trace import start

        try:
            tracer = start(self._boot.trace, "controller")
        except OSError as error:
            os.write(2, f"farwire: controller: no trace: {error}\n".encode("utf-8", "backslashreplace"))
            return
        tracer.add(self._link, self.id, sum(map(len, self._started.first)), self._link.marker)

    def _keep_later(self) -> None:
        """Before anything is read: the modules that the worker starts without wait for its hello, or for what needs them."""
        if not self._boot.later:
            return
        from .bootstrap.bundle import later_bundle

        link = self._link
        link.later = later_bundle

        def prepare() -> None:
            later_bundle()  # for the first time it takes a moment, in which the interpreter starts

        self._reactor.call(prepare)
        encode = link.encode

        def encode_early(item: object) -> Any:
            result = encode(item)
            if result[0] >= PICKLE:
                with link.lock:
                    link.send_later()
            return result

        link.encode = encode_early  # until the hello tells which encoder to take

    def wait_ready(self, timeout: float | None = None) -> None:
        """Wait until the worker has said its hello.

        Raises:
            StartError: it did not start; the subclass says why.
            TimeoutError: not known yet.
        """
        if not self._ready.wait(timeout):
            raise TimeoutError(f"gateway {self.id}: not started within {timeout} seconds")
        if self._state == "closed" and isinstance(self._error, StartError):
            raise self._link.lost()

    def _start_timed_out(self, seconds: float) -> None:
        if self._state == "starting" and not self._ending:
            from .starting import timeout_error

            self._fail(timeout_error(self._what_is_known(), self._echoed(), seconds))

    def _echoed(self) -> bool:
        from .starting import echoes

        return echoes(self._link.noise, self._boot.nonce)

    def _what_is_known(self) -> dict[str, Any]:
        from .starting import readable

        status = ""
        if self._worker_status is not None:
            status = describe_wait_status(self._worker_status)
        else:
            self._process.poll()
            if self._process.returncode is not None:
                status = describe_status(self._process.returncode)
        return {
            "gateway_id": self.id,
            "command": self._started.command,
            "status": status,
            "stderr": readable(self._stderr_tail),
            "noise": readable(self._link.noise[-NOISE_SHOWN:]),
        }

    # -- called by the link (see Link) --------------------------------------------------------------------------

    def link_event(self, link: Link, kind: int, id: Any, code: int, payload: Any) -> None:
        """A frame about the worker as a whole."""
        if kind == HELLO:
            self._hello = payload
            with self._lock:
                if self._state == "starting":
                    self._state = "live"
            if self._started.parent is None and isinstance(getattr(self._process, "popen", None), object):
                pid = payload.get("pid", "")
                if not hasattr(self, "remoteaddress") and self._boot.spec.transport == "popen" and pid.isdigit():
                    self._process.worker_pid = int(pid)
            if self._start_timer is not None:
                self._start_timer.cancel()
            if self._started.parent is None:
                self._reactor.call(lambda: self._stderr_data(b""))
            else:
                self._stderr_data(b"")
            self._ready.set()
            if self._boot.heartbeat:
                self._reactor.call(self._ping)
        elif kind == REPLY:
            waiter = self._requests.pop(id, None)
            if waiter is not None:
                waiter.answer = (code, payload)
                waiter.event.set()

    def link_noise(self, link: Link) -> None:
        """Bytes that are not a hello: keep the last of them; notice an echo."""
        noise = link.noise
        if len(noise) > 1 << 20:
            link.noise = noise[-65536:]
        if self._echoed():
            from .starting import start_error

            self._reactor.call(lambda: self._fail(start_error(self._what_is_known(), True)))

    def link_ended(self, link: Link, error: BaseException) -> None:
        """No more bytes come. Called by whoever reads."""
        with self._lock:
            if self._ending:
                return
            self._ending = True
        deadline = monotonic() + REPORT_TIME
        if isinstance(error, ProtocolError):
            self._reactor.call(self._process.kill)  # it is not gone, and nobody listens to it any more
        self._reactor.call(self._stop_reading)
        self._reactor.call(lambda: self._await_report(error, deadline, 0.001))

    def _stop_reading(self) -> None:
        if self._link.parent is None:
            self._reactor.unregister(self._link.stream.read_fd)
        if self._stderr_waits:  # for its backlog to be written; now the guard's report counts more
            self._stderr_waits = False
            self._register_stderr()

    def _await_report(self, error: BaseException, deadline: float, delay: float) -> None:
        """Wait for the end of stderr and of the process, then tell everybody."""
        gone = self._process.poll() is not None
        now = monotonic()
        if gone and now < deadline - 0.5:
            deadline = now + 0.5  # a grandchild that went its own way may hold stderr open
        # the guard's report is the last that comes
        if self._worker_status is None and (self._stderr_open or not gone) and now < deadline:
            self._reactor.later(delay, lambda: self._await_report(error, deadline, min(delay * 2, 0.05)))
            return
        if self._state == "starting":
            from .starting import protocol_error, start_error, way_error

            if self._way_lost is not None:
                self._fail(way_error(self._way_lost, self.id, self._boot.spec.via or ""))
            elif isinstance(error, ProtocolError):
                self._fail(protocol_error(self._what_is_known(), error))
            else:
                self._fail(start_error(self._what_is_known(), self._echoed()))
        elif isinstance(error, _Silence):
            self._fail(
                GatewayLost(
                    f"gateway {self.id}: nothing was heard of the worker for {error}, and it was asked: the line to "
                    f"{self._started.address or 'it'} is cut, or its machine is stopped or overloaded (heartbeat=0 turns this off)"
                )
            )
        elif isinstance(error, GatewayLost):
            self._fail(GatewayLost(self._obituary()))
        else:
            self._fail(error)

    def _obituary(self) -> str:
        """How the worker ended."""
        text = f"gateway {self.id}: "
        if self._way_lost is not None:
            return text + f"the gateway {self._boot.spec.via} on the way to it is gone: {self._way_lost}"
        if self._worker_status is not None:
            text += f"the worker ended: {describe_wait_status(self._worker_status)}"
        else:
            self._process.poll()
            code = self._process.returncode
            if code is not None:
                command = self._started.command
                if self._started.parent is not None:
                    command = command.partition(": ")[2]  # without "via gw0: "
                text += f"the link closed; {command.split()[0]} ended with {describe_status(code)}"
            else:
                text += "the link to the worker closed"
        if self._worker_status is not None and os.WIFSIGNALED(self._worker_status):
            if os.WTERMSIG(self._worker_status) == SIGKILL and not self._leaving:
                text += " (by somebody, or by the kernel for lack of memory)"
        if self._leaving:
            text += ", as exit() or terminate() had asked for"
        tail = self._stderr_tail.decode("utf-8", "replace").strip()
        if tail:
            text += "\n  last of its stderr:\n    " + tail.replace("\n", "\n    ")
        return text

    def link_closed(self, link: Link, error: BaseException) -> None:
        """The link has told its channels; called in the reactor's thread."""

    def _fail(self, error: BaseException) -> None:
        """In the reactor's thread: the gateway is closed for this reason."""
        with self._lock:
            if self._state == "closed":
                return
            self._state = "closed"
            self._ending = True
            self._error = error
        if self._start_timer is not None:
            self._start_timer.cancel()
        self._link.fail(error)
        for waiter in list(self._requests.values()):
            waiter.event.set()
        # The chunk that was on its way from the worker's stdout into the link: it came through, or did not, or a part of it.
        # What came of a frame does not count before it is complete.
        received = self._stdout_count - int.from_bytes(self._stdout_chunk[:8], "little")
        rest = self._stdout_chunk[8 + received :] if received >= 0 else b""
        rest += self._stdout_rest
        self._stdout_chunk = self._stdout_rest = b""
        if rest:
            self._emit("stdout", rest)
        self._close_stderr()
        self._link.close_stream()
        self._process_end(monotonic() + 1.0)

    def _process_end(self, deadline: float) -> None:
        """Reap the process; one that does not go by itself, now that its link is closed, is killed."""
        if self._process.poll() is None:
            if monotonic() > deadline:
                self._process.kill()
            self._reactor.later(0.01, lambda: self._process_end(deadline))
            return
        self.group._gone(self)
        self._ready.set()
        self._closed.set()

    def _ping(self) -> None:
        """Ask for a sign of life, and count what is not answered: by the worker, or, when user code holds its lock, by its guard."""
        if self._state != "live" or self._ending:
            return
        now = monotonic()
        heard = max(self._link.last_heard, self._alive_at)
        # Counted in pings as well as in seconds, because this process may have been stopped for a while.
        self._unanswered = 0 if heard >= self._pinged_at else self._unanswered + 1
        deaf = self._stderr_waits or self._boot.spec.stdio == "none"  # the guard would not be heard
        if self._unanswered >= 3 and now - heard > LEAST_SILENCE and not deaf:
            self._reactor.call(self._process.kill)
            self.link_ended(self._link, _Silence(f"{now - heard:.0f} seconds"))
            return
        self._pinged_at = now
        self._link.send_frame(PING)
        self._reactor.later(self._boot.heartbeat, self._ping)

    # -- output -------------------------------------------------------------------------------------------------

    def _output_pump(self) -> OutputPump:
        pump = the_pump()
        pump.start_early()
        return pump

    def _emit(self, stream: str, data: bytes, written: Callable[[int], None] | None = None) -> None:
        if self._boot.spec.stdio == "none":
            if written is not None:
                written(len(data))
            return
        output = self._output
        if self._boot.spec.stdio in ("inherit", "stderr") and output is None:
            output = _write_inherited
        the_pump().put(output, self.id, stream, data, written)

    def _stdout(self, core: Any, code: int, data: bytes) -> None:
        """A RAW frame on channel 0; its credit goes back when it is written."""
        if code == ENDED:
            return
        self._stdout_count += len(data)
        self._emit("stdout" if code == STDOUT else "stderr", data, self._stdout_written)

    def _stdout_written(self, count: int) -> None:
        link = self._link
        core = link.connection.control
        with link.lock:
            core.consumed += count
            if link.closed is None:
                link.connection.grant(core)
        if link.out:
            link.flush()

    def _register_stderr(self) -> None:
        if self._stderr_open:
            self._reactor.register(self._started.stderr_fd, self._stderr_readable, POLLIN)

    def _stderr_readable(self, events: int) -> None:
        from .output import BACKLOG

        with self._lock:
            waits = self._stderr_waits = self._stderr_backlog > BACKLOG and not self._ending
        if waits:
            self._reactor.unregister(self._started.stderr_fd)
            return
        try:
            data = os.read(self._started.stderr_fd, 65536)
        except BlockingIOError:
            return
        except OSError:  # a connection that was reset
            data = b""
        if data:
            self._stderr_data(self._marks.feed(data))
        else:
            self._stderr_data(self._marks.flush())
            self._close_stderr()

    def _stderr_data(self, data: bytes) -> None:
        self._stderr_tail = (self._stderr_tail + data)[-STDERR_KEPT:]
        if self._state == "starting":
            # it becomes part of the error, or is shown when the worker lives
            self._stderr_held = (self._stderr_held + data)[-STDERR_KEPT:]
            return
        if self._stderr_held:
            data = self._stderr_held + data
            self._stderr_held = b""
        if not data:
            return
        with self._lock:
            self._stderr_backlog += len(data)
        self._emit("stderr", data, self._stderr_written)

    def _stderr_written(self, count: int) -> None:
        with self._lock:
            self._stderr_backlog -= count
            waits, self._stderr_waits = self._stderr_waits, False
        if waits:
            self._reactor.call(self._register_stderr)

    def _close_stderr(self) -> None:
        if self._stderr_open:
            self._stderr_open = False
            if self._started.stderr_fd >= 0:
                self._reactor.unregister(self._started.stderr_fd)
                os.close(self._started.stderr_fd)

    def _relayed(self, core: Any, code: int, data: bytes) -> None:
        """Bytes of the link, through another gateway."""
        if code == ENDED:
            ended = core.ended
            if hasattr(ended, "decode"):
                error = ended.decode()
                self._stderr_tail += f"{error.typename}: {error.message}".encode()
            elif isinstance(ended, GatewayLost):
                self._way_lost = ended
            self._link.end_of_stream(None)
            return
        self._link.feed(data)
        self._link.parent.consumed(core, len(data))  # type: ignore[union-attr]

    def _relayed_stderr(self, core: Any, code: int, data: bytes) -> None:
        if code == ENDED:
            self._stderr_data(self._marks.flush())
            self._stderr_open = False
            return
        parent = self._link.parent
        assert parent is not None
        parent.consumed(core, len(data))
        if code == 2:
            process: Any = self._process
            process.returncode = int(data)
        else:
            self._stderr_data(self._marks.feed(data))

    def _guard_report(self, kind: bytes, data: bytes) -> None:
        """The guard's words on stderr (see ``bootstrap/loader.py``)."""
        if kind == b"X" and data.isdigit():
            self._worker_status = int(data)
        elif kind == b"A":
            self._alive_at = monotonic()
        elif kind == b"O":
            self._stdout_rest += data
        elif kind in (b"b", b"B"):
            self._stdout_chunk += data
        elif kind in (b"s", b"S"):
            self._stacks_parts += data
            if kind == b"S":
                self._stacks = self._stacks_parts.decode("utf-8", "replace")
                self._stacks_parts = b""
                self._stacks_at = monotonic()
                for waiter in list(self._requests.values()):
                    if waiter.what == STACKS:
                        waiter.stacks = self._stacks
                        waiter.event.set()

    # -- what programs call -------------------------------------------------------------------------------------

    def remote_exec(self, source: str | ModuleType | Callable[..., object], **kwargs: Any) -> Channel:
        """Run code in the worker and return a channel to it.

        The code finds the other end of the channel as the global ``channel``. The first task of a worker runs in its main thread.
        When it ends, the channel closes; when it raises, whoever receives gets a ``RemoteError``.

        Args:
            source: a text; a function, called as ``function(channel, **kwargs)``, which must carry all it needs; or a module.
            kwargs: for a function, values that a channel can carry.

        Raises:
            SourceError: the function cannot run elsewhere; says which names it lacks.
            TypeError: ``source`` is something else, or ``kwargs`` do not fit.
            DumpError: a value in ``kwargs`` cannot be sent.
            GatewayLost: the worker is gone.
        """
        from .worker_task import pack_task

        task = make_task(source, kwargs)
        link = self._link
        payload = pack_task(task, link.encode)
        try:
            with link.lock:
                if link.closed is not None:
                    raise link.lost()
                core = link.connection.open()
                channel: Channel = core.handle()
                link.connection.send(EXEC, core.id, payload, TASK_CALL if task.kind == "call" else TASK_EXEC)
            link.flush()
        except BaseException:  # perhaps out of a signal's handler
            link.recover()
            raise
        return channel

    def newchannel(self) -> Channel:
        """A channel that the worker gets by being sent it.

        Raises:
            GatewayLost: the worker is gone.
        """
        link = self._link
        with link.lock:
            if link.closed is not None:
                raise link.lost()
            channel: Channel = link.connection.open().handle()
            return channel

    def _ask(self, what: int, timeout: float | None) -> Any:
        waiter = _Waiter(what)
        link = self._link
        with self._lock:
            number = self._next_request
            self._next_request += 1
            self._requests[number] = waiter
        try:
            if link.closed is not None:
                raise link.lost()
            link.send_frame(REQUEST, number, b"", what)
            link.ensure_read()
            if not waiter.event.wait(timeout):
                raise TimeoutError(
                    f"gateway {self.id}: no answer within {timeout} seconds; "
                    "the worker is stopped, or a C call holds its interpreter lock"
                )
        except BaseException:  # perhaps out of a signal's handler
            link.recover()
            raise
        finally:
            self._requests.pop(number, None)
        if waiter.stacks is not None:
            return waiter.stacks
        if waiter.answer is None:
            raise link.lost() if link.closed is not None else GatewayLost(f"gateway {self.id} is closed")
        return link.decode(*waiter.answer)

    def status(self, timeout: float | None = 5.0) -> RInfo:
        """What goes on in the worker, answered also while its main thread is busy.

        Returns:
            An object with ``state`` ("live", "unresponsive" when no answer came in time, "closed"), ``numchannels``,
            ``numexecuting``, ``numqueued``, ``execmodel`` (None when not known).
        """
        try:
            return RInfo(state="live", **self._ask(STATUS, timeout))
        except TimeoutError:
            state = "unresponsive"
        except GatewayLost:
            state = "closed"
        return RInfo(
            state=state,
            numchannels=None,
            numexecuting=None,
            numqueued=None,
            execmodel=self._boot.spec.execmodel or "thread",
        )

    remote_status = status

    def info(self, timeout: float | None = 10.0) -> RInfo:
        """What the worker is: ``executable, version_info, implementation, platform, cwd, pid``.

        Raises:
            TimeoutError: no answer in time.
            GatewayLost: the worker is gone.
        """
        return RInfo(**self._ask(INFO, timeout))

    def _rinfo(self, update: bool = False) -> RInfo:
        """``info()``, asked once; the ancestor's name."""
        if update or self._info is None:
            self._info = self.info()
        return self._info

    def stacks(self, timeout: float | None = 5.0) -> str:
        """The stacks of all threads of the worker, as text.

        While user code holds the interpreter lock (a long C call), they come from faulthandler, after about two seconds.

        Raises:
            TimeoutError: neither way gave an answer in time; the process is stopped, or has no faulthandler.
            GatewayLost: the worker is gone.
        """
        try:
            answer: str = self._ask(STACKS, timeout)
            return answer
        except TimeoutError:
            if self._stacks and self._link.last_heard < self._stacks_at:
                return self._stacks  # from before, but nothing was heard of the worker since
            raise TimeoutError(
                f"gateway {self.id}: no stacks within {timeout} seconds; is the process stopped?"
            ) from None

    def signal(self, signum: int = 2) -> None:
        """Send a signal to the worker; SIGINT raises KeyboardInterrupt in its main thread.

        Raises:
            GatewayLost: the worker is gone.
        """
        if self._link.closed is not None:
            raise self._link.lost()
        self._link.send_frame(SIGNAL, 0, b"", int(signum))

    def hasreceiver(self) -> bool:
        """Whether the gateway can still receive."""
        return self._state != "closed" and not self._ending

    def join(self, timeout: float | None = None) -> None:
        """Wait until the worker is gone, for whatever reason.

        Raises:
            TimeoutError: it is not.
        """
        if not self._closed.wait(timeout):
            raise TimeoutError(f"gateway {self.id}: still there after {timeout} seconds")

    def exit(self, timeout: float | None = None) -> None:
        """End the worker and everything it started, and wait for it.

        Asks, then sends SIGTERM, then kills, within ``timeout`` seconds (3 by default). Calling it again does nothing.
        Output that the worker wrote before is still delivered.
        """
        exit_gateways([self], EXIT_TIMEOUT if timeout is None else timeout)

    # -- the end ------------------------------------------------------------------------------------------------

    def _goodbye(self) -> None:
        self._leaving = True
        if self._state == "starting":
            self._reactor.call(lambda: self._fail(GatewayLost(f"gateway {self.id} was closed while it started")))
        else:
            self._link.send_frame(GOODBYE)
            self._link.ensure_read()

    def _terminate(self) -> None:
        if self._state != "closed":
            self._process.terminate()
            if not self._process.worker_pid:
                self._link.send_frame(SIGNAL, 0, b"", SIGTERM)

    def _kill(self) -> None:
        def kill() -> None:
            self._process.kill()
            self._fail(GatewayLost(f"gateway {self.id} was closed; the worker did not end by itself and was killed"))

        self._reactor.call(kill)

    def _abandon(self) -> None:
        self._state = "closed"
        self._lock = allocate_lock()
        self._closed = Event()
        self._ready = Event()
        self._closed.set()
        self._ready.set()
        self._link.abandon()
        if self._stderr_open and self._started.stderr_fd >= 0:
            self._stderr_open = False
            os.close(self._started.stderr_fd)


class Event:
    """``threading.Event``, but a signal may raise at any point of ``wait`` without harm: that one would be left locked."""

    def __init__(self) -> None:
        self._set = False
        self._waiters: list[Any] = []

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        self._set = True
        for waiter in list(self._waiters):
            if waiter.locked():
                try:
                    waiter.release()
                except RuntimeError:  # another thread was faster
                    pass

    def wait(self, timeout: float | None = None) -> bool:
        waiter = allocate_lock()
        waiter.acquire()
        self._waiters.append(waiter)
        try:
            if not self._set:
                waiter.acquire(True, -1 if timeout is None else max(0.0, timeout))
            return self._set
        finally:
            self._waiters.remove(waiter)


class _Waiter:
    def __init__(self, what: int) -> None:
        self.what = what
        self.event = Event()
        self.answer: tuple[int, bytes] | None = None
        self.stacks: str | None = None  # from the guard, when the worker itself does not answer


def exit_gateways(gateways: Iterable[Gateway], timeout: float) -> None:
    """End several workers under one deadline: those opened through others first, then ask all, terminate all, kill all."""
    deadline = monotonic() + timeout
    layers: dict[int, list[Gateway]] = {}
    for gateway in gateways:
        layers.setdefault(len(gateway._link.path), []).append(gateway)
    count = len(layers)
    for number, depth in enumerate(sorted(layers, reverse=True)):
        start = monotonic()
        share = max(0.0, deadline - start) / (count - number)
        _exit_layer(layers[depth], start, share)
    if _pump is not None:
        _pump.drain({gateway.id for layer in layers.values() for gateway in layer}, max(0.1, deadline - monotonic()))


def _exit_layer(gateways: list[Gateway], start: float, share: float) -> None:
    for gateway in gateways:
        gateway._goodbye()
    if _wait_all(gateways, start + share * 0.4):
        return
    for gateway in gateways:
        if not gateway._closed.is_set():
            gateway._terminate()
    if _wait_all(gateways, start + share * 0.7):
        return
    for gateway in gateways:
        if not gateway._closed.is_set():
            gateway._kill()
    # a killed process is gone in milliseconds, whatever it did; the grace is for a machine under load
    _wait_all(gateways, start + share + 1.0)


def _wait_all(gateways: list[Gateway], deadline: float) -> bool:
    return all(gateway._closed.wait(max(0.0, deadline - monotonic())) for gateway in gateways)


class _Silence(GatewayLost):
    """Heartbeats were not answered; the text says for how long."""


class _GuardReports:
    """Takes the guard's reports out of a worker's stderr. A report: the mark, one byte kind, eight digits size, data."""

    def __init__(self, nonce: str, callback: Callable[[bytes, bytes], None]) -> None:
        self.mark = b"\0" + nonce.encode() + b":"
        self.callback = callback
        self.buffer = b""

    def feed(self, data: bytes) -> bytes:
        """Returns what is not the guard's; what may be the beginning of a report is kept for the next call."""
        data = self.buffer + data
        self.buffer = b""
        out = []
        pos = 0
        while True:
            at = data.find(self.mark, pos)
            if at < 0:
                # the mark has one zero byte, its first: is the last one here the beginning of a mark?
                at = data.rfind(b"\0", max(pos, len(data) - len(self.mark) + 1))
                if at < 0 or not self.mark.startswith(data[at:]):
                    at = len(data)
                break
            start = at + len(self.mark) + 9
            size = data[start - 8 : start]
            if len(size) == 8 and not (size.isdigit() and int(size) <= REPORT_MAX):
                # whoever found out the mark and plays with it: no report
                out.append(data[pos : at + 1])
                pos = at + 1
                continue
            if len(size) < 8 or len(data) < start + int(size):
                break
            out.append(data[pos:at])
            pos = start + int(size)
            self.callback(data[start - 9 : start - 8], data[start:pos])
        out.append(data[pos:at])
        self.buffer = data[at:]
        return b"".join(out)

    def flush(self) -> bytes:
        """The end: what was kept is no report."""
        rest, self.buffer = self.buffer, b""
        return rest


def _write_inherited(gateway_id: str, stream: str, data: bytes) -> None:
    fd = 1 if stream == "stdout" else 2
    while data:
        data = data[os.write(fd, data) :]
