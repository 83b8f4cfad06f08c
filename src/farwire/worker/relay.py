"""Starts an interpreter on this host for the controller and passes its bytes on, without looking at them.

    controller ==== link ==== this worker ---- pipes ---- command
                 RAW channel  ----------->  stdin
                 RAW channel  <-----------  stdout
                 RAW channel  <-----------  stderr

Or, with two connections to a socket server in the place of the command: its stderr is then written to as well, for the handshake.

Everything runs in the reactor's thread and never blocks (connecting does, in a thread of its own): RAW frames are always fed
there, see ``runtime.link``. What came for the command and its pipe does not take waits here; it counts as consumed when
written, so at most the channel's window waits.
"""

from __future__ import annotations

import os
import sys
from _collections import deque
from _thread import start_new_thread
from functools import partial
from os import read, write

from ..runtime.channel import ENDED
from ..runtime.reactor import POLLIN, POLLOUT
from ..runtime.stream import MERGED, enlarge_pipe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .main import Worker

READ_SIZE = 65536


def start_service(worker: Worker, core: Any, payload: bytes) -> None:
    """An EXEC frame for a service; called by the reading thread."""
    link = worker.link
    request = link.decode(payload[0], payload[1:])
    with link.lock:
        stderr = link.connection.get(request["stderr"])
    # No program holds these channels.
    core.service = core.handle()
    stderr.service = stderr.handle()
    relay = Relay(worker, core, stderr)
    try:
        if request["service"] != "relay":
            raise ValueError("this worker has no service %r" % (request["service"],))
        if "connect" in request:
            start_new_thread(relay.connect, (request,))
        else:
            relay.run(request)
        if core.ended is not None:  # closed by what came right behind the request
            relay.reactor.call(relay.finish)
    except Exception as exc:  # noqa: BLE001 - the requester gets it
        relay.refuse(exc)


class Inlet:
    """What the controller sends on a channel, on its way into a descriptor."""

    def __init__(self, relay: Relay, core: Any, ended: Any) -> None:
        self.reactor = relay.reactor
        self.link = relay.link
        self.core = core
        self.ended = ended
        core.sink = self.put
        self.fd = -1
        self.held: deque[memoryview] = deque()

    def open(self, fd: int) -> None:
        """Where it goes; the descriptor is ours. What came before waits here."""
        self.fd = fd
        self.reactor.call(self._poll)

    def put(self, core: Any, code: int, data: bytes) -> None:
        """Pass on what came: the sink of its channel."""
        if code == ENDED:
            self.reactor.call(self.ended)
            return
        count = 0
        if not self.held and self.fd >= 0:
            count = self._write(data)
            if count == len(data):
                return
        rest = memoryview(data)[count:]
        held = self.held
        if held and len(held[-1]) + len(rest) <= MERGED:
            held[-1] = memoryview(b"".join((held[-1], rest)))
        else:
            held.append(rest)
        self._poll()

    def _write(self, data: bytes | memoryview) -> int:
        try:
            count = write(self.fd, data)
        except BlockingIOError:
            return 0
        except OSError:  # it ended: its output tells
            count = len(data)
        core = self.core
        core.consumed += count
        if (core.consumed - core.granted) * 2 >= core.window:
            self.link.consumed(core, 0)
            self.link.flush()
        return count

    def _poll(self) -> None:
        if self.held and self.fd >= 0:
            self.reactor.register(self.fd, self._writable, POLLOUT)

    def _writable(self, events: int) -> None:
        while self.held:
            piece = self.held[0]
            count = self._write(piece)
            if count < len(piece):
                self.held[0] = piece[count:]
                return
            self.held.popleft()
        self.reactor.unregister(self.fd)

    def close(self) -> None:
        """In the reactor's thread."""
        if self.fd >= 0:
            self.reactor.unregister(self.fd)
            os.close(self.fd)
            self.fd = -1


class Relay:
    """One relayed interpreter."""

    def __init__(self, worker: Worker, core: Any, stderr: Any) -> None:
        self.worker = worker
        self.reactor = worker.reactor
        self.link = worker.link
        self.core = core
        self.stderr = stderr
        self.process: Any = None
        self.inlets = [Inlet(self, core, self.finish), Inlet(self, stderr, lambda: None)]
        self.outs: dict[int, Any] = {}  # our read end -> channel
        self.ended = False

    def run(self, request: dict[str, Any]) -> None:
        """Start a command."""
        import subprocess

        argv = request["argv"]
        if not argv[0]:
            argv[0] = sys.executable
        cwd = None
        if request["chdir"]:
            cwd = os.path.expanduser(request["chdir"])
            try:
                if not os.path.isdir(cwd):
                    os.makedirs(cwd)
                if not os.access(cwd, os.X_OK):
                    raise OSError("cannot enter %s" % cwd)
            except OSError as error:
                raise OSError("farwire: chdir: %s" % error) from None
        env = dict(os.environ)
        env.update(request["env"])
        try:
            self.process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=cwd,
                env=env,
                bufsize=0,
                start_new_session=True,
            )
        except OSError as error:
            raise OSError("farwire: exec: %s: %s" % (argv[0], error.strerror)) from None
        process = self.process
        self._attach(os.dup(process.stdin.fileno()), os.dup(process.stdout.fileno()), os.dup(process.stderr.fileno()))
        for pipe in (process.stdin, process.stdout, process.stderr):
            pipe.close()

    def connect(self, request: dict[str, Any]) -> None:
        """Connect twice (link and stderr) to a socket server that this host can reach; in a thread of its own."""
        import socket

        found = []
        try:
            address, timeout = request["connect"], request["timeout"]
            for _ in range(2):
                if isinstance(address, str):
                    sock = socket.socket(socket.AF_UNIX)
                    found.append(sock)
                    sock.settimeout(timeout)
                    sock.connect(address)
                else:
                    sock = socket.create_connection(tuple(address), timeout)
                    found.append(sock)
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link, stderr = [os.dup(sock.fileno()) for sock in found]
        except Exception as exc:  # noqa: BLE001 - the requester gets it
            self.refuse(exc)
            return
        finally:
            for sock in found:
                sock.close()
        self.reactor.call(lambda: self._attach(os.dup(link), link, stderr, os.dup(stderr)))

    def refuse(self, exc: Exception) -> None:
        """It cannot be started: the controller gets the error."""
        from ..runtime.remote_error import encode_error

        error, code = encode_error(exc)
        link = self.link
        with link.lock:
            if link.closed is None:
                link.connection.send_close(self.stderr)
                link.connection.send_close(self.core, error, code)
        link.flush()
        self.core.service = self.stderr.service = None

    def _attach(self, stdin: int, stdout: int, stderr: int, stderr_in: int = -1) -> None:
        fds = [stdin, stdout, stderr] + ([stderr_in] if stderr_in >= 0 else [])
        for fd in fds:
            os.set_blocking(fd, False)
        enlarge_pipe(stdin)
        if self.ended:  # the controller gave up while we connected
            for fd in fds:
                os.close(fd)
            return
        self.outs = {stdout: self.core, stderr: self.stderr}
        self.core.on_credit = self._resume
        self.stderr.on_credit = self._resume
        self.inlets[0].open(stdin)
        if stderr_in >= 0:
            self.inlets[1].open(stderr_in)
        self.reactor.call(self._start)

    def _start(self) -> None:
        for fd in self.outs:
            self.reactor.register(fd, partial(self._readable, fd), POLLIN)

    # -- towards the controller -----------------------------------------------------------------------------------

    def _readable(self, fd: int, events: int = 0) -> None:
        core = self.outs.get(fd)
        if core is None:
            return
        link = self.link
        room = core.credit
        room = min(room, READ_SIZE)
        if room <= 0 or len(link.out) > 64:
            self.reactor.unregister(fd)
            if room > 0:
                link.drain_waiters.append(self._resume)
                link.flush()
            return
        try:
            data = read(fd, room)
        except BlockingIOError:
            return
        except OSError:  # a connection that was reset
            data = b""
        if not data:
            self._closed(fd)
            return
        try:
            link.raw_forward(core, data)
        except OSError:  # the controller closed the channel: _from_controller gets to know
            self.reactor.unregister(fd)

    def _resume(self) -> None:
        self.reactor.call(self._register)

    def _register(self) -> None:
        for fd, core in self.outs.items():
            if core.credit > 0:
                self.reactor.register(fd, partial(self._readable, fd), POLLIN)

    def _closed(self, fd: int) -> None:
        core = self.outs.pop(fd)
        self.reactor.unregister(fd)
        os.close(fd)
        if not self.outs or core is self.core:
            self._await_exit(0.001)
        elif self.core not in self.outs.values():
            self.finish()

    def _await_exit(self, delay: float) -> None:
        """stdout is closed: the process ends soon; its status follows what it wrote to stderr."""
        if self.ended:
            return
        if self.process is not None and self.process.poll() is None and delay < 2:
            self.reactor.later(delay, lambda: self._await_exit(delay * 2))
            return
        if self.outs and delay < 2:
            for fd in list(self.outs):
                self._readable(fd)
            if self.outs:
                self.reactor.later(delay, lambda: self._await_exit(delay * 2))
                return
        self.finish()

    def finish(self) -> None:
        """It is over: end what is left, tell the controller. In the reactor's thread."""
        if self.ended:
            return
        self.ended = True
        self._end_process()
        link = self.link
        if self.process is not None and self.process.returncode is not None and link.closed is None:
            try:
                link.raw_write(self.stderr, b"%d" % self.process.returncode, 2)
            except OSError:  # the controller closed it
                pass
        with link.lock:
            if link.closed is None:
                for core in (self.stderr, self.core):
                    link.connection.send_close(core)
        link.flush()
        self.core.service = self.stderr.service = None

    def _end_process(self) -> None:
        """Kill what is left of the process's session, close our ends."""
        for inlet in self.inlets:
            inlet.close()
        for fd in list(self.outs):
            self.reactor.unregister(fd)
            os.close(fd)
        self.outs.clear()
        process = self.process
        if process is not None and process.poll() is None:
            # The guard at its head sees the closed pipe and ends the worker, then itself; what is no guard of ours is killed.
            self._reap(0.05, 0)

    def _reap(self, delay: float, tries: int) -> None:
        process = self.process
        if process.poll() is None:
            if tries == 12:
                try:
                    os.killpg(process.pid, 9)
                except OSError:  # it ended at this moment
                    pass
            self.reactor.later(delay, lambda: self._reap(delay, tries + 1))
