"""Runs the callbacks of one gateway, one after another, in a thread of their own.

The thread starts before the first callback is set (where items arrive it may be too late: the interpreter starts no threads while
it ends) and ends with the link. Tokens (channel cores) are queued by whoever delivers an item; each stands for one item or for the end.
"""

from __future__ import annotations

from _collections import deque
from _thread import allocate_lock, get_ident

from ..protocol.state import CLOSING
from .threads import import_threading, start_thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .link import Link


class Dispatcher:
    """See the module."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self._tokens: deque[Any] = deque()
        self._wake = allocate_lock()
        self._wake.acquire()
        self._ident = 0
        self._name = "farwire-callbacks-%s" % link.gateway.id
        self.stopped = False  # guarded by the link's lock

    def start(self) -> None:
        """Start the thread. Raises RuntimeError if there can be no more of them."""
        start_thread(self._run, self._name)

    def submit(self, core: Any) -> None:
        """An item of ``core`` (or its end) is for its callback; called under the link's lock."""
        self._tokens.append(core)
        self._notify()

    def in_thread(self) -> bool:
        """Whether the caller is a callback."""
        return get_ident() == self._ident

    def stop(self) -> None:
        """End the thread when everything queued has run; called under the link's lock."""
        self.stopped = True
        self._tokens.append(None)
        self._notify()

    def _notify(self) -> None:
        # a released lock stays released: a binary semaphore; only one releaser at a time may find it locked
        if self._wake.locked():
            try:
                self._wake.release()
            except RuntimeError:  # another thread was faster
                pass

    def _run(self) -> None:
        self._ident = get_ident()
        # or user code that imports it here first would make this the main thread
        import_threading().current_thread().name = self._name
        while True:
            while self._tokens:
                core = self._tokens.popleft()
                if core is None:
                    return
                self._one(core)
            self._wake.acquire()

    def _one(self, core: Any) -> None:
        link = self.link
        with link.lock:
            if core.callback_done:
                return
            callback = core.callback
            entry = core.items.popleft() if core.items else None
            over = entry is None and (core.ended is not None or core.state >= CLOSING)
            core.in_callback = entry is not None
            if over:
                core.callback_done = True
        if entry is not None:
            try:
                from .channel import decode_entry

                callback(decode_entry(link, entry))
            except BaseException as exc:  # noqa: BLE001 - whatever user code raises goes to the other end and to stderr
                self._failed(core, exc)
            with link.lock:
                core.consumed += entry[2]
                core.in_callback = False
                core.pay_if_hungry()
                link.connection.grant(core)
            if link.out:
                link.flush()
        elif over:
            try:
                if not _is_default(core.endmarker):
                    callback(core.endmarker)
            except BaseException as exc:  # noqa: BLE001 - as above
                self._failed(core, exc)
            with link.lock:
                while core.closers:
                    core.closers.popleft().release()

    def _failed(self, core: Any, exc: BaseException) -> None:
        import sys

        from .remote_error import encode_error, format_exception

        sys.stderr.write(
            "farwire: a callback of channel %d, gateway %s, raised; the channel is closed\n%s"
            % (core.id, self.link.gateway.id, format_exception(exc))
        )
        payload, code = encode_error(exc)
        link = self.link
        with link.lock:
            core.items.clear()
            core.close(payload, code)
        link.flush()


def _is_default(endmarker: Any) -> bool:
    from .channel import NO_ENDMARKER

    return endmarker is NO_ENDMARKER
