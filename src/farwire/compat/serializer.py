"""The byte format of execnet's ``dumps`` and ``loads``, for data that execnet wrote or is to read.

A program for a stack machine: one-letter opcodes, each followed by its argument, numbers big-endian.

    L  C  R     push None, False, True
    F           push an int of 4 bytes, signed                     G   the same (a "long" of Python 2)
    H           push an int in decimal text, length first          I   the same
    D  T        push a float of 8 bytes, a complex of 16
    A           push bytes, length first
    N  S        push a str, UTF-8, length first                    (S: a "unicode" of Python 2)
    M           push a "str" of Python 2, length first: bytes, or a str by Latin-1
    K           push a list of so many items; then, for each: its index, the item, P
    J           push a dict; then, for each item: its key, its value, P
    @  O  E     make the last so many values a tuple, a set, a frozenset
    B           a channel of that number; exists on execnet's wire only
    P           take a value and a key; set them in the list or dict below
    Q           the end: the value left is the result

``dumps`` and ``dump`` put the byte 2, the version of the format, before it. Lengths and counts are ints of 4 bytes.

What execnet refuses and this module writes, in opcodes that execnet reads: ints below -2**31 (as decimal text), values nested deeper than
the recursion limit. Types are exact: no class is taken for a built-in type by its name. What is read must be as such a
writer writes it: a list gets its items in order and all of them, a count is not larger than the stack, nothing follows the end. Everything
else is a ``LoadError``, and no length makes the reader allocate more than the data are worth.

This module holds no state, apart from bytes computed in advance: any number of threads may use it.
"""

from __future__ import annotations

import io as _io  # `io` is a parameter of execnet's functions
import struct

from ..protocol.errors import DumpError, LoadError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, Protocol, Union

    Buffer = Union[bytes, bytearray, memoryview]

    class Readable(Protocol):
        def read(self, __size: int) -> bytes | None: ...

    class Writable(Protocol):
        def write(self, __data: bytes) -> object: ...


VERSION = b"\x02"
_LARGEST = 2**31 - 1  # of a length, of a count, and of an int that travels as 4 bytes
_SMALLEST = -(2**31)

_NONE, _TRUE, _FALSE = b"L", b"R", b"C"
_SETITEM, _STOP = b"P", b"Q"

# Each with its opcode.
_pack_int = struct.Struct("!ci").pack
_pack_float = struct.Struct("!cd").pack
_pack_complex = struct.Struct("!cdd").pack

_INTS = [_pack_int(b"F", number) for number in range(256)]

# A tuple is hashed by recursion in C, with no check of the depth: a key that is nested some ten thousand levels deep crashes the
# interpreter. execnet cannot write one of more than 500.
_DEEPEST_KEY = 1000

# A stream is asked for this much at most: what it says about lengths need not be true, and a buffered file allocates what it is asked for.
_PIECE = 1 << 20
_AHEAD = 1 << 16


# -- writing --------------------------------------------------------------------------------------------------------------


def dumps(obj: object) -> bytes:
    """Convert a value to bytes that ``loads``, and execnet's, convert back.

    Args:
        obj: None, bool, int, float, complex, bytes, str, and tuples, lists, dicts, sets and frozensets of those, nested as deeply
            as you like. Their subclasses are refused: what they add would be lost.

    Raises:
        DumpError: the value, or one in it, whose path the message gives, cannot be converted: it is of another type, a str with lone
            surrogates, longer than 2**31 - 1, an int of more digits than ``sys.get_int_max_str_digits()``, or contains itself.
    """
    return VERSION + _dumps(obj)


def dump(byteio: Writable, obj: object) -> None:
    """Write a value to a binary file, as ``dumps`` converts it; nothing is written when that fails.

    Raises:
        DumpError: as for ``dumps``. What ``byteio.write`` raises comes through.
    """
    _write(byteio.write, VERSION + _dumps(obj))


def dumps_internal(obj: object) -> bytes:
    """As ``dumps``, without the version."""
    return _dumps(obj)


class _Serializer:
    """Under the name by which programs know execnet's (devpi).

    Args:
        write: function that gets the bytes; without it ``save`` returns them.
    """

    def __init__(self, write: Callable[[bytes], object] | None = None) -> None:
        self._write = write

    def save(self, obj: object, versioned: bool = False) -> bytes | None:
        """Convert a value; returns its bytes, or None when there is a function that gets them. Raises as ``dumps``."""
        data = dumps(obj) if versioned else _dumps(obj)
        if self._write is None:
            return data
        _write(self._write, data)
        return None


def _write(write: Callable[[bytes], object], data: bytes) -> None:
    written = write(data)
    # An unbuffered file may take less than all.
    while type(written) is int and 0 < written < len(data):
        data = data[written:]
        written = write(data)


class _NotQuickly(Exception):
    """The quick way gives up; the thorough one says why, or succeeds."""


def _dumps(obj: object) -> bytes:
    out: list[bytes] = []
    try:
        _put(obj, out.append, {})
    except (_NotQuickly, RuntimeError, ValueError, struct.error):
        # RuntimeError: nested too deeply, or a dict or set that changed meanwhile. ValueError: text, or too many digits.
        del out[:]
    # Not in the except block: what it raises is to have no context, which would keep the value alive.
    if not out:
        _put_thoroughly(obj, out.append)
    out.append(_STOP)
    return b"".join(out)


def _put(obj: Any, put: Callable[[bytes], None], keys: dict[str, bytes]) -> None:
    """Write a value by recursion: quick, but says nothing about what is wrong. ``keys``: the bytes of the keys of dicts so far."""
    kind = type(obj)
    if kind is dict:
        put(b"J")
        for key, value in obj.items():
            if type(key) is str:
                data = keys.get(key)
                if data is None:
                    data = _text(key)
                    if len(keys) < 1000:
                        keys[key] = data
                put(data)
            else:
                _put(key, put, keys)
            kind = type(value)
            # Those of `_scalar` that are frequent, without the calls.
            if kind is str:
                data = value.encode()
                put(_pack_int(b"N", len(data)))
                put(data)
                put(_SETITEM)
            elif kind is int and _SMALLEST <= value <= _LARGEST:
                put(_pack_int(b"F", value))
                put(_SETITEM)
            else:
                _put(value, put, keys)
                put(_SETITEM)
    elif kind is list:
        size = len(obj)
        put(_pack_int(b"K", size))
        index = 0
        for value in obj:
            put(_INTS[index] if index < 256 else _pack_int(b"F", index))
            index += 1
            kind = type(value)
            if kind is str:
                data = value.encode()
                put(_pack_int(b"N", len(data)))
                put(data)
                put(_SETITEM)
            elif kind is int and _SMALLEST <= value <= _LARGEST:
                put(_pack_int(b"F", value))
                put(_SETITEM)
            else:
                _put(value, put, keys)
                put(_SETITEM)
        if index != size:
            raise _NotQuickly  # it changed meanwhile
    elif kind is tuple:
        for value in obj:
            _put(value, put, keys)
        put(_pack_int(b"@", len(obj)))
    elif kind is set or kind is frozenset:
        for value in obj:
            _put(value, put, keys)
        put(_pack_int(b"O" if kind is set else b"E", len(obj)))
    else:
        data = _scalar(obj)
        if data is None:
            raise _NotQuickly
        put(data)


def _scalar(obj: Any) -> bytes | None:
    """Return the bytes of a value that contains no others; None when it is of no such type."""
    kind = type(obj)
    if kind is str:
        return _text(obj)
    if kind is int:
        if _SMALLEST <= obj <= _LARGEST:
            return _pack_int(b"F", obj)
        digits = b"%d" % obj
        return _pack_int(b"H", len(digits)) + digits
    if obj is None:
        return _NONE
    if kind is bool:
        return _TRUE if obj else _FALSE
    if kind is float:
        return _pack_float(b"D", obj)
    if kind is bytes:
        data: bytes = _pack_int(b"A", len(obj)) + obj
        return data
    if kind is complex:
        return _pack_complex(b"T", obj.real, obj.imag)
    return None


def _text(text: str) -> bytes:
    data = text.encode()
    return _pack_int(b"N", len(data)) + data


_NO_ENTRY = object()


class _Open:
    """A container that is being written: what is left of it, and what ends it."""

    __slots__ = ("container", "end", "entry", "kind", "left")

    def __init__(self, container: Any) -> None:
        self.container = container
        self.kind = type(container)
        self.end = b""
        self.entry: Any = _NO_ENTRY  # the index or key of the value that is being written
        # A copy, because others may change it; in one step, which no other thread can interrupt.
        items = list(container.items() if self.kind is dict else container)
        if len(items) > _LARGEST:
            raise DumpError("it has more than %d items" % _LARGEST)
        self.left: Iterator[Any] = self._steps(items)

    def _steps(self, items: list[Any]) -> Iterator[Any]:
        """Return pairs: bytes to be written before a value, and a tuple of the value, or of none."""
        size = len(items)
        if self.kind is list:
            yield _pack_int(b"K", size), ()
            for self.entry, value in enumerate(items):
                yield _pack_int(b"F", self.entry), (value,)
                yield _SETITEM, ()
        elif self.kind is dict:
            yield b"J", ()
            for key, value in items:
                self.entry = _NO_ENTRY
                yield b"", (key,)
                self.entry = key
                yield b"", (value,)
                yield _SETITEM, ()
        else:
            for index, value in enumerate(items):
                self.entry = index if self.kind is tuple else _NO_ENTRY
                yield b"", (value,)
            code = b"@" if self.kind is tuple else b"O" if self.kind is set else b"E"
            yield _pack_int(code, size), ()

    def step(self) -> str:
        """Return the part of the path from the container to the value that is being written."""
        if self.kind is list or self.kind is tuple:
            return "[%d]" % self.entry
        if self.entry is not _NO_ENTRY:
            return "[%s]" % _shorten(self.entry)
        return " (a key)" if self.kind is dict else " (a member)"


def _put_thoroughly(obj: object, put: Callable[[bytes], None]) -> None:
    """Write a value, however deep, or raise a ``DumpError`` with the path to what is wrong."""
    opened: list[_Open] = []
    ids: set[int] = set()
    value: object = obj
    try:
        while True:
            if type(value) in (dict, list, tuple, set, frozenset):
                if id(value) in ids:
                    raise DumpError("it contains itself")
                opened.append(_Open(value))
                ids.add(id(value))
            else:
                put(_checked_scalar(value))
            while opened:
                step = next(opened[-1].left, None)
                if step is None:
                    ids.discard(id(opened.pop().container))
                    continue
                before, values = step
                put(before)
                if values:
                    (value,) = values
                    break
            else:
                return
    except DumpError as error:
        message = "item%s: %s" % (_path(opened), error)
    # Outside of the except block: the chain would keep the item alive.
    raise DumpError(message)


def _path(opened: list[_Open]) -> str:
    steps = [container.step() for container in opened]
    if len(steps) > 40:
        steps[20:-20] = [" ... "]
    return "".join(steps)


def _shorten(key: object) -> str:
    try:
        text = repr(key)
    except Exception as error:  # noqa: BLE001 - whatever a foreign __repr__ raises: the path is to be told
        text = "<%s whose repr() raises %s>" % (type(key).__name__, type(error).__name__)
    return text if len(text) <= 80 else text[:77] + "..."


def _checked_scalar(value: Any) -> bytes:
    try:
        data = _scalar(value)
    except UnicodeEncodeError as error:
        raise DumpError(
            "a str with a lone surrogate (%a at index %d) cannot be encoded as UTF-8"
            % (value[error.start], error.start)
        ) from None
    except ValueError:
        import sys

        limit = sys.get_int_max_str_digits()
        raise DumpError(
            "an int of more than %d digits; hint: sys.set_int_max_str_digits(), at both ends" % limit
        ) from None
    except struct.error:
        raise DumpError("%s is longer than %d bytes" % (type(value).__name__, _LARGEST)) from None
    if data is None:
        raise DumpError("can't serialize %s%s" % (_kind(value), _hint(value)))
    return data


def _kind(value: object) -> str:
    return repr(value) if isinstance(value, type) else repr(type(value))


def _hint(value: object) -> str:
    from ..protocol.structured import _refusal

    for kind, hint in ((bytearray, "bytes(obj)"), (memoryview, "bytes(obj)"), (range, "list(obj)")):
        if type(value) is kind:
            return "; hint: use " + hint
    return "; " + _refusal(value)


# -- reading --------------------------------------------------------------------------------------------------------------


def loads(bytestring: Buffer, py2str_as_py3str: bool = False, py3str_as_py2str: bool = False) -> Any:
    """Convert bytes back to the value that ``dumps``, or execnet's, made them of.

    Runs no code because of what the bytes are. What follows the end is an error: use ``load`` for several values one behind the other.

    Args:
        bytestring: the bytes; of any type that is a buffer.
        py2str_as_py3str: a ``str`` that was dumped by Python 2 becomes a ``str`` (by Latin-1), not ``bytes``.
        py3str_as_py2str: a ``str`` that was dumped by Python 3 becomes ``bytes``, in UTF-8.

    Raises:
        LoadError: the bytes are not such data, of any kind whatever. Also a ``DataFormatError``.
    """
    data = bytestring if type(bytestring) is bytes else bytes(memoryview(bytestring))
    if data[:1] != VERSION:
        raise LoadError(_wrong_version(data[:1]))
    return _loads(data, 1, py2str_as_py3str, py3str_as_py2str, None)


def load(io: Readable, py2str_as_py3str: bool = False, py3str_as_py2str: bool = False) -> Any:
    """Read one value from a binary file, and nothing of what follows it.

    Args:
        io: has ``read(size)``, which may return less than was asked for.
        py2str_as_py3str: as for ``loads``.
        py3str_as_py2str: as for ``loads``.

    Raises:
        LoadError: as for ``loads``; also when the file ends before the value does. What ``io.read`` raises comes through.
    """
    version = _read(io.read, 1)
    if version != VERSION:
        raise LoadError(_wrong_version(version))
    return _loads(_gather(io), 0, py2str_as_py3str, py3str_as_py2str, None)


def loads_internal(bytestring: Buffer, channelfactory: Any = None, strconfig: tuple[bool, bool] | None = None) -> Any:
    """As ``loads``, without the version; see ``Unserializer`` for the other parameters."""
    factory, config = _configuration(channelfactory, strconfig)
    return _loads(bytes(memoryview(bytestring)), 0, config[0], config[1], factory)


class Unserializer:
    """Under the name by which programs know execnet's (devpi).

    Args:
        stream: the binary file to read from.
        channel_or_gateway: makes channels of the numbers of channels in the data; without it they are refused.
        strconfig: ``(py2str_as_py3str, py3str_as_py2str)``, see ``loads``; (True, False) when it is not given.
    """

    py2str_as_py3str = True
    py3str_as_py2str = False

    def __init__(
        self, stream: Readable, channel_or_gateway: Any = None, strconfig: tuple[bool, bool] | None = None
    ) -> None:
        self.stream = stream
        self.channelfactory, config = _configuration(channel_or_gateway, strconfig)
        self.py2str_as_py3str, self.py3str_as_py2str = config

    def load(self, versioned: bool = False) -> Any:
        """Read one value. Raises as ``load`` of this module."""
        if versioned:
            version = _read(self.stream.read, 1)
            if version != VERSION:
                raise LoadError(_wrong_version(version))
        data = _gather(self.stream)
        return _loads(data, 0, self.py2str_as_py3str, self.py3str_as_py2str, self.channelfactory)


def _configuration(channel_or_gateway: Any, strconfig: tuple[bool, bool] | None) -> tuple[Any, tuple[bool, bool]]:
    if channel_or_gateway is None:
        return None, (strconfig or (Unserializer.py2str_as_py3str, Unserializer.py3str_as_py2str))
    gateway = getattr(channel_or_gateway, "gateway", channel_or_gateway)
    return gateway._channelfactory, channel_or_gateway._strconfig


def _wrong_version(version: bytes) -> str:
    if not version:
        return "no data: not even the version of the format"
    return "wrong dumpformat version %r, expected %r" % (version, VERSION)


_unpack_int = struct.Struct("!i").unpack_from
_unpack_float = struct.Struct("!d").unpack_from
_unpack_complex = struct.Struct("!dd").unpack_from

# The size of what follows an opcode: of those with a length, _COUNTED; of the end and of what is no opcode, -1.
_COUNTED = -2
_SIZES = [-1] * 256
for _letters, _size in ((b"LCRJP", 0), (b"FGK@OEB", 4), (b"D", 8), (b"T", 16), (b"AHIMNS", _COUNTED)):
    for _letter in _letters:
        _SIZES[_letter] = _size


def _read(read: Callable[[int], bytes | None], size: int) -> bytes:
    """Read so many bytes, fewer only at the end of the file."""
    data = read(min(size, _PIECE))
    if data is None:
        raise LoadError("the file has no data at present: it is not blocking")
    if len(data) == size or not data:
        return data
    pieces = [data]
    size -= len(data)
    while size:
        data = read(min(size, _PIECE))
        if data is None:
            raise LoadError("the file has no data at present: it is not blocking")
        if not data:
            break
        pieces.append(data)
        size -= len(data)
    return b"".join(pieces)


def _gather(io: Any) -> bytes:
    """Read a value's bytes up to its end, and no further. What they mean is not looked at but for the lengths."""
    ahead = _AHEAD if _goes_back(io) else 0
    data = bytearray()
    end = 0
    wanted = 1  # the bytes up to an opcode, with it
    while True:
        if wanted > end:
            data += _read(io.read, wanted - end + ahead)
            end = len(data)
            if wanted > end:
                break  # the file ends too early: _loads() says so
        size = _SIZES[data[wanted - 1]]
        if size == _COUNTED:
            wanted += 4
            if wanted > end:
                data += _read(io.read, wanted - end + ahead)
                end = len(data)
                if wanted > end:
                    break
            (size,) = _unpack_int(data, wanted - 4)
        if size < 0:
            break  # the end, or something that _loads() complains about
        wanted += size + 1
    if wanted < end:
        io.seek(wanted - end, 1)
        del data[wanted:]
    return bytes(data)


def _goes_back(io: Any) -> bool:
    """Whether more may be read at once and then given back, at no great cost: not for a compressed file, say."""
    if type(io) in (_io.BufferedReader, _io.BufferedRandom):
        return type(io.raw) is _io.FileIO and io.seekable()
    return type(io) is _io.BytesIO


def _loads(data: bytes, at: int, py2str: bool, py3str: bool, channelfactory: Any) -> Any:
    try:
        return _run(data, at, py2str, py3str, channelfactory)
    except LoadError as error:
        message = str(error)
    except (IndexError, struct.error):
        # The stack was empty, or the data end too early.
        message = "not such data: truncated, or operations without operands"
    except (TypeError, ValueError, OverflowError, RecursionError, MemoryError) as error:
        # An unhashable key, text that is not UTF-8, more digits than the interpreter converts; keys that are nested too deeply to
        # be compared.
        message = "not such data: %s: %s" % (type(error).__name__, error)
    # Outside of the except blocks: the frames of the chain would keep the data alive.
    raise LoadError(message)


def _run(data: bytes, at: int, py2str: bool, py3str: bool, channelfactory: Any) -> Any:
    """Run the program in the data."""
    # Names are looked up once for each value of a large structure.
    unpack_int = _unpack_int
    stack: list[Any] = []
    push = stack.append
    pop = stack.pop
    end = len(data)
    # The list that gets the next items, how many it is to have, and those around it, which wait for it.
    current: Any = None
    wanted = 0
    waiting: list[tuple[Any, int]] = []
    while True:
        code = data[at]
        at += 1
        if code == 80:  # P: set an item
            value = pop()
            key = pop()
            container = stack[-1]
            if container is current and current is not None:
                if type(key) is not int or key != len(container):
                    raise LoadError("item %.60r of a list is not the next one, which is %d" % (key, len(container)))
                container.append(value)
                if key + 1 == wanted:
                    current, wanted = waiting.pop()
            elif type(container) is dict:
                if type(key) is tuple:
                    _check_depth(key)
                container[key] = value
            else:
                raise LoadError("an item of something that is no container, or of a full list")
        elif code == 78:  # N: str
            (size,) = unpack_int(data, at)
            at += 4
            start = at
            at += size
            if size < 0 or at > end:
                raise LoadError("a str of %d bytes, and there are %d" % (size, end - start))
            push(data[start:at] if py3str else data[start:at].decode())
        elif code in {70, 71}:  # F, G: int
            push(unpack_int(data, at)[0])
            at += 4
        elif code == 74:  # J: dict
            push({})
        elif code == 75:  # K: list
            (size,) = unpack_int(data, at)
            at += 4
            # Each item takes 7 bytes at least.
            if size < 0 or size * 7 > end - at:
                raise LoadError("a list of %d items in %d bytes" % (size, end - at))
            container = []
            push(container)
            if size:
                waiting.append((current, wanted))
                current = container
                wanted = size
        elif code in {64, 79, 69}:  # @, O, E: tuple, set, frozenset
            (size,) = unpack_int(data, at)
            at += 4
            if size < 0 or size > len(stack):
                raise LoadError("%d items for a tuple or set, of %d" % (size, len(stack)))
            first = len(stack) - size
            items = stack[first:]
            del stack[first:]
            if code == 64:
                push(tuple(items))
            else:
                for item in items:
                    if type(item) is tuple:
                        _check_depth(item)
                push(set(items) if code == 79 else frozenset(items))
        elif code == 76:  # L
            push(None)
        elif code == 82:  # R
            push(True)
        elif code == 67:  # C
            push(False)
        elif code == 68:  # D: float
            push(_unpack_float(data, at)[0])
            at += 8
        elif _SIZES[code] == _COUNTED:
            (size,) = unpack_int(data, at)
            at += 4
            start = at
            at += size
            if size < 0 or at > end:
                raise LoadError("a value of %d bytes, and there are %d" % (size, end - start))
            text = data[start:at]
            if code == 65:  # A: bytes
                push(text)
            elif code == 83:  # S: a unicode of Python 2
                push(text.decode())
            elif code == 77:  # M: a str of Python 2
                push(text.decode("latin-1") if py2str else text)
            else:  # H, I: int
                digits = text[1:] if text[:1] == b"-" else text
                if not digits.isdigit():
                    raise LoadError("%.60r is not an int" % text)
                push(int(text))
        elif code == 84:  # T: complex
            push(complex(*_unpack_complex(data, at)))
            at += 16
        elif code == 81:  # Q: the end
            if len(stack) != 1 or current is not None:
                raise LoadError("%d values instead of one, or a list that lacks items" % len(stack))
            if at != end:
                raise LoadError("%d bytes follow the end of the value" % (end - at))
            return stack[0]
        elif code == 66:  # B: channel
            if channelfactory is None:
                raise LoadError("a channel, which can be received through a channel only")
            push(channelfactory.new(unpack_int(data, at)[0]))
            at += 4
        else:
            raise LoadError("unknown opcode %r" % data[at - 1 : at])


def _check_depth(key: tuple[Any, ...]) -> None:
    """Raise LoadError when a tuple cannot be hashed safely. Frozensets know their hash once they are in a set."""
    level: list[Any] = [key]
    depth = 0
    while level:
        depth += 1
        if depth > _DEEPEST_KEY:
            raise LoadError("a key of tuples nested more than %d levels deep" % _DEEPEST_KEY)
        level = [item for outer in level for item in outer if type(item) is tuple]
