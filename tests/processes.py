"""Controllers in processes of their own, and waiting for what the kernel does not announce.

``Controller(text)`` runs a script as a controller; whoever it starts, however far that has run away, carries
``FARWIRE_TEST_CONTROLLER=<token>`` in its environment, is found by that, and is ended with it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import farwire
import servers

TOKEN = "FARWIRE_TEST_CONTROLLER"
SOURCE = str(Path(farwire.__file__).parent.parent)
# Everything is to be gone within a second of a controller's death; the rest is for machines that are busy.
GONE = 2.0


def eventually(condition: Callable[[], object], what: str, timeout: float = 5) -> None:
    """Wait until the condition is true; fails with the text if it does not become so."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not after {timeout} s: {what}")
        time.sleep(0.005)


@contextlib.contextmanager
def within(seconds: float, what: str) -> Iterator[None]:
    """The block must not take longer."""
    start = time.monotonic()
    yield
    took = time.monotonic() - start
    assert took < seconds, f"{what} took {took:.2f} s, at most {seconds} are allowed"


class Waiting:
    """A thread that runs ``function``; its result or exception later."""

    def __init__(self, function: Callable[[], object]) -> None:
        self.result: object = None
        self.error: BaseException | None = None
        self._function = function
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.result = self._function()
        except BaseException as error:
            self.error = error

    def blocks(self) -> Waiting:
        """Wait until it waits inside farwire."""

        def waits() -> bool:
            frame = sys._current_frames().get(self._thread.ident or 0)
            return frame is not None and "/runtime/" in frame.f_code.co_filename

        eventually(waits, "the thread waits in farwire")
        return self

    def done(self) -> bool:
        return not self._thread.is_alive()

    def join(self, timeout: float = 5) -> Waiting:
        """Wait until it has ended, or fail."""
        self._thread.join(timeout)
        if self._thread.is_alive():
            pytest.fail(f"still waits after {timeout} s: {self._function}")
        return self


class Controller:
    """A Python script in a session of its own; as a context manager it and all it started is killed at the end."""

    def __init__(self, text: str, *args: str, python: str = sys.executable, flags: tuple[str, ...] = ()) -> None:
        self.token = os.urandom(8).hex()
        self._buffer = b""
        self.process = subprocess.Popen(
            [python, *flags, "-c", textwrap.dedent(text), *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": SOURCE, TOKEN: self.token},
            start_new_session=True,
        )
        self.pid = self.process.pid

    def __enter__(self) -> Controller:
        return self

    def __exit__(self, *exc: object) -> None:
        for _ in range(3):  # what is started while we look is found by the next turn
            for pid in self.processes():
                servers.kill(pid)
        self.process.kill()
        self.process.wait()
        for file in (self.process.stdin, self.process.stdout, self.process.stderr):
            with contextlib.suppress(BrokenPipeError):
                file.close()  # type: ignore[union-attr]

    def processes(self) -> list[int]:
        """It and what it started, as far as alive."""
        return servers.processes_with_environment(TOKEN, self.token)

    def line(self, timeout: float = 20) -> str:
        """The next line of its stdout."""
        assert self.process.stdout is not None
        fd = self.process.stdout.fileno()
        deadline = time.monotonic() + timeout
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            ready = select.select([fd], [], [], max(0, left))[0]
            data = os.read(fd, 65536) if ready else b""
            if not data:
                text = "ended" if ready else f"wrote no line in {timeout} s"
                if not ready:
                    self.process.kill()
                stderr = self.process.stderr.read().decode(errors="replace")  # type: ignore[union-attr]
                pytest.fail(f"the controller {text}; it wrote {self._buffer!r}; stderr:\n{stderr}")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode()

    def numbers(self) -> list[int]:
        """The next line, as numbers."""
        return [int(word) for word in self.line().split()]

    def say(self, text: str = "") -> None:
        """A line for its stdin."""
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode() + b"\n")
        self.process.stdin.flush()

    def kill(self, signum: int = signal.SIGKILL) -> None:
        os.kill(self.pid, signum)

    def all_gone(self, timeout: float = GONE) -> float:
        """Wait until it and everything it started is gone; returns how long that took."""
        start = time.monotonic()
        left: list[int] = self.processes()
        while left and time.monotonic() < start + timeout:
            time.sleep(0.01)
            left = [pid for pid in left if servers.is_alive(pid)] or self.processes()
        if left:
            shown = [(pid, *servers.process_status(pid)) for pid in left]
            pytest.fail(f"not gone after {timeout} s: (pid, state, parent) {shown}")
        return time.monotonic() - start

    def finish(self, timeout: float = 20) -> tuple[int, str, str]:
        """Wait for its end. Returns exit status, the rest of stdout, stderr."""
        try:
            out, err = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)  # with -X faulthandler: the stacks
            out, err = self.process.communicate()
            pytest.fail(f"not finished after {timeout} s; stdout {out!r}; stderr:\n{err.decode(errors='replace')}")
        return self.process.returncode, (self._buffer + out).decode(), err.decode()
