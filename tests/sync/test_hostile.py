"""Ends that do not keep to the rules: nothing gets out of the destination, and the error says who is to blame."""

from __future__ import annotations

import errno
import os
import stat
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import farwire
from farwire import Gateway
from farwire.protocol.errors import ProtocolError
from farwire.rsync import pull, push
from farwire.sync import messages as m
from farwire.sync.listing import NOT_LISTED, Batch
from trees import snapshot, write

FILE, DIRECTORY, LINK = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755, stat.S_IFLNK | 0o777
START = (m.START, {"version": m.VERSION, "single": None, "mode": 0o755, "mtime": 0, "dry_run": False})


def listing(
    *entries: tuple[str, int], parent: int = 0, index: int = NOT_LISTED, links: Any = (), hard: Any = ()
) -> tuple[Any, ...]:
    batch = Batch()
    for name, mode in entries:
        batch.names.append(name)
        batch.modes.append(mode)
        batch.sizes.append(5)
        batch.mtimes.append(0)
    batch.links = list(links)
    batch.hard = list(hard)
    batch.directory(0, parent, index, len(entries), True)
    return batch.message(m.LIST)


@pytest.fixture(scope="module")
def gw() -> Iterator[Gateway]:
    """One for all tests: none of them harms its worker."""
    with farwire.makegateway("popen") as gateway:
        yield gateway


class Liar:
    """A gateway whose worker sends what it is told, in the place of a sync."""

    def __init__(self, gateway: Gateway, messages: list[Any], *, after_listed: bool = False) -> None:
        self.gateway = gateway
        self.wait_for = (m.LISTED,) if after_listed else None
        self.messages = messages
        self.id = gateway.id
        self._started = gateway._started

    def remote_exec(self, source: str) -> Any:
        channel = self.gateway.remote_exec(
            """
            messages, wait_for = channel.receive()
            while wait_for and channel.receive() != wait_for:
                pass
            for item in messages:
                channel.send(item)
            try:
                while 1:
                    channel.receive()
            except EOFError:
                pass
            """
        )
        channel.send((self.messages, self.wait_for))
        return channel


def lie(gateway: Gateway, target: Path, *messages: Any) -> None:
    """A pull from a worker that sends these messages."""
    pull(Liar(gateway, [START, *messages]), "/source", target)  # type: ignore[arg-type]


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A destination, with things beside it that must stay as they are."""
    write(tmp_path / "beside", "beside")
    write(tmp_path / "outside" / "file", "outside")
    (tmp_path / "target").mkdir()
    return tmp_path / "target"


@pytest.fixture(autouse=True)
def nothing_outside_changes(tmp_path: Path, target: Path) -> Any:
    def outside() -> dict[bytes, Any]:
        return {
            path: node[:1] + node[3:]
            for path, node in snapshot(tmp_path, times=False).items()
            if not path.startswith(b"target")
        }

    before = outside()
    yield
    assert outside() == before


FILES = (m.FILES, [(0, 0, FILE, 0, b"hello")])


@pytest.mark.parametrize(
    "name", ["..", ".", "", "../beside", "/etc/x", "a/b", "a\0b", ".farwire-sync-0"], ids=lambda name: repr(name)
)
def test_names(gw: Gateway, target: Path, name: str) -> None:
    with pytest.raises(ProtocolError, match="file sync"):
        lie(gw, target, listing((name, FILE)), (m.LISTED,), FILES)
    assert not list(target.iterdir())


def test_names_that_are_more_than_the_count(gw: Gateway, target: Path) -> None:
    item = list(listing(("a", FILE)))
    item[2] = zlib.compress(b"a/b/c")
    with pytest.raises(ProtocolError, match="3 names for 1 entries"):
        lie(gw, target, tuple(item), (m.LISTED,))


def test_a_name_twice(gw: Gateway, target: Path) -> None:
    entries = ("a", LINK), ("a", DIRECTORY)
    with pytest.raises(ProtocolError, match="twice"):
        lie(gw, target, listing(*entries, links=[(0, b"../outside", False)]), (m.LISTED,))


def test_huge_counts(gw: Gateway, target: Path) -> None:
    item = list(listing(("a", FILE)))
    item[1] = struct.pack("<III", 0, NOT_LISTED, 0xFFFFFFFF)
    with pytest.raises(ProtocolError, match="bytes of numbers for 4294967295 entries"):
        lie(gw, target, tuple(item))


def test_a_bomb(gw: Gateway, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from farwire.sync import listing as module

    monkeypatch.setattr(module, "MAX_INFLATED", 1 << 20)  # making a real one takes longer than unpacking it
    item = list(listing(("a", FILE)))
    item[2] = zlib.compress(bytes(2 << 20))
    with pytest.raises(ProtocolError, match="too large"):
        lie(gw, target, tuple(item))


def test_a_link_is_not_followed_by_the_sync_that_made_it(gw: Gateway, target: Path) -> None:
    """A link to a directory outside, then a listing that takes it for a directory."""
    first = listing(("way", LINK), links=[(0, b"../outside", False)])
    with pytest.raises(ProtocolError, match="no directory"):
        lie(gw, target, first, listing(("file", FILE), parent=0, index=0), (m.LISTED,), FILES)
    assert os.readlink(target / "way") == "../outside"


def test_a_link_that_is_there_is_not_followed(gw: Gateway, target: Path) -> None:
    (target / "way").symlink_to("../outside")
    (target / "file").symlink_to("../beside")
    lie(
        gw,
        target,
        listing(("way", DIRECTORY), ("file", FILE)),
        listing(("file", FILE), parent=0, index=0),
        (m.LISTED,),
        (m.FILES, [(0, 1, FILE, 0, b"hello"), (1, 0, FILE, 0, b"hello")]),
    )
    assert snapshot(target / "way" / "file")[b""][4] == b"hello"
    assert not (target / "way").is_symlink()
    assert not (target / "file").is_symlink()


def test_a_link_that_appears_in_the_middle(gw: Gateway, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody at the destination exchanges a directory for a link after it was looked at."""
    from farwire.sync import files

    monkeypatch.setattr(files, "KEPT_OPEN", 1)  # so it is opened again, after the other one

    def exchange(*args: object) -> None:
        (target / "way").rename(target / "old")
        (target / "way").symlink_to("../outside")

    (target / "way").mkdir()
    (target / "z").mkdir()
    from farwire.sync.receiver import Receiver

    end_of_list = Receiver._HANDLERS[m.LISTED]
    monkeypatch.setitem(Receiver._HANDLERS, m.LISTED, lambda self, item: (exchange(), end_of_list(self, item))[1])
    report = pull(
        Liar(  # type: ignore[arg-type]
            gw,
            [
                START,
                listing(("way", DIRECTORY), ("z", DIRECTORY)),
                listing(("file", FILE), parent=0, index=0),
                listing(parent=0, index=1),
                (m.LISTED,),
                (m.FILES, [(1, 0, FILE, 0, b"hello")]),
            ],
        ),
        "/source",
        target,
    )
    assert report.problems[0] in [("way/file", os.strerror(number)) for number in (errno.ENOTDIR, errno.ELOOP)]


def test_special_bits_are_not_taken_over(gw: Gateway, target: Path) -> None:
    lie(gw, target, listing(("a", FILE)), (m.LISTED,), (m.FILES, [(0, 0, FILE | 0o7777, 0, b"#!")]))
    assert stat.S_IMODE((target / "a").stat().st_mode) == 0o777


def test_devices(gw: Gateway, target: Path) -> None:
    with pytest.raises(ProtocolError, match="mode"):
        lie(gw, target, listing(("a", stat.S_IFCHR | 0o666)), (m.LISTED,))


LISTED = [listing(("a", FILE), ("d", DIRECTORY)), listing(parent=0, index=1), (m.LISTED,)]
BEGIN = (m.BEGIN, 0, 0, 5)


@pytest.mark.parametrize(
    "messages",
    [
        [(m.LISTED,)],
        [listing(("d", DIRECTORY)), (m.LISTED,)],
        [listing(("a", FILE), index=0), (m.LISTED,)],
        [listing(("a", FILE), parent=7, index=3)],
        [*LISTED, listing(("a", FILE))],
        [*LISTED, (m.LISTED,)],
        [*LISTED, (m.FILES, [(0, 1, FILE, 0, b"")])],
        [*LISTED, (m.FILES, [(0, 7, FILE, 0, b"")])],
        [*LISTED, (m.FILES, [(0, -2, FILE, 0, b"")])],
        [*LISTED, (m.FILES, [(9, 0, FILE, 0, b"")])],
        [*LISTED, (m.FILES, [(0, 0, FILE, 0, "text")])],
        [*LISTED, (m.FILES, [(0, 0, FILE, 1 << 200, b"")])],
        [*LISTED, (m.FILES, 3)],
        [*LISTED, (m.BEGIN, 0, 0, -1)],
        [*LISTED, BEGIN, BEGIN],
        [*LISTED, BEGIN, b"more than was announced"],
        [*LISTED, BEGIN, (m.HOLE, 6)],
        [*LISTED, BEGIN, (m.SKIP, 0, 1, "why")],
        [*LISTED, BEGIN, (m.SAME, 0, 0, FILE, 0)],
        [*LISTED, BEGIN, (m.HOLE, -1)],
        [*LISTED, BEGIN, (m.HOLE, 1 << 70)],
        [*LISTED, BEGIN, (m.OLD, 0, 5)],
        [*LISTED, BEGIN, (m.OLD, -5, 5)],
        [*LISTED, BEGIN, (m.END, "mode", 0)],
        [*LISTED, b"data for nobody"],
        [*LISTED, (m.SAME, 0, 5, FILE, 0)],
        [*LISTED, (99,)],
        [*LISTED, ()],
        [*LISTED, None],
        [*LISTED, "text"],
        [*LISTED, ([],)],
        [(m.LIST,)],
        [(m.LIST, b"123", b"", b"", [], [], [])],
        [(m.LIST, b"", b"", b"", [], [], [])],
        [(m.LIST, None, None, None, None, None, None)],
        [listing(("a", LINK))],
        [listing(("a", LINK), links=[(0, b"", False)])],
        [listing(("a", LINK), links=[(0, "text", False)])],
        [listing(("a", FILE), hard=[(0, 5, 5)])],
    ],
    ids=lambda messages: f"{len(messages)} {str(messages[-1])[:40]}",
)
def test_messages_that_make_no_sense(gw: Gateway, target: Path, messages: list[Any]) -> None:
    with pytest.raises(ProtocolError, match="file sync"):
        lie(gw, target, *messages)


@pytest.mark.parametrize(
    "start",
    [
        None,
        (m.START, {}),
        (m.START, {**START[1], "version": 99}),
        (m.START, {**START[1], "single": b"../beside"}),
        (m.START, {**START[1], "single": b".."}),
        (m.START, {**START[1], "mtime": "now"}),
    ],
    ids=str,
)
def test_beginnings_that_make_no_sense(gw: Gateway, target: Path, start: Any) -> None:
    with pytest.raises(ProtocolError, match="file sync"):
        pull(Liar(gw, [start]), "/source", target)  # type: ignore[arg-type]


def test_a_worker_that_ends_early(gw: Gateway, target: Path) -> None:
    class Short(Liar):
        def remote_exec(self, source: str) -> Any:
            return gw.remote_exec("for item in range(2): channel.receive()")

    with pytest.raises(OSError, match="too early"):
        pull(Short(gw, []), "/source", target)  # type: ignore[arg-type]


def test_a_single_file_is_one_file(gw: Gateway, target: Path) -> None:
    single = (m.START, {**START[1], "single": b"name"})
    for messages in ([listing(("d", DIRECTORY))], [listing(("a", FILE), ("b", FILE))]):
        with pytest.raises(ProtocolError, match="single"):
            pull(Liar(gw, [single, *messages]), "/source", target)  # type: ignore[arg-type]
    assert not list(target.iterdir())


# -- workers that receive ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "messages",
    [
        [(m.WANT, [(0, struct.pack("<I", 9))])],
        [(m.WANT, [(9, struct.pack("<I", 0))])],
        [(m.WANT, [(-1, struct.pack("<I", 0))])],
        [(m.WANT, [(0, b"123")])],
        [(m.COMPARE, 0, 0, 1 << 60, 1, b"salt", b"x" * 16)],
        [(m.COMPARE, 0, 0, 5, 1 << 50, b"salt", b"x" * 16)],
        [(m.COMPARE, 0, 0, 5, 0, b"salt", b"x" * 16)],
        [(m.COMPARE, 0, 0, 5, -1, b"salt", b"x" * 16)],
        [(m.COMPARE, 0, 0, 5, 5, "salt", b"x" * 16)],
        [(m.COMPARE, 0, 0, 5, 5, b"salt", b"")],
        [(m.COMPARE, 0, 0, 5, 5, b"salt", b"x" * 32)],
        [(m.COMPARE, 0, 0, 9, 5, b"salt", b"x" * 16), (m.WANT, [])],
        [(m.COMPARE, 0, 0, 9, 5, b"salt", b"x" * 16), (m.MORE, b"")],
        [(m.COMPARE, 0, 0, 9, 5, b"salt", b"x" * 16), (m.MORE, b"x" * 32)],
        [(m.COMPARE, 0, 0, 9, 5, b"salt", b"x" * 16), (m.MORE, b"x" * 8)],
        [(m.MORE, b"x" * 16)],
        [(m.TOTAL, -1)],
        [(m.ACK, [(0, 99)])],
        [(m.ACK, None)],
        [(m.PROBLEM, 1, "reason")],
        [(m.DONE, None, None)],
        [(1234,)],
        ["text"],
        [None],
    ],
    ids=str,
)
def test_questions_that_make_no_sense(gw: Gateway, target: Path, messages: list[Any]) -> None:
    write(target / "file", "hello")
    with pytest.raises(ProtocolError, match="file sync"):
        push(Liar(gw, messages, after_listed=True), target, "/destination")  # type: ignore[arg-type]


def test_a_receiver_that_ends_early(gw: Gateway, target: Path) -> None:
    class Short(Liar):
        def remote_exec(self, source: str) -> Any:
            return gw.remote_exec("for item in range(2): channel.receive()")

    with pytest.raises(OSError, match=r"closed the channel too early|cannot send"):
        push(Short(gw, []), target, "/destination")  # type: ignore[arg-type]


def test_names_of_our_own_are_not_synced(gw: Gateway, target: Path, tmp_path: Path) -> None:
    """What a sync left in a tree that is now a source."""
    write(target / ".farwire-sync-000000000000" / "new", "half")
    write(target / "file", "hello")
    push(gw, target, target / "copy")
    assert os.listdir(target / "copy") == ["file"] or sorted(os.listdir(target / "copy")) == ["copy", "file"]


def test_the_library_of_errors_is_public() -> None:
    assert issubclass(ProtocolError, farwire.FarwireError)


def test_too_many_questions_at_a_time(gw: Gateway, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Descriptions wait in the memory of the sender: a receiver that does not wait for answers is told off."""
    write(target / "file", "hello")
    monkeypatch.setattr(m, "ASKED_MAX", 1000)
    many = [(m.COMPARE, 0, 0, 5 * 63, 5, b"salt", b"x" * 16 * 63)]
    with pytest.raises(ProtocolError, match="too many questions"):
        push(Liar(gw, many, after_listed=True), target, "/destination")  # type: ignore[arg-type]
