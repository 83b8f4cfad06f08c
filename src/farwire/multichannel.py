"""Several channels as one."""

from __future__ import annotations

from time import monotonic

from .errors import RemoteError
from .runtime.channel import NO_ENDMARKER, Channel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from queue import SimpleQueue
    from typing import Any


class MultiChannel:
    """A list of channels with the operations of one.

    Args:
        channels: the channels, in the order in which results are returned.
    """

    def __init__(self, channels: Iterable[Channel]) -> None:
        self._channels = list(channels)
        self._queue: SimpleQueue[tuple[Channel, Any]] | None = None

    def __len__(self) -> int:
        return len(self._channels)

    def __iter__(self) -> Iterator[Channel]:
        return iter(self._channels)

    def __getitem__(self, index: int) -> Channel:
        return self._channels[index]

    def __contains__(self, channel: object) -> bool:
        return channel in self._channels

    def __repr__(self) -> str:
        return f"<MultiChannel {self._channels}>"

    def send_each(self, item: Any, timeout: float | None = None) -> None:
        """Send ``item`` to every channel (see ``Channel.send``)."""
        deadline = None if timeout is None else monotonic() + timeout
        for channel in self._channels:
            channel.send(item, timeout=_left(deadline))

    def receive_each(self, withchannel: bool = False, timeout: float | None = None) -> list[Any]:
        """Receive one item from every channel.

        Args:
            withchannel: return ``(channel, item)`` pairs.
            timeout: seconds for all of them together.

        Raises:
            What ``Channel.receive`` raises, for the first channel that does.
        """
        if self._queue is not None:
            raise OSError("there is a receive queue for these channels: get items from it")
        deadline = None if timeout is None else monotonic() + timeout
        items = []
        for channel in self._channels:
            item = channel.receive(timeout=_left(deadline))
            items.append((channel, item) if withchannel else item)
        return items

    def make_receive_queue(self, endmarker: Any = NO_ENDMARKER) -> SimpleQueue[tuple[Channel, Any]]:
        """A standard queue that gets ``(channel, item)`` for everything that comes.

        Args:
            endmarker: if given, ``(channel, endmarker)`` is put when a channel ends.
        """
        from queue import SimpleQueue

        if self._queue is None:
            queue: SimpleQueue[tuple[Channel, Any]] = SimpleQueue()
            self._queue = queue
            for channel in self._channels:
                _put_into(queue, channel, endmarker)
        return self._queue

    def waitclose(self, timeout: float | None = None) -> None:
        """Wait until every channel is closed.

        Raises:
            RemoteError: the first error of any of them, when all are closed.
            TimeoutError: some are still open.
        """
        deadline = None if timeout is None else monotonic() + timeout
        first: BaseException | None = None
        for channel in self._channels:
            try:
                channel.waitclose(timeout=_left(deadline))
            except (RemoteError, EOFError) as error:
                first = first or error
        if first is not None:
            raise first


def _put_into(queue: SimpleQueue[tuple[Channel, Any]], channel: Channel, endmarker: Any) -> None:
    channel.setcallback(lambda item: queue.put((channel, item)), endmarker)


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - monotonic())
