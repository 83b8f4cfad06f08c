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

import _thread
import struct
import sys

from .errors import DumpError, LoadError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
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

_ALIGN = 64
_MODULE = "_farwire_items"
# A Pickler whose memo has grown is not kept: the memo does not shrink, and is cleared in proportion to its size.
_KEEP = 4096
_INT = struct.Struct("<q")
_FLOAT = struct.Struct("<d")
_HEAD = struct.Struct("<QII")
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


# -- encoding -------------------------------------------------------------------------------------------------------------


class _Refused(Exception):
    """Raised inside the Pickler for a value that cannot be sent; becomes a ``DumpError`` with a path."""

    def __init__(self, value: object, reason: str = "") -> None:
        self.value = value
        self.reason = reason


class _Sink:
    """The file of a Pickler: whatever is written is appended to a list."""

    __slots__ = ("write",)

    write: Callable[[Any], object]


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
            tools = self._new_pickler()
        dump, clear_memo, chunks, pickler = tools
        try:
            dump(item)
        except Exception as error:  # noqa: BLE001 - whatever the reason is, the item cannot be sent
            # The Pickler is dropped: its memo and its output are in an unknown state.
            failure = _explain(item, error)
        else:
            clear_memo()
            payload: bytes = chunks.pop()
            if chunks or len(payload) >= _KEEP:
                chunks.append(payload)
                return self._assemble(item, pickler)
            free.append(tools)
            return PICKLE, payload
        # Not in the except block, and with no cycle left behind: the item must not live longer than the caller wants.
        try:
            raise failure
        finally:
            del failure

    def _new_pickler(self) -> _Tools:
        chunks: list[Any] = []
        sink = _Sink()
        sink.write = chunks.append
        pickler = _pickler_type()(sink, self._protocol)
        pickler.protocol = self._protocol
        pickler.channel_type = self._channel_type
        pickler.channel_id = self._channel_id
        pickler.saw_bytearray = False
        pickler.chunks = chunks
        pickler.buffers = []
        if sys.version_info < (3, 8):
            pickler.dispatch_table = _Dispatch(pickler)  # type: ignore[unreachable]
        return pickler.dump, pickler.clear_memo, chunks, pickler

    def _assemble(self, item: object, pickler: Any) -> tuple[int, Payload]:
        """Finish an item that is large, or of which ``_reduce`` asked for more than pickling (buffers, a check)."""
        if pickler.saw_bytearray and _find(item, bytearray) is not None:
            raise _explain(item, _Refused(bytearray))
        # A bytearray is held by a view, so that it cannot at least change its size while the payload is being written.
        chunks = [chunk for chunk in pickler.chunks if chunk]
        parts: list[Chunk] = [chunk if type(chunk) is bytes else memoryview(chunk).cast("B") for chunk in chunks]
        size = encoded_size(parts)
        if size < LARGE and len(parts) > 1:
            parts = [b"".join(parts)]
        buffers: list[memoryview] = pickler.buffers
        if not buffers:
            return PICKLE, (parts[0] if len(parts) == 1 and isinstance(parts[0], bytes) else parts)
        lengths = struct.Struct("<%dQ" % len(buffers)).pack(*map(len, buffers))
        head = _HEAD.pack(size, len(buffers), 0) + lengths
        result: list[Chunk] = [head]
        result += parts
        position = len(head) + size
        for buffer in buffers:
            gap = -position % _ALIGN
            result.append(bytes(gap))
            result.append(buffer)
            position += gap + len(buffer)
        if size < LARGE:
            # One small piece in front of the first buffer instead of three.
            result[:3] = [b"".join(result[:3])]
        return PICKLE_BUFFERS, [part for part in result if len(part)]


def _encode_buffer(item: Any) -> tuple[int, Payload]:
    code = BYTES if type(item) is memoryview else BYTEARRAY
    try:
        data = _contents(memoryview(item))
    except ValueError as error:  # a memoryview that was released
        raise DumpError("item cannot be sent: %s" % error) from None
    return code, (data if isinstance(data, bytes) else [data])


# The rest of encoding starts with the first structured item: importing pickle costs a starting worker milliseconds.

_pickler_cache: Any = None
_markers: Any = None


def _pickler_type() -> Any:
    """Return the Pickler subclass for this interpreter."""
    global _pickler_cache, _markers
    if sys.modules.get(_MODULE) is not _markers or _markers is None:
        _markers = _items_module()
    if _pickler_cache is None:
        _pickler_cache = _make_pickler_type()
    return _pickler_cache


_NAMES = ("complex", "range", "slice", "ellipsis", "notimplemented", "bytearray", "bytes", "ndarray", "channel")


def _items_module() -> Any:
    """Return the module in which Picklers find the constructors' names, made when it is not there.

    A second copy of this file may be at work in the process (a worker that is itself a controller): there is one module for both.
    """
    module: Any = sys.modules.get(_MODULE)
    if module is None:

        class Marker:
            """Stands for a constructor at the receiver; is never called."""

            __slots__ = ("name",)
            __module__ = _MODULE

            def __init__(self, name: str) -> None:
                self.name = name

            def __call__(self) -> None:
                raise TypeError("a marker is not to be called")

        module = type(sys)(_MODULE, "Names of constructors in pickles; see farwire.protocol.codec.")
        module.Marker = Marker
        module = sys.modules.setdefault(_MODULE, module)
    for name in _NAMES:
        if not hasattr(module, name):
            setattr(module, name, module.Marker(name))
    return module


def _pickle_module() -> Any:
    """Return C pickle where there is one: importing ``pickle`` itself imports ten modules more."""
    try:
        import _pickle
    except ImportError:
        import pickle

        return pickle
    return _pickle


_SLOTS = ("buffers", "channel_id", "channel_type", "chunks", "protocol", "saw_bytearray")


def _make_pickler_type() -> Any:
    pickle = _pickle_module()
    base: Any = pickle.Pickler
    if pickle.__name__ == "pickle":
        basic = frozenset((type(None), bool, int, float, str, bytes, list, tuple, dict, set, frozenset))

        class PurePickler(base):  # type: ignore[misc]
            """For interpreters where pickle is written in Python: asks reducer_override about every object."""

            def reducer_override(self, value: object) -> Any:
                kind = type(value)
                if kind in basic or (kind is bytearray and self.protocol == 5):
                    return NotImplemented
                return _reduce(self, value)

        return PurePickler

    if sys.version_info >= (3, 8):

        class NewPickler(base):  # type: ignore[misc]
            """Asks reducer_override about everything that pickle has no opcode for: costs nothing for what has one."""

            __slots__ = _SLOTS

            def reducer_override(self, value: object) -> Any:
                return _reduce(self, value)

        return NewPickler

    function: type = type(_reduce)

    class OldPickler(base):  # type: ignore[misc]
        """Python 3.6 and 3.7 have no reducer_override: the dispatch table sees all but classes and functions."""

        __slots__ = _SLOTS

        def persistent_id(self, value: object) -> None:
            kind = type(value)
            if kind is type or kind is function:
                raise _Refused(value)

    return OldPickler


class _Dispatch(dict):  # type: ignore[type-arg]
    """A dispatch table that has an entry for every type."""

    def __init__(self, pickler: Any) -> None:
        dict.__init__(self)
        self.pickler = pickler

    def __missing__(self, kind: type) -> Callable[[object], object]:
        return self.reduce

    def reduce(self, value: object) -> Any:
        return _reduce(self.pickler, value)


def _reduce(pickler: Any, value: Any) -> Any:
    """Say how to pickle a value for which pickle has no opcode: ``(marker, args)``, or the name of a marker.

    Raises:
        _Refused: the value cannot be sent.
    """
    kind = type(value)
    markers = _markers
    if kind is markers.Marker:
        return value.name
    if kind is complex:
        return markers.complex, (value.real, value.imag)
    if kind is range:
        # int(): range keeps a bool or an IntEnum as it is
        return markers.range, (int(value.start), int(value.stop), int(value.step))
    if kind is slice:
        return markers.slice, (value.start, value.stop, value.step)
    if value is Ellipsis:
        return markers.ellipsis, ()
    if value is NotImplemented:
        return markers.notimplemented, ()
    if kind is memoryview:
        data = _contents(value)
        return markers.bytes, (data if isinstance(data, bytes) else _add_buffer(pickler, data),)
    if kind is bytearray:
        return markers.bytearray, (bytes(value),)
    if kind.__name__ == "PickleBuffer" and kind.__module__ in ("pickle", "_pickle"):
        # Only where pickle is written in Python; C pickle writes it without asking.
        return _reduce(pickler, memoryview(value))
    if value is bytearray and pickler.protocol == 4:
        # C pickle is about to write a bytearray as a call of its class. Or is the class itself in the item? Encoder._assemble looks.
        pickler.saw_bytearray = True
        pickler.chunks.append(b"")  # a second chunk, so that the quick way is not taken
        return "bytearray"
    if isinstance(value, pickler.channel_type):
        try:
            number = pickler.channel_id(value)
        except Exception as error:  # noqa: BLE001 - its owner says why it cannot be sent
            raise _Refused(value, str(error)) from None
        return markers.channel, (number,)
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None and kind is getattr(numpy, "ndarray", None):
        return _reduce_array(pickler, value, numpy)
    raise _Refused(value)


def _contents(view: memoryview) -> bytes | memoryview:
    """Return the contents of a buffer, row by row: copied when they are few, else a byte-wise view where that is possible."""
    if view.nbytes >= LARGE and view.c_contiguous:
        try:
            return view.cast("B")
        except (TypeError, ValueError):
            pass  # of a format that only others understand
    return view.tobytes()


def _add_buffer(pickler: Any, view: memoryview) -> int:
    """Have a buffer sent beside the pickle. Returns its index."""
    pickler.buffers.append(view)
    pickler.chunks.append(b"")  # a second chunk, so that the quick way is not taken
    return len(pickler.buffers) - 1


def _reduce_array(pickler: Any, array: Any, numpy: Any) -> Any:
    dtype = _describe_dtype(array.dtype, array, numpy)
    shape = array.shape
    if not array.nbytes:
        return _markers.ndarray, (dtype, shape, "C", b"")
    if array.flags.c_contiguous:
        order, flat = "C", array.reshape(-1)
    elif array.flags.f_contiguous:
        order, flat = "F", array.T.reshape(-1)
    else:
        order, flat = "C", numpy.ascontiguousarray(array).reshape(-1)
    # As bytes first: the buffer protocol knows no dates.
    view = memoryview(flat.view("u1"))
    data: object = view.tobytes() if view.nbytes < LARGE else _add_buffer(pickler, view)
    return _markers.ndarray, (dtype, shape, order, data)


def _describe_dtype(dtype: Any, array: object, numpy: Any) -> Any:
    """Return a dtype as strings, numbers and tuples, from which ``_build_dtype`` makes an equal one."""
    if dtype.hasobject:
        raise _Refused(array, "a numpy array of dtype %s cannot be sent; hint: send array.tolist()" % (dtype,))
    if dtype.names is not None:
        fields = [dtype.fields[name] for name in dtype.names]
        description: Any = (
            tuple(dtype.names),
            tuple(_describe_dtype(field[0], array, numpy) for field in fields),
            tuple(int(field[1]) for field in fields),
            int(dtype.itemsize),
        )
    elif dtype.subdtype is not None:
        description = (_describe_dtype(dtype.subdtype[0], array, numpy), tuple(map(int, dtype.subdtype[1])))
    else:
        description = dtype.str
    try:
        if _build_dtype(description, numpy) == dtype:
            return description
    except Exception:  # noqa: BLE001 - NumPy has many reasons, we one
        pass
    raise _Refused(array, "a numpy array of dtype %s cannot be sent; hint: send another with array.astype()" % (dtype,))


def _explain(item: object, problem: Exception) -> DumpError:
    """Return the ``DumpError`` for an exception that came out of a Pickler."""
    if isinstance(problem, _Refused):
        value = problem.value
        path = _find(item, value) or "item"
        return DumpError("%s: %s" % (path, problem.reason or _refusal(value)))
    if isinstance(problem, RecursionError):
        return DumpError("item is nested too deeply to be sent (or the calls around send() are)")
    if isinstance(problem, MemoryError):
        return DumpError("no memory to send item")
    return DumpError("item cannot be sent: %s: %s" % (type(problem).__name__, problem))


def _refusal(value: Any) -> str:
    """Say in words that a value cannot be sent, and what to send instead."""
    if isinstance(value, type):
        return "the class %s cannot be sent" % _type_name(value)
    kind = type(value)
    name = _type_name(kind)
    if kind.__name__ in ("function", "builtin_function_or_method", "method"):
        where = getattr(value, "__module__", None) or "?"
        return "the function %s.%s cannot be sent; hint: run it with remote_exec()" % (where, value.__qualname__)
    if kind.__name__ == "module":
        return "the module %s cannot be sent; hint: import it at the other end" % value.__name__
    bases = [_type_name(base) for base in kind.__mro__]
    for base, hint in _HINTS:
        if base in bases:
            return "%s cannot be sent; hint: send %s" % (name, hint)
    if hasattr(kind, "__dataclass_fields__"):
        return "%s cannot be sent; hint: send dataclasses.asdict(obj)" % name
    return "%s cannot be sent; hint: convert it to built-in types" % name


_HINTS = (
    ("enum.Enum", "obj.value"),
    ("datetime.date", "obj.isoformat()"),
    ("datetime.time", "obj.isoformat()"),
    ("datetime.timedelta", "obj.total_seconds()"),
    ("decimal.Decimal", "str(obj)"),
    ("fractions.Fraction", "str(obj)"),
    ("uuid.UUID", "str(obj)"),
    ("pathlib.PurePath", "str(obj)"),
    ("pathlib._local.PurePath", "str(obj)"),
    ("numpy.generic", "obj.item()"),
    ("numpy.ndarray", "numpy.asarray(obj), or obj.tolist()"),
    ("array.array", "memoryview(obj), or list(obj)"),
    ("mmap.mmap", "memoryview(obj)"),
    ("pickle.PickleBuffer", "memoryview(obj)"),
    ("BaseException", "str(obj)"),
    ("bool", "bool(obj)"),
    ("int", "int(obj)"),
    ("float", "float(obj)"),
    ("complex", "complex(obj)"),
    ("str", "str(obj)"),
    ("bytes", "bytes(obj)"),
    ("bytearray", "bytearray(obj)"),
    ("dict", "dict(obj)"),
    ("mappingproxy", "dict(obj)"),
    ("list", "list(obj)"),
    ("tuple", "tuple(obj)"),
    ("set", "set(obj)"),
    ("frozenset", "frozenset(obj)"),
    ("collections.deque", "list(obj)"),
    ("dict_keys", "list(obj)"),
    ("dict_values", "list(obj)"),
    ("dict_items", "list(obj)"),
    ("generator", "list(obj)"),
    ("map", "list(obj)"),
    ("filter", "list(obj)"),
    ("zip", "list(obj)"),
)


def _type_name(kind: type) -> str:
    module = getattr(kind, "__module__", None)
    name: str = kind.__qualname__
    return name if module in ("builtins", None) else "%s.%s" % (module, name)


def _children(value: Any) -> Iterator[tuple[str, object]] | None:
    """Return the parts of a container in the order in which they are pickled, each with a format for its path; None for a leaf."""
    kind = type(value)
    if kind is dict:
        return _dict_children(value)
    if kind is list or kind is tuple:
        return (("%%s[%d]" % index, child) for index, child in enumerate(value))
    if kind is set or kind is frozenset:
        return (("an element of %s", child) for child in value)
    if kind is slice:
        return iter((("%s.start", value.start), ("%s.stop", value.stop), ("%s.step", value.step)))
    return None


def _dict_children(value: dict[Any, Any]) -> Iterator[tuple[str, object]]:
    for key, child in value.items():
        yield "a key of %s", key
        yield "%s[" + _key_text(key).replace("%", "%%") + "]", child


def _key_text(key: Any) -> str:
    """Return how a key shows in a path: never long, and without running a foreign ``__repr__``."""
    kind = type(key)
    if kind is tuple and len(key) <= 4:
        return "(%s)" % ", ".join([_key_text(part) if type(part) is not tuple else "..." for part in key])
    if kind not in (str, int, bytes, float, bool, type(None)):
        return "<%s>" % _type_name(kind)
    try:
        text = repr(key)
    except ValueError:  # an int of more digits than Python cares to print
        return "..."
    return text if len(text) <= 60 else text[:50] + "..." + text[-5:]


def _find(item: object, wanted: object) -> str | None:
    """Return the path of the first place where an object (this very one) stands in an item; None when it is not found."""
    if item is wanted:
        return "item"
    seen = {id(item)}
    path: list[str] = []
    children = _children(item)
    stack = [] if children is None else [children]
    try:
        while stack:
            for step, child in stack[-1]:
                if child is wanted:
                    path.append(step)
                    return _path_text(path)
                if id(child) not in seen:
                    children = _children(child)
                    if children is not None:
                        seen.add(id(child))
                        path.append(step)
                        stack.append(children)
                        break
            else:
                stack.pop()
                del path[-1:]
    except RuntimeError:
        pass  # another thread changes the item
    return None


def _path_text(path: list[str]) -> str:
    text = "item"
    for step in path:
        if step.startswith("%s") and not text.startswith(("item", "(")):
            text = "(%s)" % text
        text = step % text
    return text


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
                    return self._load(payload)
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
                return self._load_buffers(payload)
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
            raise LoadError("not an item: %s: %s" % (type(error).__name__, error)) from error
        raise LoadError("not an item: code %r with %d bytes" % (code, len(_buffer(payload))))

    def _load(self, payload: Any, table: dict[str, Any] | None = None) -> Any:
        file: Any
        size = len(payload) if type(payload) is bytes else len(_buffer(payload))
        if type(payload) is bytes or (type(payload) is bytearray and size < LARGE):
            file = _bytesio(payload)
        elif hasattr(payload, "getvalue"):
            file = payload
            file.seek(0)
        else:
            file = _reader(_buffer(payload))
        # A new one for every item: C Unpicklers that are used again crash.
        unpickler = _unpickler(file)
        unpickler.table = self._table if table is None else table
        if size < LARGE:
            return unpickler.load()
        _pause_collector()
        try:
            return unpickler.load()
        finally:
            _resume_collector()

    def _load_buffers(self, payload: Any) -> Any:
        whole = _buffer(payload)
        size, count, zero = _HEAD.unpack_from(whole)
        end = _HEAD.size + 8 * count + size
        if zero or end > len(whole):
            raise LoadError("not an item: the buffers' table is broken")
        lengths = struct.Struct("<%dQ" % count).unpack_from(whole, _HEAD.size)
        pickled = whole[end - size : end]
        buffers = []
        for length in lengths:
            start = end + -end % _ALIGN
            end = start + length
            if end > len(whole):
                break
            buffers.append(whole[start:end])
        if end != len(whole):
            raise LoadError("not an item: the buffers' lengths do not add up")

        copied = type(whole.obj).__name__ == "_BytesIOBuffer"  # see WRITABLE

        def data(what: object) -> Any:
            if type(what) is not int or what < 0:
                return _data(what)
            return bytearray(buffers[what]) if copied else buffers[what]

        table = dict(self._table)
        table["bytes"] = lambda what: bytes(data(what))
        table["ndarray"] = lambda dtype, shape, order, what: _array(dtype, shape, order, data(what))
        return self._load(bytes(pickled) if size < LARGE else pickled, table)


def _buffer(payload: Any) -> memoryview:
    """Return a byte-wise view of a payload."""
    view = memoryview(payload.getvalue() if hasattr(payload, "getvalue") else payload)
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")


class _Reader:
    """A file over a buffer: hands out views where ``BytesIO`` would copy."""

    __slots__ = ("_position", "_view")

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._position = 0

    def read(self, size: int) -> memoryview:
        start = self._position
        self._position = start + size
        return self._view[start : start + size]

    def readinto(self, target: Any) -> int:
        piece = self.read(len(target))
        target[: len(piece)] = piece
        return len(piece)

    def readline(self) -> bytes:
        # Only old pickle protocols, which we do not send, have lines; and none of theirs is long.
        line = bytes(self._view[self._position : self._position + 4096])
        line = line[: line.find(b"\n") + 1]
        self._position += len(line)
        return line


def _first_loads(payload: Any) -> Any:
    _start_decoding()
    return _loads(payload)


def _first_unpickler(file: Any) -> Any:
    _start_decoding()
    return _unpickler(file)


def _first_bytesio(payload: Any) -> Any:
    _start_decoding()
    return _bytesio(payload)


def _first_reader(view: memoryview) -> Any:
    _start_decoding()
    return _reader(view)


_loads: Callable[[Any], Any] = _first_loads
_unpickler: Callable[[Any], Any] = _first_unpickler
_bytesio: Callable[[Any], Any] = _first_bytesio
_reader: Callable[[memoryview], Any] = _first_reader


def _start_decoding() -> None:
    """Put the real things in the places of the four functions above, on the first structured item."""
    global _loads, _unpickler, _bytesio, _reader
    from io import BytesIO

    pickle = _pickle_module()
    base: Any = pickle.Unpickler

    class Restricted(base):  # type: ignore[misc]
        """Finds no classes and no functions but our constructors."""

        __slots__ = ("table",)

        def find_class(self, module: str, name: str) -> Any:
            if module == _MODULE or (module == "builtins" and name == "bytearray"):
                found: Any = self.table.get(name) or _FUNCTIONS.get(name)
                if found is not None:
                    return _constructor(found)
            raise LoadError("not an item: it refers to %.60r %.60r" % (module, name))

    def restricted_loads(payload: bytes) -> Any:
        unpickler = Restricted(BytesIO(payload))
        unpickler.table = {}
        return unpickler.load()

    _bytesio = BytesIO
    restricted: Any = Restricted
    _unpickler = restricted
    if pickle.__name__ == "_pickle":
        _loads = pickle.loads
        _reader = _Reader
    else:
        # What is said at _NO_NEWLINE was found in C pickle only; and pickle in Python wants bytes from its file, not views.
        _loads = restricted_loads
        _reader = BytesIO


def _constructor(function: Callable[..., Any]) -> Any:
    """Return a callable for use inside an Unpickler.

    It is no function, and has no slot and no ``__dict__``, because a hostile pickle may set attributes of whatever it is given.
    """
    return type("constructor", (), {"__slots__": (), "__call__": staticmethod(function)})()


def _check(kind: type, *values: object) -> None:
    for value in values:
        if type(value) is not kind:
            raise LoadError("not an item: %s where %s should be" % (type(value).__name__, kind.__name__))


def _make_complex(real: float, imag: float) -> complex:
    _check(float, real, imag)
    return complex(real, imag)


def _make_range(start: int, stop: int, step: int) -> range:
    _check(int, start, stop, step)
    return range(start, stop, step)


def _make_slice(start: object, stop: object, step: object) -> slice:
    return slice(start, stop, step)


def _make_ellipsis() -> object:
    return Ellipsis


def _make_notimplemented() -> object:
    return NotImplemented


def _make_bytearray(data: bytes = b"") -> bytearray:
    _check(bytes, data)
    return bytearray(data)


def _data(what: Any) -> bytes:
    _check(bytes, what)
    result: bytes = what
    return result


def _build_dtype(description: Any, numpy: Any, depth: int = 0) -> Any:
    """Make a dtype; everything that NumPy sees has been checked, because its own parser of dtypes is powerful."""
    if depth > 16:
        raise LoadError("not an item: a dtype is nested too deeply")
    if type(description) is str:
        order, kind, size = description[:1], description[1:2], description[2:]
        size, _, unit = size.partition("[")
        if (
            order in ("<", ">", "|")
            and (
                kind in ("b", "i", "u", "S", "U", "V")
                or (kind in ("f", "c") and size in ("2", "4", "8", "16"))
                or kind in ("m", "M")
            )
            and description not in ("<f16", ">f16")  # is not the same number on every machine
            and 1 <= len(size) <= 10
            and not size.strip("0123456789")
            and (not unit or (kind in ("m", "M") and len(unit) <= 10 and not unit.strip("0123456789YMWDhmsunpfa]")))
        ):
            return numpy.dtype(description)
    elif type(description) is tuple and len(description) == 2:
        base, shape = description
        _check(tuple, shape)
        _check(int, *shape)
        return numpy.dtype((_build_dtype(base, numpy, depth + 1), shape))
    elif type(description) is tuple and len(description) == 4:
        names, formats, offsets, size = description
        _check(tuple, names, formats, offsets)
        _check(str, *names)
        _check(int, size, *offsets)
        if not len(names) == len(formats) == len(offsets):
            raise LoadError("not an item: a dtype's fields do not match")
        formats = [_build_dtype(part, numpy, depth + 1) for part in formats]
        return numpy.dtype({"names": list(names), "formats": formats, "offsets": list(offsets), "itemsize": size})
    raise LoadError("not an item: no dtype: %.80r" % (description,))


def _array(dtype: object, shape: Any, order: object, data: Any) -> Any:
    """Make an array over the data: without a copy when they are writable."""
    try:
        import numpy  # noqa: ICN001
    except ImportError as error:
        raise LoadError("the item holds a numpy array and numpy cannot be imported here: %s" % error) from error
    _check(tuple, shape)
    _check(int, *shape)
    kind = _build_dtype(dtype, numpy)
    size: int = kind.itemsize
    for length in shape:
        if length < 0:
            raise LoadError("not an item: an array of a negative size")
        size *= length
    if size != len(data) or order not in ("C", "F") or kind.hasobject:
        raise LoadError("not an item: an array of %d bytes with %d bytes of data" % (size, len(data)))
    if not size:
        return numpy.empty(shape, kind)
    if type(data) is bytes or (type(data) is memoryview and data.readonly):
        data = bytearray(data)
    return numpy.ndarray(shape, kind, data, 0, None, order)


def _make_array(dtype: object, shape: object, order: object, data: object) -> Any:
    return _array(dtype, shape, order, _data(data))


_FUNCTIONS = {
    "complex": _make_complex,
    "range": _make_range,
    "slice": _make_slice,
    "ellipsis": _make_ellipsis,
    "notimplemented": _make_notimplemented,
    "bytearray": _make_bytearray,
    "bytes": _data,
    "ndarray": _make_array,
}


# -- the garbage collector ------------------------------------------------------------------------------------------------

# A large item is many new containers and no garbage; with the collector on, a third of the time goes into looking for some.
_pauses: list[bool] = []
_registered: list[bool] = []
_lock: Any = _thread.allocate_lock()


def _pause_collector() -> None:
    """Switch the cyclic garbage collector off until as many calls of ``_resume_collector``."""
    import gc

    if not _registered:
        import os

        _registered.append(True)
        if hasattr(os, "register_at_fork"):  # 3.7
            os.register_at_fork(after_in_child=_after_fork)
    with _lock:
        _pauses.append(gc.isenabled())
        gc.disable()


def _resume_collector() -> None:
    import gc

    with _lock:
        # The last to leave takes what the first found.
        if _pauses and _pauses.pop() and not _pauses:
            gc.enable()


def _after_fork() -> None:
    """In a forked child: the threads that paused the collector or held the lock are gone."""
    global _lock
    _lock = _thread.allocate_lock()
    if _pauses:
        enabled = _pauses[0]
        del _pauses[:]
        if enabled:
            import gc

            gc.enable()
