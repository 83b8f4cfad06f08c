"""What remote_exec accepts: functions that arrive whole, and refusals that name what would be missing."""

from __future__ import annotations

import ast
import functools
import importlib.util
import itertools
import linecache
import math
import sys
import textwrap
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from farwire.errors import SourceError
from farwire.source import Task, _take_annotations, make_task

Load = Callable[[str], Any]

SOURCES = Path(__file__).parents[1] / "src"

OLDEST = (3, 6)


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Imports a text as a module from a file of its own."""
    numbers = itertools.count()

    def load(text: str) -> Any:
        path = tmp_path / f"loaded_{next(numbers)}.py"
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


class Channel:
    """Gathers what a task sends."""

    def __init__(self) -> None:
        self.items: list[object] = []

    def send(self, item: object) -> None:
        self.items.append(item)


def run(task: Task) -> list[object]:
    """Does what a worker does."""
    channel = Channel()
    space: dict[str, Any] = {"__name__": "__channelexec__", "channel": channel}
    exec(compile("\n" * (task.firstlineno - 1) + task.text, task.filename, "exec", dont_inherit=True), space)
    if task.kind == "call":
        space[task.name](channel, **task.kwargs)
    return channel.items


def refusal(source: Any, **kwargs: object) -> str:
    with pytest.raises(SourceError) as caught:
        make_task(source, kwargs)
    return str(caught.value)


class TestText:
    @pytest.mark.parametrize(
        ("text", "sent"),
        [
            ("", ""),
            ("channel.send(1)", "channel.send(1)"),
            ("\n    a = 1\n    if a:\n        pass\n    ", "\na = 1\nif a:\n    pass\n"),
            ("  \n  a = 1\n", "\na = 1\n"),
            ("\ta = 1\n\tb = 2\n", "a = 1\nb = 2\n"),
            ("a = '''\n  x\n'''", "a = '''\n  x\n'''"),
            ("if 1:\n    a = 1\n   \n", "if 1:\n    a = 1\n   \n"),
            ("not Python at all", "not Python at all"),
        ],
    )
    def test_indented_as_a_whole_or_not(self, text: str, sent: str) -> None:
        task = make_task(text, {})
        assert (task.kind, task.text, task.filename) == ("exec", sent, "<remote exec>")
        assert (task.firstlineno, task.name, task.kwargs) == (1, "", {})

    def test_lines_are_those_of_the_text(self) -> None:
        text = """
            channel.send(1)
            1 / 0
        """
        with pytest.raises(ZeroDivisionError) as caught:
            run(make_task(text, {}))
        assert traceback.extract_tb(caught.value.__traceback__)[-1].lineno == 3

    def test_no_arguments(self) -> None:
        with pytest.raises(TypeError, match="kwargs need a function"):
            make_task("channel", {"a": 1})


class TestModule:
    def test_its_file_is_sent(self, load: Load) -> None:
        module = load("'''doc'''\nif __name__ == '__channelexec__':\n    channel.send(__name__)\n")
        task = make_task(module, {})
        assert (task.kind, task.filename, task.firstlineno) == ("exec", module.__file__, 1)
        assert run(task) == ["__channelexec__"]

    def test_empty(self, load: Load) -> None:
        assert make_task(load(""), {}).text == ""

    @pytest.mark.parametrize("module", [sys, math, types.ModuleType("made_up")])
    def test_without_source(self, module: types.ModuleType) -> None:
        assert f"module {module.__name__!r} cannot be sent" in refusal(module)

    def test_file_is_gone(self, load: Load) -> None:
        module = load("a = 1")
        Path(module.__file__).unlink()
        assert "cannot be sent" in refusal(module)

    def test_no_arguments(self, load: Load) -> None:
        with pytest.raises(TypeError, match="kwargs need a function"):
            make_task(load("a = 1"), {"a": 1})


def plain(channel: Channel, first: int, second: str = "b", *, third: float | None = None) -> None:
    """Docstrings stay."""
    from os import path

    def inner(value: Path, *rest: Callable[..., Any]) -> dict[str, Path]:
        return {str(value): path.join("a", *map(str, rest))}  # type: ignore[dict-item]

    channel.send([first, second, third, inner(1, 2, 3), [first for _ in "xy"]])  # type: ignore[arg-type]


def fails(channel: Channel) -> None:
    channel.send(1)
    raise ValueError("on purpose")


def recursive(channel: Channel, depth: int) -> None:
    channel.send(depth)
    if depth:
        recursive(channel, depth - 1)


class TestFunction:
    def test_call(self) -> None:
        task = make_task(plain, {"first": 1, "third": 2.0})
        assert (task.kind, task.name, task.kwargs) == ("call", "plain", {"first": 1, "third": 2.0})
        assert (task.filename, task.firstlineno) == (plain.__code__.co_filename, plain.__code__.co_firstlineno)
        assert run(task) == [[1, "b", 2.0, {"1": "a/2/3"}, [1, 1]]]
        assert repr(task) == "<Task call plain>"

    def test_arguments_are_copied(self) -> None:
        kwargs: dict[str, object] = {"first": 1}
        task = make_task(plain, kwargs)
        kwargs.clear()
        assert task.kwargs == {"first": 1}

    def test_again(self, load: Load) -> None:
        function = load("def f(channel, a=1):\n    channel.send(a)\n").f
        for value in (2, 3):
            assert run(make_task(function, {"a": value})) == [value]
        function.__code__ = load("x = 1\ndef f(channel, b=1):\n    channel.send(-b)\n").f.__code__
        assert run(make_task(function, {"b": 4})) == [-4]

    @pytest.mark.parametrize("nested", [False, True])
    def test_tracebacks_fit_the_file(self, nested: bool) -> None:
        def inside(channel: Channel) -> None:
            raise ValueError("on purpose")

        function = inside if nested else fails
        with pytest.raises(ValueError, match="on purpose") as caught:
            run(make_task(function, {}))
        last = traceback.extract_tb(caught.value.__traceback__)[-1]
        assert last.filename == function.__code__.co_filename
        assert last.line == 'raise ValueError("on purpose")'
        assert last.lineno == function.__code__.co_firstlineno + (1 if nested else 2)

    def test_nested_with_text_at_the_margin(self, load: Load) -> None:
        module = load(
            '''\
            class Outer:
                def make():
                    # comment
                    def task(channel, more=()):
                        text = """
            at the margin
                indented
            """
            # a comment at the margin
                        channel.send(text)

                    return task
            '''
        )
        task = make_task(module.Outer.make(), {})
        assert run(task) == ["\nat the margin\n    indented\n"]
        # The line before the function is spent on what makes the indentation legal.
        assert task.firstlineno == 3
        assert task.text.startswith("if 1:\n        def task(")

    def test_on_one_line(self, load: Load) -> None:
        assert run(make_task(load("def f(channel): channel.send(1)\n").f, {})) == [1]

    def test_without_a_line_end(self, load: Load) -> None:
        assert run(make_task(load("x = 1\ndef f(channel):\n    channel.send(1)").f, {})) == [1]

    def test_recursion(self) -> None:
        assert run(make_task(recursive, {"depth": 2})) == [2, 1, 0]

    def test_recursion_of_a_nested_function(self) -> None:
        def count(channel: Channel, depth: int) -> None:
            channel.send(depth)
            if depth:
                count(channel, depth - 1)

        assert run(make_task(count, {"depth": 1})) == [1, 0]

    def test_an_alias(self) -> None:
        other = recursive
        assert make_task(other, {"depth": 0}).name == "recursive"

    @pytest.mark.parametrize(
        "body",
        [
            "global counter; counter = 1; channel.send(counter)",
            "import os; channel.send(os.sep and 1)",
            "from math import floor as f; channel.send(f(1.5))",
            "class A:\n        b = 1\n        c = b\n    channel.send(A.c)",
            "class A:\n        b: int = 1\n        __slots__ = ()\n    channel.send(A.b)",
            "class A:\n        def m(self): return super().__init__() or 1\n    channel.send(A().m())",
            "channel.send([a for a in (1, 2) for b in [a]][0])",
            "channel.send((lambda undefined_here=1: undefined_here)())",
            "channel.send(1) if __name__ else 0",
            "x: Unknown = 1\n    y: Unknown\n    channel.send(x)",
            "def g(a: Unknown, *b: Unknown, c: Unknown = 0, **d: Unknown) -> Unknown: return 1\n    channel.send(g(1))",
            "try:\n        1 / 0\n    except ZeroDivisionError as error:\n        channel.send(len(error.args))",
            "assert channel; channel.send(int(not channel.items))",
            "n = 0\n    def g():\n        nonlocal n\n        n += 1\n    g()\n    channel.send(n)",
        ],
    )
    def test_bodies_that_stand_alone(self, load: Load, body: str) -> None:
        assert run(make_task(load(f"def f(channel):\n    {body}\n").f, {})) == [1]

    def test_attributes_are_not_globals(self, load: Load) -> None:
        module = load("items = send = 1\ndef f(channel):\n    channel.items.append(channel.send.__name__)\n")
        assert run(make_task(module.f, {})) == ["send"]

    @pytest.mark.parametrize("future", ["", "from __future__ import annotations\n"])
    def test_annotated_class_attributes_stay(self, load: Load, future: str) -> None:
        module = load(
            future
            + """
def f(channel: int):
    from dataclasses import dataclass

    @dataclass
    class Point:
        x: int
        y: int = 2

        def sum(self) -> Unknown:
            return self.x + self.y

    channel.send(Point(1).sum())
"""
        )
        assert run(make_task(module.f, {})) == [3]


class TestAnnotations:
    @pytest.mark.parametrize(
        "signature",
        [
            "channel: Unknown",
            "channel: T",
            "channel: Unknown = None",
            "channel:Unknown=None",
            "channel: 'Unknown') -> (None",
            'channel: "Ünknown[ß]", b: Ünknown=5) -> "é": # ß\n    pass\n    (',
            "channel: (Unknown), b: ((Unknown)) = (5)",
            "channel: (\n        Unknown  # (((\n    ),\n    b: Dict[\n        str,\n    int\n    ] = 5,\n",
            "channel) -> Dict[\n    str,\n  int\n",
            "channel) -> Dict[\n    str,\n  int\n]:\n    ([0][0]",
            "channel: Unknown, *args: Unknown, b: Unknown = 5, **rest: int | Unknown) -> list[int] | None:\n    (1",
            "channel: '''a\n  b''', b: lambda x: x = 5",
            'channel: f"{1}", b: \\\n    Unknown \\\n    = 5',
            "channel: Unknown @ 3 if 1 else 2, b: -1 = 5",
        ],
    )
    def test_none_is_evaluated_and_nothing_moves(self, load: Load, signature: str) -> None:
        close = "]" if signature.count("[") > signature.count("]") else ")"
        text = f"from __future__ import annotations\n\ndef f({signature}{close}:\n    channel.send('ß'); MARK = 1\n"
        if close == ")" and signature.endswith(("(", "(1", "[0]", "([0][0]")):
            text = f"from __future__ import annotations\n\ndef f({signature})\n    channel.send('ß'); MARK = 1\n"
        function = load(text).f
        task = make_task(function, {})
        ast.parse(task.text, feature_version=OLDEST)
        assert run(task) == ["ß"]
        before, after = text.split("\n")[2:], task.text.split("\n")
        assert len(before) == len(after)
        assert [line.find("MARK") for line in before] == [line.find("MARK") for line in after]
        assert [line.find("b: ") for line in before] == [line.find("b: ") for line in after]

    def test_annotations_of_nested_functions_may_name_variables_around(self) -> None:
        kind = int

        def task(channel: Channel) -> None:
            def inner(value: kind) -> kind:  # type: ignore[valid-type]
                return value

            channel.send(inner(1))

        assert run(make_task(task, {})) == [1]

    @pytest.mark.parametrize("path", sorted((SOURCES / "farwire").rglob("*.py")), ids=lambda path: path.name)
    def test_nothing_else_changes(self, path: Path) -> None:
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        taken = _take_annotations(text, tree)
        again = ast.parse(taken)
        assert _take_annotations(taken, again) == taken
        assert ast.dump(again) == ast.dump(tree)
        assert taken.count("\n") == text.count("\n")


class TestRefused:
    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("f = lambda channel: 1", "it is a lambda"),
            ("async def f(channel): pass", "it is async"),
            ("async def f(channel): yield", "it is async"),
            ("def f(channel): yield 1", "it has a yield"),
            ("def f(): pass", "its first parameter must be named 'channel'"),
            ("def f(ch): pass", "its first parameter must be named 'channel'"),
            ("def f(*channel): pass", "its first parameter must be named 'channel'"),
            ("def f(*, channel): pass", "its first parameter must be named 'channel'"),
            ("class A:\n    def f(self, channel): pass\nf = A.f", "its first parameter"),
            ("class A:\n    def f(channel): super().x()\nf = A.f", "it uses the class around it"),
            ("def deco(f): return f\n@deco\ndef f(channel): pass", "it is decorated with @deco"),
            ("def deco(f): return f\n@deco\n@deco\ndef f(channel): pass", "decorated with @deco, @deco"),
            (
                "import functools as t\ndef d(f):\n    @t.wraps(f)\n    def g(c): f(c)\n    return g\n@d\ndef f(channel): pass",
                "it is decorated",
            ),
            ("import os\ndef f(channel, a=os.sep): pass", "'os' (line 2, in a default)"),
            ("import os\ndef f(channel, *, a=os): pass", "'os' (line 2, in a default)"),
            ("X = 1\ndef f(channel, a=lambda: X): pass", "'X' (line 2)"),
            (
                "import os\ndef f(channel):\n    os.getpid()\n    os.getpid()",
                "names of its module: 'os' (line 3); import",
            ),
            ("import os\ndef f(channel):\n    def g(): return lambda: os\n", "'os' (line 3)"),
            ("X = 1\ndef f(channel):\n    return [X for _ in ()]", "'X' (line 3)"),
            ("X = 1\ndef f(channel):\n    class A:\n        X = X", "'X' (line 4)"),
            ("X = int\ndef f(channel):\n    class A:\n        a: X = 1", "'X' (line 4)"),
            ("X = 1\ndef f(channel):\n    global Y\n    Y = X", "'X' (line 4); import"),
            ("def f(channel):\n    typo()", "'typo' (line 2)"),
            ("def f(channel):\n    b, a\n    a, __file__", "'b' (line 2), 'a' (line 2), '__file__' (line 3)"),
            ("def print(*args): pass\ndef f(channel):\n    print(1)", "'print' (line 3)"),
            ("def make():\n    x = 1\n    def f(channel):\n        return x\n    return f\nf = make()", "'x' (line 4)"),
            (
                "def make(input):\n    def f(channel):\n        return input, os\n    return f\nf = make(1)",
                "function around it: 'input' (line 3); pass them as keyword arguments; it uses names of its module: 'os' (",
            ),
            (
                "def make():\n    x = 1\n    def f(channel):\n        nonlocal x\n        x = 2\n    return f\nf = make()",
                "variables of the function around it: 'x' (line 4)",
            ),
            ("def make():\n    def f(channel): x\n    return f\n    x = 1\nf = make()", "around it: 'x' (line 2)"),
        ],
    )
    def test_functions(self, load: Load, text: str, words: str) -> None:
        message = refusal(load(text).f)
        assert words in message
        assert "cannot run remotely" in message
        assert ".py, line " in message

    def test_exec_leaves_no_source(self) -> None:
        space: dict[str, Any] = {}
        exec("def f(channel): pass", space)
        assert "put it in a file, or send text" in refusal(space["f"])

    @pytest.mark.parametrize(
        "now",
        [
            "# new\n\ndef f(channel):\n    pass\n",
            "def g(channel):\n    pass\n",
            "def f(channel, a):\n    pass\n",
            "def f(channel:\n",
            "f = 1\n",
            "class f:\n    pass\n",
        ],
    )
    def test_the_file_changed(self, load: Load, now: str) -> None:
        module = load("def f(channel):\n    pass\n")
        Path(module.__file__).write_text(now, encoding="utf-8")
        linecache.clearcache()
        words = refusal(module.f)
        assert "its file has changed" in words or "its source cannot be found" in words

    def test_other_callables(self) -> None:
        assert "is a partial: send its function" in refusal(functools.partial(plain, first=1))
        assert "is a bound method" in refusal(Channel().send)
        assert "has no Python source" in refusal(len)
        assert "is what a decorator made" in refusal(functools.lru_cache(fails))

    @pytest.mark.parametrize("value", [b"bytes", Path("file.py"), 3, None, Channel, Channel(), str.upper])
    def test_other_things(self, value: Any) -> None:
        with pytest.raises(TypeError, match=f"text, a function or a module, not {type(value).__name__}"):
            make_task(value, {})

    @pytest.mark.parametrize(
        ("kwargs", "words"),
        [
            ({}, "plain: missing a required argument: 'first'"),
            ({"first": 1, "fourth": 2}, "plain: got an unexpected keyword argument 'fourth'"),
            ({"first": 1, "channel": 2}, "plain: multiple values for argument 'channel'"),
        ],
    )
    def test_arguments(self, kwargs: dict[str, object], words: str) -> None:
        with pytest.raises(TypeError, match=words):
            make_task(plain, kwargs)
