"""What a transport gives: a started interpreter with the link, its stderr, and a handle to end it.

Most transports are a command line whose stdin and stdout are the link: they implement ``CommandTransport.command`` and say nothing of
processes, so the same row works on this machine and, through ``via=``, from another gateway's host. A transport that is something else
implements ``start``.
"""

from __future__ import annotations

import _signal
import errno
import marshal
import os
import sys

from ..bootstrap.stage0 import CODE, SOURCE
from ..errors import DirectoryError, NotAPython, PythonNotFound, SpecError, StartError
from ..protocol.frames import WINDOW
from ..runtime.stream import FdStream
from ..supervisor import LocalProcess

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import CodeType
    from typing import Any, Protocol

    from ..xspec import XSpec

    class Process(Protocol):
        """Ends what a transport started. The reactor's thread calls ``kill``, any thread the rest."""

        worker_pid: int

        @property
        def returncode(self) -> int | None:
            """Exit status, negative for a signal; None if it is not known, or never will be."""

        def poll(self) -> int | None:
            """Its exit status, None while it runs; reaps it. Something that has no status gives 0."""

        def wait(self, deadline: float) -> bool:
            """Wait for the end until a monotonic time. Returns whether it came."""
            ...

        def terminate(self) -> None:
            """Ask the worker's processes to end."""

        def kill(self) -> None:
            """End them."""

    class Transport(Protocol):
        """One way to reach an interpreter."""

        heartbeat: float

        def start(self, boot: Boot, via: Any) -> Started:
            """Start an interpreter; do not wait for it to answer. ``via`` is the gateway from which to start it, or None."""
            ...


# A signal that no program uses, answered by faulthandler in the worker; macOS has no real-time signals and gets none.
DUMP_SIGNAL: int = getattr(_signal, "SIGRTMAX", 2) - 2


# Workers that record what they send and receive begin with it; the others are sent nothing that knows of it.
_TRACE = "\nfrom _farwire.runtime.trace import trace_worker\ntrace_worker(worker, %r)\n"


def trace_target() -> str:
    """``FARWIRE_TRACE``: ``stderr``, the beginning of an absolute path, or nothing."""
    target = os.environ.get("FARWIRE_TRACE", "")
    return target if target in {"", "stderr"} else os.path.abspath(os.path.expanduser(target))


class Boot:
    """One start: what the worker is to be told.

    Attributes:
        spec: the xspec.
        id: the gateway's id.
        nonce: random text of this start.
        heartbeat: seconds between signs of life, 0 for none.
        timeout: seconds until the worker must have answered.
        later: whether it starts without the modules of ``bundle.LATER``.
        trace: where its link is recorded, see ``trace_target``.
        prelude: a program for the worker to run first; it must do on any Python that may be there.
    """

    def __init__(self, spec: XSpec, id: str, heartbeat: float, timeout: float) -> None:
        self.spec = spec
        self.id = id
        self.timeout = timeout
        self.nonce = os.urandom(16).hex()
        self.heartbeat = heartbeat if spec.heartbeat is None else spec.heartbeat
        self.window = spec.window or WINDOW
        self.later = False
        self.trace = ""
        self.prelude = ""

    def bytes(
        self, *, code: bool, chdir: str | None = None, env: dict[str, str] | None = None, nice: int | None = None
    ) -> list[bytes]:
        """What follows stage 0 on the worker's stdin, before the first frame.

        Args:
            code: the worker is the same Python as ours: send code objects instead of source.
            chdir, env, nice: what the transport could not do before the interpreter started.
        """
        from ..bootstrap import bundle  # it imports much, and importing farwire is to be cheap

        self.trace = trace_target()
        trace = "" if self.trace == "stderr" else self.trace  # the worker's stderr comes through the link
        payload = bundle.code_bundle(bool(trace)) if code else bundle.source_bundle(bool(trace))
        loader = _loader_code() if code else _loader_source()
        spec = self.spec
        self.later = not code
        config: dict[str, object] = {
            "nonce": self.nonce,
            "id": self.id,
            "bundle": len(payload),
            "compressed": not code,
            "later": [] if code else sorted(bundle.LATER),
            "chdir": chdir or "",
            "env": env or {},
            "nice": nice or 0,
            "stdout": spec.stdio not in ("none", "stderr"),
            "stderr": spec.stdio != "none",
            "execmodel": spec.execmodel or "thread",
            "heartbeat": self.heartbeat,
            "window": self.window,
            "pickle": 5,
            "dump_signal": DUMP_SIGNAL,
            "dont_write_bytecode": bool(spec.dont_write_bytecode),
            "prelude": self.prelude + (_TRACE % (trace,) if trace else ""),
        }
        data = marshal.dumps(config, 2)
        return [b"%06d" % len(loader), loader, b"%06d" % len(data), data, payload]


class Started:
    """A started interpreter.

    Attributes:
        stream: the link's byte stream.
        stderr_fd: descriptor to read its stderr from, or -1.
        process: how to end it.
        command: for messages.
        first: bytes to send before the first frame.
        same_python: the worker is known to run the controller's Python.
        parent: the link that relays this one; then ``stream.input`` and ``stderr_input`` take who is to get what comes in.
        address: what ``gateway.remoteaddress`` shows.
    """

    def __init__(
        self,
        stream: Any,
        stderr_fd: int,
        process: Process,
        command: str,
        first: list[bytes],
        *,
        same_python: bool = False,
        parent: Any = None,
        stderr_input: Any = None,
        address: str = "",
    ) -> None:
        self.stream = stream
        self.stderr_fd = stderr_fd
        self.process = process
        self.command = command
        self.first = first
        self.same_python = same_python
        self.parent = parent
        self.stderr_input = stderr_input
        self.address = address


class Command:
    """A command line that starts an interpreter, wherever it is run.

    Attributes:
        argv: program and arguments; an empty first one is the interpreter of the place where it is run.
        first: bytes to send on its stdin before the loader.
        env, chdir: to be set for the command itself.
        late_env, late_chdir, late_nice: to be set by the loader, where the command cannot.
        code: the interpreter is the controller's own.
        own_session: run it in a session of its own.
        address: what ``gateway.remoteaddress`` shows.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        first: bytes = b"",
        env: dict[str, str] | None = None,
        chdir: str | None = None,
        late_env: dict[str, str] | None = None,
        late_chdir: str | None = None,
        late_nice: int | None = None,
        code: bool = False,
        own_session: bool = True,
        address: str = "",
    ) -> None:
        self.argv = list(argv)
        self.first = first
        self.env = env or {}
        self.chdir = chdir
        self.late_env = late_env
        self.late_chdir = late_chdir
        self.late_nice = late_nice
        self.code = code
        self.own_session = own_session
        self.address = address


class CommandTransport:
    """A transport that is a command line; subclasses say which."""

    heartbeat = 0.0

    def command(self, boot: Boot, local: bool) -> Command:
        """The command for this spec; ``local`` is False when another gateway's host runs it.

        Raises:
            SpecError: the spec's value cannot be made into one.
        """
        raise NotImplementedError

    def start(self, boot: Boot, via: Any) -> Started:
        """Run the command, here or through a gateway.

        Raises:
            StartError: it cannot be run.
        """
        command = self.command(boot, via is None)
        first = boot.bytes(code=command.code, chdir=command.late_chdir, env=command.late_env, nice=command.late_nice)
        if command.first:
            first.insert(0, command.first)
        if via is not None:
            from .via import start_relayed

            return start_relayed(boot, command, first, via)
        return start_local(boot, command, first)


NOT_FOUND_HINT = "name an existing program; python= takes a name, a path, a command line or a version such as 3.9"
NOT_FOUND_HINTS = {
    "ssh": "the program ssh must be in PATH here: install an OpenSSH client",
    "cmd": "cmd= begins with a program that is in PATH here, or with the path of one",
}
# Not the fault of the program: what this process or machine may have is used up.
WONT_RUN: dict[int, tuple[type[StartError], str]] = {
    errno.EMFILE: (
        StartError,
        "a gateway takes three descriptors here: allow more (ulimit -n), or exit() some gateways",
    ),
    errno.ENFILE: (StartError, "this machine has no more descriptors"),
    errno.EAGAIN: (StartError, "this user may have no more processes: allow more (ulimit -u), or end some"),
    errno.ENOMEM: (StartError, "this machine has no more memory"),
}


def start_local(boot: Boot, command: Command, first: list[bytes]) -> Started:
    """Run a command on this machine."""
    cwd = None
    if command.chdir is not None:
        cwd = os.path.expanduser(command.chdir)
        try:
            os.makedirs(cwd, exist_ok=True)
        except OSError as error:
            raise DirectoryError(
                f"cannot use the working directory: {error}", gateway_id=boot.id, hint="check chdir= in the spec"
            ) from error
    env = {**os.environ, **command.env} if command.env else None
    shown = join_command(command.argv)
    try:
        process = LocalProcess(command.argv, env, cwd, command.own_session)
    except NotADirectoryError as error:
        raise DirectoryError(f"cannot use the working directory: {error}", gateway_id=boot.id, command=shown) from error
    except (FileNotFoundError, PermissionError) as error:
        if cwd is not None and not os.access(cwd, os.X_OK):
            raise DirectoryError(
                f"cannot enter the working directory: {cwd}", gateway_id=boot.id, command=shown
            ) from error
        raise PythonNotFound(
            f"{command.argv[0]!r} cannot be run: {error.strerror}",
            gateway_id=boot.id,
            command=shown,
            hint=NOT_FOUND_HINTS.get(boot.spec.transport, NOT_FOUND_HINT),
        ) from error
    except OSError as error:
        kind, hint = WONT_RUN.get(error.errno or 0, (NotAPython, ""))
        raise kind(
            f"{command.argv[0]!r} cannot be run: {error.strerror}", gateway_id=boot.id, command=shown, hint=hint
        ) from error
    return Started(
        FdStream(process.read_fd, process.write_fd),
        process.stderr_fd,
        process,
        shown,
        first,
        same_python=command.code,
        address=command.address,
    )


def join_command(argv: Sequence[str]) -> str:
    """A command line for a message."""
    import shlex

    return shlex.join(shorten(argv))


def shorten(argv: Sequence[str]) -> list[str]:
    """A command line for a message: without the text of stage 0."""
    return [arg if arg not in (SOURCE, CODE) else "<stage 0>" for arg in argv]


def split_command(text: str, key: str) -> list[str]:
    """A value as a command line.

    Raises:
        SpecError: quotes do not match, or it is empty.
    """
    import shlex

    try:
        argv = shlex.split(text)
    except ValueError as error:
        raise SpecError(f"{key}={text}: {error}") from None
    if not argv:
        raise SpecError(f"{key}= needs a command")
    return argv


def python_argv(value: str) -> list[str]:
    """``python=`` as the beginning of a command line: a version names ``pythonX.Y``."""
    argv = split_command(value, "python")
    if len(argv) == 1 and argv[0].replace(".", "").isdigit():
        return ["python" + argv[0]]
    return argv


def is_this_python(argv: Sequence[str]) -> bool:
    """Whether that command line is the interpreter we run in."""
    return len(argv) == 1 and bool(sys.executable) and os.path.abspath(argv[0]) == os.path.abspath(sys.executable)


_made: dict[str, bytes] = {}


def _loader_text() -> str:
    from importlib.resources import files

    return files("farwire.bootstrap").joinpath("loader.py").read_text("utf-8")


def _loader_source() -> bytes:
    if "source" not in _made:
        import zlib

        from ..bootstrap.blank import blank, squeeze

        text = squeeze(blank(_loader_text(), comments=True, docstrings=True, annotations=True))
        _made["source"] = zlib.compress(text.encode(), 9)
    return _made["source"]


def _loader_code() -> bytes:
    if "code" not in _made:
        code: CodeType = compile(_loader_text(), "farwire:/loader.py", "exec", dont_inherit=True, optimize=2)
        _made["code"] = marshal.dumps(code)
    return _made["code"]
