"""``via=<gateway id>``: the interpreter is started by another gateway's worker, which passes bytes on without looking at them.

The relayed link is a channel of RAW bytes on the other gateway's link, its stderr a second one; both have credit, so a
relay holds at most their windows.
"""

from __future__ import annotations

import shlex
from _thread import allocate_lock
from collections import deque
from time import monotonic

from ..protocol.frames import EXEC, TASK_SERVICE
from ..runtime.channel import ENDED
from ..runtime.stream import MERGED
from ..starting import way_error
from .base import Boot, Command, Started, shorten

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    Sink = Callable[[Any, int, bytes], object]


class RawInput:
    """What comes in on a RAW channel: kept until somebody attaches a sink, which then gets it as the link would give it.

    Made before the relay is asked for, so that nothing is missed, the end least of all.

    Attributes:
        link, core: the link of the other gateway, and the channel on it.
    """

    def __init__(self, link: Any, core: Any) -> None:
        self.link = link
        self.core = core
        self._lock = allocate_lock()  # held while the sink gets what was kept; what comes meanwhile waits
        self._sink: Sink | None = None
        self._held: deque[tuple[int, bytes]] = deque()
        self._waiter: Any = None
        core.sink = self._arrived

    def _arrived(self, core: Any, code: int, data: bytes) -> None:
        with self._lock:
            sink = self._sink
            if sink is None:
                held = self._held
                if held and code == held[-1][0] == 0 and len(held[-1][1]) + len(data) <= MERGED:
                    held[-1] = (0, held[-1][1] + data)
                else:
                    held.append((code, data))
                if self._waiter is not None:
                    self._waiter.release()
                    self._waiter = None
                return
        sink(core, code, data)

    def attach(self, sink: Sink) -> None:
        """From now on ``sink(core, code, data)`` gets everything, what was kept first."""
        with self._lock:
            while self._held:
                sink(self.core, *self._held.popleft())
            self._sink = self.core.sink = sink
        self.link.flush()

    def read(self, size: int, deadline: float | None, peek: bool = False) -> bytes:
        """1 to ``size`` bytes, empty at the end; waits for them. Only until a sink is attached.

        Raises:
            TimeoutError: nothing came until the deadline (the builtin one).
        """
        while True:
            with self._lock:
                if self._held:
                    code, data = self._held[0]
                    if code == ENDED:
                        return b""
                    if not peek:
                        self._held.popleft()
                        if data[size:]:
                            self._held.appendleft((code, data[size:]))
                    break
                waiter = allocate_lock()
                waiter.acquire()
                self._waiter = waiter
            if not self.link.wait(waiter, deadline):
                self._waiter = None
                raise TimeoutError("the handshake took too long")
        if not peek:
            self.link.consumed(self.core, len(data[:size]))
            self.link.flush()
        return data[:size]


class RelayedStream:
    """A byte stream that is a RAW channel of another link.

    Attributes:
        encrypted: what is on that channel is not what is written here.
    """

    encrypted = False
    atomic = 0
    read_fd = -1
    write_fd = -2

    def __init__(self, source: RawInput) -> None:
        self.input: Any = source
        self.link = source.link
        self.core = source.core
        self.closed = False

    def write(self, buffers: Sequence[bytes | memoryview], results: list[int] | None = None) -> int:
        """Hand bytes to the link below, as many as its credit and queue take. Returns the count.

        ``results`` gets the counts of which it is the sum one by one, as ``raw_write`` says.
        """
        total = 0
        for buffer in buffers:
            data = buffer
            while (count := self.link.raw_write(self.core, data, results=results)) < len(data):
                if not count:
                    return total
                total += count
                data = memoryview(data)[count:]
            total += count
        return total

    def wait_writable(self, callback: Callable[[], None]) -> bool:
        """Have ``callback`` called when ``write`` may take more. Returns True if it may now."""
        self.core.on_credit = callback
        self.link.drain_waiters.append(callback)
        return self.core.credit > 0 and not self.link.out

    def close(self) -> None:
        """Close the channel: the relay ends what it started."""
        if not self.closed:
            self.closed = True
            self.core.handle().close()


class RelayedProcess:
    """A process that a relay started.

    Attributes:
        returncode: its exit status as the relay reported it.
    """

    def __init__(self, link: Any, core: Any) -> None:
        self.link = link
        self.core = core
        self.worker_pid = 0
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit status; 0 when the relay is gone, and with it what it started."""
        if self.returncode is None and (self.link.closed is not None or self.core.ended is not None):
            return 0
        return self.returncode

    def wait(self, deadline: float) -> bool:
        """Wait for the relay to say that it ended."""
        from ..protocol.errors import TimeoutError

        try:
            self.core.handle().waitclose(timeout=max(0.0, deadline - monotonic()))
        except TimeoutError:
            return False
        except Exception:  # noqa: BLE001 - the relay's gateway is gone, and with it what it started
            return True
        return True

    def terminate(self) -> None:
        """The relay knows one way to end a process."""

    def kill(self) -> None:
        """Close the channel: the relay kills the process group."""
        self.core.handle().close()


def start_service(boot: Boot, via: Any, request: dict[str, Any]) -> tuple[RawInput, RawInput]:
    """Ask a gateway's worker for a relay. Returns the link's channel and that of stderr.

    Raises:
        StartError: that gateway is gone, or has not started.
    """
    link = via._link
    try:
        channel = via.newchannel()
        stderr = via.newchannel()
        inputs = RawInput(link, channel._core), RawInput(link, stderr._core)
        request["stderr"] = stderr.id
        code, payload = link.encode(request)
        if isinstance(payload, list):
            payload = b"".join(payload)
        with link.lock:
            if link.closed is not None:
                raise link.lost()
            channel._core.service = channel
            stderr._core.service = stderr
            link.send_later()
            link.connection.send(EXEC, channel.id, bytes((code,)) + bytes(payload), TASK_SERVICE)
    except OSError as error:  # GatewayLost, ChannelClosed
        raise way_error(error, boot.id, via.id) from error
    link.flush()
    return inputs


def start_relayed(boot: Boot, command: Command, first: list[bytes], via: Any) -> Started:
    """Run a command on a gateway's host."""
    source, stderr = start_service(
        boot, via, {"service": "relay", "argv": command.argv, "env": command.env, "chdir": command.chdir or ""}
    )
    return Started(
        RelayedStream(source),
        -1,
        RelayedProcess(source.link, source.core),
        f"via {via.id}: {shlex.join(shorten(command.argv))}",
        first,
        parent=source.link,
        stderr_input=stderr,
        address=command.address,
    )
