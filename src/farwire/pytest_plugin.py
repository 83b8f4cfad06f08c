"""pytest-xdist on farwire: ``pytest -p farwire.pytest_plugin -n 4``, or the same ``-p`` in ``addopts``.

Importing this module makes ``import execnet`` mean ``farwire.compat``, which is what puts xdist on farwire. The hooks give xdist's users
what execnet could not:

* workers start at the same time;
* what they print is shown as it comes, each line with the worker's name (``-s`` and ``log_cli`` work);
* a worker that crashed is reported with its signal or exit status and the last of its stderr, where faulthandler's dump is;
* Ctrl-C interrupts the running tests, whose fixtures are torn down, and the summary comes at once;
* workers count as ready in their own order, so that one run distributes tests as the next.

Threads: xdist's loop runs in the main thread and takes events from a queue. Output arrives in farwire's output thread and goes into that
queue, so only the main thread writes to the terminal; before and after the loop it is written directly.
"""

from __future__ import annotations

import sys
import threading

import pytest

from .compat import install

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

install()

OUTPUT = ("live", "none")
OPTION = "farwire_output"


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--farwire-output`` and the setting of that name."""
    group = parser.getgroup("xdist")
    what = "what becomes of the output of xdist's workers: live (shown as it comes) or none (stdout is dropped, stderr left as it is)"
    group.addoption("--farwire-output", choices=OUTPUT, default=None, dest=OPTION, help=what)
    parser.addini(OPTION, what, default="live")


def pytest_configure(config: pytest.Config) -> None:
    """In the controller and in each worker."""
    if hasattr(config, "workerinput"):
        config.pluginmanager.register(_InWorker(), "farwire-worker")
    else:
        config.pluginmanager.register(_InController(config), "farwire-controller")


# ------------------------------------------------------------------------------------------------------------ controller


class _InController:
    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.output = config.getoption(OPTION) or config.getini(OPTION)
        if self.output not in OUTPUT:
            raise pytest.UsageError(f"{OPTION} must be one of {', '.join(OUTPUT)}, not {self.output!r}")
        self.lines: _Lines | None = None
        self.order: _ReadyInOrder | None = None
        self.deaths: dict[str, str] = {}  # worker -> how it ended

    def pytest_report_header(self) -> str | None:
        from . import __version__

        if not self.config.pluginmanager.hasplugin("dsession"):
            return None
        return f"farwire: {__version__}, for pytest-xdist in the place of execnet"

    def _session(self) -> Any:
        return self.config.pluginmanager.getplugin("dsession")

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_setupnodes(self, specs: Sequence[Any]) -> None:
        """All workers are about to be started, one after another."""
        session = self._session()
        if session is None:  # somebody uses xdist's NodeManager by itself
            return
        group = session.nodemanager.group
        if self.output == "live":
            self.lines = _Lines(self.config, session)
            group.output = self.lines
        self.order = _ReadyInOrder([spec.id for spec in specs])
        group.start_early([self._with_output(spec) for spec in specs])

    def _with_output(self, spec: Any) -> Any:
        if spec.stdio is None and self.output == "live":
            spec.stdio = "forward"
        return spec

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Before a worker is told what to do."""
        node.gateway.pace()
        if self.order is not None:
            node.putevent = self.order.gate(node.gateway.id, node.putevent)

    @pytest.hookimpl(optionalhook=True, trylast=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        """After xdist's own line about it."""
        death = getattr(node.gateway, "death", "")
        if not error or not death or error == "keyboard-interrupt":
            return
        self.deaths[node.gateway.id] = death
        reporter: Any = self.config.pluginmanager.getplugin("terminalreporter")
        if reporter is not None:
            reporter.write_line(f"[{node.gateway.id}] {death.splitlines()[0]}")

    @pytest.hookimpl(optionalhook=True)
    def pytest_handlecrashitem(self, crashitem: str, report: Any) -> None:
        """The report of the test in which a worker ended."""
        death = self.deaths.pop(report.node.gateway.id, None) if hasattr(report, "node") else None
        if death:
            report.longrepr = f"{report.longrepr}\n{death}"

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Workers that ended while they ran no test."""
        for worker, death in self.deaths.items():
            terminalreporter.write_sep("=", f"worker {worker} ended")
            terminalreporter.write_line(death)

    def pytest_keyboard_interrupt(self) -> None:
        """Ctrl-C reaches the controller only; the tests that run now are to be interrupted too."""
        session = self._session()
        manager = getattr(session, "nodemanager", None)
        if manager is not None:
            for gateway in manager.group:
                gateway._interrupt()

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self) -> None:
        """After xdist has ended its workers."""
        if self.lines is not None:
            self.lines.finish()


class _ReadyInOrder:
    """Holds back what a worker reports until those before it are ready, or gone.

    Which worker is the first decides which tests it gets; started at the same time, any could be.
    """

    def __init__(self, ids: Sequence[str]) -> None:
        self._lock = threading.Lock()  # callbacks of each gateway come in a thread of their own
        self._waiting = list(ids)
        self._held: dict[str, list[tuple[Any, Any]]] = {}

    def gate(self, id: str, put: Callable[[Any], object]) -> Callable[[Any], object]:
        """What a worker's events go through."""

        def putevent(event: Any) -> None:
            if not self._waiting:  # as it is soon and then for ever
                put(event)
                return
            with self._lock:
                if id in self._waiting and id != self._waiting[0]:
                    self._held.setdefault(id, []).append((put, event))
                    return
                put(event)
                if (
                    self._waiting
                    and id == self._waiting[0]
                    and event[0] in ("workerready", "errordown", "workerfinished")
                ):
                    self._release()

        return putevent

    def _release(self) -> None:
        """The first is ready: now for those after it."""
        del self._waiting[0]
        while self._waiting and self._waiting[0] in self._held:
            id = self._waiting[0]
            for put, event in self._held.pop(id):
                put(event)
            del self._waiting[0]


class _Lines:
    """Takes the workers' output, gives the terminal whole lines, each with the worker's name."""

    def __init__(self, config: pytest.Config, session: Any) -> None:
        self.reporter: Any = config.pluginmanager.getplugin("terminalreporter")
        self.session = session
        self.open: dict[tuple[str, str], bytes] = {}  # lines that have no end yet
        # xdist calls worker_X for an event X.
        session.worker_farwire_output = self.show
        self.over = False

    def __call__(self, worker: str, stream: str, data: bytes) -> None:
        """In the output thread."""
        data = self.open.pop((worker, stream), b"") + data
        whole, end, rest = data.rpartition(b"\n")
        if rest:
            self.open[worker, stream] = rest
        if end:
            self._put(worker, stream, whole)

    def _put(self, worker: str, stream: str, data: bytes) -> None:
        text = data.decode("utf-8", "replace")
        if self.over:
            self.show(worker, stream, text)
        else:
            self.session.queue.put(("farwire_output", {"worker": worker, "stream": stream, "text": text}))

    def show(self, worker: str, stream: str, text: str) -> None:
        """In the main thread."""
        lines = [f"[{worker}] {line}" for line in text.split("\n")]
        if stream == "stderr" or self.reporter is None:
            file = sys.stderr if stream == "stderr" else sys.stdout
            file.write("\n".join(lines) + "\n")
            file.flush()
            return
        self.reporter.ensure_newline()
        if self.reporter._tw.width_of_current_line:
            self.reporter._tw.line()
        for line in lines:
            self.reporter._tw.line(line)
        self.reporter._tw.flush()

    def finish(self) -> None:
        """The loop is over: what is still in the queue, and from here on directly."""
        from queue import Empty

        self.over = True
        while True:
            try:
                name, arguments = self.session.queue.get_nowait()
            except Empty:
                break
            if name == "farwire_output":
                self.show(**arguments)
        for (worker, stream), rest in list(self.open.items()):
            self.show(worker, stream, rest.decode("utf-8", "replace"))
        self.open.clear()


# ---------------------------------------------------------------------------------------------------------------- worker


class _InWorker:
    """The worker's own terminal report goes nowhere, as with execnet; what tests write to stdout is forwarded."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self, session: pytest.Session) -> None:
        plugins = session.config.pluginmanager
        reporter: Any = plugins.getplugin("terminalreporter")
        if reporter is not None:
            reporter._tw._file = _Nowhere()
            reporter._show_progress_info = False
        logging: Any = plugins.getplugin("logging-plugin")
        handler: Any = getattr(logging, "log_cli_handler", None)
        if hasattr(handler, "stream") and hasattr(handler, "capture_manager"):
            handler.stream = _LiveLog()


class _Nowhere:
    """A file that takes everything."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        raise OSError("a worker's terminal report goes nowhere")


class _LiveLog:
    """Where ``log_cli`` writes, in the place of the terminal report."""

    def write(self, text: str) -> None:
        if text.strip():
            sys.stdout.write(text)
            sys.stdout.flush()

    def section(self, title: str, **markup: object) -> None:
        """Sections would part what comes from one test, but here tests of several workers are mixed."""

    def flush(self) -> None:
        sys.stdout.flush()


__all__ = ["pytest_addoption", "pytest_configure"]
