"""Where tasks run: the first in the main thread, others at the same time in named threads, or one after another."""

from __future__ import annotations

import threading

import pytest

import farwire
from farwire import GatewayLost, RemoteError
from processes import eventually

WHERE = """
import threading
thread = threading.current_thread()
channel.send((thread is threading.main_thread(), thread.name))
channel.receive()
"""


def test_first_in_the_main_thread_second_in_a_named_one(gw: farwire.Gateway) -> None:
    first, second, third = (gw.remote_exec(WHERE) for _ in range(3))
    assert first.receive(timeout=5) == (True, "MainThread")
    for channel in (second, third):
        main, name = channel.receive(timeout=5)
        assert not main
        assert name == f"farwire-task-{channel.id}"
    assert gw.status().numexecuting == 3
    first.send(None)
    first.waitclose(timeout=5)
    again = gw.remote_exec(WHERE)
    assert again.receive(timeout=5) == (True, "MainThread")


def test_one_after_another_they_all_have_the_main_thread(gw: farwire.Gateway) -> None:
    for _ in range(50):
        channel = gw.remote_exec(WHERE)
        channel.send(None)
        assert channel.receive(timeout=5) == (True, "MainThread")
        channel.waitclose(timeout=5)


LOOK = "(threading.main_thread().ident, threading.current_thread() is threading.main_thread())"


def test_a_second_task_imports_threading_first(gw: farwire.Gateway) -> None:
    """Python before 3.13 takes the thread that imports it for the main one."""
    main = gw.remote_exec(
        f"""
        import sys, _thread
        channel.send(("threading" in sys.modules, _thread.get_ident()))
        channel.receive()
        import threading
        channel.send({LOOK})
        """
    )
    loaded, ident = main.receive(timeout=5)
    assert not loaded, "threading is on the start path again: then this test shows nothing"
    second = gw.remote_exec(f"import threading; channel.send({LOOK})")
    assert second.receive(timeout=5) == (ident, False)
    main.send(None)
    assert main.receive(timeout=5) == (ident, True)


def test_a_callback_imports_threading_first(gw: farwire.Gateway) -> None:
    main = gw.remote_exec(
        f"""
        import sys, _thread
        channel.send(("threading" in sys.modules, _thread.get_ident()))
        def callback(item):
            import threading
            other.send({LOOK})
        other = channel.receive()
        other.setcallback(callback)
        channel.receive()
        import threading
        channel.send({LOOK})
        """
    )
    loaded, ident = main.receive(timeout=5)
    assert not loaded
    other = gw.newchannel()
    main.send(other)
    other.send("call back")
    assert other.receive(timeout=5) == (ident, False)
    main.send(None)
    assert main.receive(timeout=5) == (ident, True)


def test_thread_local_and_main_thread_things_work(gw: farwire.Gateway) -> None:
    """What only the main thread may do."""
    channel = gw.remote_exec(
        """
        import signal, asyncio
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
        async def main():
            asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, print)
            await asyncio.sleep(0)
            return 7
        channel.send(asyncio.run(main()))
        """
    )
    assert channel.receive(timeout=10) == 7


class TestMainThreadOnly:
    @pytest.fixture
    def only(self, group: farwire.Group) -> farwire.Gateway:
        return group.makegateway("popen//execmodel=main_thread_only")

    def test_tasks_queue(self, only: farwire.Gateway) -> None:
        channels = [only.remote_exec(WHERE) for _ in range(5)]
        for i, channel in enumerate(channels):
            assert channel.receive(timeout=5) == (True, "MainThread")
            status = only.status()
            assert status.execmodel == "main_thread_only"
            assert status.numexecuting == 1
            assert status.numqueued == 4 - i
            channel.send(None)
            channel.waitclose(timeout=5)

    @pytest.mark.parametrize(
        "code",
        [
            "raise ValueError",
            "raise SystemExit",
            "raise KeyboardInterrupt",
            "import sys; sys.exit(1)",
            "1 +",
            "channel.close()",
            "channel.close(); raise ValueError",
            "def f(): f()\nf()",
            "import threading; threading.Thread(target=lambda: 1/0).start()",
        ],
    )
    def test_is_never_poisoned(self, group: farwire.Group, code: str) -> None:
        only = group.makegateway("popen//execmodel=main_thread_only", output=lambda *args: None)
        for _ in range(3):
            channel = only.remote_exec(code)
            try:
                channel.waitclose(timeout=5)
            except RemoteError:
                pass
            after = only.remote_exec(WHERE)
            after.send(None)
            assert after.receive(timeout=5) == (True, "MainThread")

    def test_an_interrupt_ends_only_the_task_that_runs(self, only: farwire.Gateway) -> None:
        first = only.remote_exec("channel.send(1)\nwhile True: pass")
        second = only.remote_exec("channel.send(2)")
        assert first.receive(timeout=5) == 1
        only.signal()
        with pytest.raises(RemoteError, match="KeyboardInterrupt"):
            first.waitclose(timeout=5)
        assert second.receive(timeout=5) == 2

    def test_queued_tasks_are_dropped_at_the_end(self, only: farwire.Gateway) -> None:
        first = only.remote_exec("channel.send(1); channel.receive()")
        second = only.remote_exec("channel.send(2)")
        assert first.receive(timeout=5) == 1
        only.exit()
        with pytest.raises(EOFError):
            second.receive()


def test_many_tasks_at_once(gw: farwire.Gateway) -> None:
    channels = [gw.remote_exec("x = channel.receive(); channel.send(x * 2)") for _ in range(100)]
    eventually(lambda: gw.status().numexecuting == 100, "all run")
    for i, channel in enumerate(channels):
        channel.send(i)
    assert [channel.receive(timeout=5) for channel in channels] == [i * 2 for i in range(100)]
    for channel in channels:
        channel.waitclose(timeout=5)
    assert gw.status().numexecuting == 0
    assert gw.status().numchannels == 0


def test_no_more_threads(gw: farwire.Gateway) -> None:
    """A worker that cannot start a thread says so on the channel of the task."""
    first = gw.remote_exec(
        """
        import sys
        def refuse(*args):
            raise RuntimeError("can't start new thread")
        sys.modules["_farwire.worker.tasks"].start_new_thread = refuse
        channel.send(1)
        channel.receive()
        """
    )
    assert first.receive(timeout=5) == 1
    with pytest.raises(RemoteError, match="start new thread"):
        gw.remote_exec("pass").waitclose(timeout=5)
    assert gw.status().numexecuting == 1


def test_namespaces_are_separate(gw: farwire.Gateway) -> None:
    gw.remote_exec("x = 1").waitclose(timeout=5)
    with pytest.raises(RemoteError, match="NameError"):
        gw.remote_exec("x").waitclose(timeout=5)
    assert gw.remote_exec("channel.send(__name__)").receive(timeout=5) == "__channelexec__"


def test_exec_from_many_threads(gw: farwire.Gateway) -> None:
    errors = []

    def use() -> None:
        try:
            for i in range(30):
                channel = gw.remote_exec("channel.send(channel.receive() + 1)")
                channel.send(i)
                assert channel.receive(timeout=10) == i + 1
                channel.waitclose(timeout=10)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not errors
    eventually(lambda: gw.status().numexecuting == 0, "all tasks ended")


def test_end_of_its_channel_ends_a_task_without_error(gw: farwire.Gateway) -> None:
    channel = gw.remote_exec("while True: channel.receive()")
    channel.send(1)
    channel.send_eof()
    channel.waitclose(timeout=5)
    other = gw.newchannel()
    channel = gw.remote_exec("other = channel.receive()\nother.receive()")
    channel.send(other)
    other.close()
    with pytest.raises(RemoteError, match="EOFError"):  # the end of another channel is no reason to end
        channel.waitclose(timeout=5)


def test_lost_while_queued(group: farwire.Group) -> None:
    gw = group.makegateway("popen//execmodel=main_thread_only", output=lambda *args: None)
    first = gw.remote_exec("channel.receive(); import os; os._exit(1)")
    second = gw.remote_exec("pass")
    first.send(1)
    with pytest.raises(GatewayLost, match="exit status 1"):
        second.waitclose(timeout=5)
