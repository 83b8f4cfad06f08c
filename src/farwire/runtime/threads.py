"""Starting threads without paying for ``threading`` in a worker that does not use it."""

from __future__ import annotations

import sys
from _thread import start_new_thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def start_thread(target: Callable[[], None], name: str) -> None:
    """Start a daemon thread.

    Importing ``threading`` costs a starting worker some milliseconds, so where nobody has imported it the thread is a bare one.
    """
    threading = sys.modules.get("threading")
    if threading is not None and hasattr(threading, "Thread"):
        threading.Thread(target=target, name=name, daemon=True).start()
    else:
        start_new_thread(target, ())


def main_thread_ident() -> int:
    """The identifier of the main thread; valid when called from there or after ``remember_main_thread``."""
    return _main_ident


def remember_main_thread(ident: int) -> None:
    """Say which thread receives signals."""
    global _main_ident
    _main_ident = ident


_main_ident = 0
