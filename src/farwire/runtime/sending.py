"""Sending what is large, or has to wait for credit or its turn.

Imported with the first such item: a worker starts without it.
"""

from __future__ import annotations

from struct import Struct
from time import monotonic

from ..protocol.connection import can_send
from ..protocol.errors import TimeoutError
from ..protocol.frames import ABORT, FRAGMENT, HEADER, INLINE_MAX, ITEM_COST, LARGE, PART
from .channel import valid
from .link import Fragment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .channel import Channel, ChannelCore
    from .link import Link

_pack = HEADER.pack
_U64 = Struct("<Q")


def send_waiting(channel: Channel, code: int, payload: Any, timeout: float | None) -> None:
    """``Channel.send`` of what cannot go out at once, in one frame. Called without locks and roles."""
    core = channel._core
    link = core.link
    deadline = None if timeout is None else monotonic() + valid(timeout)
    chunks = [payload] if not isinstance(payload, list) else payload
    total = sum(memoryview(chunk).nbytes for chunk in chunks)
    small = b"".join(chunks) if total <= INLINE_MAX else None
    while True:
        if small is not None and link.send_small(core, code, small):
            return
        with link.lock:
            if link.closed is not None or not can_send(core):
                raise core.send_error()
            waiter = None
            if small is None and not core.sending_large:
                core.sending_large = True
            elif core.sending_large or core.credit < total + ITEM_COST:
                waiter = core.add_sender()
            else:
                continue  # credit came meanwhile
        if waiter is None:
            _send_large(link, core, code, chunks, total, deadline)
            return
        if not link.wait(waiter, deadline):
            with link.lock:
                core.remove_sender(waiter)
            raise TimeoutError(
                "channel %d of gateway %s: not sent within %s seconds; the other end does not receive"
                % (channel.id, link.gateway.id, timeout)
            )


def _send_large(
    link: Link, core: ChannelCore, code: int, chunks: list[Any], total: int, deadline: float | None
) -> None:
    """Send an item in fragments; returns when the last is written, so that no view of the caller's data is kept.

    Raises:
        TimeoutError: the deadline passed first; the item is withdrawn, the receiver never sees it.
        ChannelClosed, GatewayLost.
    """
    with link.lock:
        core.sending_large = True  # taken by the caller, who saw it False under Channel's send turn
    complete = False
    announced = False
    try:
        _take_credit(link, core, ITEM_COST, ITEM_COST, deadline)
        with link.lock:
            link.out.append(_pack(8, core.id, LARGE, code) + _U64.pack(total))
            announced = True
        for chunk in chunks:
            view = memoryview(chunk)
            size = len(view)
            pos = 0
            while pos < size:
                count = _take_credit(link, core, 1, min(FRAGMENT, size - pos), deadline)
                fragment = Fragment([_pack(count, core.id, PART, 0), view[pos : pos + count]])
                with link.lock:
                    if link.closed is not None:
                        raise link.lost()
                    link.bulk.append(fragment)
                _write_fragment(link, fragment, core, deadline)
                pos += count
        complete = True
    finally:
        with link.lock:
            core.sending_large = False
            if announced and not complete and link.closed is None and can_send(core):
                link.out.append(_pack(0, core.id, ABORT, 0))
            core.wake_senders()
        link.flush()


def _write_fragment(link: Link, fragment: Fragment, core: ChannelCore, deadline: float | None) -> None:
    while True:
        link.flush()
        if fragment.done:
            if link.closed is not None:
                raise link.lost()
            return
        if not fragment.wait(deadline):
            with link.lock:
                if fragment in link.bulk:
                    # not a byte of it is written: take it back, with its credit
                    link.bulk.remove(fragment)
                    core.credit += len(fragment.buffers[1])
                elif not fragment.done:
                    fragment.own()
            raise TimeoutError(
                "channel %d of gateway %s: the item was not sent in time; the worker does not read"
                % (core.id, link.gateway.id)
            )


def _take_credit(link: Link, core: ChannelCore, least: int, most: int, deadline: float | None) -> int:
    """Wait for credit and take it. Returns how much, between ``least`` and ``most``."""
    while True:
        with link.lock:
            if link.closed is not None:
                raise link.lost()
            if not can_send(core):
                raise core.send_error()
            if core.credit >= least:
                count = min(core.credit, most)
                core.credit -= count
                return count
            waiter = core.add_sender()
        if not link.wait(waiter, deadline):
            with link.lock:
                core.remove_sender(waiter)
            raise TimeoutError(
                "channel %d of gateway %s: no credit in time; the other end does not receive"
                % (core.id, link.gateway.id)
            )
