"""docs/protocol.md says what the code says: kinds, codes, states, limits, opcodes."""

from __future__ import annotations

import pickletools
import re
from pathlib import Path
from typing import Any

import pytest

from farwire.protocol import codec, frames
from farwire.protocol.codec import Encoder
from farwire.protocol.connection import _HANDLERS
from farwire.protocol.frames import EXEC, HELLO, MODULES, NAMES, REPLY, REQUEST, SIGNAL
from farwire.protocol.state import EVENT_NAMES, STATE_NAMES, TRANSITIONS
from farwire.transports.base import Boot
from farwire.xspec import XSpec

TEXT = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()


# Numbers of the codec that are no codes of items.
NO_CODES = {"PROTOCOL", "WRITABLE", "LARGE", "TYPE_CHECKING"}


def table(first: str) -> list[dict[str, str]]:
    """The rows of the table whose head begins with these columns."""
    lines = TEXT.splitlines()
    (at,) = [at for at, line in enumerate(lines) if line.startswith(f"| {first} |")]
    names = [name.strip() for name in lines[at].strip("|").split("|")]
    assert set(lines[at + 1]) <= set("| -")
    rows = []
    for line in lines[at + 2 :]:
        if not line.startswith("|"):
            break
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        assert len(cells) == len(names), line
        rows.append(dict(zip(names, cells, strict=True)))
    return rows


def test_every_kind_and_its_number() -> None:
    rows = table("kind | number")
    assert [(row["kind"], int(row["number"])) for row in rows] == sorted(
        ((name, kind) for kind, name in NAMES.items()), key=lambda pair: pair[1]
    )
    senders = {row["kind"]: row["sent by"] for row in rows}
    assert {kind for kind in NAMES if senders[NAMES[kind]] == "controller"} == {EXEC, REQUEST, SIGNAL, MODULES}
    assert {kind for kind in NAMES if senders[NAMES[kind]] == "worker"} == {REPLY}
    assert set(NAMES) - set(_HANDLERS) == {frames.ITEM, frames.PART}, "these two are handled in receive_data"


def test_the_states() -> None:
    rows = table("state | sent data")
    assert [row["state"] for row in rows] == list(STATE_NAMES)
    found = {}
    for number, row in enumerate(rows):
        for event, name in enumerate(EVENT_NAMES):
            if row[name]:
                found[number, event] = STATE_NAMES.index(row[name])
    assert found == TRANSITIONS


@pytest.mark.parametrize("row", table("name | value"), ids=lambda row: row["name"])
def test_limits(row: dict[str, str]) -> None:
    assert getattr(frames, row["name"]) == int(row["value"])


def test_no_limit_is_left_out() -> None:
    named = {row["name"] for row in table("name | value")}
    limits = {name for name in vars(frames) if name.startswith(("MAX_", "MIN_"))}
    assert limits <= named
    # what is said of them in the text
    for number in (frames.MAX_PAYLOAD, frames.WINDOW, frames.MIN_WINDOW, frames.INLINE_MAX, frames.MAX_CHANNELS):
        assert len(re.findall(rf"\b{number}\b", TEXT)) > 1, number


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (frames, ["TASK_EXEC", "TASK_CALL", "TASK_SERVICE", "STATUS", "INFO", "STACKS"]),
        (codec, [name for name in vars(codec) if name.isupper() and name[0] != "_" and name not in NO_CODES]),
    ],
)
def test_the_numbers_of_codes(module: Any, names: list[str]) -> None:
    for name in names:
        assert re.search(rf"^\| {getattr(module, name)} \| {name} \|", TEXT, re.MULTILINE), name


def test_the_streams_of_output() -> None:
    assert f"code {frames.STDOUT} (STDOUT)" in TEXT
    assert f"code {frames.STDERR} (STDERR)" in TEXT


def test_the_configuration() -> None:
    """Each key that a worker is sent, and no other, with a value of the type that the page says."""
    import marshal

    boot = Boot(XSpec("popen"), "gw0", 5.0, 30.0)
    for code in (True, False):
        first = boot.bytes(code=code, chdir="/tmp", env={"A": "é"}, nice=3)
        config = marshal.loads(first[3])
        assert first[0] == b"%06d" % len(first[1])
        assert first[2] == b"%06d" % len(first[3])
        assert len(first[4]) == config["bundle"]
        rows = {name: row["type"] for row in table("key | type") for name in re.findall(r"`(\w+)`", row["key"])}
        assert set(rows) == set(config)
        types = {"text": str, "number": int, "bool": bool, "float": float}
        for name, kind in rows.items():
            expected: Any = types.get(kind) or (list if kind.startswith("list") else dict)
            assert type(config[name]) is expected, name
        assert set(first[3][:1]) == {ord("{")}


def walk(item: object, protocol: int) -> set[str]:
    class Channel:
        pass

    found = set()
    code, payload = Encoder(protocol, Channel, lambda channel: 7).encode([item, Channel()])
    data = payload if isinstance(payload, bytes) else b"".join(payload)
    assert code in (codec.PICKLE, codec.PICKLE_BUFFERS)
    if code == codec.PICKLE_BUFFERS:
        size, count = int.from_bytes(data[:8], "little"), int.from_bytes(data[8:12], "little")
        data = data[16 + 8 * count :][:size]
    for opcode, _, _ in pickletools.genops(data):
        found.add(opcode.name)
    return found


def items() -> list[object]:
    loop: list[object] = []
    loop.append(loop)
    knot: tuple[object, ...] = ([],)
    knot[0].append(knot)  # type: ignore[attr-defined]
    triple: tuple[object, ...] = ([], 1, 2, 3)
    triple[0].append(triple)  # type: ignore[attr-defined]
    texts = [str(number) for number in range(600)]
    shared = [1, "a", b"b"]
    return [
        [None, True, False, 0, 255, 256, 70_000, -1, 2**31, 2**70, 2**3000, 1.5, "a", "a" * 300, b"a", b"a" * 300],
        [[], [1], [1, 2], (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), {}, {1: 2}, {1: 2, 3: 4}],
        [set(), {1, 2}, frozenset(), frozenset((1, 2)), bytearray(b"x"), bytearray()],
        [1j, range(3), slice(1), ..., NotImplemented, memoryview(b"x"), memoryview(bytes(100_000))],
        ["a" * 100_000, b"b" * 100_000, bytearray(100_000)],
        [shared, shared, loop, knot, triple],
        [[i, str(i)] for i in range(3000)],
        [texts, list(texts)],
    ]


def test_the_opcodes() -> None:
    """Nothing that the codec writes is missing on the page, and nothing on the page is no opcode."""
    named = [name for row in table("for | opcodes") for name in row["opcodes"].split()]
    assert len(set(named)) == len(named)
    known = {opcode.name for opcode in pickletools.opcodes}
    assert set(named) <= known
    made = set()
    for protocol in (4, 5):
        for item in items():
            made |= walk(item, protocol)
    assert made <= set(named)
    # these need an item of four gigabytes, or are written by pickle in Python only
    assert set(named) - made <= {"BINUNICODE8", "BINBYTES8", "LONG4"}
    dangerous = {"GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "BUILD", "EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID"}
    assert not dangerous & set(named)


def test_the_names_in_pickles() -> None:
    for name in codec.Decoder(lambda number: number)._table:
        assert f"`{name}(" in TEXT
    from farwire.protocol import structured

    for name in structured._FUNCTIONS:
        assert f"`{name}(" in TEXT, name


def test_the_hello() -> None:
    keys = {name for row in table("key | from") for name in re.findall(r"`(\w+)`", row["key"])}
    from farwire.worker import main

    text = Path(main.__file__).read_text()
    said = set(re.findall(r'^ +"(\w+)=', text, re.MULTILINE))
    assert said == keys
    assert HELLO == 1
