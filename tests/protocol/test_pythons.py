"""The connection as workers get it, blanked, on every Python found: the same bytes come to the same."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import servers
from farwire.bootstrap.blank import blank
from farwire.protocol import frames
from protocol.test_splitting import SESSIONS

PACKAGE = Path(frames.__file__).parent

PROGRAM = r"""
import gc, struct, sys
sys.path.insert(0, sys.argv[1])
from shipped.connection import ChannelState, Connection
from shipped.errors import ProtocolError
from shipped.frames import ITEM, LARGE

def make(controller):
    connection = Connection(controller, window=300000, peer_window=300000)
    if controller:
        connection.open()
        connection.send_close(connection.open())
    return connection

def show(connection, error):
    found = []
    for kind, channel, code, payload in connection.events:
        channel = channel.id if isinstance(channel, ChannelState) else channel
        if kind == ITEM:
            found += [(ITEM, channel, item_code, data) for item_code, data, _ in payload]
        elif kind == LARGE:
            found.append((LARGE, channel, code, bytes(payload.payload())))
        elif isinstance(payload, dict):
            found.append((kind, channel, code, sorted(payload.items())))
        else:
            found.append((kind, channel, code, payload))
    return repr((found, connection.out, sorted(connection.channels), error))

def feed(connection, pieces):
    try:
        for piece in pieces:
            while piece:
                view = connection.buffer()
                if view is None:
                    connection.receive_data(piece)
                    break
                count = min(len(view), len(piece))
                view[:count] = piece[:count]
                connection.buffer_filled(count)
                piece = piece[count:]
    except ProtocolError as exc:
        return str(exc)
    return ""

# Garbage with large items that nobody finished: some Pythons complain of views, or crash.
for code in (8, 9, 10, 11):
    connection = make(True)
    frames = struct.pack("<IIBB", 9, 0, 1, 0) + b"version=1" + struct.pack("<IIBBQ", 8, 1, 4, code, 100000)
    feed(connection, [frames, struct.pack("<IIBB", 99, 1, 5, 0) + b"x" * 50])
    assert connection.channels[1].large.filled == 50
    connection.cycle = connection
    del connection
    gc.collect()

for line in sys.stdin:
    controller, data = line.split()
    data = bytes.fromhex(data)
    for size in (1, 7, len(data)):
        connection = make(controller == "True")
        error = feed(connection, [data[at:at + size] for at in range(0, len(data), size)])
        print(show(connection, error))
"""


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package ``shipped``: the protocol as workers get it."""
    folder = tmp_path_factory.mktemp("shipped")
    package = folder / "shipped"
    package.mkdir()
    for path in PACKAGE.glob("*.py"):
        text = blank(path.read_text("utf-8"), comments=True, docstrings=True, annotations=True)
        (package / path.name).write_text(text, "utf-8")
    return folder


def run(python: str, shipped: Path) -> list[object]:
    lines = []
    for name, (_, data) in SESSIONS.items():
        if len(data) < 10_000:
            lines.append(f"{name == 'controller'} {data.hex()}")
    argv = [python, "-I", "-S", "-c", PROGRAM, str(shipped)]
    done = subprocess.run(argv, input="\n".join(lines), capture_output=True, text=True, timeout=50, check=True)
    assert not done.stderr
    return [ast.literal_eval(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("python", servers.INTERPRETERS)
def test_the_same_bytes_come_to_the_same(python: str, shipped: Path) -> None:
    here = run(sys.executable, shipped)
    assert len(here) >= 3 * 6
    for at in range(0, len(here), 3):
        assert here[at] == here[at + 1] == here[at + 2]
    assert run(python, shipped) == here
