"""Structured items: pickles that name no class, arrays, and what is said about values that cannot be sent.

The slow half of ``codec``, which has the format; imported with the first structured item.
"""

from __future__ import annotations

import _thread
import struct
import sys

from .codec import LARGE, PICKLE, PICKLE_BUFFERS, _buffer, _contents, encoded_size
from .errors import DumpError, LoadError, of_signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from .codec import Chunk, Payload

_ALIGN = 64
_MODULE = "_farwire_items"
_HEAD = struct.Struct("<QII")

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


def new_pickler(protocol: int, channel_type: type, channel_id: Callable[[Any], int]) -> Any:
    """Return a Pickler with what ``Encoder.encode`` needs of it."""
    chunks: list[Any] = []
    sink = _Sink()
    sink.write = chunks.append
    pickler = _pickler_type()(sink, protocol)
    pickler.protocol = protocol
    pickler.channel_type = channel_type
    pickler.channel_id = channel_id
    pickler.saw_bytearray = False
    pickler.chunks = chunks
    pickler.buffers = []
    if sys.version_info < (3, 8):
        pickler.dispatch_table = _Dispatch(pickler)  # type: ignore[unreachable]
    return pickler.dump, pickler.clear_memo, chunks, pickler


def assemble(item: object, pickler: Any) -> tuple[int, Payload]:
    """Finish an item that is large, or of which ``_reduce`` asked for more than pickling (buffers, a check)."""
    if pickler.saw_bytearray and _find(item, bytearray) is not None:
        raise explain(item, _Refused(bytearray))
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
        # C pickle is about to write a bytearray as a call of its class. Or is the class itself in the item? assemble() looks.
        pickler.saw_bytearray = True
        pickler.chunks.append(b"")  # a second chunk, so that the quick way is not taken
        return "bytearray"
    if isinstance(value, pickler.channel_type):
        try:
            number = pickler.channel_id(value)
        except Exception as error:
            if of_signal(error):
                raise
            # its owner says why it cannot be sent
            raise _Refused(value, str(error)) from None
        return markers.channel, (number,)
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None and kind is getattr(numpy, "ndarray", None):
        return _reduce_array(pickler, value, numpy)
    raise _Refused(value)


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


def explain(item: object, problem: Exception) -> DumpError:
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


def load(payload: Any, table: dict[str, Any]) -> Any:
    """Decode a pickle of any size and any type of buffer."""
    file: Any
    decoding = _decoding or start_decoding()
    size = len(payload) if type(payload) is bytes else len(_buffer(payload))
    if type(payload) is bytes or (type(payload) is bytearray and size < LARGE):
        file = decoding.bytesio(payload)
    elif hasattr(payload, "getvalue"):
        file = payload
        file.seek(0)
    else:
        file = decoding.reader(_buffer(payload))
    # A new one for every item: C Unpicklers that are used again crash.
    unpickler = decoding.unpickler(file)
    unpickler.table = table
    if size < LARGE:
        return unpickler.load()
    _pause_collector()
    try:
        return unpickler.load()
    finally:
        _resume_collector()


def load_buffers(payload: Any, table: dict[str, Any]) -> Any:
    """Decode a pickle and its buffers."""
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

    table = dict(table)
    table["bytes"] = lambda what: bytes(data(what))
    table["ndarray"] = lambda dtype, shape, order, what: _array(dtype, shape, order, data(what))
    return load(bytes(pickled) if size < LARGE else pickled, table)


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


class _Decoding:
    """What decoding uses on this interpreter.

    Attributes:
        loads: decodes what is known to name nothing.
        unpickler: makes an Unpickler for a file; it finds nothing but our constructors.
        bytesio, reader: make a file of bytes; of a buffer.
    """

    __slots__ = ("bytesio", "loads", "reader", "unpickler")

    loads: Callable[[Any], Any]
    unpickler: Callable[[Any], Any]
    bytesio: Callable[[Any], Any]
    reader: Callable[[memoryview], Any]


_decoding: _Decoding | None = None


def start_decoding() -> _Decoding:
    """Make that, on the first structured item."""
    global _decoding
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

    result = _Decoding()
    result.bytesio = BytesIO
    restricted: Any = Restricted
    result.unpickler = restricted
    if pickle.__name__ == "_pickle":
        result.loads = pickle.loads
        result.reader = _Reader
    else:
        # What is said at _NO_NEWLINE was found in C pickle only; and pickle in Python wants bytes from its file, not views.
        result.loads = restricted_loads
        result.reader = BytesIO
    _decoding = result
    return result


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
