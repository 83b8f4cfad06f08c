"""Several gateways: ids, opening many at once, fan-out, ordered termination."""

from __future__ import annotations

import atexit
import os
from _thread import allocate_lock
from _weakrefset import WeakSet

from .errors import SpecError, StartError, StartErrors
from .gateway import START_TIMEOUT, Event, Gateway, exit_gateways, stop_threads
from .multichannel import MultiChannel
from .transports import find_transport, register_keys
from .transports.base import Boot
from .xspec import XSpec, expand, on_unknown_key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import ModuleType
    from typing import Any

    from .output import Output
    from .transports.base import Transport

# Starting a process costs the controller about a millisecond and connecting a round trip: with this many at a time both
# overlap, and a host's sshd (MaxStartups 10:30:100) does not refuse.
OPEN_AT_ONCE = 8

on_unknown_key(register_keys)

_groups: WeakSet[Group] = WeakSet()


class Group:
    """Gateways that belong together.

    As a context manager it terminates its members at the end. At the end of the process all groups are terminated.

    Args:
        xspecs: specs to open at once, as for ``makegateways``.
        output: where the members' stdout and stderr go (see ``makegateway``).

    Attributes:
        defaultspec: what ``makegateway()`` opens; "popen".
    """

    defaultspec = "popen"
    gateway_type: type[Gateway] = Gateway

    def __init__(self, xspecs: Iterable[str | XSpec] = (), *, output: Output = None) -> None:
        self.output = output
        self._lock = allocate_lock()
        self._members: list[Gateway] = []
        self._hidden: list[Gateway] = []
        self._ids: set[str] = set()
        self._number = 0
        _groups.add(self)
        if not isinstance(xspecs, str):
            xspecs = list(xspecs)
        if xspecs:
            try:
                self.makegateways(xspecs)
            except BaseException:
                self.terminate()
                raise

    def __repr__(self) -> str:
        return f"<Group {[gateway.id for gateway in self]}>"

    def __enter__(self) -> Group:
        return self

    def __exit__(self, *exc: object) -> None:
        self.terminate()

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Gateway]:
        return iter(list(self._members))

    def __contains__(self, key: object) -> bool:
        return any(key is gateway or key == gateway.id for gateway in self)

    def __getitem__(self, key: int | str | Gateway) -> Gateway:
        """A member by position, by id, or itself. Raises IndexError or KeyError."""
        if isinstance(key, int):
            return list(self._members)[key]
        for gateway in self:
            if key is gateway or key == gateway.id:
                return gateway
        raise KeyError(key)

    def allocate_id(self, spec: XSpec) -> str:
        """Give ``spec`` an id if it has none, and return it.

        Raises:
            SpecError: a live gateway of this group has that id.
        """
        with self._lock:
            if spec.id is None:
                while f"gw{self._number}" in self._ids:
                    self._number += 1
                spec.id = f"gw{self._number}"
                self._number += 1
            if spec.id in self._ids:
                raise SpecError(f"there is a gateway {spec.id!r} in this group already")
            self._ids.add(spec.id)
            return spec.id

    def makegateway(
        self,
        spec: str | XSpec | None = None,
        *,
        wait: bool = True,
        timeout: float | None = None,
        output: Output = None,
    ) -> Gateway:
        """Open a gateway.

        Args:
            spec: how to reach the worker; None for ``defaultspec``.
            wait: return when the worker is there. False returns at once: tasks may be sent right away, and their first
                result costs one round trip; a failure to start is raised by whatever waits for something.
            timeout: seconds until the worker must have answered; 30 by default.
            output: where its stdout and stderr go: None for ours (each line tagged with the gateway's id), a
                function ``(gateway_id, "stdout" or "stderr", bytes)``, or a file. ``stdio=none`` in the spec discards both.

        Raises:
            SpecError: the spec is wrong.
            StartError: the worker did not start; the subclass says why.
            TypeError, ValueError: an argument is something else; nothing was opened.
        """
        given = self.defaultspec if spec is None else spec
        if not isinstance(given, (str, XSpec)):
            raise TypeError(f"a spec is a text such as 'popen' or an XSpec, not {type(given).__name__}")
        xspec = XSpec(given) if isinstance(given, str) else given.copy()
        gateway = self._start(xspec, timeout, output)
        if wait:
            self._await(gateway)
        return gateway

    def makegateways(
        self, specs: Iterable[str | XSpec], *, timeout: float | None = None, output: Output = None
    ) -> list[Gateway]:
        """Open many gateways at once.

        Args:
            specs: specs; ``"4*popen"`` stands for four. Several workers on one ssh host share one connection.
            timeout, output: as for ``makegateway``, for each.

        Returns:
            The gateways, in the order of the specs.

        Raises:
            StartErrors: some did not start: ``errors`` has each one's, ``gateways`` the others, which are live.
            SpecError: a spec is wrong; nothing was opened.
        """
        xspecs = self._share_connections(expand(specs), timeout)
        results: list[Any] = [None] * len(xspecs)

        def start(i: int) -> None:
            try:
                results[i] = self._start(xspecs[i], timeout, output)
            except StartError as error:
                results[i] = error

        slow = [i for i, spec in enumerate(xspecs) if spec.transport == "socket"]
        for i in range(len(xspecs)):
            if i not in slow:
                start(i)
        if slow:
            from concurrent.futures import ThreadPoolExecutor

            with ThreadPoolExecutor(min(OPEN_AT_ONCE, len(slow))) as pool:
                list(pool.map(start, slow))
        errors: dict[str, StartError] = {}
        live: list[Gateway] = []
        for i, result in enumerate(results):
            try:
                if isinstance(result, StartError):
                    raise result
                self._await(result)
                live.append(result)
            except StartError as error:
                errors[f"{xspecs[i].id}: {xspecs[i]}"] = error
        if errors:
            raise StartErrors(errors, list(live))
        return live

    def _share_connections(self, specs: list[XSpec], timeout: float | None) -> list[XSpec]:
        """``8*ssh=host`` becomes one connection, whose worker only relays, and eight workers started by it there."""
        count: dict[str, int] = {}
        for spec in specs:
            if spec.ssh is not None and spec.via is None:
                count[str(spec)] = count.get(str(spec), 0) + 1
        hubs: dict[str, str] = {}
        shared = []
        for spec in specs:
            text = str(spec)
            if count.get(text, 0) < 2:
                shared.append(spec)
                continue
            if text not in hubs:
                hub = XSpec.build(
                    ssh=spec.ssh, ssh_config=spec.ssh_config, python=spec.python, heartbeat=spec.heartbeat
                )
                with self._lock:
                    hub.id = f"hub{len(self._hidden)}-{id(self):x}"
                self._hidden.append(self._start(hub, timeout, None, hidden=True))
                hubs[text] = hub.id
            from .transports.ssh import DEFAULT_DIRECTORY

            inner = XSpec.build(
                popen=True,
                via=hubs[text],
                python=spec.python,
                chdir=_from_home(spec.chdir or DEFAULT_DIRECTORY),
                nice=spec.nice,
                id=spec.id,
                execmodel=spec.execmodel,
                stdio=spec.stdio,
                dont_write_bytecode=spec.dont_write_bytecode,
                window=spec.window,
                env=spec.env or None,
            )
            shared.append(inner)
        return shared

    def _start(
        self,
        spec: XSpec,
        timeout: float | None,
        output: Output,
        hidden: bool = False,
        transport: Transport | None = None,
    ) -> Gateway:
        _check_options(timeout, self.output if output is None else output)
        return _uninterrupted(lambda: self._start_here(spec, timeout, output, hidden, transport))

    def _start_here(
        self, spec: XSpec, timeout: float | None, output: Output, hidden: bool, transport: Transport | None
    ) -> Gateway:
        via = None
        if spec.via is not None:
            via = next((gw for gw in [*self._members, *self._hidden] if gw.id == spec.via), None)
            if via is None:
                raise SpecError(f"via={spec.via}: there is no such gateway in this group; give its id")
        if transport is None:
            transport = find_transport(spec.transport)
        if hidden:
            assert spec.id is not None
            name = spec.id
        else:
            name = self._reserve_id(spec)
        try:
            boot = Boot(spec, name, transport.heartbeat, START_TIMEOUT if timeout is None else timeout)
            boot.prelude = self._prelude(spec)
            started = transport.start(boot, via)
            gateway = self.gateway_type(spec, self, boot, started, self.output if output is None else output)
        except BaseException:
            with self._lock:
                self._ids.discard(name)
            raise
        if not hidden:
            with self._lock:
                self._members.append(gateway)
        gateway._open(timeout)
        return gateway

    def _reserve_id(self, spec: XSpec) -> str:
        """The id for a gateway that is about to be opened."""
        return self.allocate_id(spec)

    def _prelude(self, spec: XSpec) -> str:
        """The program that a worker runs before anything else, with itself as ``worker``."""
        return ""

    def _await(self, gateway: Gateway) -> None:
        try:
            gateway.wait_ready()
        except StartError:
            raise
        except BaseException:  # Ctrl-C while it starts: it must not stay behind half open
            exit_gateways([gateway], 1.0)
            raise

    def _gone(self, gateway: Gateway) -> None:
        """A gateway is closed; called by it."""
        with self._lock:
            self._ids.discard(gateway.id)
            if gateway in self._members:
                self._members.remove(gateway)
            if gateway in self._hidden:
                self._hidden.remove(gateway)

    def remote_exec(self, source: str | ModuleType | Callable[..., object], **kwargs: Any) -> MultiChannel:
        """Run code in every member (see ``Gateway.remote_exec``). Returns a ``MultiChannel``."""
        return MultiChannel([gateway.remote_exec(source, **kwargs) for gateway in self])

    def terminate(self, timeout: float | None = None) -> None:
        """End all members, those opened through others first, at the same time otherwise.

        Args:
            timeout: seconds for everything (3 by default): ask, SIGTERM, SIGKILL, reap.
        """
        with self._lock:
            gateways = [*self._members, *self._hidden]
        exit_gateways(gateways, 3.0 if timeout is None else timeout)


def _check_options(timeout: float | None, output: Output) -> None:
    """Before anything is started; what is wrong here would show in another thread, and later."""
    if timeout is not None:
        if not isinstance(timeout, (int, float)):
            raise TypeError(f"timeout is a number of seconds, not {timeout!r}")
        if not timeout >= 0:
            raise ValueError(f"timeout must not be negative: {timeout!r}")
    if not (output is None or output == "forward" or callable(output) or hasattr(output, "write")):
        raise TypeError(f"output is a function or an open file, not {output!r}")


def _uninterrupted(start: Callable[[], Gateway]) -> Gateway:
    """Start a gateway in another thread than the main one.

    There a signal's handler (Ctrl-C) may raise at any point, and a process that is just being started would belong to nobody. When
    one raises while we wait, the gateway is ended, now or as soon as it is there.
    """
    import threading

    if threading.get_ident() != threading.main_thread().ident:
        return start()
    outcome: list[Any] = []
    over = Event()
    given_up = False

    def run() -> None:
        try:
            outcome.append(start())
        except BaseException as error:  # noqa: BLE001 - whatever it is, the caller gets it
            outcome.append(error)
        over.set()
        if given_up:
            end()

    def end() -> None:
        exit_gateways([each for each in outcome if isinstance(each, Gateway)], 1.0)

    thread = threading.Thread(target=run, name="farwire-start", daemon=True)
    try:
        try:
            thread.start()
        except RuntimeError:  # the interpreter is ending (atexit), or no more threads are to be had
            return start()
        over.wait()
    except BaseException:
        given_up = True
        if over.wait(1.0):
            end()
        raise
    result: Gateway | BaseException = outcome.pop()  # not kept: an error's traceback refers to all of this
    if isinstance(result, BaseException):
        try:
            raise result
        finally:
            del result
    return result


def _after_fork() -> None:
    """In a forked child: the gateways are the parent's, and another thread may have held a lock."""
    for group in list(_groups):
        group._lock = allocate_lock()
        group._members.clear()
        group._hidden.clear()
        group._ids.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _from_home(chdir: str) -> str:
    """A directory as ssh means it: relative ones are in the home, not where the hub's worker is."""
    return chdir if chdir.startswith(("/", "~")) else "~/" + chdir


default_group = Group()


def makegateway(
    spec: str | XSpec | None = None, *, wait: bool = True, timeout: float | None = None, output: Output = None
) -> Gateway:
    """Open a gateway in the default group (see ``Group.makegateway``)."""
    return default_group.makegateway(spec, wait=wait, timeout=timeout, output=output)


def PopenGateway(python: str | None = None) -> Gateway:  # noqa: N802 - the ancestor's name
    """A worker on this machine, in the current directory.

    Args:
        python: the interpreter; the one that runs here by default.
    """
    return default_group.makegateway(XSpec.build(popen=True, python=python))


def SshGateway(host: str, python: str | None = None, ssh_config: str | None = None) -> Gateway:  # noqa: N802
    """A worker on an ssh host.

    Args:
        host: ``[user@]host``, ssh options before it if need be.
        python: the interpreter there; looked for by default.
        ssh_config: the configuration file to use instead of the user's.
    """
    return default_group.makegateway(XSpec.build(ssh=host, python=python, ssh_config=ssh_config))


@atexit.register
def _at_exit() -> None:
    gateways = [gateway for group in list(_groups) for gateway in [*group._members, *group._hidden]]
    if gateways:
        exit_gateways(gateways, 1.0)
    stop_threads(1.0)
