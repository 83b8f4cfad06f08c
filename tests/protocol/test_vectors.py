"""``vectors.json``: bytes on the wire and what they mean, frozen. Whoever writes a worker in another language may use it."""

from __future__ import annotations

import json
import marshal
import zlib
from pathlib import Path
from struct import Struct
from types import SimpleNamespace
from typing import Any

import pytest

from farwire.gateway import _GuardReports
from farwire.protocol import frames
from farwire.protocol.codec import Decoder, Encoder
from farwire.protocol.connection import Connection
from farwire.protocol.errors import RemoteError
from farwire.protocol.frames import (
    EXEC,
    HELLO,
    ITEM,
    LARGE,
    NAMES,
    PART,
    PONG,
    RAW,
    REPLY,
    REQUEST,
    STDOUT,
    TASK_CALL,
    TASK_SERVICE,
    VERSION,
    frame,
    marker,
)
from farwire.runtime.remote_error import decode_error
from farwire.worker.tasks import run_task
from farwire.worker_task import pack_task
from protocol.pair import U64, credit, greeted, parse, taken, written

VECTORS: dict[str, Any] = json.loads((Path(__file__).parent / "vectors.json").read_text())
FRAMES: list[dict[str, Any]] = VECTORS["frames"]
NUMBERS = {name: kind for kind, name in NAMES.items()}
TASK = Struct("<IIIIB")


class Channel:
    """What the codec makes of a channel's number."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Channel) and other.number == self.number

    __hash__ = None  # type: ignore[assignment]


DECODE = Decoder(Channel).decode
ENCODE = Encoder(4, Channel, lambda channel: channel.number).encode


def value(literal: str) -> Any:
    """The value that a vector writes as Python."""
    return eval(literal, {"Channel": Channel})


def same(one: Any, other: Any) -> bool:
    """Equal, and of the same type all through, as far as repr tells."""
    return bool(one == other) and (repr(one) == repr(other) or "Channel" in repr(one))


def title(vector: dict[str, Any]) -> str:
    return str(vector.get("title") or vector.get("item") or vector.get("kind") or vector.get("nonce"))


def build(kind: int, code: int, means: dict[str, Any]) -> bytes | None:
    """The payload, from its meaning; None when that leaves it open (pickles)."""
    if "lines" in means:
        return "\n".join(f"{key}={text}" for key, text in means["lines"].items()).encode()
    if "text" in means:
        parts = [means[key].encode() for key in ("filename", "name", "text")]
        arguments = b"" if means["arguments"] is None else ENCODE(value(means["arguments"]))
        head = TASK.pack(*map(len, parts), means["firstline"], arguments[0] if arguments else 0)
        return head + b"".join(parts) + (bytes(arguments[1]) if arguments else b"")  # type: ignore[arg-type]
    if "total" in means:
        return U64.pack(means["total"])
    if "more" in means:
        return U64.pack(means["more"])
    if "bytes" in means:
        return bytes.fromhex(means["bytes"])
    if "asks" in means:
        assert getattr(frames, means["asks"]) == code
    if "signal" in means:
        assert means["signal"] == code
    if means.get("error") or {"item", "request", "modules"} & set(means):
        return None
    return b""


def test_the_vectors_are_of_this_version_and_of_every_kind() -> None:
    assert VECTORS["version"] == VERSION == 1
    assert {vector["kind"] for vector in FRAMES} == set(NUMBERS)
    assert len({vector["title"] for vector in FRAMES}) == len(FRAMES)
    assert {vector["code"] for vector in VECTORS["items"]} == set(range(1, 12))


@pytest.mark.parametrize("vector", FRAMES, ids=title)
def test_what_is_meant_makes_these_bytes(vector: dict[str, Any]) -> None:
    kind = NUMBERS[vector["kind"]]
    data = bytes.fromhex(vector["hex"])
    ((number, channel, code, payload),) = parse(data)
    assert (number, channel, code) == (kind, vector["channel"], vector["code"])
    assert frame(kind, channel, payload, code) == data
    built = build(kind, code, vector["means"])
    if built is not None:
        assert built == payload


@pytest.mark.parametrize("vector", FRAMES, ids=title)
def test_these_bytes_are_understood(vector: dict[str, Any]) -> None:
    kind, channel, code, means = NUMBERS[vector["kind"]], vector["channel"], vector["code"], vector["means"]
    data = bytes.fromhex(vector["hex"])
    payload = data[10:]
    at_controller = vector["from"] == "worker"
    connection = Connection(at_controller) if kind == HELLO else greeted(at_controller)
    if channel and kind not in (EXEC, REQUEST, REPLY):
        # the channel is there, opened by whoever opens those numbers
        if at_controller and channel & 1:
            while connection.open().id != channel:
                pass
        elif not at_controller:
            connection.receive_data(frame(EXEC, channel))
            connection.events.clear()
    if kind == PART:
        connection.receive_data(frame(LARGE, channel, U64.pack(len(payload)), 8))
    before = connection.channels[channel].credit if "more" in means else 0
    connection.receive_data(data)
    events = taken(connection)
    if kind == HELLO:
        assert events == [(HELLO, None, 0, means["lines"])]
    elif kind == PART:
        assert events == [(LARGE, channel, 8, bytes.fromhex(means["bytes"]))]
    elif "total" in means:
        assert connection.channels[channel].large.total == means["total"]
        assert connection.channels[channel].large.code == code
    elif "more" in means:
        assert connection.channels[channel].credit == before + means["more"]
    elif events:
        assert [event[0] for event in events] == [kind]
        assert events[0][2] == code
    if "item" in means:
        assert same(DECODE(code, payload), value(means["item"]))
    if "request" in means:
        assert code == TASK_SERVICE
        assert same(DECODE(payload[0], payload[1:]), value(means["request"]))
    if "modules" in means:
        assert marshal.loads(zlib.decompress(payload)) == value(means["modules"])
    if kind == NUMBERS["PING"]:
        assert written(connection) == [(PONG, channel, code, payload)]
    if kind == RAW and channel == 0:
        assert code == STDOUT


@pytest.mark.parametrize("vector", [each for each in FRAMES if "text" in each["means"]], ids=title)
def test_tasks(vector: dict[str, Any]) -> None:
    """The controller packs them so, and a worker runs what is in them."""
    means = vector["means"]
    payload = bytes.fromhex(vector["hex"])[10:]
    arguments = value(means["arguments"]) if means["arguments"] else {}
    task = SimpleNamespace(
        filename=means["filename"],
        name=means["name"],
        text=means["text"],
        firstlineno=means["firstline"],
        kwargs=arguments,
    )
    packed = pack_task(task, ENCODE)  # type: ignore[arg-type]
    assert packed[: TASK.size] == payload[: TASK.size]
    assert (packed == payload) or arguments
    sent: list[Any] = []
    run_task(SimpleNamespace(decode=DECODE), SimpleNamespace(send=sent.append), vector["code"], payload)  # type: ignore[arg-type]
    assert sent == [42]
    assert (vector["code"] == TASK_CALL) == bool(means["name"])


@pytest.mark.parametrize("vector", [each for each in FRAMES if each["kind"] == "CLOSE"], ids=title)
def test_errors(vector: dict[str, Any]) -> None:
    payload = bytes.fromhex(vector["hex"])[10:]
    if vector["means"]["error"] is None:
        assert payload == b""
        return
    expected = value(vector["means"]["error"])
    assert DECODE(vector["code"], payload) == expected
    error: BaseException | None = decode_error(DECODE, vector["code"], payload)
    while expected is not None:
        assert isinstance(error, RemoteError)
        assert (error.typename, error.message, error.formatted) == tuple(
            expected[key] for key in ("type", "message", "formatted")
        )
        assert error.notes == expected["notes"]
        expected = expected.get("cause")
        error = error.__cause__
    assert error is None


@pytest.mark.parametrize("vector", VECTORS["items"], ids=title)
def test_items(vector: dict[str, Any]) -> None:
    payload = bytes.fromhex(vector["hex"])
    expected = value(vector["item"])
    assert same(DECODE(vector["code"], payload), expected)
    code, encoded = ENCODE(expected)
    if vector["code"] < 10:  # of a pickle there are several forms
        assert code == vector["code"]
        assert (encoded if isinstance(encoded, bytes) else b"".join(encoded)) == payload


def test_marker() -> None:
    for vector in VECTORS["marker"]:
        assert marker(vector["nonce"]).hex() == vector["hex"]


@pytest.mark.parametrize("vector", VECTORS["guard"], ids=title)
def test_reports_of_the_guard(vector: dict[str, Any]) -> None:
    reports: list[tuple[bytes, bytes]] = []
    marks = _GuardReports(vector["nonce"], lambda kind, data: reports.append((kind, data)))
    data = b"before" + bytes.fromhex(vector["hex"]) + b"after"
    assert b"".join(marks.feed(data[at : at + 1]) for at in range(len(data))) == b"beforeafter"
    assert reports == [(vector["kind"].encode(), bytes.fromhex(vector["data"]))]


def test_a_session_made_of_vectors() -> None:
    """All that a worker says, in an order that makes sense, taken in by one controller."""
    controller = Connection(True)
    for _ in range(3):
        controller.open()
    order = ("HELLO", "RAW", "CREDIT", "ITEM", "REPLY", "PONG", "CLOSE")
    for kind in order:
        for vector in FRAMES:
            if vector["from"] == "worker" and vector["kind"] == kind:
                controller.receive_data(bytes.fromhex(vector["hex"]))
    kinds = [event[0] for event in taken(controller)]
    assert kinds.count(ITEM) == 2
    assert kinds.count(NUMBERS["CLOSE"]) == 3
    assert sorted(controller.channels) == [0, 2]
    assert credit(1, 5)  # the helper and the vectors agree on CREDIT
