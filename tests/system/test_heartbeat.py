"""A link that is cut without a word: with heartbeats on, the worker notices, whatever it is busy with."""

from __future__ import annotations

import os
import select
import signal
import socket
import threading

import pytest

import farwire
import servers
from farwire import GatewayLost
from processes import Controller, eventually
from socket_server import Server

HEARTBEAT = 0.3
# Where nobody may be taken for dead: on a busy machine a controller too may be late.
LONG = 1.0
# Three heartbeats, and the moment that the guard gives; the rest is for machines that are busy.
NOTICED = 15.0
BUSY = {
    "idle": "channel.receive()",
    "spins": "while True: pass",
    "holds the interpreter lock": "sum(range(10**12))",
    "floods the link": "while True: channel.send(bytes(60000))",
    "floods stdout": "import os\nwhile True: os.write(1, bytes(60000))",
    "ignores signals": "import signal\nfor n in (1, 2, 3, 13, 15): signal.signal(n, signal.SIG_IGN)\nwhile True: pass",
    "has a child": "import subprocess\nsubprocess.Popen(['sleep', '1000']).wait()",
}
CONTROLLER = """
import sys
import farwire
gateway = farwire.makegateway(f"popen//heartbeat={sys.argv[2]}", output=lambda *args: None)
# it is told to go on when its word is here: a C call may hold the interpreter lock before the word is written
channel = gateway.remote_exec("import os; channel.send(os.getpid()); channel.receive()\\n" + sys.argv[1])
worker = channel.receive()
channel.send("go on")
sys.stdout.write(f"{gateway._process.pid} {worker}\\n")
sys.stdout.flush()
for line in sys.stdin:
    print(gateway.hasreceiver(), flush=True)
"""


@pytest.mark.parametrize("busy", BUSY)
def test_a_silent_controller(busy: str) -> None:
    """Stopped, it says as little as one behind a cut line."""
    with Controller(CONTROLLER, BUSY[busy], str(HEARTBEAT)) as controller:
        guard, worker = controller.numbers()
        controller.kill(signal.SIGSTOP)
        eventually(
            lambda: not servers.is_alive(worker) and not servers.is_alive(guard), "worker and guard are gone", NOTICED
        )
        eventually(lambda: controller.processes() == [controller.pid], "so is what it started", NOTICED)


@pytest.mark.parametrize("busy", ["idle", "spins", "holds the interpreter lock"])
def test_a_controller_that_is_there(busy: str) -> None:
    """A worker that does not answer is not taken for dead, and does not take its controller for dead."""
    with Controller(CONTROLLER, BUSY[busy], str(LONG)) as controller:
        guard, worker = controller.numbers()
        before = ticks(guard)
        # the guard looks once in a second, and as often at least as a ping comes
        eventually(lambda: seconds_of(worker) > 4 * LONG or (busy == "idle" and ticks(guard) != before), "time", 30)
        for _ in range(3):
            controller.say()
            assert controller.line() == "True"
        assert servers.is_alive(worker)
        assert servers.is_alive(guard)


def ticks(pid: int) -> int:
    """How often a process has been switched away from by itself."""
    with open(f"/proc/{pid}/status") as file:
        return int(next(line for line in file if line.startswith("voluntary")).split()[1])


def seconds_of(pid: int) -> float:
    """The processor time that it has used."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Line:
    """A stretch of network that can go silent: it passes bytes on in both directions, until it is cut."""

    def __init__(self, host: str, port: int) -> None:
        self.target = host, port
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = "127.0.0.1:%d" % self.listener.getsockname()[1]
        self.cut = threading.Event()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        peers: dict[socket.socket, socket.socket] = {}
        with self.listener:
            while not self.over.is_set():
                if self.cut.is_set():
                    self.over.wait(60)
                    break
                for ready in select.select([self.listener, *peers], [], [], 0.02)[0]:
                    if ready is self.listener:
                        near = self.listener.accept()[0]
                        far = socket.create_connection(self.target)
                        peers[near], peers[far] = far, near
                    elif ready in peers:
                        data = ready.recv(65536)
                        if data:
                            peers[ready].sendall(data)
                        else:
                            for end in (ready, peers[ready]):
                                del peers[end]
                                end.close()
        for end in peers:
            end.close()

    def end(self) -> None:
        self.over.set()
        self.thread.join(10)


@pytest.mark.parametrize("busy", ["idle", "holds the interpreter lock"])
def test_a_line_that_goes_silent(group: farwire.Group, tcp_server: Server, busy: str) -> None:
    """Nothing comes through any more, and nothing says so: the worker's host gets rid of it, and who waits at the controller is told."""
    host, _, port = tcp_server.address.rpartition(":")
    line = Line(host, int(port))
    try:
        spec = f"socket={line.address}//secret_file={tcp_server.secret_file}//heartbeat={HEARTBEAT}"
        gateway = group.makegateway(spec, output=lambda *args: None)
        code = "import os; channel.send((os.getpid(), os.getppid())); channel.receive()\n" + BUSY[busy]
        channel = gateway.remote_exec(code)
        pids = channel.receive(timeout=20)
        channel.send("go on")
        line.cut.set()
        eventually(lambda: not any(map(servers.is_alive, pids)), "worker and guard are gone", NOTICED)
        with pytest.raises(GatewayLost, match="nothing was heard of the worker for"):
            channel.receive(timeout=60)
        assert gateway.status(timeout=0.1).state == "closed"
    finally:
        line.end()
