"""Imports go one way, and shipped code imports little: read from the sources, without running them."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "farwire"
SHIPPED = ("protocol", "runtime", "worker", "bootstrap/loader.py")
# Sent to workers that need it, so the import budget is not about it.
SENT_LATER = ("sync",)

# What a part of the package may import of the others. Left out: the modules that anything may import (errors).
MAY_IMPORT = {
    "protocol": set(),
    "runtime": {"protocol"},
    "worker": {"protocol", "runtime"},
    "bootstrap": {"protocol"},
    "transports": {"bootstrap", "runtime", "protocol", "xspec", "supervisor", "starting", "errors", "serve"},
    "supervisor": {"errors", "runtime", "protocol", "output"},
    "xspec": {"errors"},
    "source": {"errors"},
    "sync": {"protocol"},
    "errors": {"protocol"},
    "starting": {"errors", "protocol", "bootstrap"},
    # Stands alone: it is also handed out as one file.
    "serve": set(),
}

# Milliseconds that every worker would pay at its start. Import these where they are needed, inside a function.
TOO_SLOW = {
    "asyncio",
    "concurrent",
    "dataclasses",
    "enum",
    "importlib.abc",
    "inspect",
    "json",
    "logging",
    "pathlib",
    "queue",
    "socket",
    "subprocess",
    "tempfile",
    "threading",
    "traceback",
    "typing",
}

# The start does not load these: others import them inside functions, when they are needed.
LOADED_LATE = {"runtime.channel_file", "runtime.remote_error"}

# What shipped code may import though it is not in the standard library: the name that the bundle has on the target, and,
# inside a function that does without it, NumPy.
MOUNT = "_farwire"
OPTIONAL = {"numpy"}


def sources(*parts: str) -> list[Path]:
    found: list[Path] = []
    for part in parts:
        path = PACKAGE / part
        found += [path] if path.is_file() else sorted(path.rglob("*.py"))
    return found


def module_name(path: Path) -> str:
    """``runtime.link`` for runtime/link.py."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def part_of(path: Path) -> str:
    """``runtime`` for runtime/link.py, ``xspec`` for xspec.py."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(tree: ast.AST, at_start: bool = False) -> Iterator[ast.Import | ast.ImportFrom]:
    """The import statements that are carried out: not those for type checkers.

    With ``at_start``, only those that run when the module is imported: not those inside functions.
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for branch in node.orelse:
                yield from imports(ast.Module([branch], []), at_start)
        elif not (at_start and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)):
            yield from imports(node, at_start)


def targets(path: Path, node: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, str]]:
    """What a statement imports: ``("own", "runtime.link")`` or ``("other", "os.path")``."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            first, _, rest = alias.name.partition(".")
            yield ("own", rest) if first == "farwire" else ("other", alias.name)
        return
    module = node.module or ""
    if node.level == 0:
        first, _, rest = module.partition(".")
        if first == "farwire":
            yield "own", rest
        else:
            # `from importlib import abc` is an import of importlib.abc.
            for alias in node.names:
                yield "other", f"{module}.{alias.name}"
        return
    base = path.relative_to(PACKAGE).parts[: -node.level]
    if module:
        yield "own", ".".join((*base, module))
    else:
        for alias in node.names:
            yield "own", ".".join((*base, alias.name))


@pytest.mark.parametrize("path", sources(""), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    part = part_of(path)
    allowed = MAY_IMPORT.get(part)
    for node in imports(ast.parse(path.read_text())):
        for kind, name in targets(path, node):
            target = name.partition(".")[0]
            if kind == "other" or target in {"", part}:
                continue
            where = f"{path.name}:{node.lineno} imports {name}"
            assert target != "worker", f"{where}: the worker is shipped, never imported by the controller"
            if allowed is not None:
                assert target in allowed, f"{where}: {part} may import {sorted(allowed) or 'nothing of ours'}"


@pytest.mark.parametrize("path", sources(*SHIPPED, *SENT_LATER), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_shipped_code_stands_alone(path: Path) -> None:
    tree = ast.parse(path.read_text())
    at_start = set(imports(tree, at_start=True))
    for node in imports(tree):
        where = f"{path.name}:{node.lineno}"
        for kind, name in targets(path, node):
            if kind == "own":
                relative = isinstance(node, ast.ImportFrom) and node.level > 0
                assert relative, f"{where}: shipped code is mounted under another name; import {name} relatively"
            else:
                first = name.partition(".")[0]
                standard = (
                    first in sys.stdlib_module_names or first == MOUNT or (first in OPTIONAL and node not in at_start)
                )
                assert standard, f"{where}: {name} is not in the standard library, and the target has nothing else"


@pytest.mark.parametrize("path", sources(*SHIPPED), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_import_budget(path: Path) -> None:
    if module_name(path) in LOADED_LATE:
        return
    for node in imports(ast.parse(path.read_text()), at_start=True):
        for kind, name in targets(path, node):
            late = next((late for late in LOADED_LATE if kind == "own" and name == late), None)
            assert late is None, f"{path.name}:{node.lineno}: {late} is for later; import it where it is needed"
            slow = next((slow for slow in TOO_SLOW if name == slow or name.startswith(slow + ".")), None)
            assert kind == "own" or slow is None, f"{path.name}:{node.lineno}: {slow} costs every worker milliseconds"


@pytest.mark.parametrize("path", sources(*SHIPPED, *SENT_LATER), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_shipped_code_parses_on_old_pythons(path: Path) -> None:
    """A first look by this interpreter; that it runs on 3.6 and later is tested with those."""
    # Grammar older than 3.7 has no `from __future__ import annotations`, which the bundler takes out.
    ast.parse(path.read_text(), feature_version=(3, 7))


def test_the_tests_see_the_imports_they_are_about() -> None:
    text = """
import a.b
from importlib import abc
from . import link
from ..protocol.frames import X
if TYPE_CHECKING:
    import typing
else:
    import c
def f():
    import d
class K:
    import e
"""
    path = PACKAGE / "runtime" / "example.py"
    tree = ast.parse(text)
    found = [target for node in imports(tree) for target in targets(path, node)]
    own = [("own", "runtime.link"), ("own", "protocol.frames")]
    assert [name for kind, name in found if kind == "other"] == ["a.b", "importlib.abc", "c", "d", "e"]
    assert [target for target in found if target[0] == "own"] == own
    at_start = [name for node in imports(tree, at_start=True) for _, name in targets(path, node)]
    assert "d" not in at_start
    assert {"c", "e"} <= set(at_start)
