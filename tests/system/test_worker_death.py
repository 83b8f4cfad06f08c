"""A worker that dies or is stopped: everybody who waits is told why, at once; a stopped one harms nobody."""

from __future__ import annotations

import os
import queue
import signal
import time

import pytest

import farwire
import servers
from farwire import GatewayLost
from processes import Waiting, eventually, within

DEATHS = {
    "SIGKILL": ("import os; os.kill(os.getpid(), 9)", "killed by SIGKILL"),
    "SIGTERM": ("import os; os.kill(os.getpid(), 15)", "killed by SIGTERM"),
    "_exit": ("import os; os._exit(42)", "exit status 42"),
    "_exit(0)": ("import os; os._exit(0)", "exit status 0"),
    "segfault": ("import ctypes; ctypes.string_at(0)", "killed by SIGSEGV"),
    "abort": ("import os; os.abort()", "killed by SIGABRT"),
    "fatal": ("import sys, ctypes; ctypes.pythonapi.Py_FatalError(b'the end')", "killed by SIGABRT"),
}
# dies when it receives; the other tasks just sit there
VICTIM = """
import sys
channel.receive()
sys.stderr.write("famous last words\\n")
sys.stderr.flush()
"""
SITTING = "import threading; threading.Event().wait()"


@pytest.fixture
def silent(group: farwire.Group) -> farwire.Gateway:
    """A gateway whose output is dropped here: stderr of a crash is long."""
    return group.makegateway("popen", output=lambda *args: None)


@pytest.mark.parametrize("death", DEATHS)
def test_everybody_who_waits_is_told(silent: farwire.Gateway, death: str) -> None:
    gw = silent
    code, status = DEATHS[death]
    victim = gw.remote_exec(VICTIM + code)
    channels = [gw.remote_exec(SITTING) for _ in range(6)]
    ends: queue.Queue[object] = queue.Queue()
    channels[0].setcallback(ends.put, endmarker="over")
    waiting = [
        Waiting(channels[1].receive),
        Waiting(lambda: channels[1].receive(timeout=60)),
        Waiting(lambda: [channels[2].send(bytes(50_000)) for _ in range(1000)]),
        Waiting(lambda: channels[3].send(bytes(100_000_000))),
        Waiting(channels[4].waitclose),
        Waiting(lambda: list(channels[5])),
        Waiting(channels[0].waitclose),
        Waiting(victim.receive),
    ]
    for each in waiting:
        each.blocks()
    with within(2, "telling everybody"):
        victim.send("die")
        for each in waiting:
            each.join()
        assert ends.get(timeout=5) == "over"
        gw.join(timeout=5)
    for each in waiting:
        assert isinstance(each.error, GatewayLost), each.error
        assert isinstance(each.error, EOFError)
        assert isinstance(each.error, OSError)
        assert status in str(each.error)
        assert "famous last words" in str(each.error)
    # and whoever comes later
    for call in (
        victim.receive,
        lambda: victim.send(1),
        lambda: next(channels[5]),
        channels[4].waitclose,
        lambda: gw.remote_exec("pass"),
        gw.newchannel,
        gw.info,
        gw.stacks,
        gw.signal,
    ):
        with pytest.raises(GatewayLost, match=status):
            call()
    assert gw.status().state == "closed"
    assert not gw.hasreceiver()
    assert victim.isclosed()
    assert len(gw.group) == 0
    gw.exit()


def test_questions_are_answered_by_the_death(silent: farwire.Gateway) -> None:
    gw = silent
    pid = gw.info().pid
    os.kill(pid, signal.SIGSTOP)
    waiting = [Waiting(lambda: gw.info(timeout=60)), Waiting(lambda: gw.status(timeout=60))]
    eventually(lambda: len(gw._requests) == 2, "both ask")
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(GatewayLost, match="SIGKILL"):
        raise waiting[0].join().error or AssertionError
    assert waiting[1].join().result.state == "closed"  # type: ignore[attr-defined]


def test_items_sent_before_the_death_arrive(silent: farwire.Gateway) -> None:
    channel = silent.remote_exec(
        """
        import os
        for i in range(1000):
            channel.send(i)
        channel.send(b"x" * 1_000_000)
        os._exit(3)
        """
    )
    items = []
    with pytest.raises(GatewayLost, match="exit status 3"):
        for item in channel:
            items.append(item)
    assert items[:1000] == list(range(1000))
    assert len(items[1000]) == 1_000_000


def test_the_guard_is_killed(silent: farwire.Gateway) -> None:
    """The process that we started dies, its child the worker does not outlive it."""
    channel = silent.remote_exec("import os; channel.send(os.getpid()); channel.receive()")
    worker = channel.receive()
    waiting = Waiting(channel.receive).blocks()
    os.kill(silent._process.pid, signal.SIGKILL)
    assert isinstance(waiting.join(5).error, GatewayLost)
    eventually(lambda: not os.path.exists(f"/proc/{worker}"), "the worker is gone", 5)


@pytest.mark.parametrize(
    "code",
    [
        pytest.param("os.closerange(3, 256)", id="closerange"),
        pytest.param("os.execvp('sleep', ['sleep', '100'])", id="exec"),
    ],
)
def test_code_that_closes_our_descriptors(silent: farwire.Gateway, code: str) -> None:
    """The guard keeps the link open, and the worker does not know it any more."""
    channel = silent.remote_exec("import os; channel.send(os.getpid()); " + code)
    worker = channel.receive(10)
    with pytest.raises(GatewayLost, match="closed descriptors that are not its own"):
        channel.receive(30)
    eventually(lambda: not os.path.exists(f"/proc/{worker}"), "the worker is gone", 5)


def test_another_gateway_goes_on(group: farwire.Group, silent: farwire.Gateway) -> None:
    other = group.makegateway("popen")
    echo = other.remote_exec("for item in channel: channel.send(item)")
    channel = silent.remote_exec("import os; channel.receive(); os._exit(1)")
    channel.send(None)
    with pytest.raises(GatewayLost):
        channel.receive()
    echo.send("still here")
    assert echo.receive(timeout=5) == "still here"


def test_death_in_the_middle_of_an_item(silent: farwire.Gateway) -> None:
    """The worker is killed while a large item crosses, in either direction."""
    channel = silent.remote_exec("channel.send(1); channel.send(bytes(1 << 30))")
    assert channel.receive() == 1
    waiting = Waiting(channel.receive).blocks()
    eventually(lambda: silent._link.connection.channels[channel.id].large is not None, "the item has begun")
    os.kill(silent._process.worker_pid, signal.SIGKILL)
    assert isinstance(waiting.join().error, GatewayLost)


class TestStopped:
    """SIGSTOP: the worker neither reads nor answers. Over a pipe nobody takes that for death."""

    @pytest.fixture
    def stopped(self, gw: farwire.Gateway) -> farwire.Gateway:
        self.echo = gw.remote_exec("for item in channel: channel.send(len(item))")
        self.echo.send("x")
        assert self.echo.receive() == 1
        worker = gw._process.worker_pid
        os.kill(worker, signal.SIGSTOP)
        # Until then it may read megabytes, whose credit it keeps.
        eventually(lambda: servers.process_status(worker)[0] == "T", "stopped")
        return gw

    def test_every_wait_has_a_timeout(self, stopped: farwire.Gateway) -> None:
        other = stopped.remote_exec("channel.receive()")
        with pytest.raises(TimeoutError):
            self.echo.receive(timeout=0.1)
        with pytest.raises(farwire.TimeoutError):
            self.echo.waitclose(timeout=0.1)
        with pytest.raises(TimeoutError):
            stopped.info(timeout=0.1)
        with pytest.raises(TimeoutError):
            stopped.stacks(timeout=0.2)
        assert stopped.status(timeout=0.1).state == "unresponsive"
        with pytest.raises(TimeoutError, match="not sent"):
            other.send(bytes(100_000_000), timeout=0.1)
        os.kill(stopped._process.worker_pid, signal.SIGCONT)

    def test_send_times_out_and_nothing_of_the_item_arrives(self, stopped: farwire.Gateway) -> None:
        with pytest.raises(TimeoutError):
            self.echo.send(bytes(100_000_000), timeout=0.1)
        sent = 0
        with pytest.raises(TimeoutError):
            while True:
                self.echo.send(bytes(30_000), timeout=0.1)
                sent += 1
        assert 8 << 20 > sent * 30_000 > 4 << 20
        os.kill(stopped._process.worker_pid, signal.SIGCONT)
        assert [self.echo.receive(timeout=10) for _ in range(sent)] == [30_000] * sent
        self.echo.send("end")
        assert self.echo.receive(timeout=10) == 3

    def test_it_goes_on_where_it_was(self, stopped: farwire.Gateway) -> None:
        waiting = Waiting(self.echo.receive).blocks()
        self.echo.send("four")
        assert not waiting.done()
        os.kill(stopped._process.worker_pid, signal.SIGCONT)
        assert waiting.join().result == 4

    def test_exit_ends_it(self, stopped: farwire.Gateway) -> None:
        started = time.monotonic()
        stopped.exit(timeout=1)
        assert time.monotonic() - started < 2.5
        with pytest.raises(GatewayLost):
            self.echo.receive()


@pytest.mark.parametrize("count", [5, 300, 3000])
def test_what_was_sent_before_os_exit_arrives(gw: farwire.Gateway, count: int) -> None:
    channel = gw.remote_exec(f"import os\nfor i in range({count}): channel.send(i)\nos._exit(3)")
    got = []
    with pytest.raises(farwire.GatewayLost, match="exit status 3"):
        while True:
            got.append(channel.receive(timeout=20))
    assert got == list(range(count))


def test_os_exit_in_a_handler(gw: farwire.Gateway) -> None:
    """Wherever the main thread is, also in the midst of a send."""
    code = """
        import os, signal
        signal.signal(signal.SIGALRM, lambda *args: os._exit(4))
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        while True:
            channel.send(1)
    """
    channel = gw.remote_exec(code)
    with pytest.raises(farwire.GatewayLost, match="exit status 4"):
        while True:
            channel.receive(timeout=20)
