"""What the machine can do: two Pythons and two pipes, with no more around the data than each workload must have.

The far ends run in a bare interpreter that gets this very file with ``-c``; so it imports the standard library only.
Everything here works on plain descriptors.
"""

from __future__ import annotations

import fcntl
import os
import pickle
import struct
import subprocess
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import io
    from typing import Any

HEAD = struct.Struct("<IIBB")  # as farwire's: length, channel, kind, code
LONG = struct.Struct("<Q")
BATCH = 1 << 16
F_SETPIPE_SZ = 1031


def write_all(fd: int, data: bytes | memoryview) -> None:
    """All of it: a pipe may take less than it is given."""
    view = memoryview(data).cast("B")
    while view:
        view = view[os.write(fd, view) :]


# ---------------------------------------------------------------- round trips


def echo_raw(reader: int, writer: int) -> None:
    """Far end: give back what comes."""
    while data := os.read(reader, 4096):
        os.write(writer, data)


def echo_framed(reader: int, writer: int) -> None:
    """Far end: the same, but read a frame, unpickle, pickle, write a frame."""
    while data := os.read(reader, BATCH):
        item = pickle.loads(memoryview(data)[HEAD.size :])
        data = pickle.dumps(item, 5)
        os.write(writer, HEAD.pack(len(data), 1, 4, 0) + data)


def ping_framed(reader: int, writer: int, item: object) -> object:
    """Near end of `echo_framed`: one round trip."""
    data = pickle.dumps(item, 5)
    os.write(writer, HEAD.pack(len(data), 1, 4, 0) + data)
    return pickle.loads(memoryview(os.read(reader, BATCH))[HEAD.size :])


# ---------------------------------------------------------------- streams of small items, framed, pickled, in batches


def send_stream(writer: int, count: int, item: object) -> None:
    """``count`` items; the integers from 0 on when ``item`` is None."""
    parts: list[bytes] = []
    pack, dumps, size = HEAD.pack, pickle.dumps, 0
    for number in range(count):
        data = dumps(number if item is None else item, 5)
        parts += (pack(len(data), 1, 4, 0), data)
        size += len(data) + HEAD.size
        if size >= BATCH:
            write_all(writer, b"".join(parts))
            parts, size = [], 0
    write_all(writer, b"".join(parts))


def receive_stream(reader: int, count: int) -> None:
    """As many items, unpickled one by one."""
    unpack, loads, head, rest, last = HEAD.unpack_from, pickle.loads, HEAD.size, b"", None
    while count:
        data = os.read(reader, BATCH)
        if not data:
            raise EOFError
        data, at = rest + data, 0
        view, end = memoryview(data), len(data)
        while end - at >= head:
            length = unpack(data, at)[0]
            if end - at - head < length:
                break
            at += head
            last = loads(view[at : at + length])
            at += length
            count -= 1
        rest = data[at:]
    assert last is not None


def stream(reader: int, writer: int) -> None:
    """Far end: takes or gives streams, as it is told by (verb, count, item)."""
    source = os.fdopen(reader, "rb", 0)
    while size := source.read(LONG.size):
        verb, count, item = pickle.loads(source.read(LONG.unpack(size)[0]))
        if verb == "pull":
            receive_stream(reader, count)
            os.write(writer, b"k")
        else:
            send_stream(writer, count, item)


# ---------------------------------------------------------------- large items


def send_pickle(writer: int, item: object) -> None:
    """One item, rebuilt at the other end."""
    data = pickle.dumps(item, 5)
    write_all(writer, LONG.pack(len(data)))
    write_all(writer, data)


def receive_pickle(reader: io.BufferedReader) -> Any:
    """The same, received."""
    (size,) = LONG.unpack(reader.read(LONG.size))
    return pickle.loads(reader.read(size))


def transfer(reader: int, writer: int) -> None:
    """Far end: gives or takes one large item at a time, as bytes, as a pickle, or as an array."""
    source = os.fdopen(reader, "rb")
    kept: Any = None
    item: Any
    while command := source.read(1):
        if command == b"m":
            kept = b"x" * LONG.unpack(source.read(LONG.size))[0]
        elif command == b"a":
            kept = make_array(LONG.unpack(source.read(LONG.size))[0])
        elif command == b"k":
            kept = receive_pickle(source)
        elif command == b"r":
            write_all(writer, kept)
            continue
        elif command == b"R":
            item = receive_raw(source)
            os.write(writer, b"+")
            del item
            continue
        elif command == b"A":
            item = receive_array(source)
            os.write(writer, b"+")
            del item
            continue
        elif command == b"p":
            send_pickle(writer, kept)
            continue
        elif command == b"P":
            item = receive_pickle(source)
            os.write(writer, b"+")
            del item
            continue
        os.write(writer, b"+")


def receive_raw(source: io.BufferedReader) -> bytes:
    """So many bytes, read straight into the object that is returned."""
    (size,) = LONG.unpack(source.read(LONG.size))
    data = source.read(size)
    assert len(data) == size
    return data


def receive_array(source: io.BufferedReader) -> Any:
    """The same for an array of doubles."""
    import numpy as np

    (size,) = LONG.unpack(source.read(LONG.size))
    array = np.empty(size // 8)
    assert source.readinto(array.data.cast("B")) == size
    return array


def make_array(size: int) -> Any:
    """So many bytes of doubles."""
    import numpy as np

    return np.arange(size // 8, dtype=np.float64)


# ---------------------------------------------------------------- starting the far end


class Pipes:
    """A bare interpreter that runs one of the far ends above, and two pipes to it."""

    def __init__(self, far: str, *, largest: bool = False, site: bool = False) -> None:
        far_reader, self.writer = os.pipe()
        self.reader, far_writer = os.pipe()
        if largest:
            for fd in (self.writer, self.reader):
                enlarge(fd)
        with open(__file__, encoding="utf-8") as file:
            source = file.read()
        self.process = subprocess.Popen(
            [sys.executable, *([] if site else ["-S"]), "-E", "-c", f"{source}\n{far}(0, 1)\n"],
            stdin=far_reader,
            stdout=far_writer,
        )
        os.close(far_reader)
        os.close(far_writer)

    @property
    def pid(self) -> int:
        return self.process.pid

    def close(self) -> None:
        os.close(self.writer)
        os.close(self.reader)
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def enlarge(fd: int) -> None:
    """Give a pipe the most that an ordinary user may ask for; it stays as it is where even that is refused."""
    with open("/proc/sys/fs/pipe-max-size", encoding="ascii") as file:
        size = int(file.read())
    try:
        fcntl.fcntl(fd, F_SETPIPE_SZ, size)
    except OSError:
        pass
