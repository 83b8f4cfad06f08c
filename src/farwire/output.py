"""Where the workers' stdout and stderr go.

One thread per process writes them, because the file may block (a pager, a test's capture) and the reactor may not. Each gateway
may have ``BACKLOG`` bytes on their way here; then its output is not read until some are written, and the worker's ``print`` waits.
"""

from __future__ import annotations

import os
import sys
from _thread import allocate_lock, get_ident
from collections import deque
from time import monotonic

from .runtime.stream import MERGED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeAlias

    Written: TypeAlias = Callable[[int], object]

    Output: TypeAlias = str | Callable[[str, str, bytes], object] | Any | None

BACKLOG = 256 * 1024


class _Piece:
    """Some output of one gateway."""

    __slots__ = ("data", "gateway_id", "sink", "stream", "written")

    def __init__(self, sink: Output, gateway_id: str, stream: str, data: bytes, written: Written | None) -> None:
        self.sink = sink
        self.gateway_id = gateway_id
        self.stream = stream
        self.data = data
        self.written = written


class OutputPump:
    """Takes pieces of output from any thread, writes them in order in its own."""

    def __init__(self) -> None:
        import threading

        self._condition = threading.Condition(threading.Lock())
        self._queue: deque[_Piece] = deque()
        self._last: dict[tuple[str, str], _Piece] = {}  # gateway, stream -> the last of its pieces in the queue
        self._thread: threading.Thread | None = None
        self._unwritten: dict[str, int] = {}  # gateway -> pieces queued, or being written
        self._midline: dict[str, str] = {}  # "stdout", "stderr" -> the gateway whose unfinished line is there
        self._drains: list[Any] = []  # locks of threads in drain()
        self._stopping = False

    def put(self, sink: Output, gateway_id: str, stream: str, data: bytes, written: Written | None) -> None:
        """Queue ``data``; ``written(count)`` is called when so many bytes of it are written, alone or with what came after."""
        with self._condition:
            last = self._last.get((gateway_id, stream))
            if (
                last is not None
                and last.sink is sink
                and last.written == written
                and len(last.data) + len(data) <= MERGED
            ):
                last.data += data
                return
            piece = self._last[gateway_id, stream] = _Piece(sink, gateway_id, stream, data, written)
            self._queue.append(piece)
            self._unwritten[gateway_id] = self._unwritten.get(gateway_id, 0) + 1
            self._start()
            self._condition.notify()

    def start_early(self) -> None:
        """Start the thread now: none can be started while the interpreter ends."""
        with self._condition:
            self._start()

    def _start(self) -> None:
        import threading

        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="farwire-output", daemon=True)
            self._thread.start()

    def drain(self, gateway_ids: set[str], timeout: float) -> bool:
        """Wait until everything queued of these gateways is written. Returns False when that takes longer."""
        if self._thread is None or get_ident() == self._thread.ident:
            return not self._queue
        deadline = monotonic() + timeout
        while True:
            with self._condition:
                if gateway_ids.isdisjoint(self._unwritten):
                    return True
                written = allocate_lock()
                written.acquire()
                self._drains.append(written)
            left = deadline - monotonic()
            if left <= 0 or not written.acquire(True, left):
                return False

    def stop(self, timeout: float) -> None:
        """Write what is queued, end the thread."""
        with self._condition:
            self._stopping = True
            thread = self._thread
            self._condition.notify()
        if thread is not None:
            thread.join(timeout)

    def _run(self) -> None:
        while True:
            with self._condition:
                while not self._queue:
                    if self._stopping:
                        return
                    self._condition.wait()
                piece = self._queue.popleft()
                gateway_id, stream = piece.gateway_id, piece.stream
                if self._last.get((gateway_id, stream)) is piece:
                    del self._last[gateway_id, stream]
            try:
                self._write(piece.sink, gateway_id, stream, piece.data)
            except BaseException as exc:  # noqa: BLE001 - said on the last resort
                # The sink is user code or a closed file: the worker's output is lost, which is said once per piece on the
                # last resort; raising here would end everybody's output.
                _last_resort(f"farwire: output of {gateway_id} cannot be written: {exc!r}\n")
            if piece.written is not None:
                piece.written(len(piece.data))
            with self._condition:
                left = self._unwritten.pop(gateway_id) - 1
                if left:
                    self._unwritten[gateway_id] = left
                else:
                    while self._drains:
                        self._drains.pop().release()

    def _write(self, sink: Output, gateway_id: str, stream: str, data: bytes) -> None:
        if callable(sink):
            sink(gateway_id, stream, data)
        elif sink is None or sink == "forward":
            file = sys.stdout if stream == "stdout" else sys.stderr
            if file is not None:
                self._write_tagged(file, gateway_id, stream, data)
        elif hasattr(sink, "write"):
            self._write_file(sink, data)

    def _write_tagged(self, file: Any, gateway_id: str, stream: str, data: bytes) -> None:
        tag = f"[{gateway_id}] ".encode()
        pieces = data.split(b"\n")
        out = []
        for other, holder in list(self._midline.items()):
            if (other, holder) != (stream, gateway_id) and (other == stream or _same_file()):
                # somebody else's line is open: end it rather than mix two gateways in one line
                out.append(b"\n")
                del self._midline[other]
        for i, piece in enumerate(pieces):
            last = i == len(pieces) - 1
            if last and not piece:
                break
            if i > 0 or stream not in self._midline:
                out.append(tag)
            out.append(piece)
            if not last:
                out.append(b"\n")
        self._midline.pop(stream, None)
        if not data.endswith(b"\n"):
            self._midline[stream] = gateway_id
        self._write_file(file, b"".join(out))

    @staticmethod
    def _write_file(file: Any, data: bytes) -> None:
        buffer = getattr(file, "buffer", None)
        if buffer is not None:
            file.flush()
            buffer.write(data)
            buffer.flush()
            return
        import io

        if isinstance(file, (io.RawIOBase, io.BufferedIOBase)):
            file.write(data)
        else:
            try:
                file.write(data.decode("utf-8", "replace"))
            except TypeError:  # a binary file that is not of the io classes
                file.write(data)
        file.flush()


def _same_file() -> bool:
    """Whether our stdout and stderr are one terminal, pipe or file."""
    try:
        return os.path.samestat(os.fstat(sys.stdout.fileno()), os.fstat(sys.stderr.fileno()))
    except (OSError, ValueError, AttributeError):  # no files, or closed
        return False


def _last_resort(text: str) -> None:
    try:
        os.write(2, text.encode())
    except OSError:  # no stderr either
        pass
