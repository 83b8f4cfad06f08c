"""Starts an interpreter on this host for the controller and passes its bytes on, without looking at them.

    controller ==== link ==== this worker ---- pipes ---- command
                 RAW channel  ----------->  stdin
                 RAW channel  <-----------  stdout
                 RAW channel  <-----------  stderr

Everything runs in the reactor or in the thread that reads the link, and never blocks. What came for the command and its pipe does not
take waits here; it counts as consumed when written, so at most the channel's window waits.
"""

from __future__ import annotations

import os
import sys
from collections import deque

from ..runtime.channel import ENDED
from ..runtime.reactor import POLLIN, POLLOUT
from ..runtime.stream import enlarge_pipe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .main import Worker

READ_SIZE = 65536


def start_service(worker: Worker, core: Any, payload: bytes) -> None:
    """An EXEC frame for a service; called by the reading thread."""
    from ..runtime.remote_error import encode_error

    link = worker.link
    handle = core.handle()
    try:
        request = link.decode(payload[0], payload[1:])
        if request.get("service") != "relay":
            raise ValueError("this worker has no service %r" % (request.get("service"),))
        with link.lock:
            stderr = link.connection.get(request["stderr"])
        relay = Relay(worker, core, stderr)
        core.service = (relay, handle)  # no program holds the channel
        stderr.service = stderr.handle()
        if "connect" in request:
            relay.connect(request)
        else:
            relay.run(request)
    except Exception as exc:  # the requester gets it
        error, code = encode_error(exc)
        with link.lock:
            if link.closed is None:
                link.connection.send_close(core, error, code)
        link.flush()


class Relay:
    """One relayed interpreter."""

    def __init__(self, worker: Worker, core: Any, stderr: Any) -> None:
        self.worker = worker
        self.reactor = worker.reactor
        self.link = worker.link
        self.core = core
        self.stderr = stderr
        self.process: Any = None
        self.sockets: list[Any] = []
        self.stdin = -1
        self.outs: dict[int, Any] = {}  # our read end -> channel
        self.held: deque[memoryview] = deque()
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
            if not os.path.isdir(cwd):
                os.makedirs(cwd)
        env = dict(os.environ)
        env.update(request["env"])
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
        process = self.process
        self._attach(os.dup(process.stdin.fileno()), os.dup(process.stdout.fileno()), os.dup(process.stderr.fileno()))
        for pipe in (process.stdin, process.stdout, process.stderr):
            pipe.close()

    def connect(self, request: dict[str, Any]) -> None:
        """Connect twice (link and stderr) to a socket server that this host can reach."""
        import socket

        for _ in range(2):
            address = request["connect"]
            if isinstance(address, str):
                sock = socket.socket(socket.AF_UNIX)
                sock.settimeout(10)
                sock.connect(address)
            else:
                sock = socket.create_connection(tuple(address), 10)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.sockets.append(sock)
        link, stderr = self.sockets
        # The controller shakes hands on both; what it writes to the second one is little and comes first.
        self.stderr.sink = self._to_stderr_socket
        self._attach(os.dup(link.fileno()), os.dup(link.fileno()), os.dup(stderr.fileno()))

    def _attach(self, stdin: int, stdout: int, stderr: int) -> None:
        self.stdin = stdin
        enlarge_pipe(stdin)
        for fd in (stdin, stdout, stderr):
            os.set_blocking(fd, False)
        self.outs = {stdout: self.core, stderr: self.stderr}
        self.core.on_credit = self._resume
        self.stderr.on_credit = self._resume
        self.core.sink = self._from_controller
        self.reactor.call(self._start)

    def _start(self) -> None:
        for fd in self.outs:
            self.reactor.register(fd, self._reader(fd), POLLIN)

    def _reader(self, fd: int) -> Any:
        return lambda events: self._readable(fd)

    # -- towards the controller -----------------------------------------------------------------------------------

    def _readable(self, fd: int) -> None:
        core = self.outs.get(fd)
        if core is None:
            return
        link = self.link
        room = min(core.credit, READ_SIZE)
        if room <= 0 or len(link.out) > 64:
            self.reactor.unregister(fd)
            if room > 0:
                link.drain_waiters.append(self._resume)
                link.flush()
            return
        try:
            data = os.read(fd, room)
        except BlockingIOError:
            return
        except OSError:  # a connection that was reset
            data = b""
        if not data:
            self._closed(fd)
            return
        try:
            link.raw_write(core, data)
        except OSError:  # the controller closed the channel: _from_controller gets to know
            self.reactor.unregister(fd)

    def _resume(self) -> None:
        self.reactor.call(self._register)

    def _register(self) -> None:
        for fd, core in self.outs.items():
            if core.credit > 0:
                self.reactor.register(fd, self._reader(fd), POLLIN)

    def _closed(self, fd: int) -> None:
        core = self.outs.pop(fd)
        self.reactor.unregister(fd)
        os.close(fd)
        if not self.outs or core is self.core:
            self._await_exit(0.001)
        elif self.core not in self.outs.values():
            self._finish()

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
        self._finish()

    def _finish(self) -> None:
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

    # -- from the controller --------------------------------------------------------------------------------------

    def _from_controller(self, core: Any, code: int, data: bytes) -> None:
        if code == ENDED:
            self.reactor.call(self._finish)
            return
        if not self.held and self.stdin >= 0:
            try:
                count = os.write(self.stdin, data)
            except BlockingIOError:
                count = 0
            except OSError:  # it ended: its stdout tells
                count = len(data)
            if count:
                self._consumed(count)
            if count == len(data):
                return
            data = data[count:]
            self.held.append(memoryview(data))
            self.reactor.call(self._poll_stdin)
        else:
            self.held.append(memoryview(data))

    def _poll_stdin(self) -> None:
        if self.held and self.stdin >= 0:
            self.reactor.register(self.stdin, self._writable, POLLOUT)

    def _writable(self, events: int) -> None:
        while self.held:
            piece = self.held[0]
            try:
                count = os.write(self.stdin, piece)
            except BlockingIOError:
                return
            except OSError:
                count = len(piece)
            self._consumed(count)
            if count < len(piece):
                self.held[0] = piece[count:]
            else:
                self.held.popleft()
        self.reactor.unregister(self.stdin)

    def _consumed(self, count: int) -> None:
        link = self.link
        with link.lock:
            self.core.consumed += count
            link.connection.grant(self.core)

    def _to_stderr_socket(self, core: Any, code: int, data: bytes) -> None:
        if code != ENDED:
            self.sockets[1].sendall(data)

    def _end_process(self) -> None:
        """Kill what is left of the process's session, close our ends."""
        if self.stdin >= 0:
            self.reactor.unregister(self.stdin)
            os.close(self.stdin)
            self.stdin = -1
        for fd in list(self.outs):
            self.reactor.unregister(fd)
            os.close(fd)
        self.outs.clear()
        for sock in self.sockets:
            sock.close()
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
