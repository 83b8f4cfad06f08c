"""The gateway as execnet's programs know it."""

from __future__ import annotations

import sys

from .. import gateway as _gateway
from ..errors import GatewayLost
from ..protocol.frames import STATUS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..runtime.channel import Channel
    from .gateway_io import WorkerIO
    from .multi import Group
    from .prelude import ExecModel

# An execnet worker that was told to go interrupted its tasks after 5 seconds, and ended itself after 10 more.
INTERRUPT_AFTER = 5.0
KILL_AFTER = 15.0
PACE = 0.01  # seconds
PACE_BYTES = 16384  # a worker that sends as fast as it can does not wait for us


class RInfo(_gateway.RInfo):
    """What a worker is, as attributes; shown as execnet showed it."""

    def __repr__(self) -> str:
        return "<RInfo %r>" % ", ".join(f"{key}={value}" for key, value in sorted(self.__dict__.items()))


class Gateway(_gateway.Gateway):
    """As ``farwire.Gateway``, with the methods that were execnet's.

    Attributes:
        spec: the ``XSpec`` it was made from; the very object.
    """

    spec: Any
    group: Any

    def __init__(self, *args: Any) -> None:
        from .gateway_base import _Channel

        super().__init__(*args)
        self._link.channel_type = _Channel
        self._exited = False
        # Programs reach the process by `gateway._io.popen`.
        self._io: WorkerIO = _worker_io(self)

    def __repr__(self) -> str:
        state = "receive-live" if self.hasreceiver() else "not-receiving"
        with self._link.lock:
            channels = sum(1 for id in self._link.connection.channels if id)
        return f"<Gateway id={self.id!r} {state}, {self.execmodel.backend} model, {channels} active channels>"

    @property
    def execmodel(self) -> ExecModel:
        """How this end makes threads and locks."""
        model: ExecModel = self.group.execmodel
        return model

    @property
    def death(self) -> str:
        """How the worker ended, with the last of its stderr; ``""`` as long as it lives, and when it was told to go."""
        return str(self._error) if isinstance(self._error, GatewayLost) and not self._leaving else ""

    @property
    def _group(self) -> Group:
        group: Group = self.group
        return group

    def remote_exec(self, source: Any, **kwargs: Any) -> Channel:
        """See ``farwire.Gateway.remote_exec``. An object that is neither code nor a function is taken as the text it shows itself as."""
        return super().remote_exec(as_source(source), **kwargs)

    def exit(self, timeout: float | None = None) -> None:
        """Tell the worker to go, and leave the group. It is not waited for; ``Group.terminate`` does that.

        A worker that is still busy after 5 seconds is interrupted, one that is still there after 15 is killed.

        Args:
            timeout: not None: wait for so many seconds, and kill what is left, as ``farwire.Gateway.exit`` does.
        """
        if not self._exited:
            self._exited = True
            self._group._unregister(self)
            self._goodbye()
            self._reactor.call(self._see_off)
        if timeout is not None:
            super().exit(timeout)

    def _see_off(self) -> None:
        self._reactor.later(INTERRUPT_AFTER, self._interrupt)
        self._reactor.later(KILL_AFTER, self._kill_late)

    def pace(self) -> None:
        """From now on, take in what comes for callbacks every 10 milliseconds, not as it comes.

        A worker that sends thousands of small items, one by one, then costs a fraction of the switches between threads. Whoever waits
        in ``receive`` waits no longer for it.
        """
        from fcntl import ioctl
        from termios import FIONREAD

        link: Any = self._link
        if link.parent is not None:  # what another gateway's link brings is not read here
            return
        readable = link._readable

        def paced(events: int) -> None:
            readable(events)
            if link.passive or link.closed is not None:
                return
            waiting = ioctl(link.stream.read_fd, FIONREAD, b"\0\0\0\0")
            if int.from_bytes(waiting, sys.byteorder) < PACE_BYTES:
                link._pause(PACE)

        def begin() -> None:
            link._readable = paced
            if not link.passive:
                link.resume()

        self._reactor.call(begin)

    def _interrupt(self) -> None:
        """KeyboardInterrupt in the task of the main thread, if the worker is still there."""
        try:
            self.signal()
        except GatewayLost:  # it is gone
            pass

    def _kill_late(self) -> None:
        if not self._closed.is_set():
            self._kill()

    def join(self, timeout: float | None = None) -> None:
        """Wait until the worker is gone. Raises ``TimeoutError`` (an ``OSError``) if it is not."""
        super().join(timeout)

    def _rinfo(self, update: bool = False) -> RInfo:
        if update or self._info is None:
            found = dict(vars(self.info()))
            del found["implementation"]
            self._info = RInfo(**found)
        info: Any = self._info
        return info  # type: ignore[no-any-return]

    def remote_status(self, timeout: float | None = 30.0) -> Any:
        """What goes on in the worker: ``numchannels, numexecuting, execmodel``.

        Raises:
            TimeoutError: no answer within so many seconds.
            GatewayLost: the worker is gone.
        """
        found = self._ask(STATUS, timeout)
        executing = found["numexecuting"] + found["numqueued"]  # execnet counted from the arrival of a task
        return RInfo(numchannels=found["numchannels"], numexecuting=executing, execmodel=found["execmodel"])

    def reconfigure(self, py2str_as_py3str: bool = True, py3str_as_py2str: bool = False) -> None:
        """Does nothing: it was about strings of Python 2."""

    def remote_init_threads(self, num: int | None = None) -> None:
        """Does nothing but say so, as in execnet: there are as many threads as are needed."""
        sys.stdout.write("WARNING: remote_init_threads() is a no-op\n")


def as_source(source: Any) -> Any:
    """What ``remote_exec`` of farwire takes, from what execnet's took."""
    from types import ModuleType

    if isinstance(source, (str, ModuleType)) or callable(source) or isinstance(source, (bytes, bytearray)):
        return source
    shows_itself = getattr(type(source), "__str__", None) is not getattr(object, "__str__", None)
    return str(source) if shows_itself else source


def _worker_io(gateway: Gateway) -> WorkerIO:
    from .gateway_io import WorkerIO

    return WorkerIO(gateway)


def rinfo_source(channel: Any) -> None:
    """What execnet ran to find out what a worker is; programs run it themselves."""
    import os
    import sys

    channel.send(
        {
            "executable": sys.executable,
            "version_info": sys.version_info[:5],
            "platform": sys.platform,
            "cwd": os.getcwd(),
            "pid": os.getpid(),
        }
    )


__all__ = ["Gateway", "RInfo", "as_source", "rinfo_source"]
