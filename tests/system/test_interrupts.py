"""Ctrl-C reaches the controller only, and an exception out of a signal handler may come anywhere without harm to the link."""

from __future__ import annotations

import os
import pty
import signal
import sys

import pytest

import servers
from processes import SOURCE, TOKEN, Controller, eventually

WAITING = """
import farwire, os, signal, sys
gateway = farwire.makegateway("popen")
echo = gateway.remote_exec("for item in channel: channel.send(item)")
echo.send(1)
echo.receive()
silent = gateway.remote_exec("channel.receive()")
try:
    sys.stdout.write(f"{gateway._process.worker_pid}\\n")
    sys.stdout.flush()
    {wait}
except KeyboardInterrupt:
    pass
os.kill(gateway._process.worker_pid, signal.SIGCONT)
echo.send("still here")
print(echo.receive(timeout=5), gateway.info().pid, flush=True)
text = "import signal; channel.send(str(signal.getsignal(signal.SIGINT)))"
print(gateway.remote_exec(text).receive(timeout=5), flush=True)
"""
WAITS = {
    "receive": "silent.receive()",
    "receive with timeout": "silent.receive(timeout=100)",
    "iteration": "list(silent)",
    "waitclose": "silent.waitclose()",
    "send": "while True: silent.send(bytes(10_000))",
    "send of a large item": "silent.send(bytes(50_000_000))",
    "info": "while True: gateway.info()",
    "info of a stopped worker": "os.kill(gateway._process.worker_pid, signal.SIGSTOP); gateway.info(100)",
    "python": "while True: pass",
}


@pytest.mark.parametrize("wait", WAITS)
def test_ctrl_c_in_every_wait(wait: str) -> None:
    with Controller(WAITING.replace("{wait}", WAITS[wait])) as controller:
        worker = controller.numbers()[0]
        # the terminal sends it to the whole foreground process group
        os.killpg(controller.pid, signal.SIGINT)
        text, pid = controller.line().rsplit(" ", 1)
        assert text == "still here"
        assert int(pid) == worker
        assert "default_int_handler" in controller.line()
        assert controller.finish()[0] == 0


def test_ctrl_c_at_a_terminal(tmp_path) -> None:
    """With a real terminal: the worker is not in its session, so it neither gets the signal nor stops on reading it."""
    script = tmp_path / "script.py"
    script.write_text(WAITING.replace("{wait}", "silent.receive()"))
    token = os.urandom(8).hex()
    pid, fd = pty.fork()
    if not pid:
        os.execve(sys.executable, [sys.executable, str(script)], {**os.environ, "PYTHONPATH": SOURCE, TOKEN: token})
    try:
        data = b""
        while data.count(b"\n") < 1:
            data += os.read(fd, 1000)
        worker = int(data.split()[0])
        assert os.getsid(worker) != os.getsid(pid)
        os.write(fd, b"\x03")
        while b"still here" not in data or (b"SIGINT" not in data and b"int_handler" not in data):
            data += os.read(fd, 1000)
        assert str(worker).encode() in data.partition(b"still here")[2]
        assert os.waitpid(pid, 0)[1] == 0
        pid = 0
        eventually(lambda: not servers.is_alive(worker), "the worker is gone")
    finally:
        os.close(fd)
        for each in servers.processes_with_environment(TOKEN, token):
            servers.kill(each)
        if pid:
            os.waitpid(pid, 0)


def test_ctrl_c_that_nobody_catches() -> None:
    """The script ends with its traceback, the worker with it."""
    text = """
        import farwire
        channel = farwire.makegateway("popen").remote_exec("while True: pass")
        print(1, flush=True)
        channel.receive()
    """
    with Controller(text) as controller:
        controller.numbers()
        os.killpg(controller.pid, signal.SIGINT)
        status, _, err = controller.finish()
        assert status in (1, 130, -signal.SIGINT)
        assert err.rstrip().endswith("KeyboardInterrupt")
        assert err.count("Traceback") == 1
        controller.all_gone()


def test_ctrl_c_while_a_gateway_starts() -> None:
    """makegateway() waits for a program that says nothing: it raises, and the program is gone."""
    text = """
        import farwire, os
        group = farwire.Group()
        print(1, flush=True)
        try:
            group.makegateway("cmd=sh -c 'exec sleep 1000'")
        except KeyboardInterrupt:
            print("interrupted", len(group), flush=True)
        input()
    """
    with Controller(text) as controller:
        controller.numbers()
        eventually(lambda: len(controller.processes()) == 2, "the program runs")
        os.killpg(controller.pid, signal.SIGINT)
        assert controller.line() == "interrupted 0"
        assert controller.processes() == [controller.pid]


def test_ctrl_c_while_many_gateways_start() -> None:
    text = """
        import farwire
        group = farwire.Group()
        print(1, flush=True)
        try:
            group.makegateways(["5*cmd=sh -c 'exec sleep 1000'", "3*popen"])
        except KeyboardInterrupt:
            group.terminate()
            print("interrupted", len(group), flush=True)
        input()
    """
    with Controller(text) as controller:
        controller.numbers()
        eventually(lambda: len(controller.processes()) > 8, "the programs run")
        os.killpg(controller.pid, signal.SIGINT)
        assert controller.line() == "interrupted 0"
        assert controller.processes() == [controller.pid]


def test_ctrl_c_in_exit() -> None:
    text = """
        import farwire
        group = farwire.Group()
        gateway = group.makegateway("popen")
        channel = gateway.remote_exec("import signal; signal.signal(15, signal.SIG_IGN); channel.send(1)\\nwhile True: pass")
        channel.receive()
        print(gateway._process.worker_pid, flush=True)
        try:
            gateway.exit(timeout=100)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        group.terminate(timeout=0.5)
        print(len(group), flush=True)
        input()
    """
    with Controller(text) as controller:
        worker = controller.numbers()[0]
        eventually(lambda: servers.is_alive(worker), "the worker runs")
        os.killpg(controller.pid, signal.SIGINT)
        assert controller.line() == "interrupted"
        assert controller.line() == "0"
        assert not servers.is_alive(worker)


STORM = """
import collections, random, signal, sys, threading, time
import farwire

seed = int(sys.argv[1])
wanted = int(sys.argv[2])
rng = random.Random(seed)
gateway = farwire.makegateway("popen")


class Tick(TimeoutError if sys.argv[3] == "OSError" else Exception):
    pass


ticks = 0
armed = False  # inside the try that catches it


def handler(*args):
    global ticks, armed
    if armed:
        ticks += 1
        armed = False
        raise Tick


def payload(number):
    size = (0, 10, 3000, 5000, 70_000, 400_000)[number % 6] if number % 5 == 0 else number % 100
    return (b"%d," % number) * (size // 4 + 1)


WORKER = '''
numbers = []
for item in channel:
    if item is None:
        channel.send(("report", numbers))
    else:
        numbers.append(item[0])
        channel.send(item)
'''

# a second thread uses the same link all the time and is interrupted never: nothing may go wrong there
stop = False
rounds = 0
failures = []


def neighbour():
    global rounds
    try:
        channel = gateway.remote_exec("for item in channel: channel.send(item)")
        while not stop:
            item = (rounds, bytes(rounds % 3 * 50_000))
            channel.send(item, timeout=20)
            assert channel.receive(timeout=20) == item
            rounds += 1
    except BaseException as error:
        failures.append(error)


# and a callback takes a stream
streamed = []
stream = gateway.remote_exec("import itertools\\nfor i in itertools.count(): channel.send(i)")
stream.setcallback(streamed.append)
thread = threading.Thread(target=neighbour)
thread.start()
channel = gateway.remote_exec(WORKER)
counter = gateway.remote_exec("import itertools\\nfor i in itertools.count(): channel.send(i)")
# Python's import of a module does not survive every interruption: what is imported with the first large or structured item, and
# with the first error, is there before the storm
channel.send((0, payload(5)))
assert channel.receive() == (0, payload(5))
gateway.status()
try:
    channel.receive(timeout=0)
except farwire.TimeoutError:
    pass
sent, got, counted = [], [], []
number = 0
opened = 0
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.0011)
started = time.monotonic()


def play():
    global number, opened
    number += 1
    channel.send((number, payload(number)))
    sent.append(number)
    if rng.random() < 0.1:
        signal.setitimer(signal.ITIMER_REAL, rng.uniform(0.0001, 0.003), 0.0011)
    while True:
        item = channel.receive(timeout=None if rng.random() < 0.7 else 10)
        assert item[1] == payload(item[0]), "bytes of %d are wrong" % item[0]
        got.append(item[0])
        if item[0] >= number:
            break
    for _ in range(3):
        counted.append(counter.receive())
    if rng.random() < 0.1:
        opened += 1
        with gateway.remote_exec("channel.send(channel.receive())") as other:
            other.send(opened)
            assert other.receive(timeout=20) == opened
    if rng.random() < 0.05:
        assert gateway.status(timeout=20).state == "live"


while ticks < wanted and time.monotonic() - started < 40 and not failures:
    try:
        armed = True
        play()
        armed = False
    except Tick:
        pass
signal.setitimer(signal.ITIMER_REAL, 0)
stop = True
thread.join(30)
assert not thread.is_alive(), "the other thread hangs"
assert not failures, failures
# everything that is on its way, then the report
channel.send(None, timeout=20)
while True:
    item = channel.receive(timeout=20)
    if item[0] == "report":
        break
    assert item[1] == payload(item[0])
    got.append(item[0])
arrived = item[1][1:]
assert arrived == sorted(set(arrived)), "doubled or out of order at the worker"
assert got == sorted(set(got)), "doubled or out of order"
assert set(sent) <= set(arrived), "sent and not arrived: %s" % sorted(set(sent) - set(arrived))[:10]
assert set(got) <= set(arrived)
assert counted == sorted(set(counted))
lost = len(set(arrived) - set(got))
assert lost <= ticks / 4, "%d items were lost in %d interrupted calls" % (lost, ticks)
taken = len(streamed)
assert streamed[:taken] == list(range(taken))
assert gateway.remote_exec("channel.send(6 * 7)").receive(timeout=20) == 42
stream.close()
counter.close()
assert gateway.status(timeout=20).state == "live"
gateway.exit()
assert not gateway.hasreceiver()
print(ticks, number, len(sent), len(got), lost, rounds, len(streamed), opened)
"""


@pytest.mark.parametrize("kind", ["Exception", "OSError"])
@pytest.mark.parametrize("seed", [1, 2])
def test_storm(seed: int, kind: str) -> None:
    """2000 exceptions out of a signal handler, anywhere in the main thread's sends and receives."""
    with Controller(STORM, str(seed), "2000", kind) as controller:
        status, out, err = controller.finish(timeout=50)
        assert status == 0, err
        assert int(out.split()[0]) >= 2000, out


def test_no_signal_handler_of_ours() -> None:
    """We install none, and leave the wake-up descriptor alone."""
    text = """
        import signal, farwire
        before = [signal.getsignal(n) for n in range(1, 32)]
        farwire.makegateway("popen").exit()
        assert [signal.getsignal(n) for n in range(1, 32)] == before
        assert signal.set_wakeup_fd(-1) == -1
    """
    with Controller(text) as controller:
        assert controller.finish() == (0, "", "")
