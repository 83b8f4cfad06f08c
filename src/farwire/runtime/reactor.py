"""The one background thread of a process: it polls links, output and wake-ups, and runs timers.

    register / unregister / later     from the reactor's thread, or before it starts
    call(function)                    from any thread, also from finalizers: takes no lock

Nothing that the reactor runs may block or run user code. A handler that raises has a bug: the traceback goes to stderr and the
others go on, because every gateway of the process depends on this thread.
"""

from __future__ import annotations

import os
import select
import sys
from _collections import deque
from _thread import get_ident
from time import monotonic

from .threads import start_thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

# Windows has no poll: farwire can be imported there, gateways cannot be opened.
POLLIN: int = getattr(select, "POLLIN", 1)
POLLOUT: int = getattr(select, "POLLOUT", 4)
POLLERR: int = getattr(select, "POLLERR", 8)
POLLHUP: int = getattr(select, "POLLHUP", 16)


def _no_poll() -> Any:
    raise OSError("farwire needs select.poll(), which this platform does not have")


poll: Callable[[], Any] = getattr(select, "poll", _no_poll)

READABLE = POLLIN | POLLERR | POLLHUP


class Timer:
    """A call at a later time; ``cancel()`` forgets it."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """Do not call."""
        self.callback = None


class Reactor:
    """See the module."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.stopped = False
        self._started = False
        self._poll = poll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._count = 0
        self._calls: deque[Callable[[], None]] = deque()
        self._wake_r, self._wake_w = os.pipe()
        os.set_blocking(self._wake_r, False)
        os.set_blocking(self._wake_w, False)
        self._poll.register(self._wake_r, POLLIN)
        self._woken = False
        self.ident = 0

    def start(self) -> None:
        """Start the thread, once."""
        if not self._started:
            self._started = True
            start_thread(self.run, self.name)

    def wake(self) -> None:
        """Make the thread look at ``call``s now."""
        if not self._woken:
            self._woken = True
            try:
                os.write(self._wake_w, b"w")
            except BlockingIOError:  # full: it will wake
                pass
            except OSError:
                if not self.stopped:  # closed after the stop: nobody is left to wake
                    raise

    def call(self, callback: Callable[[], None]) -> None:
        """Run ``callback`` soon in the reactor's thread."""
        self._calls.append(callback)
        self.wake()

    def register(self, fd: int, callback: Callable[[int], None], mask: int = POLLIN) -> None:
        """Call ``callback(events)`` when ``fd`` is ready; replaces an earlier registration."""
        self._handlers[fd] = callback
        self._poll.register(fd, mask)

    def unregister(self, fd: int) -> None:
        """Forget ``fd``; nothing happens if it is not registered."""
        if self._handlers.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def later(self, delay: float, callback: Callable[[], None]) -> Timer:
        """Run ``callback`` in ``delay`` seconds in the reactor's thread; call only from there."""
        from heapq import heappush

        timer = Timer(callback)
        self._count += 1
        heappush(self._timers, (monotonic() + delay, self._count, timer))
        return timer

    def stop(self) -> None:
        """End the thread after the calls that are queued."""
        self.call(self._stop)

    def _stop(self) -> None:
        self.stopped = True

    def in_thread(self) -> bool:
        """Whether the caller is the reactor's thread."""
        return get_ident() == self.ident

    def abandon(self) -> None:
        """In a forked child: the thread does not exist here; let go of the descriptors."""
        self.stopped = True
        self._handlers.clear()
        for fd in (self._wake_r, self._wake_w):
            os.close(fd)

    def run(self) -> None:
        """The thread."""
        self.ident = get_ident()
        handlers = self._handlers
        calls = self._calls
        timers = self._timers
        while not self.stopped:
            timeout = None
            if calls:
                timeout = 0
            elif timers:
                # one millisecond up, because poll() cuts fractions and would spin through the last one
                timeout = max(0, int((timers[0][0] - monotonic()) * 1000) + 1)
            for fd, events in self._poll.poll(timeout):
                if fd == self._wake_r:
                    # First the bytes, then the flag: a wake in between finds the flag set and writes nothing, and its call is
                    # run below. The other way round its byte would be read here and the flag stay set: no wake would come
                    # through any more.
                    try:
                        os.read(fd, 4096)
                    except BlockingIOError:
                        pass
                    self._woken = False
                else:
                    handler = handlers.get(fd)
                    if handler is not None:
                        try:
                            handler(events)
                        except BaseException:  # noqa: BLE001 - a handler's bug is reported, the others go on
                            self._report()
            for _ in range(len(calls)):
                try:
                    calls.popleft()()
                except BaseException:  # noqa: BLE001 - a handler's bug is reported, the others go on
                    self._report()
            if timers and timers[0][0] <= monotonic():
                from heapq import heappop

                now = monotonic()
                while timers and timers[0][0] <= now:
                    callback = heappop(timers)[2].callback
                    if callback is not None:
                        try:
                            callback()
                        except BaseException:  # noqa: BLE001 - a handler's bug is reported, the others go on
                            self._report()
        for fd in (self._wake_r, self._wake_w):
            os.close(fd)

    def _report(self) -> None:
        # sys.excepthook would end the loop if it were replaced by something that raises
        import traceback

        sys.stderr.write("farwire: error in the I/O thread (a bug, please report it)\n" + traceback.format_exc())
