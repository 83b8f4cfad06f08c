"""A TCP relay that counts the bytes and can hold each back for a time: distance, on one machine.

    python relay.py HOST PORT

listens on a free port of 127.0.0.1, prints it, and then obeys lines on stdin: ``delay SECONDS`` (one way, for what
comes from now on), ``count`` (prints the bytes sent up and down since it was last asked).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asyncio import StreamReader, StreamWriter


class Relay:
    """All connections to one place."""

    def __init__(self, host: str, port: int) -> None:
        self.target = (host, port)
        self.delay = 0.0
        self.up = self.down = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def connect(self, reader: StreamReader, writer: StreamWriter) -> None:
        """One connection."""
        try:
            far_reader, far_writer = await asyncio.open_connection(*self.target)
        except OSError:
            writer.close()
            return
        for one in (writer, far_writer):
            one.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.gather(self._pump(reader, far_writer, up=True), self._pump(far_reader, writer, up=False))

    async def _pump(self, reader: StreamReader, writer: StreamWriter, *, up: bool) -> None:
        """Read without delay, write each piece when its time has come."""
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def late() -> None:
            with contextlib.suppress(OSError):
                while True:
                    due, data = await queue.get()
                    if (wait := due - loop.time()) > 0:
                        await asyncio.sleep(wait)
                    if not data:
                        break
                    writer.write(data)
                    await writer.drain()
                writer.write_eof()

        task = loop.create_task(late())
        self._tasks.add(task)
        data = b"?"
        while data:
            try:
                data = await reader.read(1 << 16)
            except OSError:
                data = b""
            if up:
                self.up += len(data)
            else:
                self.down += len(data)
            queue.put_nowait((loop.time() + self.delay, data))
        await task
        self._tasks.discard(task)
        if up:
            return
        writer.close()

    def obey(self, line: str) -> None:
        verb, _, argument = line.strip().partition(" ")
        if verb == "delay":
            self.delay = float(argument)
            print("ok", flush=True)
        elif verb == "count":
            print(self.up, self.down, flush=True)
            self.up = self.down = 0


async def serve(host: str, port: int) -> None:
    """Until stdin ends."""
    relay = Relay(host, port)
    server = await asyncio.start_server(relay.connect, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while line := await lines.readline():
        relay.obey(line.decode())

    os._exit(0)  # connections may still be closing; nobody asks for them


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2])))
