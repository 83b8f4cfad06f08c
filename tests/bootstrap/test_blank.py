"""blank(): examples, and the property over the standard library that nothing else changes or moves."""

from __future__ import annotations

import ast
import os
import random
import sys
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
    if isinstance(node, ast.If):
        return isinstance(node.test, ast.Constant) and node.test.value == 0 and not node.orelse
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

    def visit_If(self, node: ast.If) -> ast.AST:
        if getattr(node.test, "id", getattr(node.test, "attr", "")) == "TYPE_CHECKING":
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
    files = [file for file in files if file.stat().st_size < 25_000]
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


# -- examples ------------------------------------------------------------------------------------------------------------

EXAMPLES = {
    "parameters and result": (
        "def f(a: int, /, b: 'x' = 1, *c: str, d: (int) = 2, **e: [1, 2]) -> int: return a",
        "def f(a     , /, b      = 1, *c     , d        = 2, **e        )       : return a",
    ),
    "parameters on lines of their own": (
        "def f(\n    a : Dict[\n        str, int\n    ] = 1, # first\n    b: int = 2\n): pass",
        "def f(\n    a\n\n      = 1,\n    b      = 2\n): pass",
    ),
    "result on several lines": (
        "def f() -> Dict[\n    str,\n\n    int # no\n]:\n    return 1",
        "def f() \\\n \\\n \\\n \\\n :\n    return 1",
    ),
    "arrow among comments": (
        "def f(\n    a=('->'),  # ->\n    #: ->\n) -> int:\n    return a",
        "def f(\n    a=('->'),\n\n)       :\n    return a",
    ),
    "result after a line break": ("def f() \\\n    -> int: pass", "def f() \\\n          : pass"),
    "lambda in a default": ("def f(a=lambda x: {x: 1}) -> 'int': pass", "def f(a=lambda x: {x: 1})         : pass"),
    "async, decorated, nested": (
        "@d('''\n#''') # c\nasync def f(x: int):\n    class A:\n        def g(self) -> int: return x\n    return A",
        "@d('''\n#''')\nasync def f(x     ):\n    class A:\n        def g(self)       : return x\n    return A",
    ),
    "names that are not ASCII": ("def f(é: 'ü', ö: int): return é", "def f(é      , ö     ): return é"),
    "assignment": ("x: int = 1; y : 'a=b' = 2", "x      = 1; y         = 2"),
    "assignment, other targets": (
        "(a): int = 1\na.b: int = 2\na[':']: int = 3\na[\n  ':'  # :\n]: int = 4",
        "(a)      = 1\na.b      = 2\na[':']      = 3\na[\n  ':'\n]      = 4",
    ),
    "assignment, annotation on several lines": (
        "x: Dict[\n  str, int  # =\n] = 1",
        "x \\\n \\\n  = 1",
    ),
    "declaration": ("x: int\ny = 1", "\ny = 1"),
    "declaration, the only statement": ("class A:\n    x: int\n    y: T", "class A:\n    0\n"),
    "declarations on one line": ("x: int; y = 1; z: int", "0     ; y = 1; 0"),
    "declaration on two lines, and more": ("x: Dict[\n  int]; y = 1", "0 \\\n      ; y = 1"),
    "declaration after a backslash": ("if x: \\\n  y: int", "if x: \\\n  0"),
    "declaration before a backslash": ("x: int \\\n\ny = 1", "0      \\\n\ny = 1"),
    "declaration in other blocks": (
        "try:\n    x: int\nexcept E:\n    y: int\nelse:\n    y: int\nfinally:\n    y: int",
        "try:\n    0\nexcept E:\n    0\nelse:\n    0\nfinally:\n    0",
    ),
    "future": ("from __future__ import annotations\nx = 1", "\nx = 1"),
    "future among others": (
        "from __future__ import (\n    annotations,\n    generator_stop,\n); x = 1",
        "from __future__ import generator_stop \\\n \\\n \\\n ; x = 1",
    ),
    "future on one line": (
        "'d'; from __future__ import annotations; from __future__ import generator_stop",
        '"" ; from __future__ import division   ; from __future__ import generator_stop',
    ),
    "docstrings": (
        "'''Doc.\n\n# doc\n'''\nclass A:\n    'doc'\n    def f(self):\n        ('doc' # c\n  'more')\n        return 1",
        "\n\n\n\nclass A:\n\n    def f(self):\n\n\n        return 1",
    ),
    "docstring, the only statement": (
        'class A(B):\n    """Doc.\n\n    More. """  # and',
        "class A(B):\n    0\n\n",
    ),
    "docstring, more on its line": ('def f(): "doc"; return 1', "def f(): 0    ; return 1"),
    "docstring, more on its last line": ('def f():\n  """\n  """; return 1', "def f():\n  0 \\\n     ; return 1"),
    "no other string becomes the docstring": (
        "'one'\nfrom __future__ import annotations\n'two'\nclass A:\n    x: int\n    'x'",
        "\"\"\n\n'two'\nclass A:\n    0\n    'x'",
    ),
    "not docstrings": ("def f():\n    f'a'\ndef g():\n    b'a'\n", "def f():\n    f'a'\ndef g():\n    b'a'\n"),
    "typing": (
        "if TYPE_CHECKING:\n    import a # c\n    def f(): pass;\nx = 1\nif typing.TYPE_CHECKING: import b; import c;\n",
        "\n\n\nx = 1\n\n",
    ),
    "typing, the only statement": ("def f():\n  if TYPE_CHECKING:\n    import x", "def f():\n  0\n"),
    "typing, other branches": (
        "if TYPE_CHECKING:\n    import a\n    x: int = 1\nelse:\n    a: int = 1",
        "if 0: pass\n\n\nelse:\n    a      = 1",
    ),
    "typing, the last branch": (
        "if x:\n    a\nelif TYPE_CHECKING:\n    b\nc",
        "if x:\n    a\nelif 0: pass\n\nc",
    ),
    "typing, a branch": (
        "if x:\n    a\nelif TYPE_CHECKING:\n    b;\n\n    c  ;\nelif y: b: int\nelse:\n    if TYPE_CHECKING: d",
        "if x:\n    a\nelif 0: pass\n\n\n\nelif y: 0\nelse:\n    0",
    ),
    "not typing": ("if not TYPE_CHECKING:\n    x = 1", "if not TYPE_CHECKING:\n    x = 1"),
    "comments": ("#!\n# -*- x -*-\nx = '#' # '#'\nx # y", "\n\nx = '#'\nx"),
    "hashes in strings": (
        "x = '''#\n# ''' '#' # c\ny = f'{x}#' # c\nz = ('#'  # stays\n     '#')  # c\nw = b'#', f'''\n  # {x} ''' # c",
        "x = '''#\n# ''' '#'\ny = f'{x}#'\nz = ('#'  # stays\n     '#')\nw = b'#', f'''\n  # {x} '''",
    ),
    "comment in a match": ("match x: # c\n  case {'#': 1}: y: int # c\n", "match x:\n  case {'#': 1}: 0\n"),
    "comment after a backslash": ("x = 1 \\\n# c", "x = 1 \\\n# c"),
    "white space": ("x = 1  \t\n\f\ny = '''a  \n\nb'''  \n", "x = 1\n\ny = '''a  \n\nb'''\n"),
    "line ends": ("x: int\r\ny = '''\r\n'''\rz = 1", "\ny = '''\n'''\nz = 1"),
    "nothing": ("", ""),
    "nothing left": ("'doc'\n# c", "\n"),
}


@pytest.mark.parametrize(("before", "after"), EXAMPLES.values(), ids=EXAMPLES)
def test_examples(before: str, after: str) -> None:
    assert check(before) == after


def test_only_what_is_asked_for() -> None:
    text = "'doc'\ndef f(x: int) -> int:  # why\n    'doc'\n    if TYPE_CHECKING: pass  # c\n    return x "
    assert blank(text, comments=False, docstrings=False, annotations=False) == text.rstrip()
    assert blank(text, comments=True, docstrings=False, annotations=False) == (
        "'doc'\ndef f(x: int) -> int:\n    'doc'\n    if TYPE_CHECKING: pass\n    return x"
    )
    assert blank(text, comments=False, docstrings=True, annotations=False) == (
        "\ndef f(x: int) -> int:  # why\n\n    if TYPE_CHECKING: pass  # c\n    return x"
    )
    assert blank(text, comments=False, docstrings=False, annotations=True) == (
        "'doc'\ndef f(x     )       :  # why\n    'doc'\n\n    return x"
    )


@pytest.mark.skipif(sys.version_info < (3, 12), reason="new syntax")
def test_newer_syntax() -> None:
    assert check("def f[T: ('->')](x: T) -> T: return x  # c") == "def f[T: ('->')](x   )     : return x"
    assert check("x = f'{y[f'#']}#' # c") == "x = f'{y[f'#']}#'"
    assert check("x = f'''{y # c\n  }'''") == "x = f'''{y # c\n  }'''"


def test_wrong_source() -> None:
    with pytest.raises(SyntaxError):
        everything("def")
