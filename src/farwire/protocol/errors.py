"""The errors that exist at both ends of a link.

    FarwireError
     +-- ProtocolError              the peer (or the line) sent bytes that are not the protocol
     +-- DataFormatError (ValueError)
     |    +-- DumpError             an item cannot be sent; says where in the item the bad value is
     |    +-- LoadError             bytes that are not an item
     +-- RemoteError                code at the other end raised
     +-- TimeoutError               (also the builtin TimeoutError) a wait took longer than its timeout
     +-- ChannelClosed (OSError)    the channel was closed, at this end or the other
     +-- GatewayLost (EOFError, OSError)   the connection to the other end is gone

The controller's further errors are in ``farwire.errors``, which re-exports these.
"""

from __future__ import annotations

import builtins

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


class FarwireError(Exception):
    """Base of every error that farwire raises on its own account."""


class ProtocolError(FarwireError):
    """The peer sent bytes that are not the protocol; the link is closed."""


class DataFormatError(FarwireError, ValueError):
    """An item cannot be converted to bytes or back."""


class DumpError(DataFormatError):
    """An item holds a value that cannot be sent; the message gives its path."""


class LoadError(DataFormatError):
    """Received bytes are not a valid item."""


class TimeoutError(FarwireError, builtins.TimeoutError):
    """A wait took longer than its timeout. Also the builtin ``TimeoutError``."""


class ChannelClosed(FarwireError, OSError):
    """The operation needs a channel that is open in that direction, and it is closed."""


class GatewayLost(FarwireError, EOFError, OSError):
    """The worker died or the link to it broke.

    It is an ``EOFError`` for whoever receives and an ``OSError`` for whoever sends, so that code written
    for execnet catches it in both places; unlike a plain ``EOFError`` it also ends an iteration with an
    error, because a dead worker must not look like the end of the data.
    """

    def __str__(self) -> str:
        # OSError.__str__ would print "[Errno ...]" for two arguments; ours always has one text.
        return str(self.args[0]) if self.args else ""


class RemoteError(FarwireError):
    """Code at the other end of a channel raised an exception.

    Attributes:
        typename: the qualified name of the remote exception's type, ``"builtins.ValueError"`` as ``"ValueError"``.
        message: ``str()`` of the remote exception.
        formatted: the remote traceback as text, with source lines.
        notes: texts added with ``add_note`` at the other end.

    ``__cause__`` is the ``RemoteError`` of the remote ``__cause__`` or, failing that, ``__context__``.
    """

    def __init__(
        self,
        formatted: str,
        typename: str = "",
        message: str = "",
        notes: Sequence[str] = (),
        cause: RemoteError | None = None,
    ) -> None:
        Exception.__init__(self, formatted)
        self.formatted = formatted
        self.typename = typename
        self.message = message
        self.notes = list(notes)
        self.__cause__ = cause

    def __str__(self) -> str:
        return self.formatted

    def __repr__(self) -> str:
        return "<RemoteError %s: %s>" % (self.typename, self.message)

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.formatted, self.typename, self.message, self.notes, self.__cause__))

    def warn(self) -> None:
        """Print the error to stderr, as an error that nobody waits for."""
        import sys

        sys.stderr.write("Warning: unhandled %s\n" % self.formatted)


def of_signal(error: BaseException) -> bool:
    """Whether it comes out of a signal's handler that is user code, which may run within anything that the main thread does."""
    import _signal

    codes = set()
    for number in range(1, _signal.NSIG):
        try:
            handler = _signal.getsignal(number)
        except (OSError, ValueError):
            continue
        if not hasattr(handler, "__code__"):
            handler = getattr(type(handler), "__call__", None)  # noqa: B004 - its code is wanted, not whether it can be called
        codes.add(getattr(handler, "__code__", None))
    codes.discard(None)
    tb = error.__traceback__
    while tb is not None and codes:
        if tb.tb_frame.f_code in codes:
            return True
        tb = tb.tb_next
    return False
