"""Sending what is large, or has to wait for credit or its turn.

Imported with the first such item: a worker starts without it.
"""

from __future__ import annotations

from struct import Struct
from time import monotonic

from ..protocol.connection import can_send
from ..protocol.errors import TimeoutError
from ..protocol.frames import FRAGMENT, HEADER, INLINE_MAX, ITEM_COST, LARGE, PART
from .channel import ABORT_DUE, ANNOUNCED, valid
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
        if small is None and _send_large(link, core, code, chunks, total, deadline):
            return
        with link.lock:
            if link.closed is not None or not can_send(core):
                raise core.send_error()
            if not core.sending_large and (small is None or core.credit >= total + ITEM_COST):
                continue  # it is our turn, or credit came, meanwhile
            waiter = core.add_sender()
        if not link.wait(waiter, deadline):
            with link.lock:
                core.remove_sender(waiter)
            raise TimeoutError(
                "channel %d of gateway %s: not sent within %s seconds; the other end does not receive"
                % (channel.id, link.gateway.id, timeout)
            )


def _send_large(
    link: Link, core: ChannelCore, code: int, chunks: list[Any], total: int, deadline: float | None
) -> bool:
    """Send an item in fragments; returns when the last is written, so that no view of the caller's data is kept.

    A signal may raise after any call. So what belongs together (credit taken and its fragment queued, a flag set and the try
    that resets it) stands together, with no call in between.

    Returns:
        False when another thread sends one on this channel: wait for your turn.

    Raises:
        TimeoutError: the deadline passed first; the item is withdrawn, the receiver never sees it.
        ChannelClosed, GatewayLost.
    """
    mine = False
    try:
        with link.lock:
            if core.sending_large:
                return False
            core.sending_large = mine = True
        _send_parts(link, core, code, chunks, total, deadline)
    finally:
        if mine:
            core.sending_large = ABORT_DUE if core.sending_large == ANNOUNCED else 0
            with link.lock:
                core.wake_senders()
            link.settle(core)
    return True


def _send_parts(
    link: Link, core: ChannelCore, code: int, chunks: list[Any], total: int, deadline: float | None
) -> None:
    head = _pack(8, core.id, LARGE, code) + _U64.pack(total)
    while core.sending_large != ANNOUNCED:
        with link.lock:
            if _has_credit(link, core, ITEM_COST):
                core.credit -= ITEM_COST
                core.sending_large = ANNOUNCED
                link.out.append(head)
                break
            waiter = core.add_sender()
        _wait_credit(link, core, waiter, deadline)
    for chunk in chunks:
        view = memoryview(chunk)
        size = len(view)
        pos = 0
        while pos < size:
            with link.lock:
                fragment = waiter = None
                count = 0
                if _has_credit(link, core, 1):
                    count = min(core.credit, FRAGMENT, size - pos)
                    fragment = Fragment([_pack(count, core.id, PART, 0), view[pos : pos + count]], core)
                    core.credit -= count
                    link.bulk.append(fragment)
                else:
                    waiter = core.add_sender()
            if fragment is None:
                _wait_credit(link, core, waiter, deadline)
            else:
                _write_fragment(link, fragment, core, deadline)
                pos += count
    core.sending_large = True  # it is complete


def _has_credit(link: Link, core: ChannelCore, least: int) -> bool:
    if link.closed is not None:
        raise link.lost()
    if not can_send(core):
        raise core.send_error()
    return bool(core.credit >= least)


def _write_fragment(link: Link, fragment: Fragment, core: ChannelCore, deadline: float | None) -> None:
    while True:
        link.flush()
        if fragment.done:
            if link.closed is not None:
                raise link.lost()
            return
        if not fragment.wait(deadline):
            raise TimeoutError(
                "channel %d of gateway %s: the item was not sent in time; the worker does not read"
                % (core.id, link.gateway.id)
            )


def _wait_credit(link: Link, core: ChannelCore, waiter: Any, deadline: float | None) -> None:
    if not link.wait(waiter, deadline):
        with link.lock:
            core.remove_sender(waiter)
        raise TimeoutError(
            "channel %d of gateway %s: no credit in time; the other end does not receive" % (core.id, link.gateway.id)
        )
