"""Parse every source file of the standard library, on every Python that can be found.

    python examples/parse_stdlib.py [--ssh HOST]

Each gateway gets files over its channel, a few at a time, and sends back what it counted; whoever is faster gets more.
The workers need nothing but a Python >= 3.6: the source of the files travels, so they may as well be on other machines.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import farwire

try:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Table
except ImportError:
    sys.exit("this example draws with rich, which is in the extra `demo`: pip install 'farwire[demo]'")

AHEAD = 4  # Files that a worker has in hand: while it parses one, the next has already arrived.
SAMPLE = 5  # The time for one process is measured on one file in so many.


def parse_files(channel: Any) -> None:
    """The worker's program: for each (name, source) received, send what is in it. Also understood by Python 3.6."""
    import ast
    import sys
    import time
    import warnings

    warnings.simplefilter("ignore")  # Old files have escapes that new Pythons warn of.
    channel.send("%d.%d.%d" % sys.version_info[:3])
    for name, source in channel:
        start = time.process_time()
        functions, longest, lines = 0, "", 0
        try:
            tree = ast.parse(source, name)
        except (SyntaxError, ValueError, RecursionError):
            functions = -1  # Not for this Python.
        else:
            for node in ast.walk(tree):
                if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                    functions += 1
                    # Before 3.8 a node does not know its last line, but the nodes inside know their first.
                    end = getattr(node, "end_lineno", None)
                    end = end or max(getattr(inner, "lineno", 0) for inner in ast.walk(node))
                    if end - node.lineno + 1 > lines:
                        longest, lines = node.name, end - node.lineno + 1
        channel.send((name, functions, longest, lines, time.process_time() - start))


@dataclass
class Share:
    """What one gateway has done so far."""

    gateway: farwire.Gateway
    python: str = ""
    files: int = 0
    functions: int = 0
    refused: int = 0
    seconds: float = 0.0
    in_hand: dict[str, Path] = field(default_factory=dict)


def main() -> int:
    options = argparse.ArgumentParser(description="Parse the standard library on every Python that can be found.")
    options.add_argument("--ssh", metavar="HOST", action="append", default=[], help="use this host too (repeatable)")
    options.add_argument("--ssh-config", metavar="FILE", help="ssh's configuration file for these hosts")
    options.add_argument("--limit", metavar="N", type=int, help="only so many files")
    chosen = options.parse_args()

    files = sorted(stdlib_files(), key=lambda path: path.stat().st_size, reverse=True)[: chosen.limit]
    specs = [f"popen//id=local-{number}" for number in range(1, (os.cpu_count() or 1) + 1)]
    specs += [f"popen//python={python}//id={name}" for name, python in other_pythons()]
    config = f"//ssh_config={chosen.ssh_config}" if chosen.ssh_config else ""
    specs += [f"ssh={host}{config}//id={host}" for host in chosen.ssh]

    console = Console()
    with farwire.Group() as group:
        try:
            gateways = list(group.makegateways(specs))
        except farwire.StartErrors as errors:
            # Those that did start are good for the job; the rest is worth a line.
            gateways = list(group)
            for error in errors.errors.values():
                console.print(f"[yellow]left out:[/] {str(error).splitlines()[0]}", highlight=False)
        console.print(f"{len(files)} files, {len(gateways)} gateways", highlight=False)
        alone = time_alone(files)
        start = time.monotonic()
        shares, longest = spread(gateways, files, console)
        elapsed = time.monotonic() - start
    console.print(table(shares, longest, elapsed, alone))
    return 0


def spread(gateways: list[farwire.Gateway], files: list[Path], console: Console) -> tuple[list[Share], str]:
    """Hand out the files, gather the counts; returns each gateway's share, and the longest function."""
    shares = {gateway.remote_exec(parse_files): Share(gateway) for gateway in gateways}
    results = farwire.MultiChannel(shares).make_receive_queue(endmarker=None)
    live = dict(shares)
    waiting = files[::-1]  # Largest first: so no worker is left with a large one at the end.
    base = Path(sysconfig.get_path("stdlib"))
    longest, most = "", 0

    def hand_out(channel: farwire.Channel, share: Share) -> None:
        while waiting and len(share.in_hand) < AHEAD:
            path = waiting.pop()
            share.in_hand[str(path)] = path
            channel.send((str(path), path.read_bytes()))

    columns = (TextColumn("parsing"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("parsing", total=len(files))
        for channel, share in shares.items():
            hand_out(channel, share)
        while waiting or any(share.in_hand for share in shares.values()):
            channel, result = results.get()
            share = shares[channel]
            if result is None:
                # This worker is gone; the others take over what it had in hand.
                waiting += share.in_hand.values()
                share.in_hand = {}
                del live[channel]
                if not live:
                    channel.waitclose()  # Raises what it died of.
                for other, its_share in live.items():
                    hand_out(other, its_share)
                continue
            if isinstance(result, str):
                share.python = result
                continue
            name, functions, function, lines, seconds = result
            path = share.in_hand.pop(name)
            share.files += 1
            share.seconds += seconds
            if functions < 0:
                share.refused += 1
            else:
                share.functions += functions
            if lines > most:
                longest, most = f"{function}, {lines} lines, in {path.relative_to(base)}", lines
            progress.advance(bar)
            hand_out(channel, share)
    return list(shares.values()), longest


def time_alone(files: list[Path]) -> float:
    """How long one process would take with a core of its own: measured here on a part of the files, scaled by their size."""

    class Inline(list[Any]):
        def send(self, item: object) -> None: ...

    sample = files[SAMPLE // 2 :: SAMPLE]
    start = time.process_time()
    parse_files(Inline((str(path), path.read_bytes()) for path in sample))
    part = sum(path.stat().st_size for path in sample) / sum(path.stat().st_size for path in files)
    return (time.process_time() - start) / part


def table(shares: list[Share], longest: str, elapsed: float, alone: float) -> Table:
    result = Table(title="The standard library, parsed", caption_justify="left")
    for name in ("gateway", "Python"):
        result.add_column(name)
    for name in ("files", "functions", "not parsed", "CPU seconds"):
        result.add_column(name, justify="right")
    for share in shares:
        counts = (share.files, share.functions, share.refused)
        result.add_row(share.gateway.id, share.python, *map(str, counts), f"{share.seconds:.2f}")
    result.add_section()
    total = [sum(column) for column in zip(*((s.files, s.functions, s.refused) for s in shares), strict=True)]
    result.add_row("all", "", *map(str, total), f"{sum(share.seconds for share in shares):.2f}", style="bold")
    result.caption = (
        "not parsed: the syntax is newer than that Python, or wrong on purpose (the parser's own tests)\n"
        f"longest function: {longest}\n"
        f"{elapsed:.2f} seconds; one process alone: {alone:.2f} (from a sample of one file in {SAMPLE}); "
        f"speed-up {alone / elapsed:.2f}"
    )
    return result


def stdlib_files() -> Iterator[Path]:
    for path in Path(sysconfig.get_path("stdlib")).rglob("*.py"):
        if not {"site-packages", "dist-packages"} & set(path.parts):
            yield path


def other_pythons() -> Iterator[tuple[str, str]]:
    """(name, path) of the other CPythons of this machine: in PATH, in /usr/bin, and those that pyenv has installed."""
    folders = [Path(name) for name in (*os.get_exec_path(), "/usr/bin") if "shims" not in name]
    found = [
        path for folder in folders for path in folder.glob("python3.*") if re.fullmatch(r"python3\.\d+", path.name)
    ]
    found += Path("~/.pyenv/versions").expanduser().glob("3.*/bin/python")
    seen = {os.path.realpath(sys.executable)}
    names: dict[str, int] = {}
    for path in sorted(found):
        real = os.path.realpath(path)
        if real not in seen:
            seen.add(real)
            name = re.sub(r".*?(3\.\d+)$", r"\1", os.path.basename(real))
            names[name] = names.get(name, 0) + 1
            yield f"python{name}" + (f"-{names[name]}" if names[name] > 1 else ""), str(path)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        # The group has ended every worker on the way here.
        print("interrupted", file=sys.stderr)
        sys.exit(130)
