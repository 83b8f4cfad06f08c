"""A task as the payload of an EXEC frame (the worker's side is ``worker/tasks.py``)."""

from __future__ import annotations

from struct import Struct

from .errors import SourceError
from .protocol.frames import MAX_PAYLOAD

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .source import Task

TASK_HEADER = Struct("<IIIIB")


def pack_task(task: Task, encode: Callable[[Any], tuple[int, Any]]) -> bytes:
    """Lengths, first line, format of the keyword arguments; then file name, name, text, keyword arguments.

    Raises:
        DumpError: a keyword argument cannot be sent.
        SourceError: it is larger than a frame; large data belongs on the channel.
    """
    filename = task.filename.encode("utf-8", "surrogateescape")
    name = task.name.encode()
    text = task.text.encode("utf-8", "surrogatepass")
    code, arguments = 0, b""
    if task.kwargs:
        code, payload = encode(task.kwargs)
        arguments = b"".join(payload) if isinstance(payload, list) else bytes(payload)
    head = TASK_HEADER.pack(len(filename), len(name), len(text), task.firstlineno, code)
    total = len(head) + len(filename) + len(name) + len(text) + len(arguments)
    if total > MAX_PAYLOAD:
        raise SourceError(
            f"the task is {total} bytes, at most {MAX_PAYLOAD} fit; send large data through the channel instead"
        )
    return b"".join((head, filename, name, text, arguments))
