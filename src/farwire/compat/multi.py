"""Groups as execnet's programs know them.

Two lists of gateways: farwire's own (``_members``) has those whose worker is there; ``_gateways``, which programs see, has those that
were not told to exit. A gateway whose worker died stays in the second until then.
"""

from __future__ import annotations

import os
from time import monotonic

from .. import group as _group
from .. import multichannel as _multichannel
from ..errors import AuthenticationError, HostNotFound, SpecError
from ..gateway import exit_gateways
from .gateway import KILL_AFTER, Gateway
from .gateway_base import NO_ENDMARKER_WANTED, ExecModel, get_execmodel
from .xspec import XSpec, resolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from queue import Queue
    from typing import Any

    from ..runtime.channel import Channel
    from ..transports.base import Transport
    from ..xspec import XSpec as Resolved

_made: dict[str, str] = {}


def prelude(local: bool, own: bool) -> str:
    """The text of ``prelude.py``, fit for old Pythons, with the call at its end.

    Args:
        local: the worker is on this machine, and can read our files.
        own: it is the interpreter that runs here.
    """
    if "" not in _made:
        from importlib.resources import files

        from ..bootstrap.blank import blank, squeeze

        text = files("farwire.compat").joinpath("prelude.py").read_text("utf-8")
        _made[""] = squeeze(blank(text, comments=True, docstrings=True, annotations=True))
        _made["root"] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return f"{_made['']}\nset_up(worker, {_made['root'] if local else ''!r}, {own})\n"


class HostRefused(AuthenticationError, HostNotFound):
    """The host refused us; execnet said that it was not found, and programs catch that."""


class Group(_group.Group):
    """Gateways that belong together.

    Args:
        xspecs: specs of gateways to open; their workers start at the same time.
        execmodel: the execution model of both ends, "thread" or "main_thread_only".

    Raises:
        ValueError: there is no such model.
        StartError: a worker did not start; the others are ended.
    """

    gateway_type = Gateway

    def __init__(self, xspecs: Iterable[XSpec | str | None] = (), execmodel: str = "thread") -> None:
        self._gateways: list[Gateway] = []
        self._gateways_to_join: list[Gateway] = []
        self._started: list[tuple[XSpec, Gateway | BaseException]] = []  # ahead of makegateway, by start_early
        self._autoid = 0
        super().__init__()
        self.set_execmodel(execmodel)
        specs = [spec if isinstance(spec, XSpec) else XSpec(str(spec or self.defaultspec)) for spec in xspecs]
        try:
            self.start_early(specs)
            for spec in specs:
                self.makegateway(spec)
        except BaseException:
            self.terminate(1.0)
            raise

    @property
    def execmodel(self) -> ExecModel:
        """The execution model of this end."""
        return self._execmodel

    @property
    def remote_execmodel(self) -> ExecModel:
        """That of workers whose spec says nothing else."""
        return self._remote_execmodel

    def set_execmodel(self, execmodel: str, remote_execmodel: str | None = None) -> None:
        """Set the execution models for gateways to come.

        Args:
            execmodel: "thread" or "main_thread_only".
            remote_execmodel: for the workers, if another.

        Raises:
            ValueError: there are gateways already, or no such model.
        """
        if self._gateways:
            raise ValueError("can not set execution models if gateways have been created already")
        self._execmodel = get_execmodel(execmodel)
        self._remote_execmodel = get_execmodel(remote_execmodel or execmodel)

    # -- a container of gateways ------------------------------------------------------------------------------

    def __repr__(self) -> str:
        return f"<Group {[gateway.id for gateway in self]!r}>"

    def __len__(self) -> int:
        return len(self._gateways)

    def __iter__(self) -> Iterator[Any]:
        return iter(list(self._gateways))

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, int):
            return self._gateways[key]
        for gateway in self:
            if key in (gateway, gateway.id):
                return gateway
        raise KeyError(key)

    def __contains__(self, key: object) -> bool:
        return any(key in (gateway, gateway.id) for gateway in self)

    def _register(self, gateway: Gateway) -> None:
        with self._lock:
            self._gateways.append(gateway)

    def _unregister(self, gateway: Gateway) -> None:
        with self._lock:
            if gateway in self._gateways:
                self._gateways.remove(gateway)
                self._gateways_to_join.append(gateway)

    # -- opening ----------------------------------------------------------------------------------------------

    def allocate_id(self, spec: Any) -> str:
        """Give the spec an id if it has none. May be called again; nothing is reserved."""
        if spec.id is None:
            with self._lock:
                name = f"gw{self._autoid}"
                self._autoid += 1
            if name in self:
                raise SpecError(f"already have gateway with id {name!r}")
            spec.id = name
        found: str = spec.id
        return found

    def _reserve_id(self, spec: Resolved) -> str:
        assert spec.id is not None
        return spec.id

    def _prelude(self, spec: Resolved) -> str:
        return prelude(bool(spec.popen) and spec.via is None, spec.python is None)

    def makegateway(self, spec: XSpec | str | None = None, **options: Any) -> Gateway:  # type: ignore[override]
        """Open a gateway.

        Args:
            spec: how to reach the worker; None for ``defaultspec``. An ``XSpec`` gets an id if it has none.
            options: ``timeout`` and ``output`` as for ``farwire.Group.makegateway``.

        Raises:
            SpecError: the spec says no way to reach a worker, or a gateway of that id is there. (A ``ValueError``.)
            HostNotFound: the host cannot be reached, or refuses us.
            StartError: the worker did not start for another reason.
        """
        xspec = self._prepare(spec)
        gateway: Gateway | BaseException | None = None
        for early in self._started:
            if early[0] is xspec:
                self._started.remove(early)
                gateway = early[1]
                break
        try:
            if gateway is None:
                gateway = self._begin(xspec, **options)
            if isinstance(gateway, BaseException):
                raise gateway
            self._await(gateway)
        except AuthenticationError as error:
            raise _as_not_found(error) from None
        self._register(gateway)
        return gateway

    def start_early(self, specs: Iterable[XSpec], **options: Any) -> None:
        """Start workers at the same time. ``makegateway``, called with these same objects, then has its result sooner.

        What fails is raised by ``makegateway``. A gateway for which it is never called ends with ``terminate``.
        """
        for spec in specs:
            self._prepare(spec)
            if spec.via or spec.installvia:  # needs another first
                continue
            try:
                self._started.append((spec, self._begin(spec, **options)))
            except Exception as error:  # noqa: BLE001 - whatever it is, makegateway raises it
                self._started.append((spec, error))

    def _prepare(self, spec: XSpec | str | None) -> XSpec:
        if not isinstance(spec, XSpec):
            spec = XSpec(str(self.defaultspec if spec is None else spec))
        self.allocate_id(spec)
        if spec.id in self:
            raise SpecError(f"already have gateway with id {spec.id!r}")
        if spec.execmodel is None:
            spec.execmodel = self.remote_execmodel.backend
        get_execmodel(spec.execmodel)
        return spec

    def _begin(self, spec: XSpec, timeout: float | None = None, output: Any = None) -> Gateway:
        from .gateway_io import transport_for

        if spec.installvia:
            from .gateway_socket import start_via

            return start_via(self, spec)
        return self._open(spec, resolve(spec), transport_for(spec), timeout, output)

    def _open(
        self,
        spec: XSpec,
        resolved: Resolved,
        transport: Transport | None,
        timeout: float | None = None,
        output: Any = None,
    ) -> Gateway:
        gateway = self._start(resolved, timeout, output, transport=transport)
        assert isinstance(gateway, Gateway)
        gateway.spec = spec
        return gateway

    # -- all of them ------------------------------------------------------------------------------------------

    def remote_exec(self, source: Any, **kwargs: Any) -> MultiChannel:
        """Run code in every member. Returns a ``MultiChannel``."""
        return MultiChannel([gateway.remote_exec(source, **kwargs) for gateway in self])

    def terminate(self, timeout: float | None = None) -> None:
        """End all members, those opened through others first, and wait for them.

        Asks; after a third of the time (5 seconds at most) interrupts what is still busy; at its end kills what is left.

        Args:
            timeout: seconds for everything; None for the 15 after which execnet's workers ended by themselves.
        """
        start = monotonic()
        total = KILL_AFTER if timeout is None else timeout
        with self._lock:
            early = [gateway for _, gateway in self._started if isinstance(gateway, Gateway)]
            self._started.clear()
        ways = {gateway._boot.spec.via for gateway in self}
        for gateway in [*early, *self]:
            if gateway.id not in ways:
                gateway._goodbye()
            self._unregister(gateway)
            gateway._exited = True
        with self._lock:
            gateways = [*self._gateways_to_join, *early]
            self._gateways_to_join.clear()
        ends = [gateway for gateway in gateways if gateway.id not in ways]
        interrupt_at = start + min(5.0, total / 3)
        for gateway in ends:
            gateway._closed.wait(max(0.0, interrupt_at - monotonic()))
        for gateway in ends:
            if not gateway._closed.is_set():
                gateway._interrupt()
        exit_gateways(gateways, max(0.1, start + total - monotonic()))


def _as_not_found(error: AuthenticationError) -> HostRefused:
    refused: HostRefused = OSError.__new__(HostRefused)  # that of EOFError, found first, refuses
    refused.args = error.args
    refused.__dict__.update(error.__dict__)
    return refused


class MultiChannel(_multichannel.MultiChannel):
    """Several channels as one."""

    def make_receive_queue(self, endmarker: Any = NO_ENDMARKER_WANTED) -> Queue[tuple[Channel, Any]]:  # type: ignore[override]
        """A ``queue.Queue`` that gets ``(channel, item)`` for what comes, and ``(channel, endmarker)`` at a channel's end."""
        if self._queue is None:
            from queue import Queue

            queue: Any = Queue()
            self._queue = queue
            for channel in self._channels:
                _multichannel._put_into(queue, channel, endmarker)
        found: Any = self._queue
        return found  # type: ignore[no-any-return]


default_group = Group()
makegateway = default_group.makegateway
set_execmodel = default_group.set_execmodel

__all__ = ["Group", "HostRefused", "MultiChannel", "default_group", "makegateway", "set_execmodel"]
