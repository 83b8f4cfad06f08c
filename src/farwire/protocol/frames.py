"""The unit on the wire: a ten byte header, then the payload.

    payload length   u32   little endian, at most MAX_PAYLOAD
    channel          u32   0 for the link itself
    kind             u8    one of the constants below
    code             u8    meaning depends on the kind

``docs/protocol.md`` is the specification; the test vectors in ``tests/protocol`` freeze it.
"""

from __future__ import annotations

from struct import Struct

VERSION = 1

HEADER = Struct("<IIBB")
HEADER_SIZE = 10
# A frame is the unit of turn-taking between channels: at 0.5 GB/s, 256 KiB hold the line for half a millisecond.
FRAGMENT = 256 * 1024
# Items up to this size travel in one frame; copying so little costs less than a second frame.
INLINE_MAX = 64 * 1024
MAX_PAYLOAD = 1024 * 1024
# What a queued item costs its receiver besides its bytes (tuple, bytes object, deque slot: 100-130 bytes on CPython),
# charged to the credit, so that a million empty items are bounded as a megabyte of data is.
ITEM_COST = 128
WINDOW = 8 * 1024 * 1024
# Credit comes back when half a window is consumed. So an item in one frame must not cost more than half of it, or it could wait
# for credit that is never given.
MIN_WINDOW = 4 * INLINE_MAX
MAX_ITEM = 1 << 40
MAX_ID = (1 << 32) - 1
# So many channels of its numbers may an end have open at a time: some 200 MB at each end, where they are Python objects.
MAX_CHANNELS = 65536
MAX_HELLO = 64 * 1024
MAX_PING = 64
# So many answers (PONG, CLOSE) may wait to be written; a peer that makes us queue more does not read what it asks for.
MAX_ANSWERS = 65536

HELLO = 1  # text lines "key=value"; first frame of each side
EXEC = 2  # controller -> worker: open this channel and run a task with it; code: kind of task
ITEM = 3  # one whole item; code: its format (codec)
LARGE = 4  # a larger item begins; payload: u64 total size; code: its format
PART = 5  # the next bytes of the item begun by LARGE
ABORT = 6  # the item begun by LARGE will not be finished; forget its parts
CREDIT = 7  # payload: u64, so many more bytes may be sent on this channel
EOF = 8  # the sender of this sends no more on this channel
CLOSE = 9  # the channel is closed; payload: empty, or an encoded error; code: format of the error
REQUEST = 10  # channel: number of the request; code: what is asked
REPLY = 11  # channel: number of the request; code: format; payload: the answer
PING = 12  # payload is returned
PONG = 13
SIGNAL = 14  # controller -> worker: deliver signal number `code` to the worker's process
GOODBYE = 15  # no new tasks; the worker ends when its tasks have, the peer answers by closing the link
RAW = 16  # bytes without item borders (output on channel 0, relayed links); code: which stream
MODULES = 17  # controller -> worker, once: the shipped modules that the worker started without

NAMES = {
    HELLO: "HELLO",
    EXEC: "EXEC",
    ITEM: "ITEM",
    LARGE: "LARGE",
    PART: "PART",
    ABORT: "ABORT",
    CREDIT: "CREDIT",
    EOF: "EOF",
    CLOSE: "CLOSE",
    REQUEST: "REQUEST",
    REPLY: "REPLY",
    PING: "PING",
    PONG: "PONG",
    SIGNAL: "SIGNAL",
    GOODBYE: "GOODBYE",
    RAW: "RAW",
    MODULES: "MODULES",
}

# REQUEST codes
STATUS = 1
INFO = 2
STACKS = 3

# EXEC codes
TASK_EXEC = 1  # text run as a module body
TASK_CALL = 2  # text defines a function, which is called
TASK_SERVICE = 3  # a built-in service of the worker (relay), run on its I/O side

# RAW codes on channel 0
STDOUT = 1
STDERR = 2

MARKER_HEAD = "\0far"
MARKER_TAIL = "wire\0"


def marker(nonce: str) -> bytes:
    """What a worker writes before its first frame.

    The nonce is sent to the worker and comes back reversed between two halves that are never joined in
    anything sent, so a program that echoes its input is not taken for a worker.

    Args:
        nonce: the controller's random text for this start, hexadecimal.
    """
    return (MARKER_HEAD + MARKER_TAIL + nonce[::-1] + "\0").encode()


def frame(kind: int, channel: int = 0, payload: bytes = b"", code: int = 0) -> bytes:
    """One complete frame as bytes."""
    return HEADER.pack(len(payload), channel, kind, code) + payload
