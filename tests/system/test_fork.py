"""os.fork() in the controller and in a worker: parent and child do not disturb each other."""

from __future__ import annotations

import os

import pytest

import farwire
import servers
from farwire import GatewayLost
from processes import Controller, eventually


def run(text: str, *args: str) -> str:
    with Controller(text, *args) as controller:
        status, out, err = controller.finish()
        assert (status, err) == (0, "")
        controller.all_gone()
        return out


PARENT = """
import os, sys, threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: "multi-threaded, use of fork() may lead to deadlocks in the child"
import farwire

gateway = farwire.makegateway("popen")
echo = gateway.remote_exec("for item in channel: channel.send(item)")
got = []
counted = gateway.remote_exec("import itertools\\nfor i in itertools.count(): channel.send(i)")
counted.setcallback(got.append)


def check():
    for i in range(100):
        echo.send((i, bytes(i * 1000)))
        assert echo.receive(timeout=10) == (i, bytes(i * 1000))


check()
"""


@pytest.mark.parametrize(
    "ending", ["os._exit(0)", "sys.exit(0)", "pass", "os.execvp('true', ['true'])", "os.kill(os.getpid(), 9)"]
)
def test_a_child_that_ends(ending: str) -> None:
    """However the child ends, its farwire says nothing to the workers and kills none."""
    out = run(
        PARENT
        + f"""
for i in range(3):
    pid = os.fork()
    if not pid:
        {ending}
        if sys.argv:
            sys.exit(0)
    os.waitpid(pid, 0)
    check()
before = len(got)
while len(got) == before:
    pass
counted.close()
assert gateway.status().state == "live"
gateway.exit()
print("well")
"""
    )
    assert out == "well\n"


def test_the_child_cannot_use_it_and_says_so() -> None:
    out = run(
        PARENT
        + """
pid = os.fork()
if not pid:
    for call in (lambda: echo.send(1), echo.receive, lambda: gateway.remote_exec("pass"), gateway.newchannel, gateway.info,
                 echo.waitclose):
        try:
            call()
        except farwire.GatewayLost as error:
            assert "parent" in str(error), error
        else:
            os.write(1, b"not raised\\n")
    gateway.exit()
    echo.close()
    assert gateway.status().state == "closed"
    del echo, counted, gateway
    os.write(1, b"child done\\n")
    sys.exit(0)
assert os.waitpid(pid, 0)[1] == 0
check()
print("well")
"""
    )
    assert out == "child done\nwell\n"


def test_the_child_opens_its_own() -> None:
    out = run(
        PARENT
        + """
sys.stdout.flush()
pid = os.fork()
if not pid:
    assert not farwire.default_group
    mine = farwire.makegateway("popen//id=" + gateway.id)
    got = []
    channel = mine.remote_exec("for i in range(5): channel.send(i)")
    channel.setcallback(got.append)
    channel.waitclose(timeout=10)
    assert got == [0, 1, 2, 3, 4]
    mine.remote_exec("print('out of the child')").waitclose(timeout=10)
    mine.exit()
    sys.exit(0)
assert os.waitpid(pid, 0)[1] == 0
check()
print("well")
"""
    )
    assert out.endswith("out of the child\nwell\n")


def test_fork_while_threads_use_it() -> None:
    """The child is a copy in the middle of whatever the threads did."""
    run(
        PARENT
        + """
stop = False
failures = []
def use():
    try:
        channel = gateway.remote_exec("for item in channel: channel.send(item)")
        while not stop:
            channel.send(bytes(3000))
            channel.receive(timeout=20)
    except BaseException as error:
        failures.append(error)
threads = [threading.Thread(target=use) for i in range(3)]
for t in threads: t.start()
for i in range(20):
    pid = os.fork()
    if not pid:
        gateway.exit()
        sys.exit(0) if i % 2 else os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
stop = True
for t in threads: t.join(20)
assert not failures, failures
check()
"""
    )


def test_multiprocessing_fork() -> None:
    out = run(
        PARENT
        + """
import multiprocessing
context = multiprocessing.get_context("fork")
with context.Pool(2) as pool:
    assert pool.map(abs, range(-50, 0)) == list(range(50, 0, -1))
    check()
process = context.Process(target=sum, args=([1],))
process.start()
process.join()
assert process.exitcode == 0
check()
print("well")
"""
    )
    assert out == "well\n"


@pytest.mark.parametrize("way", ["popen", "tcp", "tls"])
def test_the_parent_dies_the_child_lives(way: str, request: pytest.FixtureRequest) -> None:
    """A forked child does not keep the parent's workers alive: it holds none of their descriptors."""
    spec = way if way == "popen" else request.getfixturevalue(f"{way}_server").spec
    text = (
        PARENT.replace('"popen"', repr(spec))
        + """
counted.close()
worker = gateway.info().pid
pid = os.fork()
if not pid:
    import time
    time.sleep(1000)
sys.stdout.write(f"{worker} {pid}\\n")
sys.stdout.flush()
sys.stdin.read()
"""
    )
    with Controller(text) as controller:
        worker, child = controller.numbers()
        controller.kill()
        eventually(lambda: not servers.is_alive(worker), "the worker is gone", 2)
        assert servers.is_alive(child)


class TestInTheWorker:
    @pytest.mark.parametrize(
        ("ending", "expected"),
        [
            ("os._exit(0)", 0),
            ("sys.exit(0)", 0),
            ("sys.exit()", 0),
            ("sys.exit(3)", 3),
            ("sys.exit('words')", 1),
            ("pass", 0),
            ("raise ValueError", 1),
            ("1/0", 1),
        ],
    )
    def test_a_child_that_ends(self, group: farwire.Group, ending: str, expected: int) -> None:
        """Also one that falls out of the task: it does not go on as a second worker."""
        gw = group.makegateway("popen", output=lambda *args: None)
        channel = gw.remote_exec(
            f"""
            import os, sys, warnings
            warnings.simplefilter("ignore")
            pid = os.fork()
            if not pid:
                {ending}
            else:
                channel.send((pid, os.waitpid(pid, 0)[1]))
            """
        )
        pid, status = channel.receive(timeout=10)
        channel.waitclose(timeout=10)
        assert not servers.is_alive(pid)
        assert status == expected << 8
        assert gw.remote_exec("channel.send(1)").receive(timeout=5) == 1

    def test_the_child_cannot_use_the_channel(self, gw: farwire.Gateway) -> None:
        channel = gw.remote_exec(
            """
            import os
            r, w = os.pipe()
            if not os.fork():
                try:
                    channel.send("from the child")
                    os.write(w, b"sent")
                except OSError as error:
                    os.write(w, str(error).encode())
                os._exit(0)
            channel.send(os.read(r, 1000))
            os.wait()
            """
        )
        assert b"parent" in channel.receive(timeout=5)
        channel.waitclose(timeout=5)

    def test_multiprocessing(self, gw: farwire.Gateway) -> None:
        channel = gw.remote_exec(
            """
            import multiprocessing, warnings
            warnings.simplefilter("ignore")
            with multiprocessing.get_context("fork").Pool(2) as pool:
                channel.send(pool.map(abs, [-1, -2, -3]))
            """
        )
        assert channel.receive(timeout=10) == [1, 2, 3]
        channel.waitclose(timeout=10)

    def test_the_worker_dies_the_child_does_not_hold_the_link(self, group: farwire.Group) -> None:
        """A daemon that the worker forked lives on in a session of its own; the death is noticed at once all the same."""
        gw = group.makegateway("popen", output=lambda *args: None)
        channel = gw.remote_exec(
            """
            import os, time
            r, w = os.pipe()
            if not os.fork():
                os.setsid()
                os.write(w, str(os.getpid()).encode())
                time.sleep(1000)
            channel.send(int(os.read(r, 100)))
            channel.receive()
            os._exit(5)
            """
        )
        pid = channel.receive(timeout=5)
        try:
            channel.send(1)
            with pytest.raises(GatewayLost, match="exit status 5"):
                channel.receive(timeout=5)
            assert servers.is_alive(pid)
        finally:
            os.kill(pid, 9)
