"""A program whose main thread is interrupted by exceptions out of a signal's handler, anywhere, while it uses gateways.

    storm.py SIDE SEED TICKS KIND SPEC...

SIDE says whose main thread it is: the controller's or the worker's. KIND is the class that Tick inherits from. Each SPEC is opened in
turn, and the last is used, so that it may go via the others. Items may be lost by an interrupted call; none may be doubled, changed or
out of order, nothing may hang, and what was sent arrives. Prints a line of counts. Run by ``test_interrupts``.
"""

import random
import signal
import sys
import threading
import time

import farwire

PLAYER = """
import sys


class Tick(TimeoutError if kind == "OSError" else Exception):
    pass


ticks = 0
armed = False  # inside the try that catches it
rng = random.Random(seed)


def handler(*args):
    global ticks, armed
    if armed:
        ticks += 1
        armed = False
        raise Tick


def unraisable(what, usual=getattr(sys, "unraisablehook", None)):  # from 3.8 on
    # the interpreter reports what is raised in a finalizer, and goes on
    if not isinstance(what.exc_value, Tick):
        usual(what)


sys.unraisablehook = unraisable


def payload(number):
    size = (0, 10, 3000, 5000, 70_000, 400_000)[number % 6] if number % 5 == 0 else number % 100
    return (b"%d," % number) * (size // 4 + 1)


sent, got, counted = [], [], []
number = 0


def play(echo, counter):
    global number
    number += 1
    echo.send((number, payload(number)))
    sent.append(number)
    if rng.random() < 0.1:
        signal.setitimer(signal.ITIMER_REAL, rng.uniform(0.0001, 0.003), 0.0011)
    while True:
        item = echo.receive(timeout=None if rng.random() < 0.7 else 10)
        assert item[1] == payload(item[0]), "bytes of %d are wrong" % item[0]
        got.append(item[0])
        if item[0] >= number:
            break
    for _ in range(3):
        counted.append(counter.receive())


def storm(echo, counter, wanted, more=lambda: None):
    global armed
    # Python's import of a module does not survive every interruption: what is imported with the first large or structured item, and
    # with the first error, is there before the storm
    echo.send((0, payload(5)))
    assert echo.receive() == (0, payload(5))
    try:
        echo.receive(timeout=0)
    except echo.TimeoutError:
        pass
    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.0011)
    deadline = time.time() + 40
    while ticks < wanted and time.time() < deadline:
        try:
            armed = True
            play(echo, counter)
            more()
            armed = False
        except Tick:
            pass
    signal.setitimer(signal.ITIMER_REAL, 0)
    # everything that is on its way, then the report
    echo.send(None, timeout=20)
    while True:
        item = echo.receive(timeout=20)
        if item[0] == "report":
            break
        assert item[1] == payload(item[0])
        got.append(item[0])
    arrived = item[1][1:]
    assert arrived == sorted(set(arrived)), "doubled or out of order at the other end"
    assert got == sorted(set(got)), "doubled or out of order"
    assert set(sent) <= set(arrived), "sent and not arrived: %s" % sorted(set(sent) - set(arrived))[:10]
    assert set(got) <= set(arrived)
    assert counted == sorted(set(counted))
    lost = len(set(arrived) - set(got))
    assert lost <= ticks / 4, "%d items were lost in %d interrupted calls" % (lost, ticks)
    return ticks, number, len(sent), len(got), lost
"""
ECHO = """
def echo(channel):
    numbers = []
    for item in channel:
        if item is None:
            channel.send(("report", numbers))
        else:
            numbers.append(item[0])
            channel.send(item)
"""
COUNT = """
def count(channel):
    number = 0
    while True:
        channel.send(number)
        number += 1
"""


class Neighbour:
    """A thread that uses the same link all the time and is interrupted never: nothing may go wrong there."""

    def __init__(self, gateway):
        self.rounds = 0
        self.failures = []
        self._stop = False
        self._channel = gateway.remote_exec("for item in channel: channel.send(item)")
        self._thread = threading.Thread(target=self._run, daemon=True)  # an error elsewhere ends the program
        self._thread.start()

    def _run(self):
        try:
            while not self._stop:
                item = (self.rounds, bytes(self.rounds % 3 * 50_000))
                self._channel.send(item, timeout=20)
                assert self._channel.receive(timeout=20) == item
                self.rounds += 1
        except BaseException as error:
            self.failures.append(error)

    def end(self):
        self._stop = True
        self._thread.join(30)
        assert not self._thread.is_alive(), "the other thread hangs"
        assert not self.failures, self.failures


class Stream:
    """A callback takes a stream."""

    def __init__(self, gateway):
        self.items = []
        self.channel = gateway.remote_exec(COUNT + "count(channel)")
        self.channel.setcallback(self.items.append)

    def end(self):
        self.channel.close()
        taken = len(self.items)
        assert taken
        assert self.items[:taken] == list(range(taken))


def in_controller(gateway, seed, wanted, kind):
    namespace = {"seed": seed, "kind": kind, "random": random, "signal": signal, "time": time}
    exec(compile(PLAYER, "player", "exec"), namespace)
    rng = namespace["rng"]
    opened = 0
    assert gateway.status(timeout=20).state == "live"

    def more():
        nonlocal opened
        if rng.random() < 0.1:
            opened += 1
            with gateway.remote_exec("channel.send(channel.receive())") as other:
                other.send(opened)
                assert other.receive(timeout=20) == opened
        if rng.random() < 0.05:
            assert gateway.status(timeout=20).state == "live"

    echo = gateway.remote_exec(ECHO + "echo(channel)")
    counter = gateway.remote_exec(COUNT + "count(channel)")
    return (*namespace["storm"](echo, counter, wanted, more), opened)


def in_worker(gateway, channel, seed, wanted, kind):
    namespace = {}
    exec(ECHO + COUNT, namespace)

    def count(channel):
        try:
            namespace["count"](channel)
        except OSError:  # closed
            pass

    threads = []
    for function in (namespace["echo"], count):
        mine = gateway.newchannel()
        channel.send(mine)
        threads.append(threading.Thread(target=function, args=(mine,), daemon=True))
    for thread in threads:
        thread.start()
    channel.send((seed, wanted, kind))
    counts = channel.receive(timeout=55)
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    return counts


IN_WORKER = (
    """
import random, signal, time
echo, counter, (seed, wanted, kind) = [channel.receive() for i in range(3)]
"""
    + PLAYER
    + """
counts = storm(echo, counter, wanted)
echo.close()
counter.close()
channel.send(counts)
"""
)


def main(side, seed, wanted, kind, specs):
    group = farwire.Group()
    for spec in specs:
        gateway = group.makegateway(spec)
    # the first task, for the main thread
    player = gateway.remote_exec(IN_WORKER) if side == "worker" else None
    stream = Stream(gateway)
    neighbour = Neighbour(gateway)
    if player is not None:
        counts = in_worker(gateway, player, seed, wanted, kind)
    else:
        counts = in_controller(gateway, seed, wanted, kind)
    neighbour.end()
    assert gateway.remote_exec("channel.send(6 * 7)").receive(timeout=20) == 42
    stream.end()
    assert gateway.status(timeout=20).state == "live"
    group.terminate()
    assert not gateway.hasreceiver()
    print(*counts, neighbour.rounds, len(stream.items))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5:])
