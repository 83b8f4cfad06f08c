"""The page docs/protocol.md suffices to write a worker: ``tiny_worker.py`` is one, and a real controller talks to it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import farwire

WORKER = Path(__file__).with_name("tiny_worker.py")


@pytest.fixture
def output() -> list[tuple[str, str, bytes]]:
    return []


@pytest.fixture
def tiny(group: farwire.Group, output: list[tuple[str, str, bytes]]) -> farwire.Gateway:
    return group.makegateway(f"cmd={sys.executable} {WORKER}//id=tiny", output=lambda *piece: output.append(piece))


def test_it_knows_nothing_of_farwire() -> None:
    assert "import farwire" not in WORKER.read_text()
    assert "from farwire" not in WORKER.read_text()


def test_items(tiny: farwire.Gateway) -> None:
    channel = tiny.remote_exec("echo")
    items = [
        1,
        -(2**70),
        "grün",
        None,
        [1, {"a": (2.5, b"x")}],
        {3},
        b"y" * 70_000,
        bytearray(b"z" * 300_000),
        range(5),
    ]
    for item in items:
        channel.send(item)
    assert [channel.receive(timeout=20) for _ in items] == items
    channel.send_eof()
    assert list(channel) == []
    channel.waitclose(timeout=20)


def test_more_than_the_window(tiny: farwire.Gateway) -> None:
    channel = tiny.remote_exec("echo")
    item = bytes(range(256)) * (80 << 10)
    channel.send(item)
    assert channel.receive(timeout=20) == item
    for number in range(20_000):
        channel.send(number)
        assert channel.receive(timeout=20) == number


def test_many_before_any_is_received(tiny: farwire.Gateway) -> None:
    channel = tiny.remote_exec("echo")
    for number in range(30_000):
        channel.send(number)
    assert [channel.receive(timeout=20) for _ in range(30_000)] == list(range(30_000))


def test_several_channels(tiny: farwire.Gateway) -> None:
    channels = [tiny.remote_exec("echo") for _ in range(50)]
    for channel in channels:
        channel.send(channel.id)
    assert [channel.receive(timeout=20) for channel in channels] == [channel.id for channel in channels]
    for channel in channels[::2]:
        channel.close()
    for channel in channels[1::2]:
        channel.send("still here")
        assert channel.receive(timeout=20) == "still here"


def test_errors_and_questions(tiny: farwire.Gateway) -> None:
    with pytest.raises(farwire.RemoteError, match=r"tiny.Error: 1 / 0") as caught:
        tiny.remote_exec("1 / 0").receive(timeout=20)
    assert caught.value.typename == "tiny.Error"
    assert tiny.stacks(timeout=20) == "one thread, reading"


def test_output_and_end(tiny: farwire.Gateway, output: list[tuple[str, str, bytes]]) -> None:
    channel = tiny.remote_exec("echo")
    channel.send(1)
    assert channel.receive(timeout=20) == 1
    tiny.exit()
    assert output == [("tiny", "stdout", b"tiny worker tiny\n")]
    with pytest.raises(OSError, match="tiny"):
        tiny.remote_exec("echo")
