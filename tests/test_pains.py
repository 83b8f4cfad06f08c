"""The page of pains is complete, and the tests that it names are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "pains.md"
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def rows() -> list[list[str]]:
    """The cells of every row of both tables."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("|") and not line.startswith("| ---")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_pain_is_there_once() -> None:
    numbers = [cells[0] for cells in rows() if cells[0].isdigit()]
    assert numbers == [str(number) for number in range(1, 37)]


def test_every_promise_is_there() -> None:
    assert len([cells for cells in rows() if len(cells) == 3]) == 1 + 17


@pytest.mark.parametrize("cells", [cells for cells in rows() if "shown by" not in cells], ids=lambda cells: cells[0][:40])
def test_what_shows_it_exists(cells: list[str]) -> None:
    named = NAMED.findall(cells[-1])
    assert named or re.search("(N|n)ot (solved|been tried)|has not been tried", cells[-2]), "neither a test nor a reason"
    assert cells[-1].count("::") == len(named), "a test that is not written path::name"
    for path, name in named:
        assert re.search(rf"^\s*def {name}\(", (ROOT / path).read_text(), re.MULTILINE), f"{path} has no {name}"
