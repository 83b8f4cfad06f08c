"""Every example in the documentation is run.

The ```python blocks of one page are run in order, in one namespace. A block right after it that is marked ```output is
what the block must have printed (``...`` stands for anything). In comments that readers do not see:

    <!-- setup                  code that the page needs and the reader does not
    ...
    -->
    <!-- skip: reason -->       the next python block is not run
    <!-- needs: python3.9 -->   the page is skipped where there is no such interpreter; also: needs: sshd

On pages that need it every host name of an ``ssh=`` is the private sshd: a small ``ssh`` comes first in PATH, here and on
that host, and leads there. ``python3.9`` and the like are in PATH too.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import servers
from conftest import no_new_children

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,})(?P<info>.*)$")
COMMENT = re.compile(r"^<!-- (?P<kind>setup|skip|needs)(?P<rest>.*)$")


@dataclass
class Block:
    kind: str  # python, setup, output
    line: int  # of the first line of code
    text: str
    skip: str = ""


def pages() -> list[Path]:
    found = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [path for path in found if "_build" not in path.parts]


def parse(text: str) -> tuple[list[Block], list[str]]:
    """The blocks of a page, and what it needs."""
    blocks: list[Block] = []
    needs: list[str] = []
    skip = ""
    lines = iter(enumerate(text.splitlines(), start=1))
    for number, line in lines:
        if comment := COMMENT.match(line):
            kind, rest = comment["kind"], comment["rest"].strip()
            if kind == "setup":
                code = list(until(lines, "-->"))
                blocks.append(Block("setup", number + 1, "\n".join(code)))
            else:
                assert rest.endswith("-->"), f"line {number}: a {kind} comment is one line"
                value = rest[:-3].strip(": ")
                assert value, f"line {number}: {kind} says nothing"
                if kind == "skip":
                    skip = value
                else:
                    needs.append(value)
        elif fence := FENCE.match(line):
            indent = len(fence["indent"])
            code = [each[indent:] for each in until(lines, fence["indent"] + fence["ticks"])]
            kind = fence["info"].strip()
            if kind in {"python", "output"}:
                blocks.append(Block(kind, number + 1, "\n".join(code), skip))
                skip = ""
    assert not skip, "a skip comment without a python block after it"
    return blocks, needs


def until(lines: Iterator[tuple[int, str]], end: str) -> Iterator[str]:
    for _number, line in lines:
        if line == end:
            return
        yield line
    raise AssertionError(f"no {end!r} before the end of the page")


@pytest.fixture
def pythons_in_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "bin"
    folder.mkdir(exist_ok=True)
    for version, path in servers.interpreters().items():
        # Not a link: a virtual environment's interpreter finds its environment by the path it is called by.
        program = folder / f"python{version}"
        program.write_text(f'#!/bin/sh\nexec "{path}" "$@"\n')
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def has_examples(page: Path) -> bool:
    return any(block.kind == "python" and not block.skip for block in parse(page.read_text())[0])


@pytest.mark.parametrize("page", list(filter(has_examples, pages())), ids=lambda path: str(path.relative_to(ROOT)))
@pytest.mark.usefixtures("pythons_in_path")
def test_examples(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    blocks, needs = parse(page.read_text())
    for need in needs:
        if need == "sshd":
            sshd = request.getfixturevalue("sshd")
            monkeypatch.setenv("PATH", f"{sshd.bin}:{os.environ['PATH']}")
        elif need.startswith("python"):
            if need.removeprefix("python") not in servers.interpreters():
                pytest.skip(f"no {need} here")
        else:
            pytest.fail(f"{page.name} needs {need!r}, which is unknown")
    monkeypatch.chdir(tmp_path)
    before = set(servers.children(os.getpid()))
    namespace: dict[str, object] = {}
    try:
        run_page(page, blocks, tmp_path, namespace)
    finally:
        import farwire

        for value in [farwire.default_group, *namespace.values()]:
            if isinstance(value, farwire.Group):
                value.terminate(timeout=3)
    no_new_children(before)


def run_page(page: Path, blocks: list[Block], folder: Path, namespace: dict[str, object]) -> None:
    # The page's code as a file of its own, each line where it is on the page: for tracebacks, and because the source of
    # functions is read from there.
    lines = [""] * (len(page.read_text().splitlines()) + 1)
    for block in blocks:
        if block.kind != "output" and not block.skip:
            code = block.text.splitlines()
            lines[block.line - 1 : block.line - 1 + len(code)] = code
    file = folder / (page.stem.replace("-", "_") + "_examples.py")
    file.write_text("\n".join(lines))
    namespace.update(__name__="__main__", __file__=str(file))
    printed: str | None = None
    for block in blocks:
        if block.kind == "output":
            if printed is not None:
                check_output(page, block, printed)
            printed = None
        elif not block.skip:
            code = compile("\n" * (block.line - 1) + block.text, str(file), "exec")
            with contextlib.redirect_stdout(io.StringIO()) as stdout:
                exec(code, namespace)
            printed = stdout.getvalue()
            sys.stdout.write(printed)
        else:
            printed = None


def check_output(page: Path, block: Block, printed: str) -> None:
    checker = doctest.OutputChecker()
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.REPORT_NDIFF
    wanted = block.text + "\n"
    if not checker.check_output(wanted, printed, flags):
        difference = checker.output_difference(doctest.Example("", wanted), printed, flags)
        pytest.fail(f"{page.name}, line {block.line}:\n{difference}", pytrace=False)


def test_links_between_pages_lead_somewhere() -> None:
    """Sphinx checks those of the documentation; this one also those of the README."""
    for page in pages():
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target and not target.startswith("mailto:"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_parser_of_pages() -> None:
    text = """\
<!-- needs: sshd -->
<!-- setup
x = 1
-->
```python
print(x)
```

```output
1
```
<!-- skip: takes a day -->
```python
y
```
````md
```python
no
```
````
"""
    blocks, needs = parse(text)
    assert needs == ["sshd"]
    kinds = [(block.kind, block.line, block.text, block.skip) for block in blocks]
    assert kinds == [
        ("setup", 3, "x = 1", ""),
        ("python", 6, "print(x)", ""),
        ("output", 10, "1", ""),
        ("python", 14, "y", "takes a day"),
    ]
