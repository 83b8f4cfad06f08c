"""The worker's end of ``farwire shell``: runs what comes, until the channel ends. Shipped as it is, for Python 3.6 or later.

Comes: ``(number, kind, text)``. Goes, for each, any number of

    ("stdout" | "stderr", bytes)        what was written to sys.stdout or sys.stderr
    ("read", prompt)                    sys.stdin is asked for a line; a text comes back, "" for the end

and then ``("answer", number, kind, value)``, kind being

    "more"      (line)      the statement is not complete
    "done"      (any)       it has run; value: whether it raised (run), the completions (complete)
    "exit"      (any)       it raised SystemExit; value: its status
"""

import code
import io
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, List, Tuple


class _Output(io.RawIOBase):
    """``sys.stdout`` and ``sys.stderr`` travel on the shell's channel, so that they come before the answer."""

    def __init__(self, channel: "Any", name: str) -> None:
        self.channel = channel
        self.channel_name = name

    def writable(self) -> bool:
        return True

    def write(self, data: "Any") -> int:
        self.channel.send((self.channel_name, bytes(data)))
        return len(data)


class _Input(io.TextIOBase):
    """``sys.stdin``: a line at a time from the other end. For ``input()`` and pdb."""

    def __init__(self, channel: "Any") -> None:
        self.channel = channel

    def readable(self) -> bool:
        return True

    def readline(self, size: "Any" = -1) -> str:  # type: ignore[override]  # the base says bytes or str
        sys.stdout.flush()
        sys.stderr.flush()
        self.channel.send(("read", ""))
        line: str = self.channel.receive()
        return line

    def read(self, size: "Any" = -1) -> str:
        lines: List[str] = []
        while True:
            line = self.readline()
            if not line:
                return "".join(lines)
            lines.append(line)


class Shell(code.InteractiveInterpreter):
    """Runs statements in one namespace; an interrupt ends the statement that runs, and nothing else."""

    def __init__(self, channel: "Any") -> None:
        code.InteractiveInterpreter.__init__(self, {"__name__": "__console__", "__doc__": None})
        self.channel = channel
        self.running = False
        self.raised = False
        sys.stdout, sys.stderr = [
            io.TextIOWrapper(
                io.BufferedWriter(_Output(channel, name)), "utf-8", "backslashreplace", line_buffering=True
            )
            for name in ("stdout", "stderr")
        ]
        sys.stdin = _Input(channel)
        signal.signal(signal.SIGINT, self.interrupt)

    def interrupt(self, signum: int, frame: object) -> None:
        """Between statements an interrupt is meant for nobody."""
        if self.running:
            raise KeyboardInterrupt

    def write(self, data: str) -> None:
        """Where tracebacks go."""
        sys.stderr.write(data)

    def showtraceback(self) -> None:
        """Of an interrupt one line says all."""
        self.raised = True
        if sys.exc_info()[0] is KeyboardInterrupt:
            self.write("KeyboardInterrupt\n")
        else:
            code.InteractiveInterpreter.showtraceback(self)

    def showsyntaxerror(self, *args: "Any", **kwargs: "Any") -> None:
        """Also tell the answer."""
        self.raised = True
        code.InteractiveInterpreter.showsyntaxerror(self, *args, **kwargs)

    def line(self, text: str) -> "Tuple[str, Any]":
        """A statement, or what there is of it."""
        return ("more", None) if self.runsource(text, "<stdin>", "single") else ("done", None)

    def run(self, text: str) -> "Tuple[str, Any]":
        """A whole program."""
        self.raised = False
        try:
            program = compile(text, "<stdin>", "exec")
        except (SyntaxError, ValueError, OverflowError):
            self.showsyntaxerror("<stdin>")
        else:
            self.runcode(program)
        return "done", self.raised

    def complete(self, text: str) -> "Tuple[str, Any]":
        """The words that begin so."""
        import rlcompleter

        completer = rlcompleter.Completer(self.locals)
        found: List[str] = []
        while len(found) < 500:
            word = completer.complete(text, len(found))
            if word is None:
                break
            found.append(word)
        return "done", found

    def answer(self, kind: str, text: str) -> "Tuple[str, Any]":
        """Do what is asked; returns the answer's kind and value."""
        try:
            try:
                self.running = True
                done: Tuple[str, Any] = getattr(self, kind)(text)
                return done
            finally:
                self.running = False
        except KeyboardInterrupt:
            self.running = False
            self.write("KeyboardInterrupt\n")
            return "done", True
        except SystemExit as end:
            status = end.code
            if status is None or isinstance(status, int):
                return "exit", int(status or 0)
            self.write("%s\n" % (status,))
            return "exit", 1

    def serve(self) -> None:
        """Until the other end has enough."""
        for number, kind, text in self.channel:
            answer = self.answer(kind, text)
            sys.stdout.flush()
            sys.stderr.flush()
            self.channel.send(("answer", number) + answer)


Shell(globals()["channel"]).serve()  # which remote code finds there
