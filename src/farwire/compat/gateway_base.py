"""Channels as execnet's programs know them, and the names that they take from ``execnet.gateway_base``."""

from __future__ import annotations

import os
import sys
from _thread import allocate_lock

from ..errors import ChannelClosed, DataFormatError, DumpError, LoadError, RemoteError, TimeoutError
from ..protocol.state import CLOSING
from ..runtime import channel as _channel
from ..runtime.channel_file import ChannelFileRead as _ChannelFileRead
from ..runtime.channel_file import ChannelFileWrite
from .prelude import ExecModel
from .serializer import Unserializer, _Serializer, dump, dumps, dumps_internal, load, loads, loads_internal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = [
    "ENDMARKER",
    "INTERRUPT_TEXT",
    "MAIN_THREAD_ONLY_DEADLOCK_TEXT",
    "NO_ENDMARKER_WANTED",
    "Channel",
    "ChannelFileRead",
    "ChannelFileWrite",
    "DataFormatError",
    "DumpError",
    "ExecModel",
    "LoadError",
    "RemoteError",
    "TimeoutError",
    "Unserializer",
    "_Serializer",
    "dump",
    "dumps",
    "dumps_internal",
    "get_execmodel",
    "load",
    "loads",
    "loads_internal",
    "sysex",
    "trace",
]

NO_ENDMARKER_WANTED = _channel.NO_ENDMARKER
ENDMARKER = object()
INTERRUPT_TEXT = "keyboard-interrupted"
# Nothing says it any more (a task waits for the one before it), but programs look for it in errors.
MAIN_THREAD_ONLY_DEADLOCK_TEXT = "concurrent remote_exec would cause deadlock for main_thread_only execmodel"
sysex = (KeyboardInterrupt, SystemExit)
DEBUG = os.environ.get("EXECNET_DEBUG")

EXECMODELS = ("thread", "main_thread_only")


def get_execmodel(backend: str | ExecModel) -> ExecModel:
    """The model of that name.

    Raises:
        ValueError: there is none.
    """
    if not isinstance(backend, str):
        return backend
    if backend in ("eventlet", "gevent"):
        raise ValueError(
            f"unknown execmodel {backend!r}: farwire uses threads. Under gevent.monkey.patch_all() or eventlet.monkey_patch() a wait "
            "for a gateway holds up all greenlets; run farwire in an unpatched process. The models are "
            + ", ".join(EXECMODELS)
        )
    if backend not in EXECMODELS:
        raise ValueError(f"unknown execmodel {backend!r}, the models are {', '.join(EXECMODELS)}")
    return ExecModel(backend)


def trace(*message: object) -> None:
    """Write a line to stderr, if the environment variable EXECNET_DEBUG is 2; what goes over the wire is shown by FARWIRE_TRACE."""
    if DEBUG == "2":
        sys.stderr.write(f"[{os.getpid()}] {' '.join(map(str, message))}\n")


class ChannelFileRead(_ChannelFileRead):
    """As farwire's, but the death of the worker is the end of the file."""

    def _more(self) -> bool:
        try:
            return super()._more()
        except EOFError:
            return False


class _Channel(_channel.Channel):
    """A channel as execnet's programs know it.

    As ``farwire.Channel``, and: iteration also stops when the worker is dead; what is there already goes to a new callback
    before ``setcallback`` returns; attributes may be set; errors are worded as execnet's were.
    """

    # No __slots__: programs set attributes.

    def receive(self, timeout: float | None = None) -> Any:
        """See ``farwire.Channel.receive``."""
        try:
            return super().receive(timeout)
        except RemoteError as error:
            _reword(error)
            raise
        except TimeoutError:
            raise TimeoutError("no item after %r seconds" % timeout) from None
        except OSError:
            if self._core.callback is not None:
                raise OSError("cannot receive(), channel has receiver callback") from None
            raise

    def send(self, item: Any, timeout: float | None = None) -> None:
        """See ``farwire.Channel.send``."""
        try:
            super().send(item, timeout)
        except ChannelClosed as error:
            raise ChannelClosed(f"cannot send to {self!r}: {error}") from error

    def waitclose(self, timeout: float | None = None) -> None:
        """See ``farwire.Channel.waitclose``."""
        try:
            super().waitclose(timeout)
        except RemoteError as error:
            _reword(error)
            raise
        except TimeoutError:
            raise TimeoutError("Timeout after %r seconds" % timeout) from None

    def __next__(self) -> Any:
        try:
            return self.receive()
        except EOFError:
            raise StopIteration from None

    next = __next__

    def setcallback(self, callback: Callable[[Any], object], endmarker: Any = NO_ENDMARKER_WANTED) -> None:
        """See ``farwire.Channel.setcallback``; for what is there already, ``callback`` is called here."""
        core = self._core
        link = core.link
        if core.callback is not None:
            raise OSError(f"{self!r} has callback already registered")
        while True:
            with link.lock:
                entry = core.take() if core.items else None
            if entry is None:
                break
            try:
                callback(_channel.decode_entry(link, entry))
            except Exception as error:  # noqa: BLE001 - as when it comes later: the channel ends with it
                # First the failure: it takes away what is left, so that of the callback's calls only the end is to come.
                link.need_dispatcher()
                link.dispatcher._failed(core, error)
                super().setcallback(callback, endmarker)
                self._await_callback()
                return
        super().setcallback(callback, endmarker)
        self._await_callback()

    def _await_callback(self) -> None:
        """If the channel has ended, until its callback knows."""
        core = self._core
        link = core.link
        while True:
            with link.lock:
                over = core.ended is not None or core.state >= CLOSING
                if not over or core.callback_done or link.dispatcher.in_thread():
                    return
                waiter = allocate_lock()
                waiter.acquire()
                core.closers.append(waiter)
            link.wait(waiter, None)

    def makefile(self, mode: str = "w", proxyclose: bool = False) -> Any:
        """See ``farwire.Channel.makefile``."""
        if mode == "r":
            return ChannelFileRead(self, proxyclose)
        return super().makefile(mode, proxyclose)

    def reconfigure(self, py2str_as_py3str: bool = True, py3str_as_py2str: bool = False) -> None:
        """Does nothing: it was about strings of Python 2."""

    def _getremoteerror(self) -> BaseException | None:
        error = super()._getremoteerror()
        if isinstance(error, RemoteError):
            _reword(error)
        return error


class _RemoteError(RemoteError):
    """Shown as execnet's."""

    def __repr__(self) -> str:
        return f"RemoteError: {self.formatted}"

    def __reduce__(self) -> tuple[object, ...]:
        return (RemoteError, *super().__reduce__()[1:])

    def warn(self) -> None:
        """Print it to stderr, as an error that nobody waits for."""
        if self.formatted != INTERRUPT_TEXT:
            sys.stderr.write(f"[{os.getpid()}] Warning: unhandled {self!r}\n")


_RemoteError.__name__ = _RemoteError.__qualname__ = "RemoteError"


def _reword(error: RemoteError) -> None:
    error.__class__ = _RemoteError


# In a worker `channel` is made by the worker, of a class that execnet's names must name.
Channel: Any
_in_worker: Any = sys.modules.get("_farwire.runtime.channel")
if _in_worker is None:
    _Channel.__name__ = _Channel.__qualname__ = "Channel"
    Channel = _Channel
else:
    Channel = _in_worker.Channel
