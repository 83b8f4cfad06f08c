"""``python -m benchmarks``: which workloads, how often, and where the table goes."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from . import bounded, bulk, fairness, idle, latency, ssh, start, stream, xdist
from .harness import EXECNET, FARWIRE, FLOOR, Bench, Row
from .libraries import find
from .table import as_json, as_markdown

if TYPE_CHECKING:
    from collections.abc import Callable

WORKLOADS: dict[str, Callable[[Bench], list[Row]]] = {
    "latency": latency.run,
    "via": latency.run_via,
    "stream": stream.run,
    "bulk": bulk.run,
    "structured": bulk.run_structured,
    "arrays": bulk.run_arrays,
    "start": start.run,
    "many": start.run_many,
    "ssh": ssh.run,
    "idle": idle.run,
    "bounded": bounded.run,
    "fairness": fairness.run,
    "xdist": xdist.run,
}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks", description="farwire beside execnet and beside floors.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="workloads: " + ", ".join(WORKLOADS) + "; all if none")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds of each contender (5; 2 with --quick)")
    parser.add_argument(
        "--quick", action="store_true", help="small sizes and counts: to see that it runs, not how fast"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number of every round")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table")
    parser.add_argument("--without", action="append", default=[], choices=[FLOOR, EXECNET, FARWIRE], help="leave out")
    parser.add_argument("--ssh-config", type=Path, metavar="FILE", help="an ssh configuration (else: a private sshd)")
    parser.add_argument("--ssh-host", default="h1", metavar="HOST", help="the host in it (%(default)s)")
    parser.add_argument("--sshd", default="", metavar="PATH", help="the program for the private sshd")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.names) - WORKLOADS.keys())
    if unknown:
        parser.error(f"no such workload: {', '.join(unknown)}; there are {', '.join(WORKLOADS)}")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run; the exit status says whether all went through, not whether all targets were met."""
    options = parse(arguments)
    source = Path(__file__).resolve().parent.parent / "src"
    if source.is_dir():
        sys.path.insert(0, str(source))
    libraries = [lib for name in (EXECNET, FARWIRE) if name not in options.without and (lib := find(name)) is not None]
    bench = Bench(
        rounds=options.rounds or (2 if options.quick else 5),
        quick=options.quick,
        libraries=libraries,
        floor=FLOOR not in options.without,
        ssh_config=options.ssh_config,
        ssh_host=options.ssh_host,
        sshd=options.sshd,
    )
    for name in (EXECNET, FARWIRE):
        if name not in options.without and bench.library(name) is None:
            bench.failures.append(f"{name} is not there")
    about = {
        "command": shlex.join(["python", "-m", "benchmarks", *(sys.argv[1:] if arguments is None else arguments)]),
        "date": dt.datetime.now(dt.timezone.utc).strftime("%Y-%m-%d"),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "kernel": f"{platform.system()} {platform.release()}",
        "machine": f"{os.cpu_count()} cores, {_processor()}",
        "libraries": ", ".join(f"{lib.name} {lib.version}" for lib in libraries),
        "load": f"{os.getloadavg()[0]:.1f}",
        "rounds": str(bench.rounds),
    }
    rows: dict[str, list[Row]] = {}
    begun = time.monotonic()
    try:
        for name in options.names or WORKLOADS:
            bench.log(name)
            try:
                rows[name] = WORKLOADS[name](bench)
            except Exception as error:
                bench.failed(name, "the benchmark itself", error)
    finally:
        about["seconds"] = f"{time.monotonic() - begun:.0f}"
        about["load"] += f" before, {os.getloadavg()[0]:.1f} after"
        text = as_markdown(about, rows, bench)
        print(text)
        if options.markdown:
            options.markdown.write_text(text, encoding="utf-8")
        if options.json:
            options.json.write_text(json.dumps(as_json(about, rows, bench), indent=1), encoding="utf-8")
    return 1 if bench.failures else 0


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


if __name__ == "__main__":
    sys.exit(main())
