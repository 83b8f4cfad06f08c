"""``via=<gateway id>``: the interpreter is started by another gateway's worker, which passes bytes on without looking at them.

The relayed link is a channel of RAW bytes on the other gateway's link, its stderr a second one; both have credit, so a
relay holds at most their windows.
"""

from __future__ import annotations

import shlex
from time import monotonic

from ..protocol.frames import EXEC, TASK_SERVICE
from ..runtime.channel import ENDED
from .base import Boot, Command, Started, shorten

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any


class RelayedStream:
    """A byte stream that is a RAW channel of another link."""

    atomic = 0
    read_fd = -1
    write_fd = -2

    def __init__(self, link: Any, core: Any) -> None:
        self.link = link
        self.core = core
        self.closed = False

    def write(self, buffers: Sequence[bytes | memoryview]) -> int:
        """Hand bytes to the link below, as many as its credit and queue take."""
        total = 0
        for buffer in buffers:
            view = memoryview(buffer)
            while view:
                count = self.link.raw_write(self.core, view)
                if not count:
                    return total
                total += count
                view = view[count:]
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
    """A process that a relay started."""

    def __init__(self, link: Any, core: Any) -> None:
        self.link = link
        self.core = core
        self.worker_pid = 0
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit status that the relay reported."""
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
        except Exception:  # the relay's gateway is gone, and with it what it started
            return True
        return True

    def terminate(self) -> None:
        """The relay knows one way to end a process."""

    def kill(self) -> None:
        """Close the channel: the relay kills the process group."""
        self.core.handle().close()


def start_service(via: Any, request: dict[str, Any]) -> tuple[Any, Any]:
    """Ask a gateway's worker for a relay. Returns the cores of the link's channel and of stderr's."""
    link = via._link
    channel = via.newchannel()
    stderr = via.newchannel()
    request["stderr"] = stderr.id
    code, payload = link.encode(request)
    if isinstance(payload, list):
        payload = b"".join(payload)
    with link.lock:
        if link.closed is not None:
            raise link.lost()
        channel._core.service = channel
        stderr._core.service = stderr
        link.connection.send(EXEC, channel.id, bytes((code,)) + bytes(payload), TASK_SERVICE)
    link.flush()
    return channel._core, stderr._core


def start_relayed(boot: Boot, command: Command, first: list[bytes], via: Any) -> Started:
    """Run a command on a gateway's host."""
    core, stderr = start_service(
        via,
        {
            "service": "relay",
            "argv": command.argv,
            "env": command.env,
            "chdir": command.chdir or "",
            "window": boot.window,
        },
    )
    link = via._link
    return Started(
        RelayedStream(link, core),
        -1,
        RelayedProcess(link, core),
        f"via {via.id}: {shlex.join(shorten(command.argv))}",
        first,
        parent=link,
        stderr_core=stderr,
        address=command.address,
    )


__all__ = ["ENDED", "RelayedProcess", "RelayedStream", "start_relayed", "start_service"]
