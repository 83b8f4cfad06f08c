"""Where a signal may raise: read from the bytecode, because no test that waits for the wrong moment finds it often enough.

A signal's handler runs in the main thread after a call and at a jump back to the beginning of a loop. CPython 3.12 and 3.13 compile some
of those jumps to a place that the ``with`` or ``try`` around the loop does not cover (the second test of a ``while``; a body that ends in
an ``if``): an exception that comes there leaves a lock locked, or a flag set, for ever.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType

import pytest

import farwire

PACKAGE = Path(farwire.__file__).parent
# What the main thread may be in when it uses gateways and channels.
FILES = [
    *sorted((PACKAGE / "runtime").glob("*.py")),
    PACKAGE / "gateway.py",
    PACKAGE / "output.py",
    PACKAGE / "transports" / "socket.py",
    PACKAGE / "transports" / "via.py",
    PACKAGE / "worker" / "tasks.py",
]
# These run in threads of ours only, where no signal raises; or have nothing to give back.
ELSEWHERE = {
    "Dispatcher._one",
    "OutputPump._run",
    "RawInput.attach",
    "TlsFilter._decrypt",
    "Tasks.close",
    "_format_one",
    "_Stream.drain",
}


def codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes(constant)


def loops_that_leave_their_block(code: CodeType) -> list[int]:
    """Lines of loops, of which the beginning is covered by a handler and the jump back to it is not."""
    instructions = list(dis.get_instructions(code))
    # Not what the compiler makes for comprehensions and generators.
    blocks = {each.offset for each in instructions if each.opname == "PUSH_EXC_INFO"}
    entries = [each for each in dis.Bytecode(code).exception_entries if each.target in blocks]  # type: ignore[attr-defined]

    def handlers(offset: int) -> set[int]:
        return {entry.target for entry in entries if entry.start <= offset < entry.end}

    found = []
    line = code.co_firstlineno
    for instruction in instructions:
        if instruction.positions is not None and instruction.positions.lineno:  # type: ignore[attr-defined]
            line = instruction.positions.lineno  # type: ignore[attr-defined]
        if "JUMP_BACKWARD" in instruction.opname and not handlers(instruction.argval) <= handlers(instruction.offset):
            found.append(line)
    return found


@pytest.mark.skipif(sys.version_info < (3, 12), reason="older ones cover all of a block")
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_no_loop_leaves_its_block(file: Path) -> None:
    code = compile(file.read_text(), str(file), "exec")
    wrong = [
        f"{each.co_qualname}, line {line}"
        for each in codes(code)
        for line in loops_that_leave_their_block(each)
        if each.co_qualname not in ELSEWHERE
    ]
    assert not wrong, "move the loop into a function of its own, or let its body end in a plain statement"


@pytest.mark.skipif(not (3, 12) <= sys.version_info < (3, 14), reason="a property of these versions")
def test_it_is_found() -> None:
    text = "def f(self):\n    with self.lock:\n        while self.more():\n            pass\n"
    assert any(loops_that_leave_their_block(code) for code in codes(compile(text, "text", "exec")))
