"""Invariant: whatever bytes are given to the reader of execnet's format, the result is a value of known types or a LoadError.

    python tests/fuzz/fuzz_serializer.py --count 1000000 --seed 1      try so many inputs
    python tests/fuzz/fuzz_serializer.py --seed 1 --only 4711          show what one input is and does

No other error, no crash, no import, no file opened (watched with an audit hook), no more time or memory than the input is worth:
the process runs with limited memory, and an alarm ends what takes too long. ``loads`` and ``load`` agree, and what was read is written and
read again as the same. Where the real execnet is installed: what we read it reads as the same.
Each input depends on the seed and its number alone.
"""

from __future__ import annotations

import argparse
import io
import random
import resource
import signal
import struct
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))

from farwire.compat import serializer
from farwire.protocol.errors import LoadError

try:
    import execnet
except ImportError:
    execnet = None  # type: ignore[assignment]

MEMORY = 256 << 20  # of address space, beyond what the process has when it starts
SECONDS = 5.0  # for one input
CODES = b"@ABCDEFGHIJKLMNOPQRST"
KNOWN = {type(None), bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset}
TEXTS = ["", "a", "key", "é€\U0001f40d", "x" * 300]

armed = False
ran: list[object] = []


class Hang(BaseException):
    """An input took too long."""


def audit(event: str, args: object) -> None:
    if armed:
        ran.append((event, args))


def random_value(chance: random.Random, depth: int = 0, hashable: bool = False) -> Any:
    kind = chance.randrange(6 if depth > 4 else 11)
    few = range(chance.choice([0, 1, 1, 2, 3, 8]))
    if kind == 0:
        return chance.choice([None, True, False])
    if kind < 3:
        return chance.choice([0, 1, -1, 255, 2**31 - 1, 2**31, -(2**31) - 1, 2**80, chance.getrandbits(31)])
    if kind == 3:
        return chance.choice([0.0, -0.0, 1.5, float("inf"), 1j])
    if kind == 4:
        return chance.randbytes(chance.choice([0, 1, 5, 100]))
    if kind == 5:
        return chance.choice(TEXTS)
    if kind == 6 or (hashable and kind < 9):
        return tuple(random_value(chance, depth + 1, hashable) for _ in few)
    if kind == 7:
        return [random_value(chance, depth + 1) for _ in few]
    if kind == 8:
        return {random_value(chance, depth + 1, True): random_value(chance, depth + 1) for _ in few}
    return (frozenset if hashable or kind == 9 else set)(random_value(chance, depth + 1, True) for _ in few)


def program(chance: random.Random) -> bytes:
    """Random operations, mostly well-formed one by one."""
    parts = []
    for _ in range(chance.choice([1, 3, 6, 12, 40, 200])):
        code = chance.choice(CODES)
        part = bytes([code])
        small = chance.choice([0, 0, 1, 1, 2, 3])
        number = small if chance.random() < 0.95 else chance.choice([-1, -(2**31), 2**31 - 1, 2**24, 1000])
        if code in b"FGK@OEB":
            part += struct.pack("!i", number)
        elif code in b"AHIMNS":
            text = b"%d" % chance.getrandbits(60) if code in b"HI" else chance.choice(TEXTS).encode()
            size = len(text) if chance.random() < 0.95 else number
            part += struct.pack("!i", size) + text
        elif code in b"DT":
            part += chance.randbytes(8 if code == ord("D") else 16)
        elif code == ord("Q") and chance.random() < 0.9:
            continue
        parts.append(part)
    return b"\x02" + b"".join(parts) + b"Q" * (chance.random() < 0.9)


def mutate(data: bytes, chance: random.Random) -> bytes:
    """Change a few bytes, cut, repeat, or put operations in."""
    result = bytearray(data)
    for _ in range(chance.choice([1, 1, 1, 2, 4])):
        at = chance.randrange(len(result) + 1)
        what = chance.randrange(8)
        if what == 0 and at < len(result):
            result[at] ^= 1 << chance.randrange(8)
        elif what == 1 and at < len(result):
            result[at] = chance.randrange(256)
        elif what == 2 and at < len(result):
            result[at] = chance.choice(CODES)
        elif what == 3:
            del result[at:]
        elif what == 4:
            del result[at : at + chance.randrange(1, 9)]
        elif what == 5:
            result[at:at] = program(chance)[1:-1]
        elif what == 6:
            start = chance.randrange(len(result) + 1)
            result[at:at] = result[start : start + 20]
        else:
            result[at:at] = chance.randbytes(chance.choice([1, 2, 5]))
    return bytes(result)


def deep(chance: random.Random) -> bytes:
    """Nested deeply, as it is or as a key."""
    count = chance.choice([100, 999, 1000, 1001, 20_000])
    inner = b"L"
    for _ in range(chance.choice([1, 2])):
        inner += chance.choice([b"@\0\0\0\1", b"E\0\0\0\1", b"@\0\0\0\1E\0\0\0\1"]) * count
    if chance.random() < 0.3:
        inner = b"JL" * count + inner + b"P" * count
    return (
        b"\x02" + chance.choice([inner, b"J" + inner + b"LP", b"J" + (inner + b"LP") * 2, inner + b"O\0\0\0\1"]) + b"Q"
    )


def generate(seed: int, number: int) -> tuple[str, bytes]:
    """What kind of input, and its bytes."""
    chance = random.Random(seed << 40 | number)
    what = chance.random()
    if what < 0.002:
        return "deep", deep(chance)
    if what < 0.1:
        return "valid", serializer.dumps(random_value(chance))
    if what < 0.65:
        return "mutated", mutate(serializer.dumps(random_value(chance)), chance)
    if what < 0.95:
        return "program", program(chance)
    return "random", chance.choice([b"", b"\x02"]) + chance.randbytes(chance.choice([0, 1, 5, 50]))


def check(value: object) -> None:
    """Fails when a part of the value is not of a type that it may have."""
    parts = [value]
    while parts:
        part = parts.pop()
        kind = type(part)
        if kind not in KNOWN:
            raise AssertionError(f"{kind} in a value")
        if kind is dict:
            for pair in part.items():  # type: ignore[attr-defined]
                parts += pair
        elif kind in (list, tuple, set, frozenset):
            parts += part  # type: ignore[arg-type]


def exact(value: Any) -> object:
    """The value as something that is equal only for what has the same types, bits and order; sets have none."""
    kind = type(value)
    if kind in (list, tuple):
        return kind.__name__, [exact(part) for part in value]
    if kind is dict:
        return "dict", [(exact(key), exact(part)) for key, part in value.items()]
    if kind in (set, frozenset):
        return kind.__name__, sorted((exact(part) for part in value), key=repr)
    return serializer.dumps(value)


def read(call: Any) -> tuple[Any, bool]:
    """What a call returns, and whether it raised LoadError."""
    global armed
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    armed = True
    try:
        return call(), False
    except LoadError as error:
        if type(error) is not LoadError or error.__context__ is not None:
            raise AssertionError(f"an error with more behind it: {error!r}") from error
        return None, True
    finally:
        armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)


def try_one(what: str, data: bytes) -> str:
    """Read an input in each way. Returns what came of it; raises when that must not be."""
    value, bad = read(lambda: serializer.loads(data))
    stream = io.BytesIO(data)
    again, bad_stream = read(lambda: serializer.load(stream))
    if ran:
        raise AssertionError(f"reading did more than read: {ran}")
    if bad:
        if what == "valid":
            raise AssertionError("a valid value was refused")
        if not bad_stream and stream.tell() == len(data):
            raise AssertionError("load() takes what loads() refuses")
        return "refused"
    if bad_stream or stream.tell() != len(data):
        raise AssertionError("load() refuses what loads() takes, or leaves something")
    if what == "deep":
        return "read"  # Comparing it, and some of the checks, would recurse.
    check(value)
    expected = exact(value)
    if exact(again) != expected or exact(serializer.loads(serializer.dumps(value))) != expected:
        raise AssertionError("it does not come back as it was written")
    if execnet is not None and exact(execnet.loads(data)) != expected:
        raise AssertionError("execnet reads something else")
    return "read"


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz the reader of execnet's format.")
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--only", type=int, help="the number of one input, to be shown")
    options = parser.parse_args()

    def ring(*_: object) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, ring)
    serializer.dumps(2**40)
    read(lambda: serializer.loads(b"\x02H\0\0\0\x01xQ"))
    sys.addaudithook(audit)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))

    if options.only is not None:
        what, data = generate(options.seed, options.only)
        print(f"{what}: {data!r}")
        print(try_one(what, data))
        return 0
    started = time.monotonic()
    counts: dict[tuple[str, str], int] = {}
    slowest = (0.0, 0)
    for number in range(options.count):
        what, data = generate(options.seed, number)
        before = time.perf_counter()
        try:
            outcome = try_one(what, data)
        except BaseException:
            print(f"FAILED at input {number}; see it with --seed {options.seed} --only {number}", flush=True)
            raise
        slowest = max(slowest, (time.perf_counter() - before, number))
        counts[what, outcome] = counts.get((what, outcome), 0) + 1
    seconds = time.monotonic() - started
    for (what, outcome), count in sorted(counts.items()):
        print(f"  {what:8} {outcome:8} {count:8}")
    print(
        f"{options.count} inputs in {seconds:.1f} s ({options.count / max(seconds, 1e-9):.0f} a second); "
        f"slowest {slowest[0]:.3f} s (input {slowest[1]})"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
