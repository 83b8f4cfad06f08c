"""Random trees, brought over what is left of other random trees, are what a copy would be."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

import farwire
from farwire import Gateway
from farwire.rsync import pull, push
from trees import PREFIX, differences, leftovers, snapshot

# A few names that come up again and again, so that trees have something in common; and any other.
NAMES = st.one_of(
    st.sampled_from([b"a", b"b", b"c", b"d.pyc", b"\xff\xfe", b" ", b"-rf", b"new\nline", "é".encode(), b"x" * 255]),
    st.binary(min_size=1, max_size=20).filter(
        lambda name: (
            b"/" not in name
            and b"\0" not in name
            and name not in (b".", b"..")
            and not name.startswith(PREFIX.encode())
        )
    ),
)
TIMES = st.one_of(st.sampled_from([0, 1, 10**18, -(10**18) - 1]), st.integers(-(2**31) * 10**9, 4 * 10**18))
FILE_MODES = st.one_of(st.just(0o644), st.integers(0, 0o7777))
DIRECTORY_MODES = st.one_of(st.just(0o755), st.integers(0, 0o7777))
EDITS = st.lists(
    st.tuples(st.sampled_from(["in", "out", "over"]), st.floats(0, 1), st.sampled_from([1, 1000, 50_000])), max_size=3
)
CONTENTS = st.one_of(
    st.binary(max_size=40),
    st.tuples(st.integers(0, 2), st.sampled_from([5_000, 70_000, 300_000, 900_000]), EDITS),
)


def content(spec: Any) -> bytes:
    if isinstance(spec, bytes):
        return spec
    seed, size, edits = spec
    data = bytearray(random.Random(seed).randbytes(size))
    for kind, place, length in edits:
        at = int(place * len(data))
        if kind == "in":
            data[at:at] = random.Random(length).randbytes(length)
        elif kind == "out":
            del data[at : at + length]
        else:
            data[at : at + length] = bytes(min(length, len(data) - at))
    return bytes(data)


NODES = st.recursive(
    st.one_of(
        st.tuples(st.just("file"), CONTENTS, FILE_MODES, TIMES),
        st.tuples(st.just("file"), CONTENTS, FILE_MODES, TIMES),
        st.tuples(st.just("link"), st.sampled_from([b"a", b"../b", b"/etc/passwd", b"c/d", b"\xff"]), TIMES),
        st.tuples(st.just("hard"), st.integers(0, 10)),
        st.tuples(st.just("fifo")),
    ),
    lambda children: st.tuples(
        st.just("directory"), st.dictionaries(NAMES, children, max_size=5), DIRECTORY_MODES, TIMES
    ),
    max_leaves=12,
)
TREES = st.tuples(st.just("directory"), st.dictionaries(NAMES, NODES, max_size=6), DIRECTORY_MODES, TIMES)


def build(path: bytes, node: Any, files: list[bytes] | None = None) -> None:
    files = [] if files is None else files
    kind = node[0]
    if kind == "file":
        with open(path, "wb") as file:
            file.write(content(node[1]))
        os.chmod(path, node[2])
        os.utime(path, ns=(node[3], node[3]))
        files.append(path)
    elif kind == "link":
        os.symlink(node[1], path)
        os.utime(path, ns=(node[2], node[2]), follow_symlinks=False)
    elif kind == "hard":
        if files:
            os.link(files[node[1] % len(files)], path)
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        os.mkdir(path)
        for name, child in node[1].items():
            build(path + b"/" + name, child, files)
        os.chmod(path, node[2])
        os.utime(path, ns=(node[3], node[3]))


def expected(source: dict[bytes, Any], mode_mask: int = 0o7777) -> tuple[dict[bytes, Any], list[bytes]]:
    """What the target should be, and the paths about which nothing is said: FIFOs are left out."""
    special = [path for path, node in source.items() if node == ("special",)]
    found = {
        path: (node[0], node[1] & mode_mask, *node[2:]) if node[0] in ("file", "directory") else node
        for path, node in source.items()
        if path not in special
    }
    return found, special


def compare(source: bytes, target: bytes, mode_mask: int = 0o7777) -> None:
    wanted, special = expected(snapshot(os.fsdecode(source)), mode_mask)
    found = {
        path: node
        for path, node in snapshot(os.fsdecode(target)).items()
        if not any(path == left or path.startswith(left + b"/") for left in special)
    }
    for path, node in wanted.items():
        # What is one file in the source is one in the target; what was one in the target may have stayed so.
        if node[0] == "file" and not node[5] and found.get(path, ("",))[0] == "file":
            found[path] = (*found[path][:5], b"")
    for path in list(wanted):
        node = wanted[path]
        if node[0] == "file" and node[5] and found.get(path, ("",))[0] == "file":
            same = os.path.samefile(os.path.join(target, path), os.path.join(target, node[5]))
            assert same, f"{path!r} and {node[5]!r} are not one file any more"
            found[path] = (*found[path][:5], node[5])
    wrong = differences(wanted, found)
    assert not wrong, "\n".join(wrong)
    assert not leftovers(os.fsdecode(target))


@pytest.fixture(scope="module")
def worker() -> Iterator[Gateway]:
    with farwire.makegateway("popen") as gateway:
        yield gateway


@pytest.fixture(scope="module")
def old_worker() -> Iterator[Gateway]:
    import servers

    oldest = next(iter(servers.interpreters().values()))
    with farwire.makegateway(f"popen//python={oldest}") as gateway:
        yield gateway


SETTINGS = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)


def versions_one_after_another(gateway: Gateway, trees: list[Any], pulling: bool) -> None:
    folder = Path(tempfile.mkdtemp(prefix="farwire-sync-test-"))
    try:
        for number, tree in enumerate(trees):
            source, target = os.fsencode(folder / f"source{number}"), os.fsencode(folder / "target")
            build(source, tree)
            # With equal size and time other contents would, rightly, not be noticed; so ask for the contents.
            sync = pull if pulling else push
            report = sync(gateway, os.fsdecode(source), os.fsdecode(target), delete=True, checksum=True)
            note(f"{number}: {report} {report.problems}")
            compare(source, target, 0o777 if pulling else 0o7777)
            assert all(why.startswith("not sent: it is a FIFO") for _, why in report.problems)
            again = sync(gateway, os.fsdecode(source), os.fsdecode(target), delete=True)
            assert (again.files, again.deleted, again.directories, again.links) == (0, 0, 0, 0)
            dry = sync(gateway, os.fsdecode(source), os.fsdecode(target), delete=True, dry_run=True)
            assert dry.changes == []
    finally:
        shutil.rmtree(os.fsencode(folder))


@pytest.mark.slow
@pytest.mark.timeout(300)
@SETTINGS
@given(trees=st.lists(TREES, min_size=1, max_size=3))
def test_push(worker: Gateway, trees: list[Any]) -> None:
    versions_one_after_another(worker, trees, pulling=False)


@pytest.mark.slow
@pytest.mark.timeout(300)
@SETTINGS
@given(trees=st.lists(TREES, min_size=1, max_size=3))
def test_pull(worker: Gateway, trees: list[Any]) -> None:
    versions_one_after_another(worker, trees, pulling=True)


@pytest.mark.slow
@pytest.mark.timeout(300)
@settings(SETTINGS, max_examples=15)
@given(trees=st.lists(TREES, min_size=1, max_size=2), pulling=st.booleans())
def test_the_oldest_python(old_worker: Gateway, trees: list[Any], pulling: bool) -> None:
    versions_one_after_another(old_worker, trees, pulling)
