"""Exceptions in every place: the one who should know is told, in full; nobody else is harmed."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

import farwire
from farwire import RemoteError
from processes import eventually


def error_of(channel: farwire.Channel) -> RemoteError:
    with pytest.raises(RemoteError) as caught:
        channel.waitclose(timeout=10)
    return caught.value


def well(gw: farwire.Gateway) -> bool:
    """The worker runs the next task, in its main thread."""
    code = "import threading; channel.send(threading.current_thread() is threading.main_thread())"
    return gw.remote_exec(code).receive(timeout=5) is True


def test_type_message_traceback_with_source(gw: farwire.Gateway) -> None:
    error = error_of(
        gw.remote_exec(
            """
            def inner(x):
                return 1 / x

            inner(0)
            """
        )
    )
    assert error.typename == "ZeroDivisionError"
    assert error.message == "division by zero"
    assert "return 1 / x" in error.formatted
    assert "in inner" in error.formatted
    assert "_farwire" not in error.formatted
    assert "division by zero" in str(error)
    assert well(gw)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tracebacks without carets")
def test_carets_point_at_the_place(gw: farwire.Gateway) -> None:
    formatted = error_of(gw.remote_exec("value = 1 / 0")).formatted
    assert "    value = 1 / 0\n            ~~^~~\n" in formatted


def test_a_function_keeps_its_file_and_lines(gw: farwire.Gateway) -> None:
    def task(channel):  # type: ignore[no-untyped-def]
        raise KeyError("here")

    error = error_of(gw.remote_exec(task))
    line = task.__code__.co_firstlineno + 1
    assert f'{__file__}", line {line}, in task' in error.formatted
    assert 'raise KeyError("here")' in error.formatted


def test_raised_once_then_end_of_data(gw: farwire.Gateway) -> None:
    channel = gw.remote_exec("channel.send(1); channel.send(2); raise ValueError(3)")
    assert channel.receive() == 1
    assert channel.receive() == 2
    with pytest.raises(RemoteError, match="3"):
        channel.receive()
    with pytest.raises(EOFError):
        channel.receive()
    with pytest.raises(OSError, match="closed"):
        channel.send(1)
    channel.waitclose()


def test_iteration_raises_it(gw: farwire.Gateway) -> None:
    got = []
    with pytest.raises(RemoteError, match="boom"):
        for item in gw.remote_exec("for i in range(5): channel.send(i)\nraise RuntimeError('boom')"):
            got.append(item)
    assert got == list(range(5))


@pytest.mark.parametrize(
    ("code", "typename"),
    [
        ("raise SystemExit(3)", "SystemExit"),
        ("import sys; sys.exit('bye')", "SystemExit"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("raise GeneratorExit", "GeneratorExit"),
        ("raise BaseException('base')", "BaseException"),
        ("raise EOFError('of the task')", "EOFError"),
        ("raise OSError(5, 'disk')", "OSError"),
        ("raise TimeoutError", "TimeoutError"),
        ("raise MemoryError", "MemoryError"),
        ("def f(): f()\nf()", "RecursionError"),
        ("raise StopIteration", "StopIteration"),
        ("1 +", "SyntaxError"),
        ("import no_such_module", "ModuleNotFoundError"),
        ("no_such_name", "NameError"),
        ("channel.receive(timeout=0)", "TimeoutError"),
        ("channel.send(object())", "DumpError"),
        ("channel.close(); channel.send(1)", None),
        ("class E(Exception): pass\nraise E('mine')", "E"),
    ],
)
def test_every_kind(gw: farwire.Gateway, code: str, typename: str | None) -> None:
    channel = gw.remote_exec(code)
    if typename is None:
        channel.waitclose(timeout=10)
        eventually(lambda: gw.status().numexecuting == 0, "its end")
    else:
        error = error_of(channel)
        assert error.typename.rpartition(".")[2] == typename
    assert well(gw)


@pytest.mark.parametrize("place", ["main thread", "second thread", "main_thread_only"])
def test_the_worker_is_not_harmed(group: farwire.Group, place: str) -> None:
    gw = group.makegateway("popen//execmodel=main_thread_only" if place == "main_thread_only" else "popen")
    if place == "second thread":
        first = gw.remote_exec("channel.receive()")
    for i in range(20):
        kind = ("ValueError", "SystemExit", "KeyboardInterrupt", "BaseException")[i % 4]
        assert error_of(gw.remote_exec(f"raise {kind}({i})")).message == str(i)
    assert gw.status().numexecuting == (place == "second thread")
    if place == "second thread":
        first.close()
        eventually(lambda: gw.status().numexecuting == 0, "the first task ended")
    assert well(gw)


def test_broken_exceptions(gw: farwire.Gateway) -> None:
    """What describes an error is user code, and may raise."""
    code = """
class Broken(Exception):
    def {method}(self, *args):
        raise {error}("broken too")
raise Broken("hidden")
"""
    for method in ("__str__", "__repr__", "__getattribute__", "__reduce__"):
        for error in ("ValueError", "SystemExit", "KeyboardInterrupt"):
            found = error_of(gw.remote_exec(code.format(method=method, error=error)))
            assert "Broken" in found.formatted + found.typename + found.message, (method, error)
    found = error_of(gw.remote_exec("class E(Exception):\n    __str__ = lambda self: 7\nraise E"))
    assert found.typename == "__channelexec__.E"
    found = error_of(gw.remote_exec("class E(Exception):\n    __module__ = 7\nraise E(1)"))
    assert found.message == "1"
    found = error_of(gw.remote_exec("raise ValueError('\\udcff')"))
    assert found.message == "\udcff"
    assert well(gw)


def test_huge_message(gw: farwire.Gateway) -> None:
    error = error_of(gw.remote_exec("raise ValueError('start' + 'x' * 50_000_000 + 'end')"))
    assert len(str(error)) < 1_000_000
    assert error.message.startswith("start")
    assert error.message.endswith("end")
    assert "left out" in error.message
    error = error_of(gw.remote_exec("raise ValueError(b'x' * 10_000_000, 'y' * 10_000_000)"))
    assert len(error.message) < 1_000_000
    deep = """
error = None
for i in range(1000):
    try:
        raise ValueError("x" * 100_000) from error
    except ValueError as e:
        error = e
raise error
"""
    assert error_of(gw.remote_exec(deep)).typename == "ValueError"
    assert well(gw)


def test_causes_and_context(gw: farwire.Gateway) -> None:
    error = error_of(
        gw.remote_exec(
            """
            try:
                try:
                    {}["first"]
                except KeyError as e:
                    raise ValueError("second") from e
            except ValueError:
                raise RuntimeError("third")
            """
        )
    )
    assert error.typename == "RuntimeError"
    second = error.__cause__
    assert isinstance(second, RemoteError)
    assert (second.typename, second.message) == ("ValueError", "second")
    first = second.__cause__
    assert isinstance(first, RemoteError)
    assert first.typename == "KeyError"
    assert "direct cause" in error.formatted
    suppressed = error_of(gw.remote_exec("try: 1/0\nexcept ZeroDivisionError: raise ValueError(2) from None"))
    assert suppressed.__cause__ is None
    cycle = """
a, b = ValueError("a"), ValueError("b")
a.__cause__, b.__cause__ = b, a
raise a
"""
    assert error_of(gw.remote_exec(cycle)).message == "a"


def test_notes(group: farwire.Group) -> None:
    gw = group.makegateway("popen")
    channel = gw.remote_exec("e = ValueError(1); e.__notes__ = ['look here', 'and there']; raise e")
    assert error_of(channel).notes == ["look here", "and there"]
    assert error_of(gw.remote_exec("e = ValueError(1); e.__notes__ = 7; raise e")).message == "1"
    broken = "class B:\n    def __str__(self): raise KeyError\ne = ValueError(1); e.__notes__ = [B()]; raise e"
    assert error_of(gw.remote_exec(broken)).message == "1"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="no exception groups")
def test_exception_group(gw: farwire.Gateway) -> None:
    error = error_of(gw.remote_exec("raise ExceptionGroup('several', [ValueError('one'), KeyError('two')])"))
    assert error.typename == "ExceptionGroup"
    assert "ValueError: one" in error.formatted
    assert "KeyError: 'two'" in error.formatted


def test_an_error_passed_on(group: farwire.Group) -> None:
    """A RemoteError that is raised again in another worker's task, or given to close(), keeps what it was."""
    first, second = group.makegateways(["2*popen"])
    error = error_of(first.remote_exec("raise LookupError('origin')"))
    channel = second.remote_exec(
        """
        try:
            channel.receive()
        except channel.RemoteError as error:
            report.send((error.typename, error.message, error.formatted))
        """.replace("report", "other").replace("\n        try", "\n        other = channel.receive()\n        try", 1)
    )
    report = second.newchannel()
    channel.send(report)
    channel.close(error)
    name, message, text = report.receive(timeout=5)
    assert (name, message) == ("LookupError", "origin")
    assert "raise LookupError" in text


@pytest.mark.parametrize(
    ("error", "typename", "message"),
    [("plain text", "", "plain text"), (ValueError("local"), "ValueError", "local"), ("", "", "")],
)
def test_close_with_error(gw: farwire.Gateway, error: object, typename: str, message: str) -> None:
    report = gw.newchannel()
    channel = gw.remote_exec(
        """
        report = channel.receive()
        try:
            channel.receive()
        except channel.RemoteError as error:
            report.send((error.typename, error.message))
        except EOFError:
            report.send("no error")
        """
    )
    channel.send(report)
    channel.close(error)
    assert report.receive(timeout=5) == (typename, message)
    with pytest.raises(TypeError):
        report.close(7)  # type: ignore[arg-type]
    channel.close()


def test_in_finalizers(gw: farwire.Gateway) -> None:
    """Python prints what __del__ raises; the channel goes on."""
    text: list[bytes] = []
    gw = gw.group.makegateway("popen", output=lambda id, stream, data: text.append(data))
    channel = gw.remote_exec(
        """
        class D:
            def __del__(self):
                raise ValueError("in del")
        for i in range(100):
            D()
            channel.send(i)
        class C:
            def __init__(self, channel): self.channel = channel
            def __del__(self): self.channel.send("from del")
        c = C(channel)
        del c
        """
    )
    assert [channel.receive() for _ in range(101)] == [*range(100), "from del"]
    eventually(lambda: b"in del" in b"".join(text), "stderr")


def test_print_that_fails(gw: farwire.Gateway) -> None:
    """The task closed or replaced its standard streams."""
    for code in (
        "import sys; sys.stdout.close()",
        "import sys; sys.stdout = None; sys.stderr = None",
        "import sys; sys.stdout = object()",
        "import os; os.close(1); os.close(2)",
        "class F:\n    def flush(self): raise RuntimeError\nimport sys; sys.stdout = F()",
        "class F:\n    def flush(self): raise KeyboardInterrupt\nimport sys; sys.stdout = F()",
    ):
        gateway = gw.group.makegateway("popen", output=lambda *args: None)
        gateway.remote_exec(code).waitclose(timeout=5)
        error = error_of(gateway.remote_exec("raise ValueError('after')"))
        assert error.message == "after"
        assert well(gateway)
        gateway.exit()


class TestInterrupts:
    """KeyboardInterrupt through gateway.signal()."""

    def test_ends_the_task_in_the_main_thread(self, gw: farwire.Gateway) -> None:
        for code in (
            "while True: pass",
            "import time; time.sleep(1000)",
            "channel.receive()",
            "import threading; threading.Event().wait()",
        ):
            channel = gw.remote_exec("channel.send(1)\n" + code)
            assert channel.receive() == 1
            gw.signal()
            assert error_of(channel).typename == "KeyboardInterrupt"
        assert well(gw)

    def test_can_be_caught(self, gw: farwire.Gateway) -> None:
        channel = gw.remote_exec(
            """
            try:
                channel.send(1)
                while True: pass
            except KeyboardInterrupt:
                channel.send("caught")
            """
        )
        assert channel.receive() == 1
        gw.signal(signal.SIGINT)
        assert channel.receive(timeout=5) == "caught"
        channel.waitclose(timeout=5)

    def test_while_nothing_runs(self, gw: farwire.Gateway) -> None:
        for _ in range(20):
            gw.signal()
        assert gw.status().numexecuting == 0
        assert well(gw)

    def test_other_signals(self, gw: farwire.Gateway) -> None:
        channel = gw.remote_exec(
            """
            import signal
            signal.signal(signal.SIGUSR1, lambda *args: channel.send("usr1"))
            channel.send("ready")
            channel.receive()
            """
        )
        assert channel.receive() == "ready"
        gw.signal(signal.SIGUSR1)
        assert channel.receive(timeout=5) == "usr1"

    def test_storm(self, gw: farwire.Gateway) -> None:
        """Interrupted at any point, also between tasks and while a task is reported, the worker goes on."""
        for _ in range(100):
            channel = gw.remote_exec("channel.send(1)\nfor i in range(100): channel.send(i)")
            gw.signal()
            try:
                for _item in channel:
                    gw.signal()
            except RemoteError as error:
                assert error.typename == "KeyboardInterrupt", error
        eventually(lambda: gw.status().numexecuting == 0, "no task is left over")
        assert well(gw)


class TestNobodyAsks:
    """An error that nobody receives is written to stderr, once."""

    @pytest.mark.parametrize(
        "code",
        [
            pytest.param("gw.remote_exec('1/0')\nask()", id="never held"),
            pytest.param("channel = gw.remote_exec('1/0')\nask()\ndel channel\nask()", id="held, then dropped"),
            pytest.param("gw.remote_exec('1/0').setcallback(print)\nask()\nask()", id="with a callback"),
            pytest.param(
                "channel = gw.remote_exec('try: channel.receive()\\nexcept EOFError: 1/0')\nchannel.close()\nask()",
                id="closed before",
            ),
        ],
    )
    def test_is_said_once(self, code: str) -> None:
        done = run_program(code)
        assert done.stderr.count("ZeroDivisionError") == 1, done.stderr
        assert "<remote exec>" in done.stderr
        assert "farwire/worker" not in done.stderr

    def test_each_of_many(self) -> None:
        """Whoever is first: the one who drops the channel, the task, or the thread that reads."""
        done = run_program("for _ in range(300):\n    gw.remote_exec('1/0')\n    ask()")
        assert done.stderr.count("ZeroDivisionError") == 300

    @pytest.mark.parametrize(
        "code",
        [
            pytest.param(
                "try: gw.remote_exec('1/0').receive()\nexcept farwire.RemoteError: pass\nask()", id="received"
            ),
            pytest.param(
                "channel = gw.remote_exec('while True: channel.send(1)')\n"
                "channel.receive()\nchannel.close()\ndel channel\nask()",
                id="a sender whose channel is closed",
            ),
            pytest.param("channel = gw.remote_exec('channel.receive()')\ndel channel\nask()", id="a receiver"),
            pytest.param(
                "channel = gw.remote_exec('channel.receive()')\nchannel.close(error='enough')\ndel channel\nask()",
                id="a receiver, with an error",
            ),
        ],
    )
    def test_else_it_is_quiet(self, code: str) -> None:
        assert not run_program(code).stderr


def run_program(code: str) -> subprocess.CompletedProcess[str]:
    """Run a program with a gateway ``gw``; ``ask()`` returns when what was sent before has been worked off."""
    program = (
        "import farwire\n"
        "gw = farwire.makegateway('popen//execmodel=main_thread_only')\n"
        "def ask(): assert gw.remote_exec('channel.send(1)').receive(30) and gw.status(30)\n" + code + "\ngw.exit()\n"
    )
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
