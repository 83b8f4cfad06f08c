"""A worker that knows nothing of farwire but docs/protocol.md, to see whether that page suffices.

It runs one kind of task: the text ``echo`` sends back every item that comes, and closes the channel when no more come; any other text is
an error. One thread, blocking reads and writes.
"""

import os
import pickle
import struct
import sys

HELLO, EXEC, ITEM, LARGE, PART, ABORT, CREDIT, EOF, CLOSE, REQUEST, REPLY, PING, PONG, SIGNAL, GOODBYE, RAW, MODULES = (
    range(1, 18)
)
NONE, STR, PICKLE = 1, 7, 10


def read(count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = os.read(0, count - len(data))
        if not more:
            sys.exit(1)  # the controller is gone
        data += more
    return data


def write(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]


def send(kind: int, channel: int = 0, payload: bytes = b"", code: int = 0) -> None:
    write(struct.pack("<IIBB", len(payload), channel, kind, code) + payload)


def unmarshal(data: bytes, at: int = 0) -> tuple:
    """The configuration's format. Returns the value and where it ended."""
    kind, at = data[at : at + 1], at + 1
    if kind in b"TFN":
        return {b"T": True, b"F": False, b"N": None}[kind], at
    if kind == b"i":
        return struct.unpack_from("<i", data, at)[0], at + 4
    if kind == b"g":
        return struct.unpack_from("<d", data, at)[0], at + 8
    if kind == b"u":
        (size,) = struct.unpack_from("<I", data, at)
        return data[at + 4 : at + 4 + size].decode("utf-8", "surrogatepass"), at + 4 + size
    if kind == b"[":
        (count,) = struct.unpack_from("<I", data, at)
        values, at = [], at + 4
        for _ in range(count):
            value, at = unmarshal(data, at)
            values.append(value)
        return values, at
    assert kind == b"{", kind
    found = {}
    while data[at : at + 1] != b"0":
        key, at = unmarshal(data, at)
        found[key], at = unmarshal(data, at)
    return found, at + 1


class Channel:
    def __init__(self, number: int, credit: int) -> None:
        self.number = number
        self.credit = credit
        self.consumed = 0  # and not yet granted
        self.large = None  # code, size, what has come of it
        self.out = []  # code, payload, how much of it is sent (None: nothing)
        self.ended = False

    def pay(self, cost: int) -> None:
        """What comes is taken at once, so it is consumed as it comes."""
        self.consumed += cost
        if self.consumed * 2 >= window:
            send(CREDIT, self.number, struct.pack("<Q", self.consumed))
            self.consumed = 0

    def pump(self) -> None:
        """Send what credit allows."""
        while self.out:
            code, payload, done = self.out[0]
            if len(payload) <= 65536:
                if self.credit < len(payload) + 128:
                    return
                self.credit -= len(payload) + 128
                send(ITEM, self.number, payload, code)
                del self.out[0]
            elif done is None:
                if self.credit < 128:
                    return
                self.credit -= 128
                send(LARGE, self.number, struct.pack("<Q", len(payload)), code)
                self.out[0][2] = 0
            else:
                count = min(self.credit, 262144, len(payload) - done)
                if not count:
                    return
                self.credit -= count
                send(PART, self.number, payload[done : done + count])
                self.out[0][2] += count
                if done + count == len(payload):
                    del self.out[0]
        if self.ended:
            self.close()

    def close(self, code: int = 0, payload: bytes = b"") -> None:
        send(CLOSE, self.number, payload, code)
        del channels[self.number]
        closing.add(self.number)


def take(kind: int, number: int, code: int, payload: bytes) -> None:
    """One frame."""
    channel = channels.get(number)
    if kind == HELLO:
        hello = dict(line.split("=", 1) for line in payload.decode().split("\n"))
        assert hello["version"] == "1"
        for each in channels.values():
            each.credit += int(hello["window"]) - window
    elif kind == EXEC:
        channel = channels[number] = Channel(number, window)
        lengths = struct.unpack_from("<IIIIB", payload)
        begin = 17 + lengths[0] + lengths[1]
        text = payload[begin : begin + lengths[2]].decode()
        if text != "echo":
            error = {"type": "tiny.Error", "message": text, "formatted": "tiny.Error: " + text, "notes": []}
            channel.close(PICKLE, pickle.dumps(error, 4))
    elif kind == PING:
        send(PONG, number, payload, code)
    elif kind == REQUEST:
        if code == 3:
            send(REPLY, number, b"one thread, reading", STR)
        else:
            send(REPLY, number, b"", NONE)
    elif kind == GOODBYE:
        for channel in [each for each in channels.values() if each.number]:
            channel.ended = True
            channel.pump()
        send(GOODBYE)
        sys.exit(0)
    elif kind == CLOSE:
        if number in closing:
            closing.remove(number)
        elif channel is not None:
            channel.close()
            closing.remove(number)
    elif channel is None:
        pass  # of one that is closing, or closed
    elif kind == CREDIT:
        channel.credit += struct.unpack("<Q", payload)[0]
        channel.pump()
    elif kind == ITEM:
        channel.pay(len(payload) + 128)
        channel.out.append([code, payload, None])
        channel.pump()
    elif kind == LARGE:
        channel.pay(128)
        channel.large = code, struct.unpack("<Q", payload)[0], []
    elif kind == PART:
        channel.pay(len(payload))
        code, size, parts = channel.large
        parts.append(payload)
        if sum(map(len, parts)) == size:
            channel.out.append([code, b"".join(parts), None])
            channel.large = None
            channel.pump()
    elif kind == ABORT:
        channel.large = None
    elif kind == EOF:
        channel.ended = True
        channel.pump()
    # SIGNAL, MODULES: nothing for us


read(int(read(6)))
config, _ = unmarshal(read(int(read(6))))
read(config["bundle"])
window = config["window"]
channels = {}
closing = set()
write(b"Welcome to the tiny worker\n")
write(b"\0farwire\0" + config["nonce"][::-1].encode() + b"\0")
send(HELLO, 0, b"version=1\nwindow=%d\npickle=5" % window)
channels[0] = Channel(0, window)
send(RAW, 0, b"tiny worker %s\n" % config["id"].encode(), 1)
while True:
    length, number, kind, code = struct.unpack("<IIBB", read(10))
    take(kind, number, code, read(length))
