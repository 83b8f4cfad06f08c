"""Invariant: whatever bytes arrive as an item, decoding them gives an item of known types or a LoadError, and runs nothing.

    python tests/fuzz/fuzz_codec.py --count 1000000 --seed 1      try so many inputs
    python tests/fuzz/fuzz_codec.py --seed 1 --only 4711          show what one input is and does

A hostile item may exhaust memory or time, or crash the interpreter (docs/items.md); so inputs are decoded in a child
with limited memory, and a child that dies or hangs is counted and replaced by one that goes on behind the input at fault.
"Runs nothing" is watched with an audit hook: no event at all may be raised during decoding, be it an import, exec, open or
the look-up of a class by a plain Unpickler. Each input depends on the seed and its number alone.
"""

from __future__ import annotations

import argparse
import copyreg
import io
import mmap
import os
import pickle
import pickletools
import random
import resource
import signal
import struct
import sys
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the parent forks
sys.path.insert(0, str(Path(__file__).parents[2] / "src"))

from farwire.protocol import codec, structured
from farwire.protocol.errors import LoadError

try:
    import numpy as np
except ImportError:
    np = None  # type: ignore[assignment]
    sys.modules["numpy"] = None  # type: ignore[assignment]  # so that nobody goes and looks again

MEMORY = 512 << 20  # of address space, beyond what the child has when it starts
HANG = 20.0  # seconds without progress
STATE = struct.Struct("<QQQQ")  # inputs begun, items, LoadErrors, errors that Python printed instead of raising


class Channel:
    """As the real one, closed to the BUILD opcode."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number

    def __setstate__(self, state: object) -> None:
        raise TypeError("a channel has no state")


RAN: list[object] = []


def evil(*args: object) -> int:
    """Is in reach of a pickle that may name functions."""
    RAN.append(("evil", args))
    return 1


# -- inputs ---------------------------------------------------------------------------------------------------------------

NAMES = [
    ("os", "system"),
    ("posix", "system"),
    ("builtins", "eval"),
    ("__builtin__", "eval"),
    ("builtins", "bytearray"),
    ("builtins", "getattr"),
    ("builtins", "type"),
    ("copyreg", "_reconstructor"),
    ("__main__", "evil"),
    ("fuzz_codec", "evil"),
    ("farwire.protocol.structured", "_make_complex"),
    ("_farwire_items", "Marker"),
    ("_farwire_items", "Marker.__class__"),
    ("_farwire_items", "__dict__"),
    ("_farwire_items", "complex.__class__"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy", "frombuffer"),
    *(("_farwire_items", name) for name in (*structured._NAMES, "nothing")),
]
OPCODES = [opcode for opcode in pickletools.opcodes if opcode.name != "STOP"]
TEXTS = [
    "",
    "a",
    "__class__",
    "__dict__",
    "__setstate__",
    "__reduce__",
    "append",
    "<f8",
    "|O",
    "C",
    "é\ud800",
    "x" * 300,
]


def random_bytes(chance: random.Random) -> bytes:
    return chance.randbytes(chance.choice([0, 1, 2, 5, 20, 100, 300]))


def random_text(chance: random.Random) -> bytes:
    return chance.choice(TEXTS).encode("utf-8", "surrogatepass")


def random_item(chance: random.Random, depth: int = 0) -> Any:
    """A valid item."""
    kind = chance.randrange(18 if depth < 4 else 12)
    if kind < 3:
        return chance.choice([None, True, 0, 1, 255, 256, -1, 2**31, 2**63, 2**80, -(2**70), 1.5, -0.0])
    if kind < 5:
        return chance.choice(TEXTS)
    if kind == 5:
        return random_bytes(chance)
    if kind == 6:
        return bytearray(random_bytes(chance))
    if kind == 7:
        return chance.choice([1j, range(5), range(1, 10**20, 3), slice(1), Ellipsis, NotImplemented])
    if kind == 8:
        return Channel(chance.randrange(1000))
    if kind == 9:
        return memoryview(random_bytes(chance) or bytes(codec.LARGE))
    if kind in (10, 11):
        if np is None:
            return b"no numpy"
        shape = chance.choice(
            [(), (0,), (3,), (2, 3), (codec.LARGE,)] if chance.random() < 0.1 else [(), (0,), (3,), (2, 3)]
        )
        dtype = chance.choice(["f8", "<i2", "U3", "V4", "M8[ns]", [("a", "i1"), ("b", ">f4", (2,))]])
        return np.zeros(shape, dtype)
    few = range(chance.choice([0, 1, 2, 3, 4]))
    if kind in (12, 13):
        return [random_item(chance, depth + 1) for _ in few]
    if kind == 14:
        return tuple(random_item(chance, depth + 1) for _ in few)
    if kind == 15:
        return {chance.choice(TEXTS): random_item(chance, depth + 1) for _ in few}
    if kind == 16:
        return {chance.choice([1, "a", (1, 2.5), None, frozenset([b"x"])]) for _ in few}
    return slice(random_item(chance, depth + 1), None, random_item(chance, depth + 1))


ENCODERS = [codec.Encoder(protocol, Channel, lambda channel: channel.number) for protocol in (4, 5)]


def valid(chance: random.Random) -> tuple[int, bytes]:
    code, payload = chance.choice(ENCODERS).encode(random_item(chance))
    return code, payload if isinstance(payload, bytes) else b"".join(payload)


def argument(opcode: Any, chance: random.Random) -> bytes:
    """A mostly well-formed argument for an opcode."""
    kind = opcode.arg
    if kind is None:
        return b""
    name = kind.name
    number = chance.choice([0, 1, 2, 3, 5, 127, 255]) if chance.random() < 0.9 else chance.getrandbits(31)
    if name == "uint1":
        return bytes([number & 255])
    if name == "uint2":
        return struct.pack("<H", number & 0xFFFF)
    if name in ("int4", "uint4"):
        return struct.pack("<I", number)
    if name == "uint8":
        return struct.pack("<Q", number)
    if name == "float8":
        return struct.pack(">d", number)
    if name == "stringnl_noescape_pair":
        module, attribute = chance.choice(NAMES)
        return f"{module}\n{attribute}\n".encode()
    if name.endswith("nl") or "nl" in name:
        return {"decimalnl_short": b"%d\n" % number, "decimalnl_long": b"%dL\n" % number, "floatnl": b"1.5\n"}.get(
            name, chance.choice([b"'a'\n", b"a\n", b"evil\n"])
        )
    text = random_text(chance) if "string" in name or "unicode" in name else random_bytes(chance)
    length = len(text) if chance.random() < 0.97 else number
    size = {"1": "<B", "4": "<I", "8": "<Q"}[name[-1]]
    return struct.pack(size, length & 255 if size == "<B" else length) + text[: 255 if size == "<B" else None]


def program(chance: random.Random) -> bytes:
    """A random pickle of valid opcodes, with more calls and look-ups of names than one meets."""
    parts = [b"\x80" + chance.choice([b"\x04", b"\x05", b"\x02"])] if chance.random() < 0.5 else []
    for _ in range(chance.choice([1, 3, 6, 12, 25])):
        what = chance.random()
        if what < 0.15:
            module, attribute = chance.choice(NAMES)
            if chance.random() < 0.5:
                parts.append(f"c{module}\n{attribute}\n".encode())
            else:
                parts.append(
                    b"\x8c%c%b\x8c%c%b\x93" % (len(module), module.encode(), len(attribute), attribute.encode())
                )
        elif what < 0.3:
            parts.append(
                chance.choice(
                    [b")R", b"(tR", b"\x85R", b"\x86R", b"\x87R", b")\x81", b"}b", b"N}\x86b", b"o", b"b", b"\x82\x01"]
                )
            )
        elif what < 0.6:
            parts.append(
                chance.choice(
                    [
                        b"K\x01",
                        b"\x8c\x01a",
                        b"C\x02xy",
                        b"]",
                        b")",
                        b"}",
                        b"(",
                        b"N",
                        b"\x94",
                        b"h\x00",
                        b"t",
                        b"s",
                        b"e",
                    ]
                )
            )
        else:
            opcode = chance.choice(OPCODES)
            parts.append(opcode.code.encode("latin-1") + argument(opcode, chance))
    return b"".join(parts) + b"."


CALLS: list[tuple[str, tuple[Any, ...]]] = [
    ("complex", (1.0, 2.0)),
    ("range", (1, 10**30, 3)),
    ("slice", (None, 1, "x")),
    ("bytearray", (b"abc",)),
    ("bytes", (0,)),
    ("bytes", (b"abc",)),
    ("channel", (7,)),
    ("ellipsis", ()),
    ("ndarray", ("<f8", (1,), "C", bytes(8))),
    ("ndarray", ((("a", "b"), ("|i1", "<f8"), (0, 1), 9), (1,), "F", bytes(9))),
    ("ndarray", (("<f4", (2,)), (1,), "C", bytes(8))),
    ("ndarray", ("<M8[ns]", (2, 3), "F", bytes(48))),
    ("ndarray", ("|O", (1,), "C", bytes(8))),
    ("ndarray", ("<U2147483647", (0,), "C", b"")),
    ("ndarray", ("<f8", (1,), "C", 0)),
]
ODD: list[Any] = [
    None,
    -1,
    0,
    10**30,
    1.5,
    "",
    "f4,O",
    "<f8",
    b"",
    b"12345678",
    (),
    (1,),
    (2**62, 4),
    (-1,),
    ("<f8", (1,)),
    [],
    {},
    ((), (), (), 0),
]


def call(chance: random.Random) -> bytes:
    """A call of a constructor with arguments that may be of any kind; perhaps with a BUILD of the result."""
    name, args = chance.choice(CALLS)
    args = tuple(chance.choice(ODD) if chance.random() < 0.2 else arg for arg in args)
    state = pickle.dumps(chance.choice(ODD), 3)[2:-1] + b"b" if chance.random() < 0.2 else b""
    return b"c_farwire_items\n%b\n%bR%b." % (name.encode(), pickle.dumps(args, 3)[2:-1], state)


def mutate(data: bytes, chance: random.Random) -> bytes:
    """Change a few bytes, cut, repeat, or put in something of a pickle."""
    result = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 3, 8])):
        at = chance.randrange(len(result) + 1)
        what = chance.randrange(8)
        if what == 0 and at < len(result):
            result[at] ^= 1 << chance.randrange(8)
        elif what == 1 and at < len(result):
            result[at] = chance.randrange(256)
        elif what == 2 and at < len(result):
            result[at] = ord(chance.choice(OPCODES).code)
        elif what == 3:
            del result[at:]
        elif what == 4:
            del result[at : at + chance.randrange(1, 9)]
        elif what == 5:
            result[at:at] = program(chance)[:-1]
        elif what == 6:
            result[at:at] = result[chance.randrange(len(result) + 1) :][:20]
        else:
            result[at:at] = random_bytes(chance)
        if len(result) > 1 << 20:
            del result[1 << 20 :]
    return bytes(result)


def buffers(pickled: bytes, chance: random.Random) -> bytes:
    """A pickle with two buffers beside it."""
    data = struct.pack("<QIIQQ", len(pickled), 2, 0, 8, 48) + pickled
    data += bytes(-len(data) % 64) + bytes(64) + bytes(48)
    return data if chance.random() < 0.8 else mutate(data, chance)


def killer(chance: random.Random) -> bytes:
    """What is known to take much memory or time, or to crash some Pythons."""
    return chance.choice(
        [
            b"Nr\xff\xff\xff\x0f.",  # a memo of 2**28
            b"\x8e" + struct.pack("<Q", 1 << 31) + b".",
            b"\x96" + struct.pack("<Q", 1 << 62) + b".",
            b"(" * 400_000 + b"t" * 400_000 + b".",
            b"}" + b"(" * 400_000 + b"t" * 400_000 + b"Ns.",  # a tuple nested so deeply cannot be hashed
            b"L" + b"9" * 20_000 + b"L\n.",
        ]
    )


def generate(seed: int, number: int) -> tuple[int, bytes, random.Random]:
    """The code and payload of one input, and the source of chance for the rest."""
    chance = random.Random(seed << 40 | number)
    what = chance.random()
    if what < 0.0001:
        return codec.PICKLE, killer(chance), chance
    if what < 0.03:
        code, data = valid(chance)
    elif what < 0.5:
        code, data = valid(chance)
        data = mutate(data, chance)
    elif what < 0.7:
        code, data = codec.PICKLE, program(chance)
    elif what < 0.85:
        code, data = codec.PICKLE, call(chance)
    elif what < 0.9:
        code, data = codec.PICKLE, mutate(call(chance), chance)
    else:
        code, data = chance.choice([codec.PICKLE, chance.randrange(14)]), random_bytes(chance)
    if code == codec.PICKLE and chance.random() < 0.1:
        code, data = codec.PICKLE_BUFFERS, buffers(data, chance)
    elif code != codec.PICKLE and chance.random() < 0.02:
        code = chance.randrange(14)
    return code, data, chance


# -- the child ------------------------------------------------------------------------------------------------------------

KNOWN = {type(None), bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset, slice, range}
KNOWN |= {type(Ellipsis), type(NotImplemented), memoryview, Channel}
if np is not None:
    KNOWN.add(np.ndarray)


def check(item: object) -> None:
    """Fails when a part of the item (one of the first thousand) is not of a type that an item may have."""
    parts: list[object] = [item]
    seen = 0
    while parts and seen < 1000:
        part = parts.pop()
        seen += 1
        kind = type(part)
        if kind in (list, tuple, set, frozenset):
            parts += list(part)[:100]  # type: ignore[call-overload]
        elif kind is dict:
            for pair in list(part.items())[:50]:  # type: ignore[attr-defined]
                parts += pair
        elif kind is slice:
            parts += [part.start, part.stop, part.step]  # type: ignore[attr-defined]
        elif kind not in KNOWN and (kind.__name__ != "constructor" or hasattr(part, "__dict__")):
            raise AssertionError(f"{kind} in an item")


class Child:
    def __init__(self, seed: int, state: mmap.mmap) -> None:
        self.seed = seed
        self.state = state
        self.armed = False
        self.complaints = 0
        self.decoder = codec.Decoder(Channel)

    def audit(self, event: str, args: Any) -> None:
        if not self.armed:
            return
        if event == "sys.excepthook" and "deallocated bytearray" in str(args[2]):
            # CPython's own: BYTEARRAY8 with more bytes than there is memory. It prints a line, no more.
            self.complaints += 1
        elif event == "import" and args[0] == "numpy" and np is None:
            pass  # an array arrived; this one import is documented, and comes to nothing here
        else:
            RAN.append((event, args))

    def try_one(self, number: int) -> str:
        """Decode an input. Returns what came of it; raises AssertionError when that must not be."""
        code, data, chance = generate(self.seed, number)
        form = chance.randrange(8)
        if form == 0:
            payload: Any = bytearray(data)
        elif form == 1:
            payload = memoryview(data)
        elif form == 2:
            payload = memoryview(bytearray(data))
        elif form == 3 and code in (codec.BYTES, codec.BYTEARRAY, codec.PICKLE, codec.PICKLE_BUFFERS):
            payload = io.BytesIO(data)
        elif form == 4 and code == codec.PICKLE and data.endswith(b"."):
            payload = data + bytes(codec.LARGE)
        else:
            payload = data
        try:
            self.armed = True
            try:
                item = self.decoder.decode(code, payload)
            finally:
                self.armed = False
        except LoadError as error:
            # The frames refer to the Unpickler and what it has built so far.
            cause = error.__cause__
            result = f"LoadError: {error}"[:300] + (f" ({type(cause).__name__})" if cause else "")
        else:
            check(item)
            result = f"{type(item).__name__}"
        if RAN:
            raise AssertionError(f"code ran: {RAN[:3]!r}"[:1000])
        return result

    def run(self, start: int, end: int) -> None:
        """Decode inputs until the end; the parent follows in the shared memory."""
        size = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        sys.excepthook = lambda *_: None
        sys.addaudithook(self.audit)
        _, items, errors, before = STATE.unpack_from(self.state)
        for number in range(start, end):
            STATE.pack_into(self.state, 0, number + 1, items, errors, before + self.complaints)
            try:
                result = self.try_one(number)
            except MemoryError:
                # Ours, in making the input or in handling what came: as good as a death.
                os.abort()
            except BaseException as error:
                print(f"input {number}: {type(error).__name__}: {error}", flush=True)
                os._exit(3)
            if result.startswith("LoadError"):
                errors += 1
            else:
                items += 1
        STATE.pack_into(self.state, 0, end, items, errors, before + self.complaints)
        os._exit(0)


# -- the parent -----------------------------------------------------------------------------------------------------------


def warm_up(decoder: codec.Decoder) -> None:
    """Have everything imported that decoding imports on first use, so that no import is a finding."""
    warnings.simplefilter("ignore")
    items: list[Any] = [1j, Channel(1), bytes(2 * codec.LARGE)]
    if np is not None:
        items += [np.zeros(1, dtype) for dtype in ("f8", "U3", "M8[25s]", "V3", [("a", "i1", (2,))])]
        for wrong in ("<M8[q]", "<f16", "<c3"):
            try:
                np.dtype(wrong)
            except TypeError:
                pass
    for encoder in ENCODERS:
        code, payload = encoder.encode(items)
        decoder.decode(code, payload if isinstance(payload, bytes) else b"".join(payload))


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz the decoding of items.")
    parser.add_argument("--count", type=int, default=100_000, help="number of inputs (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, metavar="NUMBER", help="show this one input and decode it in this process")
    options = parser.parse_args()

    for code in (1, 300, 70000):
        copyreg.add_extension("fuzz_codec" if __name__ != "__main__" else "__main__", f"evil{code}", code)
    state = mmap.mmap(-1, STATE.size)
    child = Child(options.seed, state)
    warm_up(child.decoder)

    if options.only is not None:
        code, data, _ = generate(options.seed, options.only)
        print(f"code {code}, {len(data)} bytes: {data[:2000]!r}", flush=True)
        sys.addaudithook(child.audit)
        print(child.try_one(options.only))
        return 0

    started = time.monotonic()
    deaths: dict[str, int] = {}
    at = 0
    failed = 0
    while at < options.count:
        pid = os.fork()
        if not pid:
            child.run(at, options.count)
        status = watch(pid, state)
        begun = STATE.unpack_from(state)[0]
        if status is None:
            deaths["hang"] = deaths.get("hang", 0) + 1
        elif os.WIFSIGNALED(status):
            name = signal.Signals(os.WTERMSIG(status)).name
            deaths[name] = deaths.get(name, 0) + 1
        elif os.WEXITSTATUS(status) == 3:
            failed += 1
        elif os.WEXITSTATUS(status):
            print(f"input {begun - 1}: the child exits with {os.WEXITSTATUS(status)}")
            failed += 1
        at = begun
        if failed >= 10:
            break
    seconds = time.monotonic() - started
    begun, items, errors, complaints = STATE.unpack_from(state)
    print(
        f"fuzz_codec: {begun} inputs, seed {options.seed}, {seconds:.0f} s, {begun / seconds:.0f}/s: {items} items, {errors} LoadErrors, "
        f"{sum(deaths.values())} deaths {deaths or ''}, {complaints} printed errors; "
        + (
            f"{failed} FAILED (--seed {options.seed} --only NUMBER shows one)"
            if failed
            else "ok: nothing ran, nothing else was raised"
        )
    )
    return 1 if failed else 0


def watch(pid: int, state: mmap.mmap) -> int | None:
    """Wait for a child. Returns its wait status; None when it hung and was killed."""
    last, since = -1, time.monotonic()
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status
        begun = STATE.unpack_from(state)[0]
        if begun != last:
            last, since = begun, time.monotonic()
        elif time.monotonic() - since > HANG:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None
        time.sleep(0.02)


if __name__ == "__main__":
    sys.exit(main())
