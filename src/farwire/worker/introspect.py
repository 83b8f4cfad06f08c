"""Answers about the worker, given by the reading thread while user code is busy; so it imports next to nothing."""

from __future__ import annotations

import os
import sys

from ..runtime.threads import main_thread_ident

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .main import Worker


def status(worker: Worker) -> dict[str, Any]:
    """What goes on."""
    link = worker.link
    return {
        "numchannels": sum(1 for id in list(link.connection.channels) if id),
        "numexecuting": worker.tasks.executing,
        "numqueued": worker.tasks.queued,
        "execmodel": worker.tasks.execmodel,
    }


def info() -> dict[str, Any]:
    """What kind of Python this is, and where."""
    try:
        cwd = os.getcwd()
    except OSError:  # removed meanwhile
        cwd = ""
    return {
        "executable": sys.executable,
        "version_info": tuple(sys.version_info),
        "implementation": sys.implementation.name,
        "platform": sys.platform,
        "cwd": cwd,
        "pid": os.getpid(),
    }


def stacks() -> str:
    """The stacks of all threads, newest call last."""
    names = {main_thread_ident(): "main thread"}
    threading = sys.modules.get("threading")
    if threading is not None:
        for ident, thread in list(getattr(threading, "_active", {}).items()):
            names.setdefault(ident, thread.name)
    lines = []
    for ident, frame in sys._current_frames().items():
        lines.append("Thread %#x (%s):" % (ident, names.get(ident, "farwire I/O or unnamed")))
        found: list[str] = []
        at: Any = frame
        while at is not None and len(found) < 200:
            code = at.f_code
            found.append('  File "%s", line %s in %s' % (code.co_filename, at.f_lineno, code.co_name))
            at = at.f_back
        lines.extend(reversed(found))
        lines.append("")
    text = "\n".join(lines)
    # One frame takes a megabyte; of so many threads nobody reads all.
    return text if len(text) < 200_000 else text[:200_000] + "\n... (cut)"
