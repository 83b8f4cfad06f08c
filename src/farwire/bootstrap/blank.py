"""Take out of a module what a worker does not need: annotations, docstrings and comments.

    def area(self, scale: float = 1.0) -> float:          def area(self, scale        = 1.0)         :
        '''The area in square metres.'''         becomes
        return self.x * self.y  # not exact                   return self.x * self.y

Line numbers stay, and so do the columns of everything that stays, so a traceback from a worker fits the original file.
What this buys: shipped modules are annotated as if for the newest Python and still compile on 3.6, and
the bundle, which every worker waits for, is less than two thirds of the size.

How: the positions in the syntax tree say where things are. Between two neighbouring nodes there is only punctuation,
white space and comments, never a string, so a search of such a gap for ``->`` or ``:`` is exact. (Running ``tokenize``
instead takes longer than all the rest.)

Not for modules that read their annotations while they run (dataclasses, NamedTuple), or their docstrings.
"""

from __future__ import annotations

import ast
import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Position = tuple[int, int]  # line, counted from 0, and column in bytes of UTF-8, as ast counts columns

_SPACE = b" \t\f"
_NAME = re.compile(rb"[^\s:#\\]+")
_REST = re.compile(rb"[ \t\f]*(#|$)")

# Stands for a statement that is taken out where there has to be one. It fits wherever a statement stood, being one
# character long, and the compiler drops it as it drops `pass`.
_NOTHING = b"0"

_DECORATED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_DOCUMENTED = (ast.Module, *_DECORATED)
_SUITES = ("body", "handlers", "cases", "orelse", "finalbody")


def blank(text: str, *, comments: bool, docstrings: bool, annotations: bool) -> str:
    """The module ``text`` without comments, docstrings and annotations, as asked, on the same lines and columns.

    White space at the ends of lines goes in any case, outside strings.

    Args:
        text: the source of a whole module.
        comments: take out comments, except between the pieces of one string that is written in several pieces.
        docstrings: take out docstrings.
        annotations: take out annotations, ``from __future__ import annotations`` and ``if TYPE_CHECKING:``.
            A bare ``x: int`` goes altogether.

    Raises:
        SyntaxError: ``text`` is not a module for the Python that runs this.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")  # as the compiler reads it
    tree = ast.parse(text)
    source = text.encode().split(b"\n")
    strings = _strings(tree, source)
    eraser = _Eraser(source)
    if comments:
        # First: it searches lines, which must not have moved; the others go to known places, left of any comment.
        eraser.comments(strings)
    _Statements(eraser, docstrings=docstrings, annotations=annotations).suites(tree)
    inside = {line for (first, _), (last, _) in strings for line in range(first, last)}
    lines = (line if number in inside else line.rstrip(_SPACE) for number, line in enumerate(eraser.lines))
    return b"\n".join(lines).decode()


_GAP = re.compile(rb" +(?=[ ,):])")
_UNQUOTED = re.compile(rb"[^'\"]*")


def squeeze(text: str) -> str:
    """What ``blank`` left, with one space for each level of indentation and none that means nothing: on the same lines, not columns."""
    lines = text.encode().split(b"\n")
    strings = _strings(ast.parse(text), lines)
    # Lines that begin in a string, or with a piece of one, stay as they are.
    inside = {number for (first, _), (last, _) in strings for number in range(first + 1, last + 1)}
    for number, line in enumerate(lines):
        if number not in inside and line:
            code = line.lstrip(b" ")
            plain = _UNQUOTED.match(code)
            assert plain is not None
            end = plain.end()
            depth, odd = divmod(len(line) - len(code), 4)
            lines[number] = b" " * (depth + odd) + _GAP.sub(b"", code[:end]) + code[end:]
    return b"\n".join(lines).decode()


def _start(node: ast.stmt | ast.expr | ast.arg) -> Position:
    return node.lineno - 1, node.col_offset


def _end(node: ast.stmt | ast.expr | ast.arg) -> Position:
    line, column = node.end_lineno, node.end_col_offset
    assert line is not None  # None is for trees made by hand, not by the parser.
    assert column is not None
    return line - 1, column


def _strings(tree: ast.Module, source: list[bytes]) -> list[tuple[Position, Position]]:
    """Start and end of each string, or group of adjoining strings, that has a line break or a ``#`` on its lines."""
    marked = {number for number, line in enumerate(source, 1) if b"#" in line}
    found = []
    stack: list[ast.AST] = [tree]
    while stack:
        for value in vars(stack.pop()).values():
            for node in value if type(value) is list else (value,):
                if not isinstance(node, ast.AST):
                    continue
                if isinstance(node, (ast.stmt, ast.expr)):
                    # Most nodes stand on one line without a "#", and need no look inside. (But decorators stand
                    # outside the lines of what they decorate.)
                    line = node.lineno
                    if line == node.end_lineno and line not in marked and not isinstance(node, _DECORATED):
                        continue
                    if isinstance(node, ast.Constant):
                        if isinstance(node.value, (str, bytes)):
                            found.append((_start(node), _end(node)))
                        continue
                    if type(node).__name__ in ("JoinedStr", "TemplateStr"):
                        # Not what is inside: before 3.12 the positions there are wrong.
                        found.append((_start(node), _end(node)))
                        continue
                stack.append(node)
    return found


class _Eraser:
    """The lines of a module, and ways to take pieces out of them that leave everything else where it is.

    Attributes:
        source: the lines as they were; positions mean these.
        lines: the lines as they are now.
    """

    def __init__(self, source: list[bytes]) -> None:
        self.source = source
        self.lines = list(source)

    def find(self, token: bytes, start: Position) -> Position:
        """Where ``token`` is, in the first place at or after ``start`` that is not in a comment.

        There must be no string in between.
        """
        number, column = start
        while True:
            code = self.source[number][column:].partition(b"#")[0]
            if token in code:
                return number, column + code.index(token)
            number, column = number + 1, 0

    def erase(self, start: Position, end: Position, *, put: bytes = b"", bracketed: bool = False) -> None:
        """Replace everything from ``start`` to ``end`` by ``put`` and space.

        Args:
            start: the first position to erase.
            end: the first position to keep.
            put: what to write at ``start``.
            bracketed: line ends mean nothing here, so lines need no joining with what follows on the last line.
        """
        (first, left), (last, right) = start, end
        lines = self.lines
        if first == last:
            lines[first] = lines[first][:left] + put.ljust(right - left) + lines[first][right:]
            return
        lines[last] = b" " * right + lines[last][right:]
        join = b"" if bracketed or _REST.match(self.source[last], right) else b" \\"
        lines[first] = (lines[first][:left] + put).rstrip(_SPACE) + join
        lines[first + 1 : last] = [join] * (last - first - 1)

    def comments(self, strings: list[tuple[Position, Position]]) -> None:
        """Take out every comment that is not between the pieces of one of ``strings``."""
        inside: dict[int, list[tuple[int, int]]] = {}
        for (first, left), (last, right) in strings:
            for number in range(first, last + 1):
                begin = left if number == first else 0
                end = right if number == last else len(self.source[number])
                inside.setdefault(number, []).append((begin, end))
        for number, line in enumerate(self.source):
            column = line.find(b"#")
            while column >= 0:
                ends = [end for begin, end in inside.get(number, ()) if begin <= column < end]
                if not ends:
                    # After a line that ends in a backslash an empty line might be the end of the file, an error.
                    if line[:column].strip(_SPACE) or not self.continues(number):
                        self.lines[number] = line[:column]
                    break
                column = line.find(b"#", ends[0])

    def continues(self, number: int) -> bool:
        """Whether the line before ``number`` may go on in it, by a backslash."""
        return number > 0 and self.source[number - 1].endswith(b"\\")

    def alone(self, start: Position, end: Position) -> bool:
        """Whether nothing but comments shares a line with what is between ``start`` and ``end``."""
        before = self.source[start[0]][: start[1]].strip(_SPACE)
        return not before and not self.continues(start[0]) and bool(_REST.match(self.source[end[0]], end[1]))


class _Statements:
    """Walk through the statements of a module and take out what is not wanted."""

    def __init__(self, eraser: _Eraser, *, docstrings: bool, annotations: bool) -> None:
        self.eraser = eraser
        self.docstrings = docstrings
        self.annotations = annotations

    def suites(self, owner: ast.AST, names: tuple[str, ...] = _SUITES) -> None:
        """Do everything below ``owner``: a module, a statement, or a clause of one."""
        for name in names:
            below: list[Any] = getattr(owner, name, [])
            if name in ("handlers", "cases"):
                for clause in below:
                    self.suites(clause)
            elif isinstance(owner, ast.If) and name == "orelse" and len(below) == 1 and self.is_elif(below[0]):
                self.statement(below[0])
            elif below:
                self.suite(below, owner if name == "body" else None)

    def suite(self, statements: list[ast.stmt], owner: ast.AST | None) -> None:
        """Do the ``statements`` of one block, which is the body of ``owner``, or another block."""
        first = statements[0]
        documented = isinstance(owner, _DOCUMENTED) and _is_string(first)
        gone = {first} if documented and self.docstrings else set()
        if self.annotations:
            gone.update(filter(_is_typing, statements))
        rest = next((statement for statement in statements if statement not in gone), None)
        if rest is None:
            fill = not isinstance(owner, ast.Module)
        else:
            # Without it, a string that followed would become the docstring.
            fill = rest is not first and _is_string(rest)
        for statement in statements:
            if statement in gone:
                self.remove(statement, fill=fill, module=isinstance(owner, ast.Module))
                fill = False
            else:
                self.statement(statement)

    def statement(self, node: ast.stmt) -> None:
        """Do one statement that stays."""
        if self.annotations:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                self.signature(node)
            elif isinstance(node, ast.AnnAssign):
                # The annotation's colon is the first after the target, the equals sign the first after the annotation.
                self.eraser.erase(
                    self.eraser.find(b":", _end(node.target)), self.eraser.find(b"=", _end(node.annotation))
                )
            elif isinstance(node, ast.ImportFrom) and node.module == "__future__":
                names = ", ".join(alias.name for alias in node.names if alias.name != "annotations")
                self.eraser.erase(_start(node), _end(node), put=b"from __future__ import " + names.encode())
            elif isinstance(node, ast.If) and _is_type_checking(node.test):
                # It stays because of its other branches.
                put = b"elif 0: pass" if self.is_elif(node) else b"if 0: pass"
                self.eraser.erase(_start(node), self.end_of_line(node.body[-1]), put=put)
                self.suites(node, ("orelse",))
                return
        self.suites(node)

    def remove(self, node: ast.stmt, *, fill: bool, module: bool) -> None:
        """Take out a whole statement; leave something in its place if ``fill``, or if its line needs it."""
        start = _start(node)
        end = self.end_of_line(node) if isinstance(node, ast.If) else _end(node)
        put = b""
        if fill or not self.eraser.alone(start, end):
            # What stands before an import from __future__ must be a docstring or another such import.
            if isinstance(node, ast.ImportFrom):
                put = b"from __future__ import division"
            else:
                put = b'""' if module and isinstance(node, ast.Expr) else _NOTHING
        self.eraser.erase(start, end, put=put)

    def signature(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        """Take out the annotations of parameters and result."""
        args = node.args
        parameters = [*args.posonlyargs, *args.args, args.vararg, *args.kwonlyargs, args.kwarg]
        before = [_start(node)]
        for parameter in parameters:
            if parameter is None:
                continue
            end = _end(parameter)
            before.append(end)
            if parameter.annotation is not None:
                number, column = _start(parameter)
                name = _NAME.match(self.eraser.source[number], column)
                assert name is not None
                self.eraser.erase((number, name.end()), end, bracketed=True)
        if node.returns is not None:
            before += [_end(default) for default in [*args.defaults, *args.kw_defaults] if default is not None]
            before += [_end(parameter) for parameter in getattr(node, "type_params", ())]
            self.eraser.erase(self.eraser.find(b"->", max(before)), self.eraser.find(b":", _end(node.returns)))

    def is_elif(self, node: ast.AST) -> bool:
        """Whether ``node`` is written as an ``elif`` clause, which the tree does not tell from ``else: if``."""
        return isinstance(node, ast.If) and self.eraser.source[node.lineno - 1].startswith(b"elif", node.col_offset)

    def end_of_line(self, node: ast.stmt) -> Position:
        """The end of the last line of ``node``, so that a semicolon there is included."""
        number, _ = _end(node)
        return number, len(self.eraser.source[number])


def _is_string(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _is_typing(node: ast.stmt) -> bool:
    """Whether ``node`` is there for annotations only."""
    if isinstance(node, ast.AnnAssign):
        return node.value is None
    if isinstance(node, ast.ImportFrom):
        return node.module == "__future__" and all(alias.name == "annotations" for alias in node.names)
    return isinstance(node, ast.If) and not node.orelse and _is_type_checking(node.test)


def _is_type_checking(node: ast.expr) -> bool:
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    return name == "TYPE_CHECKING"
