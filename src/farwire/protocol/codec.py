"""Items to bytes and back.

An item travels as a one-byte code and a payload. Simple values have codes of their own; everything else is a
pickle of which only the data part is used:

    code             payload
    NONE TRUE FALSE  empty
    INT              8 bytes, signed, little endian
    BIGINT           1 or more bytes, two's complement, little endian
    FLOAT            8 bytes, IEEE 754, little endian
    STR              UTF-8; lone surrogates as their three-byte form ("surrogatepass")
    BYTES BYTEARRAY  the bytes
    PICKLE           a pickle, protocol 4 (peer on Python 3.6 or 3.7) or 5
    PICKLE_BUFFERS   a pickle and the large buffers it refers to:
                     u64 length of the pickle, u32 number of buffers N, u32 zero, N x u64 length of a buffer, the pickle,
                     and each buffer at the next multiple of 64 bytes from the start of the payload (zeros between)

The pickles name no class of anybody's. What is built in but has no opcode, and channels and arrays, are calls of names
in a module that does not exist, ``_farwire_items``; the decoder maps these names, and nothing else, to checked constructors:

    complex(float, float)    range(int, int, int)    slice(start, stop, step)    ellipsis()    notimplemented()
    bytearray(bytes)         only protocol 4; also as ``builtins.bytearray``
    bytes(data)              a memoryview: its contents
    ndarray(dtype, shape, order, data)
    channel(int)

where data is bytes or, in PICKLE_BUFFERS, the index of a buffer. Decoding runs no code that the peer chose, whatever the bytes.
It may use much memory or time: docs/items.md says what a hostile item can still do.
"""

from __future__ import annotations

import struct
import sys

from .errors import DumpError, LoadError, of_signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Union

    Chunk = Union[bytes, memoryview]
    Payload = Union[bytes, list[Chunk]]
    _Tools = tuple[
        Callable[[object], object], Callable[[], object], list[Any], Any
    ]  # dump, clear_memo, output, Pickler

# 0 is no code: a peer that sends zeros is noticed.
NONE = 1
TRUE = 2
FALSE = 3
INT = 4
BIGINT = 5
FLOAT = 6
STR = 7
BYTES = 8
BYTEARRAY = 9
PICKLE = 10
PICKLE_BUFFERS = 11

#: The highest pickle protocol that this interpreter can encode and decode; the ends use the lower one of theirs.
PROTOCOL = 5 if sys.version_info >= (3, 8) else 4

#: Codes of which a large payload is best received into something writable, a bytearray or a private mmap, which the decoded
#: item then keeps. Not into a BytesIO: when the garbage collector takes one apart of which there are views, CPython 3.12.1 crashes and
#: 3.13 prints a BufferError.
WRITABLE = frozenset((BYTEARRAY, PICKLE_BUFFERS))

#: Payloads from this size on are handled without copying where possible. It is the frame size of pickle: a Pickler hands
#: out its output, and passes inner bytes on untouched, in pieces from this size on.
LARGE = 64 * 1024

# A Pickler whose memo has grown is not kept: the memo does not shrink, and is cleared in proportion to its size.
_KEEP = 4096
_INT = struct.Struct("<q")
_FLOAT = struct.Struct("<d")
_pack_int = _INT.pack
_pack_float = _FLOAT.pack
_unpack_int = _INT.unpack
_unpack_float = _FLOAT.unpack

_EMPTY = (NONE, b""), (TRUE, b""), (FALSE, b"")
_NONE, _TRUE, _FALSE = _EMPTY

# Without certain bytes a pickle can only build lists, dicts, numbers and the like. A callable comes from EXT1, EXT2, EXT4 or STACK_GLOBAL,
# which are bytes that other data seldom have; from GLOBAL or INST, each followed by two lines that end in a newline; or from
# persistent_load, which plain loads() has not. Attributes are only ever looked up on what is built. So loads() is safe for a payload that
# has none of those four bytes, and not two newlines, anywhere, also not inside strings. Most small items are such, and it takes half the
# time of a restricted Unpickler. Known to hold for C pickle up to protocol 5: tests/protocol/test_codec.py tries it on every
# interpreter, and fails where there is an opcode that it does not know. Later Pythons use the Unpickler until somebody has looked.
_NO_NEWLINE = bytes(bytearray(0 if byte in (0x0A, 0x82, 0x83, 0x84, 0x93) else byte for byte in range(256)))
_NEWLINE = _NO_NEWLINE.replace(_NO_NEWLINE[9:12], b"\x09\x0a\x0b")
_SCAN_LIMIT = 1024 if sys.implementation.name == "cpython" and (3, 8) <= sys.version_info < (3, 16) else 0


def encoded_size(payload: Payload) -> int:
    """Return the number of bytes in a payload that ``Encoder.encode`` returned."""
    if isinstance(payload, bytes):
        return len(payload)
    return sum([len(chunk) for chunk in payload])


class Encoder:
    """Converts items to bytes. May be used by any number of threads at once.

    Args:
        protocol: pickle protocol for structured items, 4 or 5: the lower ``PROTOCOL`` of the two ends.
        channel_type: the class of channels (and its subclasses).
        channel_id: function that returns the number under which the peer knows a channel; what it raises refuses the item.
    """

    __slots__ = ("_channel_id", "_channel_type", "_free", "_protocol")

    def __init__(self, protocol: int, channel_type: type, channel_id: Callable[[Any], int]) -> None:
        if protocol not in (4, 5):
            raise ValueError("no such item protocol: %r" % (protocol,))
        self._protocol = min(protocol, PROTOCOL)
        self._channel_type = channel_type
        self._channel_id = channel_id
        # The Picklers that nobody uses, with what encode() needs of each; making one takes longer than pickling a small item.
        # list.pop and list.append are atomic, so threads never share one.
        self._free: list[_Tools] = []

    def encode(self, item: object) -> tuple[int, Payload]:
        """Convert an item.

        Returns:
            Its code and its payload: bytes, or when large a list of bytes and byte-wise memoryviews to be sent one after the other.
            The views look into bytearrays, buffers and arrays of the item: these must not change until the payload is written.

        Raises:
            DumpError: the item holds something that cannot be sent, or is nested too deeply.
        """
        kind = type(item)
        if kind is int:
            try:
                return INT, _pack_int(item)
            except struct.error:
                return BIGINT, item.to_bytes((item.bit_length() + 8) // 8, "little", signed=True)  # type: ignore[attr-defined]
        if kind is str:
            try:
                return STR, item.encode()  # type: ignore[attr-defined]
            except UnicodeEncodeError:
                return STR, item.encode("utf-8", "surrogatepass")  # type: ignore[attr-defined]
        if kind is not dict and kind is not list and kind is not tuple:
            if kind is bytes:
                return BYTES, item  # type: ignore[return-value]
            if kind is float:
                return FLOAT, _pack_float(item)
            if item is None:
                return _NONE
            if kind is bool:
                return _TRUE if item else _FALSE
            if kind is bytearray or kind is memoryview:
                return _encode_buffer(item)
        free = self._free
        try:
            tools = free.pop()
        except IndexError:
            from .structured import new_pickler

            tools = new_pickler(self._protocol, self._channel_type, self._channel_id)
        dump, clear_memo, chunks, pickler = tools
        try:
            dump(item)
        except Exception as error:
            if of_signal(error):
                raise
            # Whatever the reason is, the item cannot be sent. The Pickler is dropped: its memo and its output are in an unknown state.
            from .structured import explain

            failure = explain(item, error)
        else:
            clear_memo()
            payload: bytes = chunks.pop()
            if chunks or len(payload) >= _KEEP:
                chunks.append(payload)
                from .structured import assemble

                return assemble(item, pickler)
            free.append(tools)
            return PICKLE, payload
        # Not in the except block, and with no cycle left behind: the item must not live longer than the caller wants.
        try:
            raise failure
        finally:
            del failure


def _encode_buffer(item: Any) -> tuple[int, Payload]:
    code = BYTES if type(item) is memoryview else BYTEARRAY
    try:
        data = _contents(memoryview(item))
    except ValueError as error:  # a memoryview that was released
        raise DumpError("item cannot be sent: %s" % error) from None
    return code, (data if isinstance(data, bytes) else [data])


def _contents(view: memoryview) -> bytes | memoryview:
    """Return the contents of a buffer, row by row: copied when they are few, else a byte-wise view where that is possible."""
    if view.nbytes >= LARGE and view.c_contiguous:
        try:
            return view.cast("B")
        except (TypeError, ValueError):
            pass  # of a format that only others understand
    return view.tobytes()


# -- decoding -------------------------------------------------------------------------------------------------------------


class Decoder:
    """Converts bytes to items. May be used by any number of threads at once.

    Args:
        make_channel: function that returns the channel for a number that the peer sent; what it raises becomes a ``LoadError``.
            It may be called for an item that then turns out to be broken.
    """

    __slots__ = ("_table",)

    def __init__(self, make_channel: Callable[[int], Any]) -> None:
        def channel(number: object) -> Any:
            if type(number) is not int:
                raise LoadError("not an item: a channel has no number")
            return make_channel(number)

        # Names of constructors to functions; they become constructors on first use.
        self._table: dict[str, Any] = {"channel": channel}

    def decode(self, code: int, payload: Any) -> Any:
        """Convert a received item.

        Args:
            code: its code.
            payload: bytes, or a bytearray, memoryview or BytesIO that the decoder now owns: the item may be that bytearray,
                or arrays in it may look into the buffer (of a BytesIO they have copies; see ``WRITABLE``).

        Raises:
            LoadError: these bytes are not an item, or there is no memory for it.
        """
        try:
            if code == PICKLE:
                if type(payload) is not bytes or len(payload) >= LARGE:
                    from .structured import load

                    return load(payload, self._table)
                if len(payload) <= _SCAN_LIMIT and (
                    payload.translate(_NO_NEWLINE) == payload
                    or (payload.count(b"\n") == 1 and payload.translate(_NEWLINE) == payload)
                ):
                    return _loads(payload)
                unpickler = _unpickler(_bytesio(payload))
                unpickler.table = self._table
                return unpickler.load()
            if code == INT:
                return _unpack_int(payload)[0]
            if code == STR:
                if type(payload) is bytes:
                    try:
                        return payload.decode()
                    except UnicodeDecodeError:
                        return payload.decode("utf-8", "surrogatepass")
                return str(_buffer(payload), "utf-8", "surrogatepass")
            if code == BYTES:
                if type(payload) is bytes:
                    return payload
                if hasattr(payload, "getvalue"):
                    return payload.getvalue()  # not a copy
                return bytes(payload)
            if code == FLOAT:
                return _unpack_float(payload)[0]
            if code == PICKLE_BUFFERS:
                from .structured import load_buffers

                return load_buffers(payload, self._table)
            if code == BIGINT and len(payload):
                return int.from_bytes(_buffer(payload), "little", signed=True)
            if code == BYTEARRAY:
                return payload if type(payload) is bytearray else bytearray(_buffer(payload))
            if code == NONE and not payload:
                return None
            if code == TRUE and not payload:
                return True
            if code == FALSE and not payload:
                return False
        except LoadError:
            raise
        except Exception as error:
            if of_signal(error):
                raise
            raise LoadError("not an item: %s: %s" % (type(error).__name__, error)) from error
        raise LoadError("not an item: code %r with %d bytes" % (code, len(_buffer(payload))))


def _buffer(payload: Any) -> memoryview:
    """Return a byte-wise view of a payload."""
    view = memoryview(payload.getvalue() if hasattr(payload, "getvalue") else payload)
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")


def _first_loads(payload: Any) -> Any:
    _start_decoding()
    return _loads(payload)


def _first_unpickler(file: Any) -> Any:
    _start_decoding()
    return _unpickler(file)


def _first_bytesio(payload: Any) -> Any:
    _start_decoding()
    return _bytesio(payload)


_loads: Callable[[Any], Any] = _first_loads
_unpickler: Callable[[Any], Any] = _first_unpickler
_bytesio: Callable[[Any], Any] = _first_bytesio


def _start_decoding() -> None:
    """Put the real things in the places of the three functions above, on the first structured item."""
    global _loads, _unpickler, _bytesio
    from .structured import start_decoding

    decoding = start_decoding()
    _bytesio = decoding.bytesio
    _unpickler = decoding.unpickler
    _loads = decoding.loads
