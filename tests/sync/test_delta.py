"""What two versions of a file have in common is found, and only the rest is new."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farwire.sync.delta import LARGEST, ROW, WHOLE, Matcher, block_size, describe


def delta(folder: Path, old: bytes, new: bytes) -> tuple[bytes, int]:
    """The new version, put together from the old one and what is new; and how much is new."""
    path = folder / "new"
    path.write_bytes(new)
    block = block_size(len(old))

    def read(view: memoryview, at: int) -> int:
        part = old[at : at + len(view)]
        view[: len(part)] = part
        return len(part)

    pieces = describe(read, len(old), block, b"salt")
    first = next(pieces, b"")
    fd = os.open(path, os.O_RDONLY)
    try:
        parts = list(Matcher(fd, len(new), len(old), block, b"salt", first, lambda: next(pieces)).parts())
    finally:
        os.close(fd)
    data = b"".join(
        new[start : start + length] if origin < 0 else old[origin : origin + length] for origin, start, length in parts
    )
    assert [start for _, start, _ in parts] == [sum(length for *_, length in parts[:n]) for n in range(len(parts))]
    return data, sum(length for origin, _, length in parts if origin < 0)


SIZE = 3_000_000
OLD = random.Random(1).randbytes(SIZE)
BLOCK = block_size(SIZE)
OTHER = random.Random(2).randbytes(SIZE)


@pytest.mark.parametrize(
    ("new", "most"),
    [
        (OLD, 0),
        (OLD[:1_000_000] + OTHER[:100] + OLD[1_000_100:], BLOCK * 2),
        (OLD + OTHER[:5000], BLOCK + 5000),
        (OLD[:-5000], BLOCK),
        (OTHER[:1] + OLD, 1 + BLOCK),
        (OTHER[:700_000] + OLD, 700_000 + BLOCK),
        (OLD[1:], BLOCK * 2),
        (OLD[700_000:], BLOCK * 2),
        (OLD[:1_000_000] + OTHER[:50_000] + OLD[1_000_000:], 50_000 + 2 * BLOCK),
        (OLD[:1_000_000] + OLD[1_050_000:], 2 * BLOCK),
        (OLD[2_000_000:] + OLD[:2_000_000], 4 * BLOCK),
        (b"".join(OLD[at : at + 99_000] + b"!" for at in range(0, SIZE, 100_000)), 31 * 3 * BLOCK),
        (OTHER, SIZE),
        (b"", 0),
        (bytes(SIZE), SIZE),
    ],
    ids=[
        "same",
        "over",
        "more",
        "less",
        "front",
        "front-large",
        "out-front",
        "out-large",
        "in",
        "out",
        "turned",
        "many",
        "other",
        "empty",
        "zeros",
    ],
)
def test_how_much_is_new(tmp_path: Path, new: bytes, most: int) -> None:
    data, literal = delta(tmp_path, OLD, new)
    assert data == new
    assert literal <= most


def test_what_repeats_itself(tmp_path: Path) -> None:
    """Heads that many blocks share say nothing; the blocks that are due are compared all the same."""
    old = bytes(SIZE)
    data, literal = delta(tmp_path, old, old[:-100])
    assert (data, literal <= BLOCK) == (old[:-100], True)
    text = b"the same line\n" * 200_000
    data, literal = delta(tmp_path, text, b"another line\n" + text)
    assert data == b"another line\n" + text


def test_an_old_version_of_which_nothing_is_known(tmp_path: Path) -> None:
    assert delta(tmp_path, b"", OLD) == (OLD, SIZE)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 5),
    size=st.sampled_from([0, 1, 100, WHOLE - 1, WHOLE, WHOLE + 1, 200_000, 262_144]),
    edits=st.lists(
        st.tuples(
            st.sampled_from(["in", "out", "over", "move"]), st.floats(0, 1), st.sampled_from([1, 8, 4095, 4096, 30_000])
        ),
        max_size=6,
    ),
)
def test_any_edits(
    tmp_path_factory: pytest.TempPathFactory, seed: int, size: int, edits: list[tuple[str, float, int]]
) -> None:
    rng = random.Random(seed)
    # Few different bytes, so that heads repeat.
    old = rng.randbytes(size) if seed % 2 else bytes(rng.choices(b"ab\0", k=size))
    new = bytearray(old)
    for kind, place, length in edits:
        at = int(place * len(new))
        if kind == "in":
            new[at:at] = rng.randbytes(length)
        elif kind == "out":
            del new[at : at + length]
        elif kind == "over":
            new[at : at + length] = rng.randbytes(min(length, len(new) - at))
        else:
            new += new[at : at + length]
    assert delta(tmp_path_factory.getbasetemp(), old, bytes(new))[0] == new


def test_sizes_of_blocks() -> None:
    assert block_size(0) == 1
    assert block_size(10) == 10
    assert block_size(100 << 20) == 32 << 10
    assert block_size(1 << 60) == LARGEST
    # The description of 16 TiB, the largest file of ext4, is within the bounds of memory.
    assert (16 << 40) // block_size(16 << 40) * ROW <= 16 << 20
