"""execnet's byte format: what execnet writes is read, what is written is read by execnet, and the rest is one kind of error."""

from __future__ import annotations

import enum
import gzip
import io
import math
import os
import random
import resource
import shutil
import struct
import subprocess
import sys
import threading
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import servers
from farwire import DataFormatError, DumpError, LoadError
from farwire.bootstrap.blank import blank
from farwire.compat import serializer
from farwire.compat.serializer import (
    Unserializer,
    _Serializer,
    dump,
    dumps,
    dumps_internal,
    load,
    loads,
    loads_internal,
)

# -- golden vectors: bytes that execnet 2.1.2 wrote ------------------------------------------------------------------------

VECTORS: list[tuple[Any, bytes]] = [
    (None, b"\x02LQ"),
    (True, b"\x02RQ"),
    (False, b"\x02CQ"),
    (0, b"\x02F\0\0\0\0Q"),
    (-1, b"\x02F\xff\xff\xff\xffQ"),
    (2**31 - 1, b"\x02F\x7f\xff\xff\xffQ"),
    (-(2**31), b"\x02F\x80\0\0\0Q"),
    (2**31, b"\x02H\0\0\0\n2147483648Q"),
    (10**20, b"\x02H\0\0\0\x15100000000000000000000Q"),
    (1.5, b"\x02D?\xf8\0\0\0\0\0\0Q"),
    (float("-inf"), b"\x02D\xff\xf0\0\0\0\0\0\0Q"),
    (1 - 2j, b"\x02T?\xf0\0\0\0\0\0\0\xc0\0\0\0\0\0\0\0Q"),
    (b"", b"\x02A\0\0\0\0Q"),
    (b"a\0\xff", b"\x02A\0\0\0\x03a\0\xffQ"),
    ("", b"\x02N\0\0\0\0Q"),
    ("aé€\U0001f40d", b"\x02N\0\0\0\na\xc3\xa9\xe2\x82\xac\xf0\x9f\x90\x8dQ"),
    ([], b"\x02K\0\0\0\0Q"),
    ([1, None], b"\x02K\0\0\0\x02F\0\0\0\0F\0\0\0\x01PF\0\0\0\x01LPQ"),
    ([[]], b"\x02K\0\0\0\x01F\0\0\0\0K\0\0\0\0PQ"),
    ((), b"\x02@\0\0\0\0Q"),
    ((1, ("a",)), b"\x02F\0\0\0\x01N\0\0\0\x01a@\0\0\0\x01@\0\0\0\x02Q"),
    ({}, b"\x02JQ"),
    ({"a": {1: b"x"}}, b"\x02JN\0\0\0\x01aJF\0\0\0\x01A\0\0\0\x01xPPQ"),
    ({(1,): [2]}, b"\x02JF\0\0\0\x01@\0\0\0\x01K\0\0\0\x01F\0\0\0\0F\0\0\0\x02PPQ"),
    (set(), b"\x02O\0\0\0\0Q"),
    ({1}, b"\x02F\0\0\0\x01O\0\0\0\x01Q"),
    (frozenset(), b"\x02E\0\0\0\0Q"),
    (frozenset([None]), b"\x02LE\0\0\0\x01Q"),
    ({frozenset([1]): {"k"}}, b"\x02JF\0\0\0\x01E\0\0\0\x01N\0\0\0\x01kO\0\0\0\x01PQ"),
]

# What execnet refuses, in opcodes that it reads.
BEYOND: list[tuple[Any, bytes]] = [
    (-(2**31) - 1, b"\x02H\0\0\0\x0b-2147483649Q"),
    (-(10**20), b"\x02H\0\0\0\x16-100000000000000000000Q"),
]


@pytest.mark.parametrize(("value", "data"), VECTORS + BEYOND, ids=lambda part: repr(part)[:30])
def test_vectors(value: Any, data: bytes) -> None:
    assert dumps(value) == data
    same(loads(data), value)
    assert dumps_internal(value) == data[1:]


# What Python 2 wrote.
OLD: list[tuple[bytes, tuple[bool, bool], Any]] = [
    (b"\x02M\0\0\0\x02a\xe9Q", (False, False), b"a\xe9"),
    (b"\x02M\0\0\0\x02a\xe9Q", (True, False), "aé"),
    (b"\x02S\0\0\0\x03a\xc3\xa9Q", (False, False), "aé"),
    (b"\x02S\0\0\0\x03a\xc3\xa9Q", (True, True), "aé"),
    (b"\x02N\0\0\0\x03a\xc3\xa9Q", (False, True), b"a\xc3\xa9"),
    (b"\x02N\0\0\0\x03a\xc3\xa9Q", (False, False), "aé"),
    (b"\x02G\0\0\0\x07Q", (False, False), 7),
    (b"\x02I\0\0\0\n2147483648Q", (False, False), 2**31),
    (b"\x02JM\0\0\0\x01aM\0\0\0\x01bPQ", (True, False), {"a": "b"}),
]


@pytest.mark.parametrize(("data", "config", "value"), OLD)
def test_data_of_python_2(data: bytes, config: tuple[bool, bool], value: Any) -> None:
    py2str, py3str = config
    same(loads(data, py2str_as_py3str=py2str, py3str_as_py2str=py3str), value)
    same(load(io.BytesIO(data), py2str_as_py3str=py2str, py3str_as_py2str=py3str), value)
    same(Unserializer(io.BytesIO(data), strconfig=config).load(versioned=True), value)
    same(loads_internal(data[1:], None, config), value)


def same(one: Any, other: Any) -> None:
    """Equal, with the same types, the same order and every bit."""
    assert type(one) is type(other)
    if type(one) in (list, tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other):
            same(a, b)
    elif type(one) is dict:
        same(list(one.items()), list(other.items()))
    elif type(one) is float:
        assert struct.pack("d", one) == struct.pack("d", other)
    elif type(one) in (set, frozenset):
        assert one == other
        assert sorted(str(type(item)) for item in one) == sorted(str(type(item)) for item in other)
    else:
        assert repr(one) == repr(other)


# -- against the real execnet ----------------------------------------------------------------------------------------------


def random_value(chance: random.Random, depth: int = 0, hashable: bool = False) -> Any:
    kind = chance.randrange(9 if depth > 3 else 14)
    few = range(chance.choice([0, 1, 1, 2, 3, 5]))
    if kind < 2:
        return chance.choice([None, True, False])
    if kind < 4:
        return chance.choice([0, 1, -1, 255, 256, 2**31 - 1, 2**31, -(2**31), 2**64, chance.getrandbits(300)])
    if kind == 4:
        return chance.choice([0.0, -0.0, 1.5, math.inf, -math.inf, chance.random(), 5e-324])
    if kind == 5:
        return complex(chance.random(), -0.0)
    if kind == 6:
        return chance.randbytes(chance.choice([0, 1, 3, 100]))
    if kind < 9:
        return "".join(chance.choice(["a", "b", "\n", "\0", "é", "€", "\U0001f40d"]) for _ in few)
    if kind == 9 or (hashable and kind in (11, 12)):
        return tuple(random_value(chance, depth + 1, hashable) for _ in few)
    if kind == 10 or (hashable and kind == 13):
        return frozenset(random_value(chance, depth + 1, True) for _ in few)
    if kind == 11:
        return [random_value(chance, depth + 1) for _ in few]
    if kind == 12:
        return {random_value(chance, depth + 1, True): random_value(chance, depth + 1) for _ in few}
    return {random_value(chance, depth + 1, True) for _ in few}


@pytest.fixture
def execnet(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The real one, for the time of the test: ``import execnet`` may mean farwire here, and must not mean the real one afterwards."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "execnet"]:
        monkeypatch.delitem(sys.modules, name)
    ours = [finder for finder in sys.meta_path if type(finder).__module__.startswith("farwire.")]
    monkeypatch.setattr(sys, "meta_path", [finder for finder in sys.meta_path if finder not in ours])
    before = set(sys.modules)
    module = pytest.importorskip("execnet")
    if module.__name__ != "execnet":
        pytest.skip("the distribution of that name is farwire's")
    yield module
    for name in set(sys.modules) - before:
        if name.partition(".")[0] == "execnet":
            del sys.modules[name]


def test_as_execnet(execnet: Any) -> None:
    """The same bytes for any value that execnet writes, and either reads the other's."""
    for seed in range(4000):
        value = random_value(random.Random(seed))
        theirs = execnet.dumps(value)
        ours = dumps(value)
        assert ours == theirs, f"seed {seed}: {value!r}"
        same(loads(theirs), execnet.loads(ours))
        same(loads(ours), value)
        file = io.BytesIO()
        execnet.dump(file, value)
        file.seek(0)
        same(load(file), value)


def test_execnet_reads_what_it_does_not_write(execnet: Any) -> None:
    for value, data in BEYOND:
        same(execnet.loads(data), value)
    deep: Any = None
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(RecursionError):
        execnet.dumps(deep)
    assert dumps(execnet.loads(dumps(deep))) == dumps(deep)


# -- depth -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [lambda v: [v], lambda v: (v,), lambda v: {"k": v}, lambda v: frozenset([v])])
def test_deep(wrap: Callable[[Any], Any]) -> None:
    value: Any = 5
    for _ in range(50_000):
        value = wrap(value)
    data = dumps(value)
    back = loads(data)
    depth = 0
    while type(back) is not int:
        (back,) = back.values() if type(back) is dict else back
        depth += 1
    assert (back, depth) == (5, 50_000)


def test_a_deep_key_is_refused() -> None:
    """Hashing it would crash the interpreter, in C."""
    nested = b"L" + b"@\0\0\0\1" * 1_000_000
    for data in (b"\x02J" + nested + b"LPQ", b"\x02" + nested + b"O\0\0\0\1Q"):
        with pytest.raises(LoadError, match="nested more than 1000 levels deep"):
            loads(data)
    fine = b"\x02J" + b"L" + b"@\0\0\0\1" * 500 + b"LPQ"
    assert dumps(loads(fine)) == fine


def test_deep_keys_that_must_be_compared() -> None:
    nested = b"L" + b"@\0\0\0\1" * 990
    try:
        assert len(loads(b"\x02J" + (nested + b"LP") * 2 + b"Q")) == 1
    except LoadError:
        pass  # Pythons that count the levels of C with those of Python


# -- what cannot be written ------------------------------------------------------------------------------------------------

Point = namedtuple("Point", "x y")  # noqa: PYI024 - the plain one is meant
Colour = enum.IntEnum("Colour", "RED")
NoneType = type("NoneType", (), {})
FakeDict = type("dict", (), {})
FakeChannel = type("Channel", (), {"id": 3})
Text = type("Text", (str,), {})

REFUSED: list[tuple[Any, str]] = [
    (object(), r"^item: can't serialize <class 'object'>"),
    ([1, {"props": [0, len]}], r"^item\[1\]\['props'\]\[1\]: can't serialize <class 'builtin_function"),
    ({"a": (1, 2, bytearray())}, r"^item\['a'\]\[2\]: can't serialize <class 'bytearray'>; hint: use bytes"),
    (range(3), "<class 'range'>; hint: use list"),
    (..., "ellipsis"),
    (Point(1, 2), "Point.*hint: send tuple"),
    (Colour.RED, r"hint: send obj\.value"),
    (OrderedDict(), "hint: send dict"),
    (Text("a"), "Text"),
    ({Text("a"): 1}, r"^item \(a key\): .*Text"),
    ({1, (2, object())}, r"^item \(a member\)\[1\]: "),
    ({frozenset([object()]): 1}, r"^item \(a key\) \(a member\): "),
    (Path("/"), "hint: send str"),
    (int, "<class 'int'>.*class int cannot be sent"),
    # By name alone execnet took these for the built-in types.
    (NoneType(), "NoneType"),
    ([FakeDict()], r"^item\[0\]: can't serialize <class '.*dict'>"),
    (FakeChannel(), "Channel"),
    ("a\ud800", r"^item: a str with a lone surrogate \('\\ud800' at index 1\)"),
    ({"k\udfff": 1}, r"^item \(a key\): a str with a lone surrogate"),
    ({"k": {"x" * 100: [object()]}}, r"^item\['k'\]\['x+\.\.\.\]\[0\]: can't"),
]


@pytest.mark.parametrize(("value", "text"), REFUSED, ids=lambda part: repr(part)[:30])
def test_refused_with_its_path(value: Any, text: str) -> None:
    for call in (dumps, dumps_internal, _Serializer().save):
        with pytest.raises(DumpError, match=text) as caught:
            call(value)
        assert caught.value.__cause__ is None
        assert caught.value.__context__ is None
    assert issubclass(DumpError, DataFormatError)
    file = io.BytesIO(b"")
    with pytest.raises(DumpError):
        dump(file, value)
    assert file.getvalue() == b""


def test_cycles_are_refused() -> None:
    row: list[Any] = [1]
    row.append({"again": row})
    with pytest.raises(DumpError, match=r"^item\[1\]\['again'\]: it contains itself$"):
        dumps(row)
    shared = [1]
    assert loads(dumps([shared, shared])) == [[1], [1]]  # twice is no cycle


def test_a_path_that_is_long_is_shortened() -> None:
    value: Any = object()
    for _ in range(3000):
        value = [value]
    with pytest.raises(DumpError) as caught:
        dumps(value)
    text = str(caught.value)
    assert text.startswith("item[0][0]")
    assert " ... [0]" in text
    assert len(text) < 400


@pytest.mark.skipif(not hasattr(sys, "set_int_max_str_digits"), reason="this interpreter has no limit")
def test_more_digits_than_the_interpreter_converts() -> None:
    limit = sys.get_int_max_str_digits()
    number = -(10**limit)
    with pytest.raises(DumpError, match=rf"^item\['n'\]: an int of more than {limit} digits"):
        dumps({"n": number})
    with pytest.raises(LoadError, match="ValueError"):
        loads(b"\x02H" + struct.pack("!i", limit + 1) + b"1" * (limit + 1) + b"Q")
    sys.set_int_max_str_digits(limit + 2)
    try:
        assert loads(dumps({"n": number})) == {"n": number}
    finally:
        sys.set_int_max_str_digits(limit)


def test_a_value_that_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """The length has 4 bytes; 2 GiB are not needed to see what happens then."""

    class Pack:
        def __call__(self, code: bytes, number: int) -> bytes:
            if code in (b"A", b"N") and number > 10:
                raise struct.error("argument out of range")
            return struct.pack("!ci", code, number)

    monkeypatch.setattr(serializer, "_pack_int", Pack())
    with pytest.raises(DumpError, match=r"^item\[0\]: bytes is longer than 2147483647 bytes"):
        dumps([b"x" * 11])
    monkeypatch.setattr(serializer, "_LARGEST", 5)
    with pytest.raises(DumpError, match=r"^item\[1\]: it has more than 5 items"):
        dumps(([], list(range(6)), object()))


def test_a_value_that_changes_meanwhile() -> None:
    """Whole, of one moment or another; or a DumpError. Nothing else."""
    value: dict[int, Any] = {}
    stop = threading.Event()

    def change() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            value[number % 997] = [None] * (number % 5)
            value.pop((number * 31) % 997, None)

    thread = threading.Thread(target=change)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread.start()
    try:
        for _ in range(200):
            back = loads(dumps(value))
            assert all(set(item) <= {None} for item in back.values())
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(interval)


# -- malformed data --------------------------------------------------------------------------------------------------------

INT = b"F\0\0\0\0"
HUGE = b"\x7f\xff\xff\xff"

MALFORMED: dict[str, bytes] = {
    "nothing": b"",
    "no value": b"\x02",
    "end only": b"\x02Q",
    "another version": b"\x01LQ",
    "no version": b"LQ",
    "unknown opcode": b"\x02zQ",
    "zeros": b"\x02" + bytes(100),
    "no end": b"\x02L",
    "two values": b"\x02LLQ",
    "trailing bytes": b"\x02LQ\0",
    "trailing value": b"\x02LQ\x02LQ",
    "int cut": b"\x02F\0\0",
    "float cut": b"\x02D\0\0\0\0Q",
    "complex cut": b"\x02T" + bytes(15),
    "length cut": b"\x02N\0",
    "str cut": b"\x02N\0\0\0\x05abcQ",
    "str of huge length": b"\x02N" + HUGE + b"aQ",
    "bytes of huge length": b"\x02A" + HUGE + b"aQ",
    "str of negative length": b"\x02N\xff\xff\xff\xffQ",
    "bytes of negative length": b"\x02A\x80\0\0\0Q",
    "not UTF-8": b"\x02N\0\0\0\x01\xffQ",
    "surrogate in UTF-8": b"\x02N\0\0\0\x03\xed\xa0\x80Q",
    "not UTF-8, Python 2": b"\x02S\0\0\0\x01\xffQ",
    "list of huge length": b"\x02K" + HUGE + b"Q",
    "list of 1000 without items": b"\x02K\0\0\x03\xe8Q",
    "list of negative length": b"\x02K\xff\xff\xff\xffQ",
    "list that lacks an item": b"\x02K\0\0\0\x02" + INT + b"LP" + b"Q",
    "list that lacks an item, inside": b"\x02JLK\0\0\0\x01" + b"PPPPPPPQ",
    "list with an item too many": b"\x02K\0\0\0\x01" + INT + b"LP" + b"F\0\0\0\x01LPQ",
    "list with an item twice": b"\x02K\0\0\0\x02" + INT + b"LP" + INT + b"LPQ",
    "list with a gap": b"\x02K\0\0\0\x02F\0\0\0\x01LPQ       ",
    "list with index -1": b"\x02K\0\0\0\x01F\xff\xff\xff\xffLPQ",
    "list with index None": b"\x02K\0\0\0\x01LLPQ     ",
    "list with index False": b"\x02K\0\0\0\x01CLPQ     ",
    "unfinished list in a tuple": b"\x02K\0\0\0\x01@\0\0\0\x01Q    ",
    "item set in a list that is complete": b"\x02K\0\0\0\0" + INT + b"LPQ",
    "nothing to set": b"\x02PQ",
    "one to set": b"\x02LPQ",
    "two to set": b"\x02LLPQ",
    "set in None": b"\x02LLLPQ",
    "set in a tuple": b"\x02@\0\0\0\0" + INT + b"LPQ",
    "set in bytes": b"\x02A\0\0\0\x01a" + INT + INT + b"PQ",
    "list as a key": b"\x02JK\0\0\0\0LPQ",
    "dict as a key": b"\x02JJLPQ",
    "set as a key": b"\x02JO\0\0\0\0LPQ",
    "list in a set": b"\x02K\0\0\0\0O\0\0\0\x01Q",
    "list in a frozenset": b"\x02K\0\0\0\0E\0\0\0\x01Q",
    "tuple of more than there are": b"\x02L@\0\0\0\x02Q",
    "tuple of huge length": b"\x02L@" + HUGE + b"Q",
    "set of more than there are": b"\x02LO\0\0\0\x02Q",
    "tuple of negative length": b"\x02L@\xff\xff\xff\xffQ",
    "set of negative length": b"\x02LO\xff\xff\xff\xffQ",
    "frozenset of negative length": b"\x02LE\xff\xff\xff\xffQ",
    "int of no digits": b"\x02H\0\0\0\0Q",
    "int of letters": b"\x02H\0\0\0\x03abcQ",
    "int with spaces": b"\x02H\0\0\0\x03 1 Q",
    "int with underscore": b"\x02H\0\0\0\x031_1Q",
    "int with two signs": b"\x02H\0\0\0\x03--1Q",
    "int with plus": b"\x02H\0\0\0\x02+1Q",
    "int of Python 2 with L": b"\x02I\0\0\0\x021LQ",
    "channel": b"\x02B\0\0\0\x01Q",
    "channel cut": b"\x02B\0",
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed(case: str) -> None:
    data = MALFORMED[case]
    with pytest.raises(LoadError) as caught:
        loads(data)
    assert type(caught.value) is LoadError
    assert caught.value.__context__ is None
    trailing = case.startswith("trailing")
    for file in (io.BytesIO(data), Trickle(data)):
        if trailing:
            assert load(file) is None
        else:
            with pytest.raises(LoadError):
                load(file)
    if data[:1] == b"\x02":
        with pytest.raises(LoadError):
            loads_internal(data[1:])


@pytest.mark.parametrize(("value", "data"), VECTORS + BEYOND, ids=lambda part: repr(part)[:30])
def test_every_truncation(value: Any, data: bytes) -> None:
    for size in range(len(data)):
        with pytest.raises(LoadError):
            loads(data[:size])
        with pytest.raises(LoadError):
            load(io.BytesIO(data[:size]))
    with pytest.raises(LoadError, match="1 bytes follow"):
        loads(data + b"\0")


def test_no_length_makes_it_allocate(tmp_path: Path) -> None:
    """In a process whose memory is limited, with each way to read: the answer is about the data, not about memory."""
    program = f"""
import resource, sys
sys.path.insert(0, {str(Path(serializer.__file__).parents[2])!r})
import farwire, io
from farwire.compat import serializer
with open("/proc/self/statm") as file:
    now = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + (64 << 20),) * 2)
for code in b"KNASMHI@OE":
    data = b"\\x02L" + bytes([code]) + b"\\x7f\\xff\\xff\\xff" + b"Q" * 100
    with open(sys.argv[1], "wb") as file:
        file.write(data)
    for call in (
        lambda: serializer.loads(data),
        lambda: serializer.load(io.BytesIO(data)),
        lambda: serializer.load(open(sys.argv[1], "rb")),
        lambda: serializer.load(open(sys.argv[1], "rb", buffering=0)),
    ):
        try:
            call()
        except farwire.LoadError as error:
            assert "Memory" not in str(error), error
        else:
            sys.exit("read " + chr(code))
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, str(tmp_path / "data")],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_wrong_arguments_are_wrong_arguments() -> None:
    for wrong in ("text", 5, None, [1]):
        with pytest.raises(TypeError):
            loads(wrong)  # type: ignore[arg-type]


# -- files -----------------------------------------------------------------------------------------------------------------


class Trickle:
    """A file that gives one byte at a time and cannot go back."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.largest = 0

    def read(self, size: int) -> bytes:
        self.largest = max(self.largest, size)
        first, self.data = self.data[: min(size, 1)], self.data[min(size, 1) :]
        return first


VALUES = [None, {"a": [1, 2.5, "x" * 100_000]}, "last", (), -(2**70)]


@pytest.mark.parametrize("kind", ["BytesIO", "file", "unbuffered", "read and write", "gzip", "pipe", "trickle"])
def test_several_values_in_a_file(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "data"
    with gzip.open(path, "wb") if kind == "gzip" else path.open("wb") as writer:
        for value in VALUES:
            dump(writer, value)
        writer.write(b"rest")
    data = path.read_bytes()
    thread = None
    file: Any
    if kind == "BytesIO":
        file = io.BytesIO(data)
    elif kind == "trickle":
        file = Trickle(data)
    elif kind == "gzip":
        file = gzip.GzipFile(path, "rb")
    elif kind == "pipe":
        end, other = os.pipe()
        file = os.fdopen(end, "rb")

        def feed() -> None:
            with os.fdopen(other, "wb") as pipe:
                pipe.write(data)

        thread = threading.Thread(target=feed)
        thread.start()
    else:
        file = path.open("r+b" if kind == "read and write" else "rb", buffering=0 if kind == "unbuffered" else -1)
    for value in VALUES:
        same(load(file), value)
    rest = b""
    while piece := file.read(100):
        rest += piece
    assert rest == b"rest"
    if thread:
        thread.join()
    if hasattr(file, "close"):
        file.close()


def test_a_value_is_not_waited_beyond() -> None:
    """Of a pipe nothing is asked for that need not come."""
    end, other = os.pipe()
    with os.fdopen(end, "rb") as file, os.fdopen(other, "wb", buffering=0) as writer:
        dump(writer, ["a", {"b": 1}])
        assert load(file) == ["a", {"b": 1}]
        dump(writer, 5)
        assert load(file) == 5


def test_a_file_that_has_no_data_at_present() -> None:
    end, other = os.pipe()
    os.set_blocking(end, False)
    with os.fdopen(end, "rb", buffering=0) as file, os.fdopen(other, "wb", buffering=0) as writer:
        with pytest.raises(LoadError, match="not blocking"):
            load(file)
        writer.write(b"\x02N\0\0\0\x05ab")
        with pytest.raises(LoadError, match="not blocking"):
            load(file)


def test_a_file_that_takes_less_than_all() -> None:
    class Sip:
        data = b""

        def write(self, data: bytes) -> int:
            self.data += data[:3]
            return min(3, len(data))

    file = Sip()
    dump(file, {"key": "value"})
    assert file.data == dumps({"key": "value"})


def test_errors_of_a_file_come_through() -> None:
    class Broken:
        def read(self, size: int) -> bytes:
            raise OSError("the disk is gone")

        def write(self, data: bytes) -> int:
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is gone"):
        load(Broken())
    with pytest.raises(OSError, match="the disk is full"):
        dump(Broken(), 1)


def test_any_buffer_can_be_loaded() -> None:
    data = dumps([1, "a"])
    for buffer in (bytearray(data), memoryview(data), memoryview(b"x" + data)[1:]):
        assert loads(buffer) == [1, "a"]


# -- the classes that devpi uses -------------------------------------------------------------------------------------------


def test_serializer_class() -> None:
    assert _Serializer().save([1], versioned=False) == dumps([1])[1:]
    assert _Serializer().save([1], versioned=True) == dumps([1])
    pieces: list[bytes] = []
    assert _Serializer(write=pieces.append).save({"a": 1}) is None
    assert b"".join(pieces) == dumps({"a": 1})[1:]
    assert Unserializer(io.BytesIO(pieces[0]), strconfig=(False, False)).load(versioned=False) == {"a": 1}


def test_unserializer_converts_by_default() -> None:
    old = b"M\0\0\0\x01aQ"
    assert Unserializer(io.BytesIO(old)).load() == "a"
    assert loads_internal(old) == "a"


def test_unserializer_makes_channels() -> None:
    class Factory:
        def new(self, number: int) -> str:
            return f"channel {number}"

    class Gateway:
        _channelfactory = Factory()
        _strconfig = (False, False)

    class Channel:
        gateway = Gateway()
        _strconfig = (True, False)

    data = b"B\0\0\0\x03M\0\0\0\x01a@\0\0\0\x02Q"
    assert Unserializer(io.BytesIO(data), Gateway()).load() == ("channel 3", b"a")
    assert Unserializer(io.BytesIO(data), Channel()).load() == ("channel 3", "a")
    assert loads_internal(data, Gateway()) == ("channel 3", b"a")


# -- other Pythons ---------------------------------------------------------------------------------------------------------


PYTHONS = {**servers.interpreters(), **({"pypy3": path} if (path := shutil.which("pypy3")) else {})}


@pytest.mark.parametrize("python", PYTHONS)
def test_on_other_pythons(python: str, tmp_path: Path) -> None:
    """The module may be shipped: it runs wherever workers do."""
    source = Path(serializer.__file__).parents[1]
    for name in (
        "__init__.py",
        "protocol/__init__.py",
        "protocol/errors.py",
        "protocol/structured.py",
        "protocol/codec.py",
    ):
        _copy(source, tmp_path / "far", name)
    _copy(source, tmp_path / "far", "compat/serializer.py")
    (tmp_path / "far" / "compat" / "__init__.py").write_text("")
    (tmp_path / "far" / "__init__.py").write_text("")
    cases = [(value, data) for value, data in VECTORS + BEYOND]
    program = f"""
from far.compat.serializer import *
from far.compat.serializer import dumps, loads, load
from far.protocol.errors import LoadError, DumpError
import io
inf = float("inf")
for value, data in {cases!r}:
    assert dumps(value) == data, (value, dumps(value))
    assert loads(data) == value == load(io.BytesIO(data))
    try:
        loads(data[:-1])
    except LoadError:
        pass
    else:
        raise SystemExit("read")
try:
    dumps([1, object()])
except DumpError as error:
    print(error)
"""
    done = subprocess.run(
        [PYTHONS[python], "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("item[1]: can't serialize <class 'object'>; ")


def _copy(source: Path, target: Path, name: str) -> None:
    path = target / name
    path.parent.mkdir(parents=True, exist_ok=True)
    text = (source / name).read_text()
    path.write_text(blank(text, comments=False, docstrings=False, annotations=True), encoding="utf-8")


def test_the_limit_of_memory_is_not_ours() -> None:
    """The tests above must not have limited this process."""
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY
