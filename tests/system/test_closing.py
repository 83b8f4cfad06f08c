"""One deadline for the end of any number of workers, whatever they do; nothing is left behind."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

import farwire
import servers
from farwire import GatewayLost
from processes import Waiting, eventually, within

STUCK = {
    "idle": "channel.receive()",
    "spins": "channel.send(1)\nwhile True: pass",
    "sleeps": "import time; channel.send(1); time.sleep(1000)",
    "holds the interpreter lock": "channel.send(1); sum(range(10**12))",
    "catches everything": """
channel.send(1)
import time
while True:
    try:
        time.sleep(1000)
    except BaseException:
        pass
""",
    "ignores SIGTERM": """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
channel.send(1)
while True: time.sleep(1000)
""",
    "has a thread that does not end": """
import threading, time
threading.Thread(target=time.sleep, args=(1000,)).start()
channel.send(1)
""",
    "does not get out of its exit handlers": """
import atexit, time
atexit.register(time.sleep, 1000)
channel.send(1)
""",
    "has a child that ignores signals": """
import subprocess
child = subprocess.Popen(["sh", "-c", "trap '' 1 2 13 15; echo; while :; do sleep 1000; done"], stdout=subprocess.PIPE)
child.stdout.read(1)
channel.send(1)
child.wait()
""",
    "floods the link": "channel.send(1)\nwhile True: channel.send(bytes(60000))",
    "floods stdout": "import os\nchannel.send(1)\nwhile True: os.write(1, bytes(60000))",
    "floods stderr": "import os\nchannel.send(1)\nwhile True: os.write(2, bytes(60000))",
}


def start(group: farwire.Group, code: str) -> farwire.Gateway:
    gateway = group.makegateway("popen", output=lambda *args: None)
    channel = gateway.remote_exec(code)
    if "channel.send(1)" in code:
        assert channel.receive() == 1
    gateway.kept = channel  # type: ignore[attr-defined]  # the code runs as long as somebody holds its channel
    return gateway


@pytest.mark.parametrize("stuck", STUCK)
def test_exit_of_a_stuck_worker(group: farwire.Group, stuck: str) -> None:
    gateway = start(group, STUCK[stuck])
    family = servers.descendants(gateway._process.pid)
    with within(2, "exit(timeout=1)"):
        gateway.exit(timeout=1)
    # they are killed; a busy kernel may take a moment to carry it out
    eventually(lambda: not any(map(servers.is_alive, family)), "the family is gone", 1)
    assert servers.process_status(gateway._process.pid) == ("", 0), "reaped"
    assert len(group) == 0
    with pytest.raises(EOFError):  # GatewayLost, if it did not end by itself
        while True:
            gateway.kept.receive()  # type: ignore[attr-defined]
    gateway.exit()


def test_twenty_at_once(group: farwire.Group) -> None:
    """Idle ones and stuck ones of every kind: the deadline is for all of them together."""
    gateways = group.makegateways(["20*popen"], output=lambda *args: None)
    kept = [gateway.remote_exec(code) for gateway, code in zip(gateways, [*STUCK.values()] * 2)]
    family = [pid for gateway in gateways for pid in servers.descendants(gateway._process.pid)]
    with within(4, "terminate(timeout=2)"):
        group.terminate(timeout=2)
    assert len(group) == 0
    # they are killed; a busy kernel may take a moment to carry it out
    eventually(lambda: not any(map(servers.is_alive, family)), "the family is gone", 1)
    assert all(channel.isclosed() for channel in kept)


def test_stopped_worker_with_full_pipe(group: farwire.Group) -> None:
    gateway = group.makegateway("popen")
    channel = gateway.remote_exec("channel.send(1); channel.receive()")
    assert channel.receive() == 1
    os.kill(gateway._process.worker_pid, signal.SIGSTOP)
    waiting = [Waiting(lambda: channel.send(bytes(1 << 28))), Waiting(channel.receive)]
    for each in waiting:
        each.blocks()
    with within(2, "terminate(timeout=1)"):
        group.terminate(timeout=1)
    for each in waiting:
        assert isinstance(each.join().error, GatewayLost)


def test_terminate_while_threads_send_and_receive(group: farwire.Group) -> None:
    gateways = group.makegateways(["4*popen"])
    echo = "for item in channel: channel.send(item)"
    waiting = []
    rounds = [0]

    def play(channel: farwire.Channel) -> None:
        while True:
            channel.send(bytes(100_000))
            channel.receive()
            rounds[0] += 1

    for gateway in gateways:
        for _ in range(3):
            channel = gateway.remote_exec(echo)
            waiting.append(Waiting(lambda channel=channel: play(channel)))
    eventually(lambda: rounds[0] > 100, "traffic")
    with within(4, "terminate(timeout=3)"):
        group.terminate(timeout=3)
    for each in waiting:
        assert isinstance(each.join().error, (EOFError, OSError)), each.error


def test_exit_from_several_threads(gw: farwire.Gateway) -> None:
    gw.kept = gw.remote_exec("channel.send(1); sum(range(10**12))")  # type: ignore[attr-defined]
    gw.kept.receive()  # type: ignore[attr-defined]
    waiting = [Waiting(lambda: gw.exit(timeout=0.5)) for _ in range(5)]
    for each in waiting:
        assert each.join(4).error is None
    assert not gw.hasreceiver()


def test_exit_in_a_callback(gw: farwire.Gateway) -> None:
    done = threading.Event()

    def callback(item: object) -> None:
        gw.exit()
        done.set()

    channel = gw.remote_exec("channel.send(1); channel.receive()")
    channel.setcallback(callback)
    assert done.wait(5)
    gw.join(5)


def test_group_as_context_manager() -> None:
    with farwire.Group() as group, pytest.raises(ZeroDivisionError):
        gateway = group.makegateway("popen")
        pid = gateway.info().pid
        raise ZeroDivisionError
    assert not servers.is_alive(pid)
    with farwire.Group() as group, group.makegateway("popen") as gateway:
        pid = gateway.info().pid
    assert not servers.is_alive(pid)


def test_exit_lets_tasks_finish(gw: farwire.Gateway, tmp_path) -> None:
    """Goodbye is said first: a task that ends when its channel ends does so in peace."""
    file = tmp_path / "done"
    channel = gw.remote_exec(
        f"""
        import atexit
        atexit.register(lambda: open({str(file)!r}, "a").write("exit handler"))
        channel.send(1)
        try:
            for item in channel:
                pass
        finally:
            open({str(file)!r}, "a").write("task, ")
        """
    )
    channel.receive()
    gw.exit()
    assert file.read_text() == "task, exit handler"


def test_a_task_that_needs_a_moment_gets_it(gw: farwire.Gateway, tmp_path) -> None:
    file = tmp_path / "done"
    channel = gw.remote_exec(f"channel.send(1); import time; time.sleep(0.3); open({str(file)!r}, 'w').write('done')")
    channel.receive()
    gw.exit(timeout=5)
    assert file.read_text() == "done"


def test_exit_of_a_gateway_that_starts(group: farwire.Group) -> None:
    gateway = group.makegateway("cmd=sh -c 'exec sleep 1000'", wait=False)  # sh takes what is appended for its own
    with within(2, "exit"):
        gateway.exit(timeout=1)
    with pytest.raises(GatewayLost, match="while it started"):
        gateway.remote_exec("pass")


def test_a_dropped_gateway_lives_in_its_group(group: farwire.Group) -> None:
    pid = group.makegateway("popen").info().pid
    assert len(group) == 1
    assert group[0].info().pid == pid


def test_id_is_free_again(group: farwire.Group) -> None:
    for _ in range(2):
        gateway = group.makegateway("popen//id=one")
        assert gateway is group["one"]
        with pytest.raises(farwire.SpecError, match="one"):
            group.makegateway("popen//id=one")
        gateway.exit()


def test_use_after_exit_says_who_ended_it(group: farwire.Group) -> None:
    gateway = group.makegateway("popen")
    gateway.exit()
    with pytest.raises(farwire.GatewayLost, match=r"exit status 0, as exit\(\) or terminate\(\) had asked for"):
        gateway.remote_exec("")


def test_a_task_that_was_sent_before_the_end_is_run(group: farwire.Group, tmp_path: Path) -> None:
    for number in range(20):
        file = tmp_path / str(number)
        with group.makegateway("popen") as gateway:
            gateway.remote_exec(f"open({str(file)!r}, 'w').close()")
        assert file.exists()
