"""An exception on its way to the other end: type, message, traceback text, notes, causes.

Imported when something fails, so it may import ``traceback``.
"""

from __future__ import annotations

import traceback

from ..protocol.codec import Encoder
from ..protocol.errors import LoadError, RemoteError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

# An error fits one frame even when a message carries a megabyte of data.
MAX_TEXT = 100_000
MAX_CAUSES = 8


def format_exception(exc: BaseException) -> str:
    """The traceback as Python prints it, with its causes, without our own frames at its start."""
    return _describe(exc)["formatted"]  # type: ignore[no-any-return]


def _format_one(exc: BaseException) -> str:
    """The traceback of one exception without its causes: a long chain would be formatted once for each of them."""
    try:
        tb = _get_traceback(exc)
        while tb is not None and tb.tb_frame.f_globals.get("__name__", "").startswith(("_farwire.", "farwire.")):
            tb = tb.tb_next
        return _cut("".join(traceback.format_exception(type(exc), exc, tb, chain=False)))
    except BaseException as fault:  # noqa: BLE001 - a broken __str__ or __repr__ must not replace the error by its own
        return "%s (its traceback cannot be formatted: %s)\n" % (type(exc).__name__, type(fault).__name__)


def _cut(text: str) -> str:
    if len(text) <= MAX_TEXT:
        return text
    half = MAX_TEXT // 2
    return "%s\n... %d characters left out ...\n%s" % (text[:half], len(text) - 2 * half, text[-half:])


def _message(exc: BaseException) -> str:
    try:
        return _cut(str(exc))
    except BaseException as fault:  # noqa: BLE001 - as above
        return "<no message: str() raised %s>" % type(fault).__name__


def _notes(exc: BaseException) -> list[str]:
    try:
        notes = getattr(exc, "__notes__", ())
        return [_cut(str(note)) for note in notes][:20] if isinstance(notes, (list, tuple)) else []
    except BaseException as fault:  # noqa: BLE001 - as above
        return ["<no notes: they raised %s>" % type(fault).__name__]


def _typename(exc: BaseException) -> str:
    cls = type(exc)
    return (
        cls.__qualname__ if cls.__module__ in ("builtins", "__main__") else "%s.%s" % (cls.__module__, cls.__qualname__)
    )


# From the base class, because a class of user code may get in the way of its own attributes.
_get_traceback = BaseException.__dict__["__traceback__"].__get__
_get_cause = BaseException.__dict__["__cause__"].__get__
_get_context = BaseException.__dict__["__context__"].__get__
_is_suppressed = BaseException.__dict__["__suppress_context__"].__get__
CAUSE = "\nThe above exception was the direct cause of the following exception:\n\n"
CONTEXT = "\nDuring handling of the above exception, another exception occurred:\n\n"


def _describe(exc: Any, depth: int = 0) -> dict[str, Any]:
    if issubclass(type(exc), RemoteError):
        found: dict[str, Any] = {
            "type": exc.typename,
            "message": exc.message,
            "formatted": exc.formatted,
            "notes": list(exc.notes),
        }
        own = None  # holds its causes already
    else:
        own = _format_one(exc)
        found = {"type": _typename(exc), "message": _message(exc), "formatted": own, "notes": _notes(exc)}
    cause, words = _get_cause(exc), CAUSE
    if cause is None and not _is_suppressed(exc):
        cause, words = _get_context(exc), CONTEXT
    if cause is not None and depth < MAX_CAUSES:
        found["cause"] = _describe(cause, depth + 1)
        if own is not None:
            found["formatted"] = _cut(found["cause"]["formatted"] + words + own)
    return found


def encode_error(error: str | BaseException) -> tuple[bytes, int]:
    """Payload and code of a CLOSE frame.

    Raises:
        TypeError: not a text and not an exception.
    """
    if issubclass(type(error), str):
        text = _cut(str(error))
        found: dict[str, Any] = {"type": "", "message": text, "formatted": text, "notes": []}
    elif issubclass(type(error), BaseException):
        found = _describe(error)
    else:
        raise TypeError("close(error=...) takes a text or an exception, not %s" % type(error).__name__)
    code, payload = Encoder(4, type(None), _no_channel).encode(found)
    if isinstance(payload, list):
        payload = b"".join(payload)
    if len(payload) > 900_000:  # a chain of huge messages
        found.pop("cause", None)
        code, payload = Encoder(4, type(None), _no_channel).encode(found)
        if isinstance(payload, list):
            payload = b"".join(payload)
    return bytes(payload), code


def decode_error(decode: Callable[[int, Any], Any], code: int, payload: bytes) -> RemoteError:
    """The error of a CLOSE frame; a malformed one becomes an error that says so."""
    try:
        return _build(decode(code, payload))
    except (LoadError, KeyError, TypeError, AttributeError) as fault:
        return RemoteError("the other end closed the channel with an error that cannot be read: %r" % (fault,))


def report_unseen(core: Any, error: BaseException) -> None:
    """A task failed, and its channel was dropped without anybody asking: it is said on stderr."""
    import sys

    text = "farwire: the task of channel %d, gateway %s, failed, and nobody received its error:\n%s\n" % (
        core.id,
        core.link.gateway.id,
        str(error).rstrip("\n"),
    )
    try:
        sys.stderr.write(text)
    except Exception:  # noqa: BLE001 - closed, or None at the end of the interpreter: there is nowhere else to say it
        pass


def _build(found: dict[str, Any], depth: int = 0) -> RemoteError:
    cause = found.get("cause")
    return RemoteError(
        str(found["formatted"]),
        str(found["type"]),
        str(found["message"]),
        [str(note) for note in found["notes"]],
        _build(cause, depth + 1) if cause is not None and depth < MAX_CAUSES + 2 else None,
    )


def _no_channel(channel: Any) -> int:
    raise AssertionError("an error holds no channel")


def add_source(filename: str, text: str) -> None:
    """Let tracebacks show lines of code that exists in memory only."""
    import linecache

    # Each line with its end: by that the traceback of Python 3.11 counts where its carets go.
    linecache.cache[filename] = (len(text), None, [line + "\n" for line in text.splitlines()], filename)
