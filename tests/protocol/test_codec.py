"""The codec: what comes back is what was sent, the rest is refused by its path, and hostile bytes run nothing."""

from __future__ import annotations

import array
import collections
import datetime as dt
import decimal
import enum
import gc
import importlib.util
import io
import math
import mmap
import pathlib
import pickle
import pickletools
import random
import struct
import subprocess
import sys
import threading
import uuid
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import servers
from farwire.bootstrap.blank import blank
from farwire.protocol import codec, structured
from farwire.protocol.codec import LARGE, PICKLE, PICKLE_BUFFERS, Decoder, Encoder, encoded_size
from farwire.protocol.errors import DumpError, LoadError

PACKAGE = Path(codec.__file__).parent


class Channel:
    """What the codec needs of a channel."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.number == self.number

    def __hash__(self) -> int:
        return self.number

    def __repr__(self) -> str:
        return f"<{self.number}>"


DECODER = Decoder(Channel)
ENCODERS = {protocol: Encoder(protocol, Channel, lambda channel: channel.number) for protocol in (4, 5)}


def joined(payload: Any) -> bytes:
    return payload if isinstance(payload, bytes) else b"".join(payload)


def there_and_back(item: Any, protocol: int = 5) -> Any:
    code, payload = ENCODERS[protocol].encode(item)
    return DECODER.decode(code, joined(payload))


def canonical(value: Any) -> str:
    """A text that is equal for equal values of the same types all the way down (True is not 1 here, nor 1 1.0)."""
    kind = type(value).__name__
    if isinstance(value, (list, tuple)):
        return f"{kind}[{','.join(map(canonical, value))}]"
    if isinstance(value, dict):
        return f"{kind}[{','.join(map(canonical, value.items()))}]"
    if isinstance(value, (set, frozenset)):
        return f"{kind}[{','.join(sorted(map(canonical, value)))}]"
    if isinstance(value, slice):
        return f"{kind}[{canonical((value.start, value.stop, value.step))}]"
    if isinstance(value, int):
        return f"{kind} {value:x}"
    return f"{kind} {value!r}"


def same(a: Any, b: Any) -> bool:
    return canonical(a) == canonical(b)


VALUES = [
    None,
    True,
    False,
    0,
    -1,
    2**63 - 1,
    -(2**63),
    2**63,
    -(2**63) - 1,
    2**64,
    -(2**1000),
    10**30000,
    0.0,
    -0.0,
    1e300,
    math.inf,
    math.nan,
    5e-324,
    1j,
    complex(-0.0, math.inf),
    "",
    "text",
    "é\u20ac\U0001f600\0\n",
    "\ud800 alone \udfff",
    "\x80" * 70000,
    b"",
    b"bytes\0\n",
    bytes(range(256)) * 300,
    bytearray(),
    bytearray(b"array"),
    bytearray(range(256)) * 300,
    [],
    (),
    {},
    set(),
    frozenset(),
    [1, [2, [3, (4, {5: {6}})]]],
    (1,),
    (1, 2, 3, 4, 5),
    {"a": 1, 2: "b", (3, 4): None, None: [], True: 0.5, b"c": frozenset([1])},
    {1, "a", (2, frozenset([3]))},
    slice(None),
    slice(1, -1, 2),
    slice("a", [], (slice(3),)),
    range(0),
    range(5, -(10**30), -7),
    range(True),
    Ellipsis,
    NotImplemented,
    [1j, 1j, range(3), slice(1), Ellipsis, NotImplemented, bytearray(b"x"), bytearray()],
    {"id": 7, "op": "run", "args": [1, 2.5, "x"], "ok": True},
    [b"x" * LARGE, "y" * LARGE, bytearray(LARGE), 1],
    list(range(100_000)),
    Channel(7),
    {"channels": [Channel(1), (Channel(2), {3: Channel(3)})]},
]


def shorten(value: object) -> str:
    return repr(value)[:30] if not isinstance(value, int) else "int"


@pytest.mark.parametrize("protocol", [4, 5])
@pytest.mark.parametrize("value", VALUES, ids=shorten)
def test_every_type_comes_back(value: Any, protocol: int) -> None:
    code, payload = ENCODERS[protocol].encode(value)
    data = joined(payload)
    assert encoded_size(payload) == len(data)
    # In each form in which a link may have it. bytearray and BytesIO become the decoder's own.
    for received in (data, bytearray(data), memoryview(data), memoryview(bytearray(data))):
        assert same(DECODER.decode(code, received), value)
    if len(data) >= LARGE:
        assert same(DECODER.decode(code, io.BytesIO(data)), value)
        stream = io.BytesIO(data)
        stream.seek(5)  # as it is when it has just been filled
        assert same(DECODER.decode(code, stream), value)


def random_item(chance: random.Random, depth: int = 0, hashable: bool = False) -> Any:
    """A random item of built-in types, seldom large."""
    kinds = 20 if depth < 5 else 12
    kind = chance.randrange(kinds)
    size = chance.choice([0, 1, 2, 3, 10, 130]) if chance.random() < 0.9 else chance.randrange(2000)
    if kind == 0:
        return chance.choice([None, True, False, Ellipsis, NotImplemented])
    if kind in (1, 2):
        return chance.randint(-300, 300)
    if kind == 3:
        return chance.getrandbits(chance.choice([31, 32, 63, 64, 65, 2040, 2048])) * chance.choice([1, -1])
    if kind in (4, 5):
        return chance.choice([chance.random(), 0.0, -0.0, math.inf, 1e-310])
    if kind == 6:
        return "".join(chr(chance.choice([10, 65, 130, 147, 0xD800, 0x20AC, 0x1F600])) for _ in range(size))
    if kind == 7:
        return chance.choice(["id", "op", "run"]) + "x" * size
    if kind == 8:
        return chance.randbytes(size)
    if kind == 9:
        return complex(chance.random(), -0.0)
    if kind == 10:
        return range(chance.randint(-9, 9), chance.getrandbits(70), chance.randint(1, 9))
    if kind == 11:
        return "small" if hashable else bytearray(chance.randbytes(size))
    few = range(min(size, 10))
    if kind in (12, 13):
        return tuple(random_item(chance, depth + 1, hashable) for _ in few)
    if kind == 14 or hashable:
        return frozenset(random_item(chance, depth + 1, hashable=True) for _ in few)
    if kind == 15:
        return {random_item(chance, depth + 1, hashable=True) for _ in few}
    if kind in (16, 17):
        return {random_item(chance, depth + 1, hashable=True): random_item(chance, depth + 1) for _ in few}
    if kind == 18:
        return slice(random_item(chance, depth + 1), random_item(chance, depth + 1))
    return [random_item(chance, depth + 1) for _ in few]


@pytest.mark.parametrize("protocol", [4, 5])
def test_random_items_come_back(protocol: int) -> None:
    chance = random.Random(protocol)
    for number in range(1500):
        item = random_item(chance)
        assert same(there_and_back(item, protocol), item), number


# -- the format ----------------------------------------------------------------------------------------------------------

VECTORS: list[tuple[Any, int, str]] = [
    (None, 1, ""),
    (True, 2, ""),
    (False, 3, ""),
    (-2, 4, "feffffffffffffff"),
    (2**63 - 1, 4, "ffffffffffffff7f"),
    (2**63, 5, "000000000000008000"),
    (-(2**63) - 1, 5, "ffffffffffffff7fff"),
    (1.5, 6, "000000000000f83f"),
    ("é\ud800", 7, "c3a9eda080"),
    (b"\0\xff", 8, "00ff"),
    (bytearray(b"\0\xff"), 9, "00ff"),
]

# The same item as a pickle of each protocol. A Pickler may write it in other ways, so these are for decoding only.
ITEM = [
    1j,
    range(1, 9, 2),
    slice(1),
    Ellipsis,
    NotImplemented,
    bytearray(b"ab"),
    b"view",
    Channel(7),
    {"a": [True, 2.5]},
]
ITEM_4 = (
    "800495ee000000000000005d94288c0e5f666172776972655f6974656d73948c07636f6d706c6578949394470000000000000000473ff00000000000"
    "008694529468018c0572616e67659493944b014b094b028794529468018c05736c6963659493944e4b014e8794529468018c08656c6c697073697394"
    "939429529468018c0e6e6f74696d706c656d656e7465649493942952948c086275696c74696e73948c09627974656172726179949394430261629485"
    "94529468018c056279746573949394430476696577948594529468018c076368616e6e656c9493944b07859452947d948c0161945d94288847400400"
    "00000000006573652e"
)
ITEM_5 = (
    "800595d8000000000000005d94288c0e5f666172776972655f6974656d73948c07636f6d706c6578949394470000000000000000473ff00000000000"
    "008694529468018c0572616e67659493944b014b094b028794529468018c05736c6963659493944e4b014e8794529468018c08656c6c697073697394"
    "939429529468018c0e6e6f74696d706c656d656e74656494939429529496020000000000000061629468018c05627974657394939443047669657794"
    "8594529468018c076368616e6e656c9493944b07859452947d948c0161945d9428884740040000000000006573652e"
)
ARRAY = (  # [numpy.arange(3, dtype="<u2")]
    "8005953d000000000000005d948c0e5f666172776972655f6974656d73948c076e646172726179949394288c033c7532944b0385948c014394430600"
    "00010002009474945294612e"
)
# bytes(0), b"abc" of buffers 1 and 0: lengths 3 and 0, and a pickle of 38 bytes.
VIEWS_PICKLE = b"(c_farwire_items\nbytes\nq\0K\1\x85Rh\0K\0\x85Rt."
VIEWS = struct.pack("<QIIQQ", len(VIEWS_PICKLE), 2, 0, 3, 0) + VIEWS_PICKLE
VIEWS += bytes(128 - len(VIEWS)) + b"abc" + bytes(61)


@pytest.mark.parametrize(("item", "code", "data"), VECTORS, ids=repr)
def test_format_of_simple_items(item: Any, code: int, data: str) -> None:
    assert ENCODERS[5].encode(item) == (code, bytes.fromhex(data))
    assert same(DECODER.decode(code, bytes.fromhex(data)), item)


def test_format_of_structured_items() -> None:
    assert same(DECODER.decode(10, bytes.fromhex(ITEM_4)), ITEM)
    assert same(DECODER.decode(10, bytes.fromhex(ITEM_5)), ITEM)
    assert DECODER.decode(11, VIEWS) == (b"", b"abc")


def test_format_of_buffers() -> None:
    first, second = memoryview(b"a" * LARGE), memoryview(b"b" * (LARGE + 1))
    code, chunks = ENCODERS[5].encode([first, second])
    data = joined(chunks)
    length, count, zero, *lengths = struct.unpack_from("<QIIQQ", data)
    assert (code, count, zero, lengths) == (PICKLE_BUFFERS, 2, 0, [LARGE, LARGE + 1])
    position = -(-(32 + length) // 64) * 64
    assert data[position : position + LARGE] == first
    position += -(-LARGE // 64) * 64
    assert data[position:] == second
    # Not copied on the way.
    assert isinstance(chunks, list)
    assert any(isinstance(chunk, memoryview) and chunk.obj is first.obj for chunk in chunks)


# -- references -----------------------------------------------------------------------------------------------------------


def test_shared_references_and_cycles_are_kept() -> None:
    shared: list[Any] = []
    number, channel = complex(1, 2), Channel(1)
    array_ = bytearray(b"x")
    back = there_and_back([shared, shared, {"s": shared}, number, number, channel, channel, array_, array_])
    assert back[0] is back[1] is back[2]["s"]
    assert back[3] is back[4]
    assert back[5] is back[6]
    assert back[7] is back[8]

    cycle: list[Any] = [1]
    cycle.append({"self": (cycle,)})
    back = there_and_back(cycle)
    assert back[1]["self"][0] is back


def test_items_are_let_go() -> None:
    class Marked:
        pass

    item = [set(range(10))]
    holder = Marked()
    alive = weakref.ref(holder)
    was = gc.isenabled()
    gc.disable()  # nothing that needs it may be left either
    try:
        count = sys.getrefcount(item[0])
        ENCODERS[5].encode(item)
        afterwards = sys.getrefcount(item[0])
        assert afterwards == count
        try:
            ENCODERS[5].encode([holder])
        except DumpError as error:
            context = error.__context__
        assert context is None
        del holder
        assert alive() is None
    finally:
        if was:
            gc.enable()


# -- bytes-likes ----------------------------------------------------------------------------------------------------------


def test_large_bytes_are_not_copied() -> None:
    data = bytes(10 * LARGE)
    code, payload = ENCODERS[5].encode(data)
    assert payload is data
    assert DECODER.decode(code, data) is data
    stream = io.BytesIO(data)
    assert DECODER.decode(code, stream) is data

    changing = bytearray(LARGE)
    code, chunks = ENCODERS[5].encode(changing)
    assert isinstance(chunks, list)
    assert isinstance(chunks[0], memoryview)
    assert chunks[0].obj is changing
    assert DECODER.decode(code, changing) is changing

    code, chunks = ENCODERS[5].encode(["text", data, 1])
    assert any(chunk is data for chunk in chunks)


def test_small_bytearrays_are_taken_as_they_are_now() -> None:
    changing = bytearray(b"now")
    code, payload = ENCODERS[5].encode(changing)
    changing += b" later"
    assert DECODER.decode(code, bytes(joined(payload))) == b"now"


@pytest.mark.parametrize("protocol", [4, 5])
def test_memoryviews_arrive_as_bytes(protocol: int) -> None:
    def back(item: Any) -> Any:
        return there_and_back(item, protocol)

    rows = memoryview(bytes(range(12))).cast("B", (3, 4))
    assert same(back(rows), bytes(range(12)))
    assert same(back([rows, {"m": rows}]), [bytes(range(12)), {"m": bytes(range(12))}])
    assert same(back(memoryview(b"abcdef")[::2]), b"ace")
    assert same(back([memoryview(b"abcdef" * LARGE)[::-1]]), [b"fedcba" * LARGE])
    assert same(back(memoryview(array.array("d", [1, 2] * LARGE))), struct.pack("<dd", 1, 2) * LARGE)
    assert same(back([memoryview(array.array("d", [1, 2] * LARGE))]), [struct.pack("<dd", 1, 2) * LARGE])
    assert same(back([memoryview(b""), memoryview(bytearray(3 * LARGE))]), [b"", bytes(3 * LARGE)])


def test_a_released_memoryview_is_refused() -> None:
    view = memoryview(b"x")
    view.release()
    for item in (view, [view]):
        with pytest.raises(DumpError, match="released"):
            ENCODERS[5].encode(item)


def test_pickle_buffers_arrive_as_bytes_or_bytearray() -> None:
    buffer = pickle.PickleBuffer
    assert same(there_and_back([buffer(b"a"), buffer(bytearray(b"b"))]), [b"a", bytearray(b"b")])
    assert same(there_and_back([buffer(bytearray(LARGE))]), [bytearray(LARGE)])
    with pytest.raises(DumpError, match="PickleBuffer"):
        there_and_back([buffer(b"a")], protocol=4)


# -- refusals -------------------------------------------------------------------------------------------------------------


class Color(enum.IntEnum):
    RED = 1


class Text(str):
    __slots__ = ()


class Meta(type):
    pass


class WithMeta(metaclass=Meta):
    pass


Point = collections.namedtuple("Point", "x y")  # noqa: PYI024 - what users have

REFUSED: list[tuple[Any, str]] = [
    (dt.datetime(2020, 1, 1), "datetime.datetime cannot be sent; hint: send obj.isoformat()"),  # noqa: DTZ001
    (dt.timedelta(1), "datetime.timedelta cannot be sent; hint: send obj.total_seconds()"),
    (Color.RED, f"{__name__}.Color cannot be sent; hint: send obj.value"),
    (Text("x"), f"{__name__}.Text cannot be sent; hint: send str(obj)"),
    (Point(1, 2), f"{__name__}.Point cannot be sent; hint: send tuple(obj)"),
    (collections.OrderedDict(a=1), "collections.OrderedDict cannot be sent; hint: send dict(obj)"),
    (collections.defaultdict(list), "collections.defaultdict cannot be sent; hint: send dict(obj)"),
    (collections.deque(), "collections.deque cannot be sent; hint: send list(obj)"),
    ({}.keys(), "dict_keys cannot be sent; hint: send list(obj)"),
    (iter(()), "tuple_iterator cannot be sent; hint: convert it to built-in types"),
    (decimal.Decimal(1), "decimal.Decimal cannot be sent; hint: send str(obj)"),
    (uuid.UUID(int=1), "uuid.UUID cannot be sent; hint: send str(obj)"),
    (pathlib.PurePosixPath("/"), "PurePosixPath cannot be sent; hint: send str(obj)"),
    (array.array("d"), "array.array cannot be sent; hint: send memoryview(obj), or list(obj)"),
    (ValueError("x"), "ValueError cannot be sent; hint: send str(obj)"),
    (object(), "object cannot be sent; hint: convert it to built-in types"),
    (WithMeta(), f"{__name__}.WithMeta cannot be sent"),
    (int, "the class int cannot be sent"),
    (bytearray, "the class bytearray cannot be sent"),
    (type(None), "the class NoneType cannot be sent"),
    (type, "the class type cannot be sent"),
    (Color, f"the class {__name__}.Color cannot be sent"),
    (WithMeta, f"the class {__name__}.WithMeta cannot be sent"),
    (Meta, f"the class {__name__}.Meta cannot be sent"),
    (len, "the function builtins.len cannot be sent; hint: run it with remote_exec()"),
    (lambda: 1, f"the function {__name__}.<lambda> cannot be sent; hint: run it with remote_exec()"),
    ([].append, "cannot be sent"),
    (sys, "the module sys cannot be sent; hint: import it at the other end"),
]

PLACES: list[tuple[str, Callable[[Any], Any]]] = [
    ("item", lambda bad: bad),
    ("item[1]['props'][3]", lambda bad: [0, {"props": (1, 2.5, bytearray(b"x"), bad), "later": [bad]}]),
    ("a key of item[0]", lambda bad: [{bad: 1}]),
    ("(a key of item)[1]", lambda bad: {(1, bad): 1}),
    ("(an element of item['x'])[0]", lambda bad: {"x": {(bad,)}}),
    ("an element of an element of item", lambda bad: {frozenset([bad])}),
    ("item.stop[0]", lambda bad: slice([bad])),
    ("item[None][(1, 2)][b'k'][1.5][99999]", lambda bad: {None: {(1, 2): {b"k": {1.5: {99999: bad}}}}}),
]


@pytest.mark.parametrize("protocol", [4, 5])
@pytest.mark.parametrize(("path", "put"), PLACES, ids=[path for path, _ in PLACES])
def test_refusals_say_where(path: str, put: Callable[[Any], Any], protocol: int) -> None:
    for bad, text in REFUSED:
        try:
            item = put(bad)
        except TypeError:  # cannot be a key
            continue
        with pytest.raises(DumpError) as caught:
            ENCODERS[protocol].encode(item)
        assert str(caught.value).startswith(path + ": "), caught.value
        assert text in str(caught.value)


def test_refusals_in_cycles_and_among_many() -> None:
    cycle: dict[str, Any] = {"a": 1}
    cycle["b"] = [cycle, (cycle, [cycle] * 3)]
    cycle["%s"] = {"%d": object()}
    with pytest.raises(DumpError, match=r"^item\['%s'\]\['%d'\]: object cannot"):
        ENCODERS[5].encode(cycle)
    many: list[Any] = [[number, {"n": number}] for number in range(20_000)]
    many[19_999].append(object())
    with pytest.raises(DumpError, match=r"^item\[19999\]\[2\]: object"):
        ENCODERS[5].encode(many)
    with pytest.raises(DumpError, match=r"^item\['xxxxx.*\.\.\.xxxx'\]: object") as caught:
        ENCODERS[5].encode({"x" * 5000: object()})
    assert len(str(caught.value)) < 200
    with pytest.raises(DumpError, match=r"^item\[\.\.\.\]: object"):
        ENCODERS[5].encode({10**10000: object()})


def test_an_encoder_goes_on_after_a_refusal() -> None:
    encoder = Encoder(5, Channel, lambda channel: channel.number)
    good = {"a": [1, "b"]}
    expected = encoder.encode(good)
    for _ in range(5):
        with pytest.raises(DumpError):
            encoder.encode([good, "b", object()])
        assert encoder.encode(good) == expected


@pytest.mark.parametrize("protocol", [4, 5])
def test_too_deep(protocol: int) -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(DumpError, match="nested too deeply"):
        ENCODERS[protocol].encode(deep)
    while deep:  # or taking it apart nests too deeply, too
        deep = deep.pop()


def test_channels_that_cannot_be_sent() -> None:
    def refuse(channel: Channel) -> int:
        raise ValueError("the channel is of another gateway")

    encoder = Encoder(5, Channel, refuse)
    with pytest.raises(DumpError, match=r"^item\['c'\]: the channel is of another gateway$"):
        encoder.encode({"c": Channel(1)})


def test_subclasses_of_channel_are_channels() -> None:
    class Special(Channel):
        pass

    for protocol in (4, 5):
        assert there_and_back([Special(3)], protocol) == [Channel(3)]


def test_unknown_protocols_are_refused() -> None:
    with pytest.raises(ValueError, match="6"):
        Encoder(6, Channel, hash)


# -- threads and memory -----------------------------------------------------------------------------------------------------


def test_threads_share_an_encoder_and_a_decoder() -> None:
    encoder, decoder = Encoder(5, Channel, lambda channel: channel.number), Decoder(Channel)
    wrong: list[object] = []

    def work(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(150):
            item = [seed, random_item(chance), 1j, Channel(seed)]
            code, payload = encoder.encode(item)
            if not same(decoder.decode(code, joined(payload)), item):
                wrong.append(item)
            try:
                encoder.encode([item, object()])
            except DumpError:
                pass
            else:
                wrong.append("sent")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    old = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(old)
    assert not wrong


def test_picklers_that_grew_are_not_kept() -> None:
    encoder = Encoder(5, Channel, lambda channel: channel.number)
    encoder.encode([1])
    assert len(encoder._free) == 1
    encoder.encode([str(number) for number in range(5000)])
    assert not encoder._free


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_pauses_while_a_large_item_is_decoded(enabled: bool) -> None:
    seen: list[bool] = []

    def make_channel(number: int) -> Channel:
        seen.append(gc.isenabled())
        if number == 2:
            raise ValueError("no")
        if number == 1:  # within the pause of the first
            decoder.decode(*large([]))
            seen.append(gc.isenabled())
        return Channel(number)

    def large(more: list[Any]) -> tuple[int, bytes]:
        code, payload = ENCODERS[5].encode([list(range(LARGE)), *more])
        return code, joined(payload)

    decoder = Decoder(make_channel)
    was = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        decoder.decode(*large([Channel(1)]))
        assert gc.isenabled() == enabled
        with pytest.raises(LoadError):
            decoder.decode(*large([Channel(2)]))
        assert gc.isenabled() == enabled
        assert seen == [False, False, False]
        seen.clear()
        assert decoder.decode(PICKLE, joined(ENCODERS[5].encode([Channel(3)])[1])) == [Channel(3)]
        assert seen == [enabled]
    finally:
        (gc.enable if was else gc.disable)()


def test_a_child_forked_during_the_pause_has_its_collector() -> None:
    program = """
import gc, os, sys
from farwire.protocol.codec import Decoder, Encoder
def make_channel(number):
    pid = os.fork()
    if not pid:
        os._exit(0 if gc.isenabled() else 1)
    assert os.waitpid(pid, 0)[1] == 0
item = [list(range(100000)), 1j]
code, payload = Encoder(5, complex, lambda channel: 1).encode(item)
Decoder(make_channel).decode(code, b"".join(payload))
assert gc.isenabled()
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)


# -- numpy ----------------------------------------------------------------------------------------------------------------


def arrays() -> Iterator[Any]:
    np = pytest.importorskip("numpy")
    for count in (0, 1, 3, 70_000):
        for dtype in (
            "?",
            "i1",
            "<i4",
            ">u8",
            "f2",
            "f8",
            ">f4",
            "c16",
            "S3",
            "<U2",
            ">U2",
            "V5",
            "M8[ns]",
            "<m8[3D]",
            "M8",
        ):
            yield np.zeros(count, dtype)
        yield np.zeros(count, [("a", "i1"), ("b", ">f8", (2, 3)), ("c", [("d", "U3")])])
        yield np.zeros(count, np.dtype([("a", "i1"), ("b", "f8")], align=True))
        yield np.zeros(count, {"names": ["b", "a"], "formats": ["i2", "i4"], "offsets": [6, 1], "itemsize": 16})
    yield np.array(5)
    yield np.array("text")
    yield np.arange(2).astype("M8[s]")
    yield np.zeros((0, 3))
    yield np.zeros((3, 0), order="F")
    yield np.zeros(5, "V0")
    yield np.zeros((1,) * 30, "i1")
    cube = np.arange(60_000).reshape(30, 40, 50)
    yield from (cube, cube.T, cube.transpose(1, 0, 2), cube[::-1], cube[:, 3], cube[..., ::7], np.asfortranarray(cube))
    yield np.broadcast_to(np.arange(3.0), (4, 3))
    small = np.arange(24, dtype="i2").reshape(2, 3, 4)
    yield from (small, small.T, small.transpose(1, 0, 2), small[::-1], np.asfortranarray(small))
    fixed = np.arange(3)
    fixed.flags.writeable = False
    yield fixed
    yield np.frombuffer(bytes(LARGE), "f4")


@pytest.mark.parametrize("protocol", [4, 5])
def test_arrays_come_back(protocol: int) -> None:
    np = pytest.importorskip("numpy")
    for item in arrays():
        code, payload = ENCODERS[protocol].encode({"a": [item, item]})
        data = joined(payload)
        for received in (data, bytearray(data), memoryview(bytearray(data)), io.BytesIO(data)):
            if len(data) < LARGE and not isinstance(received, bytes):
                continue
            back = DECODER.decode(code, received)["a"]
            assert back[0] is back[1]
            result = back[0]
            assert type(result) is np.ndarray
            assert (result.dtype, result.shape) == (item.dtype, item.shape)
            assert result.tobytes() == item.tobytes()
            assert result.flags.writeable
            if item.flags.c_contiguous or not item.flags.f_contiguous:
                assert result.flags.c_contiguous
            else:
                assert result.flags.f_contiguous


def test_large_arrays_are_not_copied() -> None:
    np = pytest.importorskip("numpy")
    for item in (np.arange(100_000.0), np.arange(100_000.0).reshape(100, -1).T):
        code, chunks = ENCODERS[5].encode(item)
        assert code == PICKLE_BUFFERS
        assert any(np.shares_memory(item, np.frombuffer(chunk, "u1")) for chunk in chunks)
        data = joined(chunks)
        pages = mmap.mmap(-1, len(data))
        pages[:] = data
        for received in (bytearray(data), memoryview(bytearray(data)), memoryview(pages)):
            back = DECODER.decode(code, received)
            assert np.array_equal(back, item)
            assert np.shares_memory(back, np.frombuffer(received, "u1"))
            back[:] = 0


def test_arrays_do_not_look_into_a_bytesio() -> None:
    """CPython 3.12.1 crashes when it collects a BytesIO of which there are views."""
    np = pytest.importorskip("numpy")
    code, chunks = ENCODERS[5].encode([np.arange(100_000.0)])
    stream = io.BytesIO(joined(chunks))
    # The link hands over a BytesIO's value, never a view of one; of that, the early 3.12 cannot even collect what decoding leaves.
    views = [] if sys.version_info[:2] == (3, 12) else [stream.getbuffer()]
    for received in (stream, *views):
        back = DECODER.decode(code, received)
        assert not np.shares_memory(back[0], np.frombuffer(stream.getbuffer(), "u1"))
        assert back[0].flags.writeable
        back.append(back)
    del received, back, views  # views first: 3.13 complains of a BytesIO that goes before them
    gc.collect()
    del stream


def test_refused_arrays() -> None:
    np = pytest.importorskip("numpy")

    class Sub(np.ndarray):  # type: ignore[misc]
        pass

    bad: list[tuple[Any, str]] = [
        (np.array([None]), r"dtype object cannot be sent; hint: send array.tolist\(\)"),
        (np.zeros(3, [("a", "i1"), ("b", "O")]), "cannot be sent"),
        (np.zeros(3, "g") if np.dtype("g").itemsize == 16 else np.array([None]), "cannot be sent; hint"),
        (np.zeros(3).view(Sub), r"hint: send numpy.asarray\(obj\)"),
        (np.ma.array([1]), "numpy.asarray"),
        (np.float64(1), r"numpy.float64 cannot be sent; hint: send obj.item\(\)"),
        (np.bool_(True), r"hint: send obj.item\(\)"),
        (np.dtype("i4"), "cannot be sent"),
        (np.zeros(3, np.dtype({"names": ["a"], "formats": ["i4"], "titles": ["t"]})), "cannot be sent"),
    ]
    for value, text in bad:
        with pytest.raises(DumpError, match=rf"^item\[1\]: .*{text}"):
            ENCODERS[5].encode([0, value])


def array_pickle(dtype: Any, shape: Any, order: Any, data: Any) -> bytes:
    return pickle.dumps([Call("ndarray", dtype, shape, order, data)], 4)


class Call:
    """Pickles as a call of a constructor, with any arguments."""

    def __init__(self, name: str, *args: Any) -> None:
        self.name = name
        self.args = args

    def __reduce__(self) -> Any:
        return getattr(structured._items_module(), self.name), self.args


@pytest.fixture(autouse=True)
def _markers_pickle() -> Iterator[None]:
    # Plain pickle does not know markers; with a __reduce__ it takes them for globals.
    marker = structured._items_module().Marker
    marker.__reduce__ = lambda self: self.name
    yield
    del marker.__reduce__


BROKEN_ARRAYS: list[tuple[Any, ...]] = [
    ("<f8", (1,), "C", b""),
    ("<f8", (2**62, 4), "C", b""),
    ("<f8", (-1,), "C", b""),
    ("<f8", (-1, -1), "C", b"12345678"),
    ("<f8", 1, "C", b"12345678"),
    ("<f8", (True,), "C", b"12345678"),
    ("<f8", (1,), "A", b"12345678"),
    ("<f8", (1,), "C", 0),
    ("<f8", (1,), "C", "12345678"),
    ("<f8", (1,), None, b"12345678"),
    ("O", (1,), "C", b"12345678"),
    ("|O", (1,), "C", b"12345678"),
    ("|O8", (1,), "C", b"12345678"),
    ("i4,i4", (1,), "C", b"12345678"),
    ("(2,)i4", (1,), "C", b"12345678"),
    ("f8", (1,), "C", b"12345678"),
    ("<M8[nonsense]", (1,), "C", b"12345678"),
    ("<M8[" + "9" * 50 + "s]", (1,), "C", b"12345678"),
    ("<f" + "8" * 5000, (1,), "C", b"12345678"),
    ("", (1,), "C", b"12345678"),
    (None, (1,), "C", b"12345678"),
    (["<f8"], (1,), "C", b"12345678"),
    (("<f8",), (1,), "C", b"12345678"),
    (("<f8", (-1,)), (1,), "C", b"12345678"),
    (("<f8", (2**40, 2**40)), (1,), "C", b"12345678"),
    ((("a",), ("O",), (0,), 8), (1,), "C", b"12345678"),
    ((("a",), ("<f8",), (4,), 8), (1,), "C", b"12345678"),
    ((("a",), ("<f8",), (-8,), 8), (1,), "C", b"12345678"),
    ((("a", "a"), ("<f4", "<f4"), (0, 4), 8), (1,), "C", b"12345678"),
    ((("a",), ("<f8",), (0,), -8), (1,), "C", b"12345678"),
    ((("a",), ("<f8", "<f8"), (0,), 8), (1,), "C", b"12345678"),
    ((([],), ("<f8",), (0,), 8), (1,), "C", b"12345678"),
    ("<f8", (1,) * 1000, "C", b"12345678"),
]


@pytest.mark.parametrize("args", BROKEN_ARRAYS, ids=shorten)
def test_broken_arrays(args: tuple[Any, ...]) -> None:
    pytest.importorskip("numpy")
    assert len(DECODER.decode(PICKLE, array_pickle("<f8", (1,), "C", b"12345678"))) == 1
    with pytest.raises(LoadError):
        DECODER.decode(PICKLE, array_pickle(*args))


def test_a_dtype_nested_deeply() -> None:
    pytest.importorskip("numpy")
    dtype: Any = "<f8"
    for _ in range(300):
        dtype = (dtype, (1,))
    with pytest.raises(LoadError, match="deep"):
        DECODER.decode(PICKLE, array_pickle(dtype, (1,), "C", b"12345678"))


def test_no_numpy_at_the_receiver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(LoadError, match="numpy array and numpy cannot be imported"):
        DECODER.decode(PICKLE, bytes.fromhex(ARRAY))


def test_format_of_arrays() -> None:
    np = pytest.importorskip("numpy")
    assert np.array_equal(DECODER.decode(10, bytes.fromhex(ARRAY)), [np.arange(3)])


# -- what is not an item --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [1, 7, 16, 40, 100, 129])
def test_broken_buffers(cut: int) -> None:
    with pytest.raises(LoadError):
        DECODER.decode(PICKLE_BUFFERS, VIEWS[:cut])
    with pytest.raises(LoadError):
        DECODER.decode(PICKLE_BUFFERS, VIEWS + bytes(cut))


@pytest.mark.parametrize(
    "head",
    [
        struct.pack("<QII", 2**63, 0, 0),
        struct.pack("<QII", 0, 2**31, 0),
        struct.pack("<QII", 1, 0, 1) + b"N.",
        struct.pack("<QIIQ", 2, 1, 0, 2**64 - 1) + b"N.",
        struct.pack("<QIIQ", 2, 1, 0, 2**64 - 64) + b"N.",
    ],
)
def test_broken_tables_of_buffers(head: bytes) -> None:
    with pytest.raises(LoadError):
        DECODER.decode(PICKLE_BUFFERS, head)


@pytest.mark.parametrize(
    ("code", "data"),
    [
        (0, b""),
        (12, b""),
        (255, b"x"),
        (-1, b""),
        (codec.NONE, b"x"),
        (codec.TRUE, b"x"),
        (codec.FALSE, b"x"),
        (codec.INT, b""),
        (codec.INT, bytes(7)),
        (codec.INT, bytes(9)),
        (codec.BIGINT, b""),
        (codec.FLOAT, bytes(7)),
        (codec.STR, b"\xff"),
        (codec.STR, b"\xed\xa0"),
        (codec.PICKLE, b""),
        (codec.PICKLE, b"\x80"),
        (codec.PICKLE, b"N"),
        (codec.PICKLE_BUFFERS, b""),
    ],
)
def test_wrong_bytes_are_a_load_error(code: int, data: bytes) -> None:
    for received in (data, bytearray(data), memoryview(data)):
        with pytest.raises(LoadError, match="not an item"):
            DECODER.decode(code, received)


RAN: list[object] = []


def evil(*args: object) -> None:
    """What must not happen leaves a trace."""
    RAN.append(args)


class Evil:
    def __init__(self, *args: object) -> None:
        RAN.append(args)


NAME = f"{__name__}\n".encode()
MODULE = b"\x8c" + bytes([len(__name__)]) + __name__.encode()
COMPLEX = b"c_farwire_items\ncomplex\n"
CHANNEL = b"c_farwire_items\nchannel\n"
HOSTILE = {
    "GLOBAL": b"c" + NAME + b"evil\n(tR.",
    "GLOBAL os.system": b"cos\nsystem\n(S'true'\ntR.",
    "GLOBAL builtins": b"cbuiltins\neval\n(V1\ntR.",
    "GLOBAL __builtin__": b"c__builtin__\neval\n(V1\ntR.",
    "GLOBAL dotted": b"\x80\x04\x8c\x0e_farwire_items\x8c\x10Marker.__class__\x93.",
    "STACK_GLOBAL": b"\x80\x04" + MODULE + b"\x8c\x04evil\x93)R.",
    "STACK_GLOBAL of no strings": b"\x80\x04K\x01K\x02\x93.",
    "only a class": b"cbuiltins\nint\n.",
    "INST": b"(i" + NAME + b"evil\n.",
    "OBJ": b"(c" + NAME + b"evil\no.",
    "NEWOBJ": b"c" + NAME + b"Evil\n)\x81.",
    "NEWOBJ of a constructor": COMPLEX + b")\x81.",
    "NEWOBJ_EX of a constructor": COMPLEX + b")}\x92.",
    "EXT1": b"\x82\x01.",
    "EXT2": b"\x83\x01\x01.",
    "EXT4": b"\x84\x01\x01\x01\x01.",
    "PERSID": b"Pevil\n.",
    "BINPERSID": b"K\x01Q.",
    "REDUCE of a string": b"V" + NAME + b")R.",
    "REDUCE with no tuple": COMPLEX + b"K\x01R.",
    "BUILD of a constructor": COMPLEX + b"}V__call__\nK\x01sb.",
    "BUILD of a constructor, slots": COMPLEX + b"N}V__call__\nK\x01s\x86b.",
    "BUILD of a constructor, class": COMPLEX + b"N}V__class__\n" + COMPLEX + b"s\x86b.",
    "BUILD of a string": b"Vx\n}V__class__\nK\x01sb.",
    "BUILD of a list": b"]N}V__class__\nK\x01s\x86b.",
    "NEXT_BUFFER": b"\x80\x05\x97.",
    "unknown protocol": b"\x80\x63N.",
    "complex of strings": COMPLEX + b"(V1\nV2\ntR.",
    "complex of too many": COMPLEX + b"(G" + bytes(8) + b"K\1K\1tR.",
    "range of floats": b"c_farwire_items\nrange\n(G" + bytes(8) + b"K\1K\1tR.",
    "range with step 0": b"c_farwire_items\nrange\n(K\0K\1K\0tR.",
    "bytearray of a size": b"c_farwire_items\nbytearray\nJ\xff\xff\xff\x7f\x85R.",
    "bytes of a size": b"c_farwire_items\nbytes\nJ\xff\xff\xff\x7f\x85R.",
    "channel of a string": CHANNEL + b"V1\n\x85R.",
    "channel of True": CHANNEL + b"\x88\x85R.",
    "list as a key": b"}]K\x01s.",
    "no memory": b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
    "no memory, text": b"\x8d\xff\xff\xff\xff\xff\xff\xff\x0f.",
    "no memory, bytearray": b"\x96\xff\xff\xff\xff\xff\xff\xff\x0f.",
    "frame that is too long": b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x0f.",
    "unknown opcode": b"\xfe.",
    "GET of nothing": b"h\x05.",
    "POP of nothing": b"0.",
    "MARK only": b"(.",
    "unclosed": b"(K\x01",
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_hostile_pickles_run_nothing(data: bytes) -> None:
    import copyreg

    copyreg.add_extension(__name__, "evil", 0x01)
    copyreg.add_extension(__name__, "Evil", 0x0101)
    copyreg.add_extension(__name__, "Color", 0x01010101)
    try:
        # In each way in which a pickle is read.
        large = data + bytes(LARGE)
        for received in (data, bytearray(data), memoryview(data), large, bytearray(large), io.BytesIO(large)):
            with pytest.raises(LoadError, match="not an item"):
                DECODER.decode(PICKLE, received)
        table = struct.pack("<QII", len(data), 0, 0)
        with pytest.raises(LoadError):
            DECODER.decode(PICKLE_BUFFERS, table + data)
    finally:
        copyreg.remove_extension(__name__, "evil", 0x01)
        copyreg.remove_extension(__name__, "Evil", 0x0101)
        copyreg.remove_extension(__name__, "Color", 0x01010101)
    assert not RAN


def test_constructors_give_nothing_away() -> None:
    for name in [*structured._FUNCTIONS, "channel"]:
        constructor = DECODER.decode(PICKLE, b"c_farwire_items\n" + name.encode() + b"\n.")
        assert not hasattr(constructor, "__dict__")
        for attribute in dir(constructor):
            if attribute != "__class__":
                with pytest.raises((AttributeError, TypeError)):
                    setattr(constructor, attribute, 1)


def test_deep_nesting_is_no_harm_to_the_decoder() -> None:
    data = b"(" * 200_000 + b"t" * 200_000 + b"."
    back = DECODER.decode(PICKLE, data)
    del back
    assert DECODER.decode(PICKLE, b"]" * 200_000 + b"a" * 199_999 + b".")


def test_errors_of_make_channel() -> None:
    def make_channel(number: int) -> object:
        raise KeyError(number)

    with pytest.raises(LoadError, match="KeyError: 7"):
        Decoder(make_channel).decode(10, bytes.fromhex(ITEM_5))


# -- plain loads() for what cannot do harm --------------------------------------------------------------------------------

# The opcodes of protocols 0 to 5 that can lead to a class or function: they need one of these bytes, or a newline.
LEADING_OUT = {"GLOBAL", "INST", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID"}
KNOWN_OPCODES = 68


def test_every_opcode_is_known() -> None:
    """A Python with a new opcode must be looked at before the codec may use plain ``loads`` there."""
    if codec._SCAN_LIMIT:
        assert len(pickletools.opcodes) == KNOWN_OPCODES
        assert {opcode.proto for opcode in pickletools.opcodes} == {0, 1, 2, 3, 4, 5}
    leading = [opcode for opcode in pickletools.opcodes if opcode.name in LEADING_OUT]
    assert len(leading) == len(LEADING_OUT)
    for opcode in leading:
        if opcode.name in ("PERSID", "BINPERSID"):
            with pytest.raises(pickle.UnpicklingError):
                pickle.loads({"PERSID": b"Px\n.", "BINPERSID": b"K\x01Q."}[opcode.name])
        elif opcode.name in ("GLOBAL", "INST"):
            assert opcode.arg is pickletools.stringnl_noescape_pair
        else:
            for table in (codec._NO_NEWLINE, codec._NEWLINE):
                assert opcode.code.encode("latin-1").translate(table) == b"\0"
    assert b"\n\t\v".translate(codec._NO_NEWLINE) == b"\0\t\v"
    assert b"\n\t\v".translate(codec._NEWLINE) == b"\n\t\v"


HARMLESS_PROGRAM = r"""
import random, resource, sys
from _pickle import loads
resource.setrlimit(resource.RLIMIT_AS, (1 << 28, 1 << 28))  # LONG_BINPUT may ask for gigabytes
asked = []
sys.addaudithook(lambda event, args: asked.append((event, args)) if event == "pickle.find_class" else None)
chance = random.Random(1)
harmful = {10, 130, 131, 132, 147}
codes = [byte for byte in range(256) if byte not in harmful]
favoured = [byte for byte in b"ciRobPQ\x81\x92()tK]}0NVU\x8c\x94\x97\x98"]
pieces = [b"cos", b"system", b"ios", b"os", b"builtins", b"eval", b"\x8c\2os", b"\x8c\4eval", b"\r", b"\0"]
end = int(sys.argv[1])
for number in range(end):
    data = b""
    newlines = 0
    for _ in range(chance.randrange(1, 12)):
        data += chance.choice([bytes([chance.choice(favoured)]), bytes([chance.choice(codes)]), chance.choice(pieces)])
        if not newlines and chance.random() < 0.2:
            newlines = 1
            data += b"\n"
    try:
        loads(data + b".")
    except (MemoryError, OverflowError):
        pass
    except Exception:
        pass
assert not asked, asked[:3]
# Were these events seen at all?
loads(b"cbuiltins\nint\n.")
assert asked
"""


@pytest.mark.parametrize("python", servers.INTERPRETERS)
def test_without_the_leading_bytes_a_pickle_finds_no_class(python: str) -> None:
    version = subprocess.check_output([python, "-c", "import sys; print(sys.version_info[1])"])
    if int(version) < 8:
        pytest.skip("plain loads() is used from 3.8 on")
    subprocess.run([python, "-c", HARMLESS_PROGRAM, "30000"], check=True, timeout=50)


# -- other interpreters, other circumstances -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package ``shipped``: the codec as workers get it."""
    folder = tmp_path_factory.mktemp("shipped")
    package = folder / "shipped"
    package.mkdir()
    (package / "__init__.py").touch()
    for name in ("errors", "codec", "structured"):
        text = (PACKAGE / f"{name}.py").read_text("utf-8")
        (package / f"{name}.py").write_text(blank(text, comments=True, docstrings=True, annotations=True), "utf-8")
    return folder


ECHO = r"""
import io, struct, sys
sys.path.insert(0, sys.argv[1])
if "pure" in sys.argv:
    sys.modules["_pickle"] = None
from shipped.codec import Decoder, Encoder, DumpError, LoadError, LARGE, PROTOCOL, encoded_size
class Channel:
    def __init__(self, number): self.number = number
encoder = Encoder(min(int(sys.argv[2]), PROTOCOL), Channel, lambda channel: channel.number)
decoder = Decoder(Channel)
source, sink = sys.stdin.buffer, sys.stdout.buffer
class Meta(type): pass
class Text(str): pass
def function(): pass
refused = 0
for bad in (int, bytearray, Meta, Meta("X", (), {}), function, len, sys, Text("x"), object(), type(None), ValueError()):
    for put in (lambda bad: bad, lambda bad: [1, {"k": (bad,)}]):
        try:
            encoder.encode(put(bad))
        except DumpError as error:
            assert str(error).startswith(("item: ", "item[1]['k'][0]: ")), error
            refused += 1
assert refused == 22
try:
    deep = []
    for _ in range(100000): deep = [deep]
    encoder.encode(deep)
except DumpError:
    pass
while deep: deep = deep.pop()
for data in (b"cos\nsystem\n(S'true'\ntR.", b"\x80\x04\x8c\x02os\x8c\x06system\x93)R.", b"(ios\nsystem\n.", b"Px\n.", b"\x82\x01."):
    for form in (bytes, bytearray, memoryview):
        try:
            decoder.decode(10, form(data))
        except LoadError:
            refused += 1
assert refused == 37
while True:
    head = source.read(9)
    if not head: break
    code, size = struct.unpack("<BQ", head)
    data = source.read(size)
    item = decoder.decode(code, bytearray(data) if size % 2 else data)
    code, payload = encoder.encode(item)
    sink.write(struct.pack("<BQ", code, encoded_size(payload)))
    for chunk in [payload] if isinstance(payload, bytes) else payload:
        sink.write(chunk)
"""


def echo(python: str, shipped: Path, protocol: int, *args: str) -> None:
    """Send items to another Python and have them come back."""
    chance = random.Random(python)
    items = [*VALUES, *(random_item(chance) for _ in range(300))]
    items = [item for item in items if item is not NotImplemented]  # a mistake in `if item == ...`
    sent = bytearray()
    for item in items:
        code, payload = ENCODERS[protocol].encode(item)
        sent += struct.pack("<BQ", code, encoded_size(payload)) + joined(payload)
    process = subprocess.run(
        [python, "-B", "-c", ECHO, str(shipped), str(protocol), *args],
        input=bytes(sent),
        stdout=subprocess.PIPE,
        check=True,
        timeout=50,
    )
    stream = io.BytesIO(process.stdout)
    for item in items:
        code, size = struct.unpack("<BQ", stream.read(9))
        assert same(DECODER.decode(code, stream.read(size)), item)
    assert not stream.read()


@pytest.mark.parametrize("python", servers.INTERPRETERS)
def test_every_python_understands(python: str, shipped: Path) -> None:
    old = b"3.6" in (version := subprocess.check_output([python, "--version"])) or b"3.7" in version
    for protocol in (4,) if old else (4, 5):
        echo(python, shipped, protocol)


@pytest.mark.parametrize("protocol", [4, 5])
def test_where_pickle_is_written_in_python(protocol: int, shipped: Path) -> None:
    """As on PyPy."""
    echo(sys.executable, shipped, protocol, "pure")


@pytest.mark.parametrize("python", servers.INTERPRETERS)
def test_simple_items_import_nothing(python: str, shipped: Path) -> None:
    program = """
import sys
sys.path.insert(0, sys.argv[1])
import _thread, struct
before = set(sys.modules)
from shipped.codec import Decoder, Encoder
encoder, decoder = Encoder(4, int, int), Decoder(int)
for item in (None, True, 1, 2 ** 70, 1.5, "x", b"x", bytearray(b"x")):
    decoder.decode(*encoder.encode(item))
new = set(sys.modules) - before
assert new == {"shipped", "shipped.codec", "shipped.errors"}, new
decoder.decode(*encoder.encode([1j]))
assert "_pickle" in sys.modules and "pickle" not in sys.modules
"""
    subprocess.run([python, "-S", "-E", "-B", "-c", program, str(shipped)], check=True, timeout=30)


def test_two_copies_in_one_process() -> None:
    """A worker that is a controller, too, has the shipped copy and the installed one."""
    spec = importlib.util.spec_from_file_location("farwire.protocol.codec_copy", codec.__file__)
    assert spec is not None
    assert spec.loader is not None
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    item = [1j, Ellipsis, {"r": range(3)}]
    encoder = copy.Encoder(5, Channel, lambda channel: channel.number)
    for _ in range(2):
        assert encoder.encode(item) == ENCODERS[5].encode(item)
        assert same(copy.Decoder(Channel).decode(*encoder.encode(item)), item)
        assert same(there_and_back(item), item)


def test_the_module_of_names_may_be_lost() -> None:
    old = sys.modules.pop("_farwire_items")
    try:
        encoder = Encoder(5, Channel, lambda channel: channel.number)
        assert same(DECODER.decode(*encoder.encode([1j])), [1j])
    finally:
        sys.modules["_farwire_items"] = old
        structured._markers = old
