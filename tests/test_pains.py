"""docs/pains.md: every row is there, has tests or a reason, and each test that it names exists."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "pains.md"
TROUBLES = [str(number) for number in range(1, 37)]
PROMISES = [f"P{number}" for number in range(1, 18)]


def rows() -> list[list[str]]:
    """The cells of each row of both tables."""
    found = []
    for line in PAGE.read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and re.fullmatch(r"P?\d+", cells[0]):
            found.append(cells)
    return found


@cache
def functions_of(path: Path) -> set[str]:
    """The names of the test functions of a file, also of those in classes."""
    tree = ast.parse(path.read_text("utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_every_row_is_there_once() -> None:
    assert [row[0] for row in rows()] == TROUBLES + PROMISES


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_row(row: list[str]) -> None:
    assert len(row) == 4, "a row has four cells"
    _, what, now, shown = row
    assert len(what) > 5
    assert len(now) > 3
    names = re.findall(r"`([^`]+)`", shown)
    assert "".join(shown.split()) == "".join(f"`{name}`" for name in names), "the last cell has tests only"
    if not names:
        assert now.startswith("not "), "no test: it says that it is not solved, and why"
        assert ":" in now
    for name in names:
        path, _, function = name.partition("::")
        assert path.startswith("tests/") or path == "src/farwire/testing.py"
        found = functions_of(ROOT / path)
        assert found, f"{path} has no tests"
        assert function in found, f"{path} has no {function!r}"
