"""``farwire trace``: the records of one or more processes in words, in the order of time."""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from typing import TYPE_CHECKING

from ..protocol.frames import HEADER, HEADER_SIZE, MAX_PAYLOAD, NAMES
from ..runtime.trace import LINK, MAGIC, NOTE, RECEIVED, RECORD, SENT, line

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    Record = tuple[float, str, int, str, bytes]  # time, process, what, name of the link, content

LARGEST = MAX_PAYLOAD + HEADER_SIZE


class NotATrace(Exception):
    """The file is something else, or damaged."""


def run(argv: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="farwire trace",
        description="Show in words what processes recorded that ran with FARWIRE_TRACE=PREFIX in the environment, of several "
        "files in the order of time. Each line has the time, the process, > for sent and < for received, the gateway at the "
        "other end (a worker has one, its controller), the kind of frame, the channel, the size, and the beginning of the content.",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="PREFIX.controller.PID, PREFIX.ID-worker.PID")
    parser.add_argument("--gateway", help="only frames of this one")
    parser.add_argument("--channel", type=int, help="only frames of this channel")
    parser.add_argument("--kind", type=str.upper, choices=sorted(NAMES.values()), help="only frames of this kind")
    options = parser.parse_args(argv)

    def wanted(record: Record) -> bool:
        _, who, what, name, data = record
        if options.gateway is not None and options.gateway != name and who != options.gateway + "-worker":
            return False
        if what not in {SENT, RECEIVED}:
            return options.channel is None and options.kind is None
        _, channel, kind, _ = HEADER.unpack_from(data)
        return options.channel in {None, channel} and options.kind in {None, NAMES.get(kind)}

    try:
        # Threads write the two directions of a link: the order in a file is not quite that of time.
        for record in sorted(itertools.chain(*map(read, options.files)), key=lambda record: record[0]):
            if wanted(record):
                print(line(*record))
        sys.stdout.flush()
    except (OSError, NotATrace) as error:
        if isinstance(error, BrokenPipeError):
            os.dup2(
                os.open(os.devnull, os.O_WRONLY), 1
            )  # nobody reads on: the interpreter is not to complain at its end
            return 1
        sys.stdout.flush()
        print(f"farwire trace: {error}", file=sys.stderr)
        return 2
    return 0


def read(path: str) -> Iterator[Record]:
    """The records of a file. A last one that is not complete is left out: the process may be writing it.

    Raises:
        OSError: the file cannot be read.
        NotATrace: it is no trace.
    """
    names: dict[int, str] = {}
    with open(path, "rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise NotATrace(f"{path} is not a trace that this version of farwire knows")
        who = _printable(file.readline(4096))
        while True:
            at = file.tell()
            head = file.read(RECORD.size)
            if len(head) < RECORD.size:
                return
            when, what, _, number, size = RECORD.unpack(head)
            if what not in {LINK, SENT, RECEIVED, NOTE} or size > LARGEST or not 0 <= when < 1 << 33:
                raise NotATrace(f"{path} is damaged at byte {at}")
            data = file.read(size)
            if len(data) < size:
                return
            if what in {SENT, RECEIVED} and size < HEADER_SIZE:
                raise NotATrace(f"{path} is damaged at byte {at}")
            if what == LINK:
                names[number] = _printable(data)
            yield when, who, what, names.get(number, f"link {number}"), data


def _printable(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace").strip().encode("unicode_escape").decode()
