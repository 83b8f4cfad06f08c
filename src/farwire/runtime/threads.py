"""Starting threads without paying for ``threading`` in a worker that does not use it."""

from __future__ import annotations

import sys
from _thread import allocate_lock, start_new_thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


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


def import_threading() -> Any:
    """``threading``, knowing which thread is the main one. For threads that run user code; not under a lock.

    Before 3.13 the thread that imports it first is taken for the main thread; here that may be any.
    """
    with _import_lock:
        import threading

        main = threading.main_thread()
        ident = main_thread_ident()
        if main.ident != ident and sys.version_info < (3, 13):
            active: Any = threading._active  # type: ignore[attr-defined]
            active.pop(main.ident, None)
            main._ident = ident  # type: ignore[attr-defined]
            active[ident] = main
        return threading


_import_lock = allocate_lock()
