"""Large items: ``bytes``, structured items that are rebuilt at the other end, NumPy arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .harness import FARWIRE, Bench, Case, Row, Series
from .transfer import Channel, Floor

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1 << 20

Ends = dict[str, dict[str, Series]]  # sender, receiver -> contender -> its memory


def _both_ways(bench: Bench, what: str, kind: str, item: Any, rounds: int, *, slow: int = 1) -> list[tuple[Row, Ends]]:
    """Rows of time for both directions, each with the other series; ``slow``: execnet only in each such round."""
    found = []
    for out in (True, False):
        name = f"{what} " + ("to the worker" if out else "from the worker")
        cases: list[Case] = [Floor(kind, item, out=out)] if bench.floor else []
        cases += [
            Channel(lib, kind, item, out=out, every=1 if lib.name == FARWIRE else slow) for lib in bench.libraries
        ]
        samples = bench.interleave(name, cases, rounds)
        row = Row(name, "ms", samples.series("wall", 1e3), samples.series("cpu", 1e3))
        found.append((row, {key: samples.series(key) for key in ("sender", "receiver")}))
    return found


def run(bench: Bench) -> list[Row]:
    """One ``bytes``, against a raw pipe of the largest size, read into one new object."""
    rows = []
    for size, rounds in ((64, bench.rounds), (512, bench.at_most(5))):
        size = bench.pick(size, size // 8)
        for row, memory in _both_ways(bench, f"bytes of {size} MiB", "bytes", b"x" * (size * MIB), rounds):
            rows.append(row.at_most_times(1.15))
            rows += [row_.at_most(16) for row_ in _memory(row.what, memory)]
    return rows


def _memory(what: str, ends: Ends) -> list[Row]:
    name = f"{what}: memory beyond one copy"
    return [Row(f"{name}, {end}", "MiB", series, ratios=False) for end, series in ends.items()]


def structured_items(scale: float) -> dict[str, Callable[[], Any]]:
    """What is rebuilt at the other end, made when asked for."""

    def many(count: int) -> range:
        return range(int(count * scale))

    return {
        "100k small dicts": lambda: [
            {"id": i, "name": f"user{i}", "score": i * 0.5, "active": i % 2 == 0} for i in many(100_000)
        ],
        "nested, like JSON": lambda: [
            {
                "id": i,
                "tags": ["red", f"t{i % 17}", None],
                "owner": {
                    "name": f"user{i}",
                    "address": {"street": f"Street {i}", "number": i % 300, "at": [i * 0.1, 2.5]},
                },
                "items": [{"sku": f"s{k}", "price": k * 1.25, "stock": k % 2 == 0} for k in range(4)],
            }
            for i in many(20_000)
        ],
        "1M ints": lambda: list(many(1_000_000)),
        "100k strings": lambda: [f"string number {i} of some length" for i in many(100_000)],
    }


def run_structured(bench: Bench) -> list[Row]:
    """Items that are rebuilt, against pickle protocol 5 over a pipe."""
    rows = []
    for what, make in structured_items(bench.pick(100, 10) / 100).items():
        name = what if not bench.quick else f"a tenth of {what}"
        for row, _ in _both_ways(bench, name, "pickle", make(), bench.rounds, slow=3):
            row.judge("speed ≥ 0.85x floor", row.gain_on("floor"), lambda v: v >= 0.85)
            rows.append(row.at_least_times_better(12))
    return rows


def run_arrays(bench: Bench) -> list[Row]:
    """A NumPy array, against a raw pipe read into one new array."""
    try:
        import numpy as np
    except ImportError as error:
        bench.failed("NumPy array", "the controller", error)
        return []
    size = bench.pick(128, 32)
    array = np.arange(size * MIB // 8, dtype=np.float64)
    rows = []
    for row, memory in _both_ways(bench, f"NumPy array of {size} MiB", "array", array, bench.rounds):
        rows.append(row.at_most_times(1.15))
        rows += _memory(row.what, memory)
    return rows
