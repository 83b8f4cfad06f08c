"""What may be given to ``remote_exec``, made into what is sent: text, and how to run it.

    text, module     executed, with ``channel`` among its globals
    function         its source is executed, then it is called: ``function(channel, **kwargs)``

A function leaves everything around it behind: closures, globals, decorators, defaults that are not literals. Code that
needs such a thing would fail over there, with an unhelpful NameError or only in the branch nobody tested; so
it is refused here, with every name and line. Which names those are is read from compiled code, where the
compiler has told globals from locals and attributes, and not from the syntax tree, where one would have to guess.

Annotations are no code: those of parameters and results are neither counted nor sent. (Those of class attributes are
both: dataclasses live on them.)
"""

from __future__ import annotations

from .errors import SourceError

TYPE_CHECKING = False  # typing costs every start some milliseconds; type checkers take this name for true
if TYPE_CHECKING:
    import ast
    from collections.abc import Callable, Iterator, Mapping, MutableMapping
    from inspect import Signature
    from types import CodeType, FunctionType, ModuleType

__all__ = ["Task", "make_task"]

# Globals that any module has, and names the compiler itself puts into class bodies.
_ALWAYS_THERE = {"__annotations__", "__builtins__", "__conditional_annotations__", "__doc__", "__name__"}


class Task:
    """What a worker is to run.

    Attributes:
        kind: ``"exec"``: execute the text with ``channel`` in its globals; ``"call"``: execute it, then call ``name``.
        text: the source. To give tracebacks the right lines, put ``firstlineno - 1`` empty lines before it.
        filename: the file it came from, or a name in angle brackets.
        firstlineno: the line of that file at which the text begins.
        name: the function to call, or ``""``.
        kwargs: what to call it with, besides the channel.
    """

    __slots__ = ("filename", "firstlineno", "kind", "kwargs", "name", "text")

    def __init__(
        self, kind: str, text: str, filename: str, firstlineno: int, name: str, kwargs: dict[str, object]
    ) -> None:
        self.kind = kind
        self.text = text
        self.filename = filename
        self.firstlineno = firstlineno
        self.name = name
        self.kwargs = kwargs

    def __repr__(self) -> str:
        return f"<Task {self.kind} {self.name or self.filename}>"


def make_task(source: str | ModuleType | Callable[..., object], kwargs: Mapping[str, object]) -> Task:
    """Makes what is sent to a worker.

    Args:
        source: the text of a program, which may be indented as a whole; a module; or a function whose first parameter
            is named ``channel``.
        kwargs: arguments for the function, besides the channel. Whether they can be sent is not looked at.

    Returns:
        The task. Text and modules are not compiled here: the worker's Python may be newer.

    Raises:
        SourceError: the function or module cannot run remotely as it is; the message says why, with names and lines.
        TypeError: ``source`` is something else, or the function cannot be called with these arguments.
    """
    if isinstance(source, str):
        _no_arguments(kwargs)
        return Task("exec", _dedent(source), "<remote exec>", 1, "", {})

    from types import FunctionType, ModuleType

    if isinstance(source, ModuleType):
        _no_arguments(kwargs)
        return _module_task(source)
    if isinstance(source, FunctionType):
        return _function_task(source, kwargs)
    raise _not_code(source)


def _no_arguments(kwargs: Mapping[str, object]) -> None:
    if kwargs:
        raise TypeError("kwargs need a function: text and modules take no arguments")


def _dedent(text: str) -> str:
    if text.lstrip("\r\n")[:1] not in (" ", "\t"):
        return text  # Nothing in common to take away, whatever the other lines are; and no `re` to import.
    from textwrap import dedent

    return dedent(text)


def _not_code(source: object) -> SourceError | TypeError:
    from functools import partial
    from types import BuiltinFunctionType, MethodType

    if isinstance(source, MethodType):
        return SourceError(f"{source!r} is a bound method, and its object stays here: send a plain function")
    if isinstance(source, partial):
        return SourceError(f"{source!r} is a partial: send its function, and the arguments as keyword arguments")
    if isinstance(source, BuiltinFunctionType):
        return SourceError(f"{source!r} has no Python source: send text, or a function, that calls it")
    if hasattr(source, "__wrapped__"):
        return SourceError(f"{source!r} is what a decorator made, and the decorator stays here: send a plain function")
    return TypeError(f"source is text, a function or a module, not {type(source).__name__}")


def _module_task(module: ModuleType) -> Task:
    import inspect
    import os

    try:
        filename = inspect.getsourcefile(module)
        if filename is None:
            raise OSError("it has no source file")
        # inspect takes an empty file for a missing one.
        empty = os.path.isfile(filename) and os.path.getsize(filename) == 0
        text = "" if empty else inspect.getsource(module)
    except (OSError, TypeError) as why:
        raise SourceError(f"module {module.__name__!r} cannot be sent: {why}") from why
    return Task("exec", text, filename, 1, "", {})


# -- functions --------------------------------------------------------------------------------------------------------


# Function -> what was found out about it, which takes milliseconds; a worker's answer takes a tenth of one.
_known: MutableMapping[FunctionType, _Function] | None = None


class _Function:
    """A function that can be sent."""

    __slots__ = ("code", "firstlineno", "signature", "text")

    def __init__(self, function: FunctionType) -> None:
        """Looks at a function.

        Raises:
            SourceError: it cannot run remotely.
        """
        reason = _unfit(function)
        if reason:
            raise _refusal(function, reason)
        text, self.firstlineno = _source(function)
        # With the real line numbers, every position and message below is right as it stands.
        padding = "\n" * (self.firstlineno - 1)
        tree = _tree(function, padding + text)
        self.text = _take_annotations(padding + text, tree)[len(padding) :]
        reasons = _left_behind(function, tree)
        if reasons:
            raise _refusal(function, "; ".join(reasons))
        self.code = function.__code__
        self.signature = _signature(function)


def _function_task(function: FunctionType, kwargs: Mapping[str, object]) -> Task:
    global _known
    if _known is None:
        from weakref import WeakKeyDictionary

        _known = WeakKeyDictionary()
    known = _known.get(function)
    code = function.__code__
    if known is None or known.code is not code:
        known = _known[function] = _Function(function)
    try:
        known.signature.bind(None, **kwargs)
    except TypeError as why:
        raise TypeError(f"{function.__qualname__}: {why}") from None
    return Task("call", known.text, code.co_filename, known.firstlineno, code.co_name, dict(kwargs))


def _refusal(function: FunctionType, reason: str) -> SourceError:
    code = function.__code__
    where = f"{code.co_filename}, line {code.co_firstlineno}"
    return SourceError(f"{function.__qualname__} ({where}) cannot run remotely: {reason}")


def _unfit(function: FunctionType) -> str:
    """Why a function of this kind cannot be sent at all, or ``""``."""
    import inspect

    code = function.__code__
    if code.co_name == "<lambda>":
        return "it is a lambda, whose source cannot be told from what is around it; use def"
    if hasattr(function, "__wrapped__"):
        return "it is decorated, and the decorator stays here; send the function without it"
    if code.co_flags & (inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR):
        return "it is async, so calling it would run none of it; call asyncio.run() in a plain function"
    if code.co_flags & inspect.CO_GENERATOR:
        return "it has a yield, so calling it would run none of it; use channel.send()"
    if not code.co_argcount or code.co_varnames[0] != "channel":
        return "its first parameter must be named 'channel'"
    return ""


def _source(function: FunctionType) -> tuple[str, int]:
    """The source of a function, and the line of its file at which it begins."""
    import inspect
    import tokenize

    try:
        lines, firstlineno = inspect.getsourcelines(function)
    except OSError as why:
        hint = "one typed at a prompt or made by exec() may have none; put it in a file, or send text"
        raise _refusal(function, f"its source cannot be found ({why}); {hint}") from why
    except (SyntaxError, tokenize.TokenError) as why:
        raise _changed(function) from why
    text = "".join(lines)
    if text[0] not in " \t":
        return text, firstlineno
    # Taking the indentation away instead would reach into strings of several lines, or fail because of them.
    return "if 1:\n" + text, firstlineno - 1


def _changed(function: FunctionType) -> SourceError:
    return _refusal(function, "its file has changed since it was imported")


def _tree(function: FunctionType, text: str) -> ast.Module:
    """The syntax tree of a function's source, if that is its source and has no decorator."""
    import ast

    code = function.__code__
    try:
        tree = ast.parse(text, code.co_filename)
    except SyntaxError as why:
        raise _changed(function) from why
    node: ast.AST = tree.body[0]
    if isinstance(node, ast.If):
        node = node.body[0]
    if not isinstance(node, ast.FunctionDef) or node.name != code.co_name:
        raise _changed(function)
    if node.decorator_list:
        names = ", ".join("@" + ast.unparse(decorator) for decorator in node.decorator_list)
        raise _refusal(function, f"it is decorated with {names}, which stays here; send the function without it")
    if node.lineno != code.co_firstlineno or len(node.args.posonlyargs) + len(node.args.args) != code.co_argcount:
        raise _changed(function)
    return tree


def _take_annotations(text: str, tree: ast.Module) -> str:
    """Takes the annotations of parameters and results out of a tree, and puts ``()`` for them in the text.

    Something must stand there, because around it may be parentheses that the tree knows nothing of; and with
    its two parentheses at the ends of what was there, line breaks in between do no harm.

    Args:
        text: the source.
        tree: its tree.

    Returns:
        The source with nothing else moved.
    """
    import ast

    found: list[ast.expr] = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.returns is not None:
            found.append(node.returns)
            node.returns = None
        elif isinstance(node, ast.arg) and node.annotation is not None:
            found.append(node.annotation)
            node.annotation = None

    lines = text.split("\n")
    # From the end to the start: columns count bytes, and what is put in may have fewer of them.
    for node in sorted(found, key=lambda node: (node.lineno, node.col_offset), reverse=True):
        first, last = node.lineno - 1, (node.end_lineno or 0) - 1
        before = lines[first].encode()[: node.col_offset].decode()
        inside = lines[last].encode()[: node.end_col_offset].decode()
        after = lines[last][len(inside) :]
        if first == last:
            width = len(inside) - len(before)
            lines[first] = before + ("(" + ")".rjust(width - 1) if width > 1 else "0") + after
        else:
            lines[first : last + 1] = [before + "(", *[""] * (last - first - 1), ")".rjust(len(inside)) + after]
    return "\n".join(lines)


def _left_behind(function: FunctionType, tree: ast.Module) -> list[str]:
    """What a function uses that does not go with its source: reasons to refuse it."""
    import builtins

    free = function.__code__.co_freevars
    try:
        used, given = _global_names(compile(tree, function.__code__.co_filename, "exec", dont_inherit=True))
    except SyntaxError as why:
        # The tree is a tree; but `nonlocal x` may find no x.
        used, given = dict.fromkeys(free, f"line {why.lineno}"), set()
    mine = function.__globals__
    outer, missing = [], []
    for name, where in used.items():
        if name in free:
            if not _is_itself(function, name):
                outer.append(f"{name!r} ({where})")
        elif name not in given and name not in _ALWAYS_THERE:
            # A global may also hide a builtin, which the worker would use instead.
            standard = getattr(builtins, name, None)
            if not hasattr(builtins, name) or mine.get(name, standard) is not standard:
                missing.append(f"{name!r} ({where})")
    reasons = []
    if "__class__" in free:
        reasons.append("it uses the class around it, by super() or __class__")
    if outer:
        reasons.append(
            f"it uses variables of the function around it: {', '.join(outer)}; pass them as keyword arguments"
        )
    if missing:
        reasons.append(f"it uses names of its module: {', '.join(missing)}; import or define them inside the function")
    return reasons


def _is_itself(function: FunctionType, name: str) -> bool:
    """Whether a variable around the function is the function, which calls itself."""
    cell = (function.__closure__ or ())[function.__code__.co_freevars.index(name)]
    try:
        return name == function.__code__.co_name and cell.cell_contents is function
    except ValueError:  # The variable has no value yet, or none any more.
        return False


def _global_names(module: CodeType) -> tuple[dict[str, str], set[str]]:
    """The global names that code uses, with the place of the first use, and those that it sets."""
    import dis

    used: dict[str, tuple[int, str]] = {}
    given: set[str] = set()
    for code in _codes(module):
        starts = dict(dis.findlinestarts(code))
        line = code.co_firstlineno
        own = given if code is module else set()  # else of a class body
        for instruction in dis.get_instructions(code):
            line = starts.get(instruction.offset) or line
            operation, name = instruction.opname, instruction.argval
            if operation == "STORE_NAME":
                own.add(name)
            elif operation == "STORE_GLOBAL":
                given.add(name)
            elif operation in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS") and name not in own:
                # Outside of the function there are only its defaults.
                where = f"line {line}, in a default" if code is module else f"line {line}"
                used[name] = min(used.get(name, (line, where)), (line, where))
    return {name: where for name, (_, where) in sorted(used.items(), key=lambda item: item[1])}, given


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, type(code)):
            yield from _codes(constant)


def _signature(function: FunctionType) -> Signature:
    import inspect
    from types import FunctionType

    # Of a twin without annotations, because looking at a signature may evaluate them (3.14).
    twin = FunctionType(function.__code__, {}, function.__name__, function.__defaults__, function.__closure__)
    twin.__kwdefaults__ = function.__kwdefaults__
    return inspect.signature(twin)
