"""``farwire shell``: Python statements, run by a worker.

The worker's end is ``_shell_worker``. Its stdout and stderr come through the shell's channel, in order with the answers; what programs that
it starts write comes beside it, as the output of any worker does.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from importlib.resources import files
from typing import TYPE_CHECKING

from .. import Group
from ..errors import FarwireError, SpecError, StartError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from ..gateway import Gateway
    from ..runtime.channel import Channel

# So many times Ctrl-C in one statement: the worker does not listen.
PATIENCE = 3


class Ended(Exception):
    """The program called for the end.

    Attributes:
        status: its exit status.
    """

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def run(argv: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="farwire shell",
        description="Type Python statements and have them run by a worker: in its main thread, with its own packages. Ctrl-C "
        "interrupts the statement that runs there, Ctrl-D ends. Without a terminal on stdin, all of stdin is one program.",
        epilog="example: farwire shell ssh=me@example.org//python=3.12",
    )
    parser.add_argument("spec", nargs="?", default="popen", help="how to reach it (default: popen)")
    parser.add_argument("-c", dest="program", metavar="PROGRAM", help="run this and end")
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="for the start (default: 30)")
    options = parser.parse_args(argv)
    group = Group(output=_write)
    try:
        gateway = group.makegateway(options.spec, timeout=options.timeout)
        shell = Shell(gateway)
        if options.program is not None:
            return shell.run(options.program)
        if not sys.stdin.isatty():
            return shell.run(sys.stdin.read())
        return shell.interact()
    except Ended as end:
        return end.status
    except (SpecError, StartError) as error:
        print(f"farwire shell: {error}", file=sys.stderr)
        return 2
    except FarwireError as error:  # the worker died
        print(f"farwire shell: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # nobody reads what it writes
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        with _no_interrupts():
            group.terminate(timeout=3)


@contextlib.contextmanager
def _no_interrupts() -> Iterator[None]:
    """It ends anyway, within seconds."""
    try:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    except ValueError:  # not in the main thread, which gets them
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class Shell:
    """The controller's end.

    Raises (each method):
        GatewayLost: the worker is gone.
        Ended: the program raised SystemExit.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        source = files("farwire.cli").joinpath("_shell_worker.py").read_text("utf-8")
        self._channel: Channel = gateway.remote_exec(source)
        self._number = 0
        self._matches: list[str] = []

    def run(self, program: str) -> int:
        """Run a whole program; returns 0, or 1 if it raised."""
        return int(self._ask("run", program)[1])

    def interact(self) -> int:
        """Read and run statements until the end of stdin; returns 0."""
        info = self._gateway.info()
        version = ".".join(map(str, info.version_info[:3]))
        print(f"Python {version} on {info.platform}: {self._gateway.spec}, pid {info.pid}. Ctrl-D ends.")
        restore = self._use_readline()
        lines: list[str] = []
        try:
            while True:
                try:
                    lines.append(input("... " if lines else ">>> "))
                except EOFError:
                    print()
                    return 0
                except KeyboardInterrupt:
                    print("\nKeyboardInterrupt")
                    lines = []
                    continue
                if self._ask("line", "\n".join(lines))[0] == "done":
                    lines = []
        finally:
            restore()

    def _ask(self, kind: str, text: str) -> tuple[str, Any]:
        self._number += 1
        self._channel.send((self._number, kind, text))
        interrupts = 0
        while True:
            try:
                what, *rest = self._channel.receive()
                if what == "answer":
                    number, answer, value = rest
                    if number != self._number:
                        continue  # to a question that was given up
                    if answer == "exit":
                        raise Ended(value)
                    return answer, value
                if what == "read":
                    self._channel.send(_read_line())
                else:
                    _write("", what, rest[0])
            except KeyboardInterrupt:
                interrupts += 1
                if interrupts > PATIENCE:
                    print("\nfarwire shell: the worker does not react; it is ended", file=sys.stderr)
                    raise
                self._gateway.signal()  # SIGINT: KeyboardInterrupt there

    def _use_readline(self) -> Any:
        """Editing, history and completion of lines; returns a function that takes completion back."""
        try:
            import readline
        except ImportError:  # a Python without it
            return lambda: None
        before = readline.get_completer()
        readline.set_completer(self._complete)
        libedit = "libedit" in (readline.__doc__ or "")
        readline.parse_and_bind("bind ^I rl_complete" if libedit else "tab: complete")
        return lambda: readline.set_completer(before)

    def _complete(self, text: str, state: int) -> str | None:
        if state == 0:
            if not text:  # at the beginning of a line, a tab is for indentation
                self._matches = ["    "]
            else:
                try:
                    self._matches = self._ask("complete", text)[1]
                except (FarwireError, Ended):  # readline would swallow it: the next line finds out again
                    self._matches = []
        return self._matches[state] if state < len(self._matches) else None


def _read_line() -> str:
    """A line for the worker's ``sys.stdin``."""
    try:
        return input() + "\n"
    except EOFError:
        return ""


def _write(gateway_id: str, name: str, data: bytes) -> None:
    file = sys.stdout if name == "stdout" else sys.stderr
    file.flush()
    buffer = getattr(file, "buffer", None)
    if buffer is None:  # a stand-in that takes text only
        file.write(data.decode("utf-8", "backslashreplace"))
    else:
        buffer.write(data)
    file.flush()
