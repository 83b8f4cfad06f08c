"""What a worker does before anything else, so that user code finds in it what execnet's workers had.

The controller takes ``ExecModel`` from here; a worker runs the text of this module with a call of ``set_up`` at its end, on whatever
Python it is, so it is written for 3.6 and imports next to nothing.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any


class ExecModel:
    """How threads, locks and queues are made; the only kind left is that of real threads.

    Attributes:
        backend: "thread" or "main_thread_only".
    """

    def __init__(self, backend: str) -> None:
        self.backend = backend

    def __repr__(self) -> str:
        return "<ExecModel %r>" % self.backend

    def _threading(self) -> Any:
        loaded: Any = sys.modules.get("_farwire.runtime.threads")
        if loaded is not None:  # in a worker, where any thread may be the first that needs it
            return loaded.import_threading()
        import threading

        return threading

    @property
    def queue(self) -> ModuleType:
        """The module with ``Queue``."""
        import queue

        return queue

    @property
    def subprocess(self) -> ModuleType:
        """The module with ``Popen``."""
        import subprocess

        return subprocess

    @property
    def socket(self) -> ModuleType:
        """The module with ``socket``."""
        import socket

        return socket

    def start(self, func: Callable[..., object], args: tuple[Any, ...] = ()) -> None:
        """Run a function in a thread of its own, which does not keep the process alive."""
        self._threading().Thread(target=func, args=args, name="farwire-%s" % func.__name__, daemon=True).start()

    def get_ident(self) -> int:
        """The number of this thread."""
        from _thread import get_ident

        return get_ident()

    def sleep(self, delay: float) -> None:
        """Wait for so many seconds."""
        from time import sleep

        sleep(delay)

    def fdopen(self, fd: int, mode: str, bufsize: int = 1, closefd: bool = True) -> Any:
        """A file on a descriptor."""
        import os

        return os.fdopen(fd, mode, bufsize, closefd=closefd)

    def Lock(self) -> Any:  # noqa: N802 - the ancestor's name
        """A lock; it was always one that its thread may take again."""
        return self._threading().RLock()

    def RLock(self) -> Any:  # noqa: N802 - the ancestor's name
        """A lock that its thread may take again."""
        return self._threading().RLock()

    def Event(self) -> Any:  # noqa: N802 - the ancestor's name
        """A flag to wait for."""
        return self._threading().Event()


class Finder:
    """Imports ``farwire`` and ``execnet`` in a worker from where the controller has them; ``sys.path`` stays as it is.

    ``farwire`` itself is only a name at first: what it exports is loaded when it is asked for. Most workers want ``execnet.dumps``.
    """

    def __init__(self, root: str) -> None:
        self.root = root  # the directory of the package

    def find_spec(self, name: str, path: object = None, target: object = None) -> Any:
        """For ``sys.meta_path``."""
        if name == "farwire":
            make_spec: Any = type(sys.__spec__)
            spec = make_spec(name, self, origin=self.root + "/__init__.py", is_package=True)
            spec.submodule_search_locations = [self.root]
            spec.has_location = True
            return spec
        if name.partition(".")[0] == "execnet":
            from farwire.compat._install import find_spec

            return find_spec(name)
        return None

    def create_module(self, spec: object) -> None:
        """An ordinary module."""

    def exec_module(self, module: Any) -> None:
        """Leave the package for later."""
        filename = module.__spec__.origin

        def load(name: str) -> Any:
            if name.startswith("__") and name not in ("__all__", "__version__"):
                raise AttributeError(name)
            from importlib.machinery import SourceFileLoader

            del module.__getattr__
            SourceFileLoader("farwire", filename).exec_module(module)
            return getattr(module, name)

        module.__getattr__ = load


def _join(gateway: Any, timeout: float | None = None) -> None:
    """Wait for the end of the gateway, which is the end of this process."""
    if not gateway.execmodel.Event().wait(timeout):
        raise OSError("%r: still there after %s seconds" % (gateway, timeout))


def _write_out(link: Any) -> None:
    """Wait until everything that waits to be written is written, or the link is closed."""
    from select import POLLOUT, poll
    from time import sleep

    writable = poll()
    writable.register(link.stream.write_fd, POLLOUT)
    while (link.pending or link.out or link.bulk or link.writing) and link.closed is None:
        if link.writing:  # another thread is at it
            sleep(0.0005)
        elif writable.poll(100):
            link.flush()


def set_up(worker: Any, root: str, first: bool) -> None:
    """Make this worker one of execnet's.

    Args:
        worker: the ``Worker``.
        root: the directory of the farwire package, if this is the controller's machine; else ``""``.
        first: whether farwire is to be found there before anywhere else: this is the controller's own Python.
    """
    channel: Any = sys.modules["_farwire.runtime.channel"]
    gateway: Any = type(worker.gateway)
    gateway.execmodel = ExecModel(worker.tasks.execmodel)
    gateway.join = _join
    gateway.hasreceiver = lambda self: worker.link.closed is None
    channel.Channel.reconfigure = lambda self, py2str_as_py3str=True, py3str_as_py2str=False: None
    # What execnet has sent is in the pipe, and survives the process: nothing is gathered in memory for fewer writes, and a full pipe
    # is waited for.
    send = channel.Channel.send

    def send_now(self: Any, item: Any, timeout: float | None = None) -> None:
        send(self, item, timeout)
        link = self._core.link
        if link.pending or link.out or link.bulk or link.writing:
            _write_out(link)

    channel.Channel.send = send_now
    modules: list[Any] = [channel, sys.modules["_farwire.runtime.link"]]
    for module in modules:
        module.BURST = sys.maxsize
    sys.path.insert(0, "")
    # One set of errors: what a channel of this worker raises is what `execnet.DumpError` and the like name in it.
    sys.modules["farwire.protocol.errors"] = sys.modules["_farwire.protocol.errors"]
    if root and sys.version_info >= (3, 10):
        finder: Any = Finder(root)
        sys.meta_path.insert(0 if first else len(sys.meta_path), finder)
