"""Files on a channel, for code that wants to ``print`` into one or ``readline`` from one."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from .channel import Channel


class _ChannelFile:
    def __init__(self, channel: Channel, proxyclose: bool) -> None:
        self.channel = channel
        self._proxyclose = proxyclose
        self.closed = False

    def isatty(self) -> bool:
        """Never a terminal."""
        return False

    def close(self) -> None:
        """Close the file, and with ``proxyclose`` the channel."""
        self.closed = True
        if self._proxyclose:
            self.channel.close()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return "<%s on channel %d%s>" % (type(self).__name__, self.channel.id, " closed" if self.closed else "")


class ChannelFileWrite(_ChannelFile):
    """Each ``write`` is one item."""

    def write(self, text: Any) -> int:
        """Send a str or bytes. Raises OSError when the channel is closed."""
        self.channel.send(text)
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write each."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Nothing is held back."""

    def writable(self) -> bool:
        """Yes."""
        return True


class ChannelFileRead(_ChannelFile):
    """The items, all str or all bytes, as one stream."""

    def __init__(self, channel: Channel, proxyclose: bool) -> None:
        _ChannelFile.__init__(self, channel, proxyclose)
        self._buffer: Any = None

    def _more(self) -> bool:
        try:
            item = self.channel.receive()
        except EOFError as error:
            if isinstance(error, OSError):  # the worker died: not the end of the data
                raise
            return False
        if not isinstance(item, (str, bytes)):
            raise TypeError("a channel file reads str or bytes items, not %s" % type(item).__name__)
        self._buffer = item if self._buffer is None else self._buffer + item
        return True

    def _take(self, count: int) -> Any:
        if self._buffer is None:
            return ""
        found, self._buffer = self._buffer[:count], self._buffer[count:]
        return found

    def read(self, n: int = -1) -> Any:
        """Up to ``n`` characters (bytes), fewer only at the end; all of it when negative."""
        while n < 0 or self._buffer is None or len(self._buffer) < n:
            if not self._more():
                break
        return self._take(len(self._buffer or "") if n < 0 else n)

    def readline(self) -> Any:
        """The next line with its end, or what is left."""
        while True:
            buffer = self._buffer
            if buffer is not None:
                at = buffer.find("\n" if isinstance(buffer, str) else b"\n")
                if at >= 0:
                    return self._take(at + 1)
            if not self._more():
                return self._take(len(self._buffer or ""))

    def readable(self) -> bool:
        """Yes."""
        return True

    def __iter__(self) -> Iterator[Any]:
        while True:
            line = self.readline()
            if not line:
                return
            yield line
