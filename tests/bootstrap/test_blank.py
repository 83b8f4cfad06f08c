"""blank(): examples, and the property over the standard library that nothing else changes or moves."""

from __future__ import annotations

import ast
import os
import random
import sysconfig
from pathlib import Path

import pytest

from farwire.bootstrap.blank import blank

STDLIB = Path(sysconfig.get_path("stdlib"))
# How many files of the standard library to try. "all" takes minutes.
SAMPLE = os.environ.get("FARWIRE_BLANK_SAMPLE", "300")


def everything(text: str) -> str:
    return blank(text, comments=True, docstrings=True, annotations=True)


# -- the property --------------------------------------------------------------------------------------------------------


def is_string(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def is_filler(node: ast.stmt) -> bool:
    """What blank() may leave in the place of a statement; dropped before trees are compared."""
    if isinstance(node, ast.ImportFrom):
        return node.module == "__future__" and [alias.name for alias in node.names] in ([], ["division"])
    return isinstance(node, ast.Pass) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and node.value.value in (0, "")
    )


class Remove(ast.NodeTransformer):
    """What blank() does, told in terms of the tree."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            if node.body and is_string(node.body[0]):
                del node.body[0]
        return super().generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        if node.value is None:
            return None
        return self.generic_visit(ast.copy_location(ast.Assign([node.target], node.value), node))

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST:
        if node.module == "__future__":
            node.names = [alias for alias in node.names if alias.name != "annotations"]
        return node

    def visit_If(self, node: ast.If) -> ast.AST | None:
        if getattr(node.test, "id", getattr(node.test, "attr", "")) == "TYPE_CHECKING":
            if not node.orelse:
                return None
            node.test, node.body = ast.Constant(0), []
        return self.generic_visit(node)


def outline(tree: ast.AST) -> list[object]:
    """Everything about a tree, with the start of each node, without filler."""
    found: list[object] = []
    todo: list[object] = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, list):
            kept = [item for item in node if not (isinstance(item, ast.stmt) and is_filler(item))]
            found.append(len(kept))
            todo.extend(kept)
        elif isinstance(node, ast.AST):
            # The test of `if TYPE_CHECKING` moves; inside f-strings positions mean nothing before 3.12; aliases move
            # when one before them is taken out.
            if not isinstance(node, (ast.Constant, ast.alias)):
                found.append((type(node), getattr(node, "lineno", 0), getattr(node, "col_offset", 0)))
            todo.extend(getattr(node, name, None) for name in node._fields if name != "kind")
        else:
            found.append(node)
    return found


def check(text: str) -> str:
    """blank() everything and compare with the original; give the result."""
    result = everything(text)
    assert result.count("\n") == text.replace("\r\n", "\n").replace("\r", "\n").count("\n")
    compile(result, "blanked", "exec", dont_inherit=True)
    assert outline(ast.parse(result)) == outline(Remove().visit(ast.parse(text)))
    return result


def stdlib() -> list[Path]:
    files = sorted(STDLIB.rglob("*.py"))
    files = [file for file in files if "site-packages" not in file.parts]
    if SAMPLE == "all":
        return files
    files = [file for file in files if file.stat().st_size < 60_000]
    return random.Random(6).sample(files, min(int(SAMPLE), len(files)))


@pytest.mark.filterwarnings("ignore::SyntaxWarning", "ignore::DeprecationWarning")
def test_nothing_else_changes_in_the_standard_library() -> None:
    tried = 0
    for file in stdlib():
        try:
            text = file.read_text("utf-8")
            compile(text, str(file), "exec", dont_inherit=True)
        except (ValueError, SyntaxError):  # some test files are wrong on purpose
            continue
        try:
            check(text)
        except Exception as error:
            raise AssertionError(f"{file}: {error!r}") from error
        tried += 1
    assert tried > 50
