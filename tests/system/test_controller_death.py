"""A controller that is killed, or lets go of the link: its workers, their guards and their children are gone within a second."""

from __future__ import annotations

import signal

import pytest

import servers
from processes import Controller, eventually

# What keeps the worker busy while its controller dies; each is run after the worker has told its pid.
BUSY = {
    "idle": "channel.receive()",
    "spins": "while True: pass",
    "sleeps": "import time; time.sleep(1000)",
    "holds the interpreter lock": "sum(range(10**12))",
    "catches everything": """
while True:
    try:
        while True:
            channel.receive()
    except BaseException:
        pass
""",
    "ignores signals": """
import signal
for number in (1, 2, 3, 13, 15, 10, 12):
    signal.signal(number, signal.SIG_IGN)
while True: pass
""",
    "floods the link": "while True: channel.send(bytes(60000))",
    "floods stdout": """
import os
while True: os.write(1, bytes(60000))
""",
    "has a child": """
import subprocess
subprocess.Popen(["sleep", "1000"]).wait()
""",
    "has a grandchild that ignores signals": """
import subprocess
subprocess.Popen(["sh", "-c", "trap '' 1 2 13 15; sleep 1000 & sleep 1000"]).wait()
""",
    "has forked": """
import os
if not os.fork():
    sum(range(10**12))
sum(range(10**12))
""",
    "has threads": """
import threading
for i in range(5):
    threading.Thread(target=lambda: sum(range(10**12))).start()
""",
    "is in an exit handler": """
import atexit, time
atexit.register(time.sleep, 1000)
""",
}
CONTROLLER = """
import sys, time
import farwire
gateway = farwire.makegateway("popen")
# it is told to go on when its word is here: a C call may hold the interpreter lock before the word is written
channel = gateway.remote_exec("import os; channel.send(os.getpid()); channel.receive()\\n" + sys.argv[1])
worker = channel.receive()
channel.send("go on")
sys.stdout.write(f"{gateway._process.pid} {worker}\\n")  # one write: output of the worker may come in between
sys.stdout.flush()
"""


@pytest.mark.parametrize("busy", BUSY)
def test_killed(busy: str) -> None:
    with Controller(CONTROLLER + "sys.stdin.read()", BUSY[busy]) as controller:
        guard, worker = controller.numbers()
        if "child" in busy or "forked" in busy:
            eventually(lambda: servers.children(worker), "the worker has a child")
        if busy.startswith("has a grand"):
            eventually(lambda: len(servers.descendants(worker)) == 3, "grandchildren")
        assert set(controller.processes()) >= {controller.pid, guard, worker}
        controller.kill()
        controller.all_gone()


@pytest.mark.parametrize("busy", ["idle", "spins", "holds the interpreter lock", "floods the link", "has a child"])
def test_link_closed(busy: str) -> None:
    """The controller lives on, but the descriptors of the link are closed under our feet."""
    text = CONTROLLER + "import os; os.closerange(3, 1000); print(0, flush=True); sys.stdin.read()"
    with Controller(text, BUSY[busy]) as controller:
        guard, worker = controller.numbers()
        controller.numbers()
        eventually(lambda: not servers.is_alive(worker) and not servers.is_alive(guard), "guard and worker are gone", 2)
        assert controller.processes() == [controller.pid]


def test_unread_data_in_both_pipes() -> None:
    """The pipes are full both ways: the hang-up is noticed all the same."""
    text = CONTROLLER + (
        "import os, signal\n"
        "gateway.remote_exec('while True: channel.send(bytes(60000))')\n"
        "while True:\n"
        "    try: channel.send(bytes(60000), timeout=0.5)\n"
        "    except TimeoutError: break\n"
        "print(0, flush=True)\n"
        "sys.stdin.read()"
    )
    with Controller(text, "sum(range(10**12))") as controller:
        controller.numbers()
        controller.numbers()
        controller.kill()
        controller.all_gone()


def test_killed_while_workers_start() -> None:
    text = """
        import farwire
        group = farwire.Group()
        for i in range(5):
            group.makegateway("popen", wait=False)
        print(0, flush=True)
        import time; time.sleep(1000)
    """
    with Controller(text) as controller:
        controller.numbers()
        controller.kill()
        controller.all_gone()


def test_stopped_controller_is_no_death(tmp_path) -> None:
    """SIGSTOP, a debugger, a suspended laptop: over a pipe there is no heartbeat, the worker goes on."""
    file = tmp_path / "ticks"
    code = f"""
import time
for i in range(1000):
    with open({str(file)!r}, "a") as f: f.write(".")
    if channel.isclosed(): break
    time.sleep(0.01)
"""
    text = CONTROLLER + "sys.stdin.readline(); print(gateway.remote_exec('channel.send(7)').receive(), flush=True)"
    with Controller(text, code) as controller:
        controller.numbers()
        eventually(file.exists, "the task runs")
        controller.kill(signal.SIGSTOP)
        eventually(lambda: servers.process_status(controller.pid)[0] == "T", "stopped")
        before = len(file.read_text())
        eventually(lambda: len(file.read_text()) > before + 60, "the worker goes on", 10)
        controller.kill(signal.SIGCONT)
        controller.say()
        assert controller.line() == "7"
