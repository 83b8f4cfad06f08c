"""``farwire shell``: at a terminal, which a pty is; and as a filter."""

from __future__ import annotations

import codecs
import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import farwire
import servers

SRC = Path(farwire.__file__).parents[1]
ENV = {**os.environ, "PYTHONPATH": str(SRC), "TERM": "dumb", "PYTHON_BASIC_REPL": "1"}


class Terminal:
    """A shell at a terminal: what is typed, and what is shown."""

    def __init__(self, *arguments: str) -> None:
        self.fd, other = pty.openpty()
        argv = [sys.executable, "-m", "farwire", "shell", *arguments]

        # The pty is its controlling terminal: Ctrl-C is a signal.
        def controlling() -> None:
            import fcntl
            import termios

            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            argv,
            stdin=other,
            stdout=other,
            stderr=other,
            env=ENV,
            preexec_fn=controlling,  # noqa: PLW1509 - there is no other way, and it takes no lock
        )
        os.close(other)
        self.text = ""
        self.decode = codecs.getincrementaldecoder("utf-8")().decode

    def read(self, until: str, timeout: float = 20) -> str:
        """What is shown up to a pattern at the end of it."""
        deadline = time.monotonic() + timeout
        while not (match := re.search(until, self.text)):
            assert select.select([self.fd], [], [], max(0, deadline - time.monotonic()))[0], (
                f"no {until!r} in {self.text!r}"
            )
            try:
                data = os.read(self.fd, 65536)
            except OSError:  # EIO: the other end is closed
                data = b""
            assert data, f"the end, and no {until!r} in {self.text!r}"
            self.text += self.decode(data).replace("\r\n", "\n")
        shown, self.text = self.text[: match.end()], self.text[match.end() :]
        return shown

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def say(self, text: str) -> str:
        """Type a line; returns what is shown up to the next prompt, without it and the echo."""
        self.type(text + "\n")
        shown = self.read(r"(>>>|\.\.\.) $")
        return re.sub(r"^.*\n", "", shown, count=1)[:-4]

    def interrupt_prompt(self) -> None:
        """Ctrl-C at the prompt. Between showing the prompt and waiting for keys, readline does not notice it: again, then."""
        for _ in range(100):
            self.type("\x03")
            deadline = time.monotonic() + 0.3
            while time.monotonic() < deadline:
                if select.select([self.fd], [], [], 0.1)[0]:
                    self.text += self.decode(os.read(self.fd, 65536)).replace("\r\n", "\n")
            if "KeyboardInterrupt" in self.text:
                break
        self.read(r"KeyboardInterrupt\n>>> $")

    def end(self) -> int:
        self.type("\x04")
        return self.process.wait(10)


@contextlib.contextmanager
def terminal(*arguments: str) -> Iterator[Terminal]:
    shell = Terminal(*arguments)
    try:
        yield shell
    finally:
        if shell.process.poll() is None:
            shell.process.send_signal(signal.SIGHUP)
            try:
                shell.process.wait(5)
            except subprocess.TimeoutExpired:
                shell.process.kill()
                shell.process.wait()
        os.close(shell.fd)


def test_a_session() -> None:
    with terminal("popen") as shell:
        first = shell.read(">>> $")
        assert first.startswith("Python 3.")
        assert "popen, pid " in first
        assert shell.say("1 + 1") == "2\n"
        assert shell.say("x = 5") == ""
        assert shell.say("def double(n):") == ""
        assert shell.say("    return 2 * n") == ""
        assert shell.say("") == ""
        assert shell.say("double(x)") == "10\n"
        assert shell.say("import sys; print('é'); print('err', file=sys.stderr)") == "é\nerr\n"
        assert shell.say("for n in range(2): print(n)") == ""
        assert shell.say("") == "0\n1\n"
        assert shell.say("import os; os.getppid() and sys.argv") == "['-c']\n"
        assert "sub" in shell.say("os.system('echo sub; sleep 0.3')")
        assert shell.end() == 0


def test_errors_are_shown_and_end_nothing() -> None:
    with terminal() as shell:
        shell.read(">>> $")
        shown = shell.say("1/0")
        assert shown.startswith("Traceback (most recent call last):\n")
        assert shown.endswith("ZeroDivisionError: division by zero\n")
        assert "farwire" not in shown
        assert "SyntaxError" in shell.say("1 +* 2")
        assert "IndentationError" in shell.say("  1")
        assert "SyntaxError" in shell.say("x = '")
        assert "KeyError" in shell.say("raise KeyError(1)")
        assert "RecursionError" in shell.say("f = lambda: f(); f()")
        assert "TypeError" in shell.say("chr()")
        assert shell.say("'alive'") == "'alive'\n"
        assert shell.end() == 0


@pytest.mark.parametrize("statement", ["import time; time.sleep(100)", "while True: pass"])
def test_ctrl_c_interrupts_the_statement(statement: str) -> None:
    with terminal() as shell:
        shell.read(">>> $")
        shell.say("x = 5; import threading")
        shell.say("started = lambda: print('it ' + 'runs', flush=True)")
        shell.type(f"started(); {statement}\n" if ";" in statement else f"if started() is None:\n {statement}\n\n")
        shell.read("it runs\n")
        shell.type("\x03")
        shown = shell.read(">>> $")
        assert shown.count("KeyboardInterrupt") == 1
        assert "Traceback" not in shown
        assert shell.say("x") == "5\n"
        assert shell.end() == 0


def test_ctrl_c_at_the_prompt() -> None:
    """What was typed is dropped; the worker does not notice."""
    with terminal() as shell:
        shell.read(">>> $")
        shell.type("some text")
        shell.read("some text")
        shell.interrupt_prompt()
        assert shell.say("def f():") == ""
        shell.interrupt_prompt()
        assert shell.say("1") == "1\n"
        assert shell.end() == 0


def test_a_worker_that_does_not_react() -> None:
    """A few times Ctrl-C, and the shell ends, with the worker."""
    with terminal() as shell:
        pid = int(re.findall(r"pid (\d+)", shell.read(">>> $"))[0])
        shell.say("import signal, time; _ = signal.signal(signal.SIGINT, signal.SIG_IGN)")
        shell.type("print('it ' + 'runs', flush=True); time.sleep(100)\n")
        shell.read("it runs\n")
        # The kernel makes one signal of several that are not taken yet.
        for _ in range(100):
            shell.type("\x03")
            shell.read(r"\^C|the worker")
            if "the worker does not react" in shell.text:
                break
            time.sleep(0.05)
        assert shell.process.wait(10) in {130, -signal.SIGINT}  # the last one may come when all is over
    deadline = time.monotonic() + 10
    while servers.is_alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_exit() -> None:
    for statement, status in (("exit()", 0), ("raise SystemExit(7)", 7), ("import sys; sys.exit('why')", 1)):
        with terminal() as shell:
            shell.read(">>> $")
            shell.type(statement + "\n")
            if status == 1:
                shell.read("\nwhy\n")
            assert shell.process.wait(10) == status


def test_the_worker_dies() -> None:
    with terminal("popen//id=mine") as shell:
        shell.read(">>> $")
        shell.type("import os; os.kill(os.getpid(), 9)\n")
        assert "killed by SIGKILL" in shell.read(r"farwire shell: gateway mine: the worker ended.*\n")
        assert shell.process.wait(10) == 1


def test_input_and_pdb() -> None:
    with terminal() as shell:
        shell.read(">>> $")
        shell.type("name = input('who? ')\n")
        shell.read(r"who\? $")
        shell.type("me\n")
        shell.read(">>> $")
        assert shell.say("name") == "'me'\n"
        shell.type("import pdb; pdb.run('answer = 6 * 7', globals())\n")
        shell.read(r"\(Pdb\) $")
        shell.type("c\n")
        shell.read(">>> $")
        assert shell.say("answer") == "42\n"
        assert shell.end() == 0


def test_completion() -> None:
    pytest.importorskip("readline")
    with terminal() as shell:
        shell.read(">>> $")
        shell.say("a_long_name = 'its value'")
        shell.type("a_lo\t")
        shell.read("a_long_name")
        assert shell.say("") == "'its value'\n"
        assert shell.end() == 0


@pytest.mark.parametrize("version", ["3.6", "3.8", "3.13"])
def test_other_pythons(version: str) -> None:
    python = servers.interpreters().get(version) or pytest.skip(f"no Python {version} here")
    with terminal(f"popen//python={python}") as shell:
        assert f"Python {version}." in shell.read(">>> $")
        assert "ZeroDivisionError" in shell.say("1/0")
        assert shell.say("import sys; sys.version_info[:2]") == f"({version.replace('.', ', ')})\n"
        shell.type("import time; print('it ' + 'runs', flush=True); time.sleep(100)\n")
        shell.read("it runs\n")
        shell.type("\x03")
        assert "KeyboardInterrupt" in shell.read(">>> $")
        assert shell.end() == 0


@pytest.mark.needs_sshd
def test_ssh(sshd: servers.Sshd) -> None:
    with terminal(sshd.spec) as shell:
        shell.read(">>> $")
        assert shell.say("import getpass; getpass.getuser()") == f"'{sshd.user}'\n"
        shell.type("import time; print('it ' + 'runs', flush=True); time.sleep(100)\n")
        shell.read("it runs\n")
        shell.type("\x03")
        assert "KeyboardInterrupt" in shell.read(">>> $")
        assert shell.end() == 0


# -- without a terminal ---------------------------------------------------------------------------------------------------


def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "farwire", "shell", *arguments]
    return subprocess.run(
        argv, input=stdin, env=ENV, capture_output=True, text=True, errors="replace", timeout=50, check=False
    )


def test_a_program_on_stdin() -> None:
    done = run("popen", stdin="import sys\nfor n in range(3):\n    print(n)\nprint('e', file=sys.stderr)\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n1\n2\n", "e\n")
    done = run(stdin="def f():\n    return 1/0\nf()\nprint('not reached')\n")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith("in f\nZeroDivisionError: division by zero\n")
    assert run(stdin="1 +").returncode == 1
    assert run(stdin="raise SystemExit(4)").returncode == 4


def test_a_program_as_argument() -> None:
    done = run("-c", "print(input() + '!'); print(input('?'))", stdin="first\nsecond\n")
    assert (done.returncode, done.stdout) == (0, "first!\n?second\n")
    done = run("-c", "import sys; print(sys.stdin.read())", stdin="a\nb\n")
    assert (done.returncode, done.stdout) == (0, "a\nb\n\n")
    done = run("-c", "input()")
    assert done.returncode == 1
    assert "EOFError" in done.stderr
    done = run("-c", "import sys; sys.stdout.buffer.write(b'\\xff\\0'); print()")
    assert (done.returncode, done.stdout) == (0, "\ufffd\0\n")


def test_a_spec_that_is_wrong() -> None:
    done = run("nonsense=1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("farwire shell: spec 'nonsense=1': unknown key")
    done = run("popen//python=/does/not/exist")
    assert done.returncode == 2
    assert "cannot be run" in done.stderr


def test_much_output_into_a_closed_pipe() -> None:
    argv = [sys.executable, "-m", "farwire", "shell", "-c", "while True: print('x' * 1000)"]
    with subprocess.Popen(argv, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(100_000)
        process.stdout.close()
        assert process.wait(20) == 1
        assert process.stderr is not None
        assert b"Traceback" not in process.stderr.read()
