"""The conformance suite for transports: what a gateway does, whatever lies between it and its worker.

farwire's own transports pass it, and one of yours should. It needs pytest. Say in a test file which gateways to test::

    import pytest
    from farwire.testing import GatewayConformance

    class TestMine(GatewayConformance):
        @pytest.fixture
        def specs(self):
            return ["mine=somewhere"]

``specs`` is a list: all but the last are opened first, for a worker that is reached through others
(``["ssh=host//id=hop", "popen//via=hop"]``). Attributes of the class say what cannot be expected, see ``Conformance``.

``GatewayConformance`` is everything. Its parts are classes of their own, for transports that can be tried only briefly:
``StartConformance``, ``TaskConformance``, ``ChannelConformance``, ``OutputConformance``, ``EndConformance``.

No test sleeps and hopes: each waits for what is to happen, and fails when it does not happen in time.
"""

from __future__ import annotations

import builtins
import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import farwire

from .xspec import format_spec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

    from .gateway import Gateway
    from .output import Output

__all__ = [
    "ChannelConformance",
    "Conformance",
    "EndConformance",
    "GatewayConformance",
    "OutputConformance",
    "StartConformance",
    "TaskConformance",
]

ECHO = "for item in channel: channel.send(item)"
SMALL_WINDOW = 256 * 1024


# ---------------------------------------------------------------------------------------------------------------- tools


class Place:
    """Where the gateways of a test class are: a group, with the gateways that lead there.

    Attributes:
        group: the group.
        specs: as the fixture gave them.
    """

    def __init__(self, specs: list[str]) -> None:
        self.specs = specs
        self.group = farwire.Group()
        self._shared: Gateway | None = None

    def open(self, output: Output = None, **keys: Any) -> Gateway:
        """Open a gateway.

        Args:
            output: as for ``makegateway``.
            keys: further parts of the spec; ``env`` is a mapping.
        """
        for hop in self.specs[:-1]:
            if farwire.XSpec(hop).id not in self.group:
                self.group.makegateway(hop)
        more = format_spec(keys)
        return self.group.makegateway(self.specs[-1] + ("//" + more if more else ""), output=output)

    def close(self) -> None:
        """End all of it."""
        self.group.terminate(timeout=10)
        assert not list(self.group)

    def shared(self) -> Gateway:
        """The gateway for tests that do it no harm; opened again if one did."""
        if self._shared is None or not self._shared.hasreceiver():
            self._shared = self.open()
        return self._shared


class Collected:
    """A worker's output, for ``output=``."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._data = {"stdout": b"", "stderr": b""}
        self.ids: set[str] = set()

    def __call__(self, gateway_id: str, stream: str, data: bytes) -> None:
        with self._condition:
            self.ids.add(gateway_id)
            self._data[stream] += data
            self._condition.notify_all()

    def wait(self, stream: str, expected: bytes, timeout: float) -> None:
        """Wait until the stream has as much as expected; fail if it is something else."""
        with self._condition:
            self._condition.wait_for(lambda: len(self._data[stream]) >= len(expected), timeout)
            found = self._data[stream]
        if found != expected:
            assert len(found) == len(expected), (
                f"{stream}: {len(found)} bytes instead of {len(expected)}: {found[-200:]!r}"
            )
            assert found == expected


def together(*functions: Callable[[], object], timeout: float = 60.0) -> list[Any]:
    """Run functions in threads at the same time; returns their results, raises the first of their errors."""
    results: list[Any] = [None] * len(functions)
    errors: list[BaseException] = []

    def run(i: int) -> None:
        try:
            results[i] = functions[i]()
        except BaseException as error:  # noqa: BLE001 - it is raised again
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(len(functions))]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + timeout
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    if errors:
        raise errors[0]
    assert not any(thread.is_alive() for thread in threads), f"not done within {timeout} s"
    return results


def is_running(pid: int) -> bool:
    """Whether there is such a process here. A zombie is none."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        pass
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except FileNotFoundError:
        return not os.path.exists("/proc/self/stat")  # gone meanwhile, or a system without /proc
    except OSError:
        return False


def load_module(path: Path, text: str) -> ModuleType:
    """A module with that text."""
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Conformance:
    """What all parts of the suite have in common.

    Attributes:
        timeout: seconds after which what should happen is taken not to happen.
        gone_within: seconds in which a worker must be gone when its controller is. It takes one at most; the rest is for
            machines that are busy.
        local: the workers run on this machine, under the process ids that they tell.
        early_env: what ``env:`` sets is there before the interpreter starts.
    """

    timeout = 30.0
    gone_within = 3.0
    local = True
    early_env = True

    @pytest.fixture
    def specs(self) -> list[str]:
        """The specs of the gateway to test, and of those on the way to it before. To be overridden."""
        raise NotImplementedError("override the fixture `specs`")

    @pytest.fixture
    def place(self, specs: list[str], request: pytest.FixtureRequest) -> Place:
        """The group of the gateways; it stays until the tests of the class are over."""
        # Not a fixture of class scope: those cannot be methods any more, and others would not be inherited.
        node = request.node.getparent(pytest.Class)
        places: dict[tuple[str, ...], Place] = node.__dict__.setdefault("farwire_places", {})
        key = tuple(specs)
        if key not in places:
            places[key] = place = Place(specs)
            node.addfinalizer(place.close)
        return places[key]

    @pytest.fixture
    def make_gateway(self, place: Place) -> Iterator[Callable[..., Gateway]]:
        """Opens a gateway of the test's own: ``make_gateway(output=None, **keys)``, see ``Place.open``."""
        opened: list[Gateway] = []

        def make(**keys: Any) -> Gateway:
            opened.append(place.open(**keys))
            return opened[-1]

        yield make
        for gateway in opened:
            gateway.exit()

    @pytest.fixture
    def gw(self, place: Place) -> Gateway:
        """A gateway that tests share which do it no harm."""
        return place.shared()

    def eventually(self, condition: Callable[[], object], what: str, timeout: float | None = None) -> None:
        """Wait for something that nothing announces."""
        seconds = self.timeout if timeout is None else timeout
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
            time.sleep(0.01)


# ---------------------------------------------------------------------------------------------------------------- start


class StartConformance(Conformance):
    """The worker starts as the spec says, and tells about itself."""

    def test_it_starts(self, make_gateway: Callable[..., Gateway], place: Place) -> None:
        gateway = make_gateway()
        assert gateway.hasreceiver()
        assert gateway in place.group
        assert place.group[gateway.id] is gateway
        assert gateway.remote_exec("channel.send(6 * 7)").receive(self.timeout) == 42

    def test_tasks_before_it_is_there(self, place: Place) -> None:
        place.shared()  # for the gateways on the way
        gateway = place.group.makegateway(place.specs[-1], wait=False)
        try:
            channels = [gateway.remote_exec(f"channel.send({i})") for i in range(3)]
            assert [channel.receive(self.timeout) for channel in channels] == [0, 1, 2]
        finally:
            gateway.exit()

    def test_its_process_is_another(self, gw: Gateway) -> None:
        pid = gw.remote_exec("import os; channel.send(os.getpid())").receive(self.timeout)
        assert pid == gw.info().pid
        if self.local:
            assert pid != os.getpid()
            assert is_running(pid)

    def test_info(self, gw: Gateway) -> None:
        code = """
            import os, sys
            channel.send((sys.executable, tuple(sys.version_info), sys.implementation.name, sys.platform, os.getcwd()))
        """
        found = gw.remote_exec(code).receive(self.timeout)
        info = gw.info(timeout=self.timeout)
        assert (info.executable, tuple(info.version_info), info.implementation, info.platform, info.cwd) == found
        assert gw._rinfo().executable == info.executable
        assert gw._rinfo() is gw._rinfo()

    def test_the_directory_is_made(self, make_gateway: Callable[..., Gateway]) -> None:
        name = f"farwire-conformance-{os.urandom(4).hex()}"
        gateway = make_gateway(chdir=f"{name}/with 'quotes' and $SPACES")
        code = """
            import os, shutil
            here = os.getcwd()
            channel.send((here, os.listdir(here)))
            os.chdir("/")
            shutil.rmtree(os.path.dirname(here))
        """
        channel = gateway.remote_exec(code)
        here, content = channel.receive(self.timeout)
        channel.waitclose(self.timeout)
        assert here.endswith(f"/{name}/with 'quotes' and $SPACES")
        assert content == []

    def test_a_directory_that_cannot_be(self, make_gateway: Callable[..., Gateway]) -> None:
        with pytest.raises(farwire.DirectoryError, match="/dev/null"):
            make_gateway(chdir="/dev/null/here")

    def test_nice(self, make_gateway: Callable[..., Gateway], gw: Gateway) -> None:
        code = "import os; channel.send(os.nice(0))"
        usual = gw.remote_exec(code).receive(self.timeout)
        assert make_gateway(nice=3).remote_exec(code).receive(self.timeout) == usual + 3

    def test_environment(self, make_gateway: Callable[..., Gateway]) -> None:
        values = {
            "FARWIRE_A": "//two 'kinds' of \"quotes\", $HOME `id` \\n",
            "FARWIRE_B": "two\nlines",
            "FARWIRE_C": "ä€😀",
            "FARWIRE_D": "-n",
        }
        gateway = make_gateway(env=values)
        code = """
            import os, subprocess, sys
            show = "import os; print(ascii({k: v for k, v in os.environ.items() if k.startswith('FARWIRE_')}))"
            channel.send({k: v for k, v in os.environ.items() if k.startswith("FARWIRE_")})
            channel.send(subprocess.check_output([sys.executable, "-c", show]).decode())
        """
        channel = gateway.remote_exec(code)
        found = channel.receive(self.timeout)
        assert {name: found.get(name) for name in values} == values
        inherited = eval(channel.receive(self.timeout))
        assert {name: inherited.get(name) for name in values} == values

    def test_environment_is_there_before_the_interpreter(self, make_gateway: Callable[..., Gateway]) -> None:
        if not self.early_env:
            pytest.skip("not to be had with this transport")
        gateway = make_gateway(env={"PYTHONHASHSEED": "0", "PYTHONOPTIMIZE": "1"})
        code = "import sys; channel.send((sys.flags.hash_randomization, sys.flags.optimize))"
        assert gateway.remote_exec(code).receive(self.timeout) == (0, 1)

    def test_status(self, make_gateway: Callable[..., Gateway]) -> None:
        gateway = make_gateway()
        status = gateway.status(timeout=self.timeout)
        assert (status.state, status.numexecuting, status.numqueued, status.execmodel) == ("live", 0, 0, "thread")
        channel = gateway.remote_exec("channel.send(1); channel.receive()")
        channel.receive(self.timeout)
        status = gateway.status(timeout=self.timeout)
        assert (status.numexecuting, status.numchannels) == (1, 1)
        channel.send(None)
        channel.waitclose(self.timeout)
        self.eventually(lambda: gateway.status().numexecuting == 0, "the task is over")
        gateway.exit()
        assert gateway.status().state == "closed"

    def test_status_and_stacks_while_it_is_busy(self, make_gateway: Callable[..., Gateway]) -> None:
        gateway = make_gateway()
        code = """
            def spin_around():
                channel.send(1)
                while True:
                    pass
            spin_around()
        """
        channel = gateway.remote_exec(code)
        channel.receive(self.timeout)
        assert gateway.status(timeout=self.timeout).numexecuting == 1
        assert "spin_around" in gateway.stacks(timeout=self.timeout)
        gateway.exit(timeout=0.3)


# ---------------------------------------------------------------------------------------------------------------- tasks


class TaskConformance(Conformance):
    """What can be run, where it runs, and what happens when it fails."""

    def test_text(self, gw: Gateway) -> None:
        channel = gw.remote_exec("""
            import sys
            def answer():
                return __name__, channel.gateway.id
            channel.send(answer())
        """)
        name, id = channel.receive(self.timeout)
        assert name == "__channelexec__"
        assert id.startswith(gw.id)

    def test_function(self, gw: Gateway) -> None:
        def sums(channel: Any, numbers: list[int], start: int = 0, *, factor: int = 1) -> None:
            channel.send((sum(numbers, start) * factor, numbers, factor))

        channel = gw.remote_exec(sums, numbers=[1, 2, 3], factor=10)
        assert channel.receive(self.timeout) == (60, [1, 2, 3], 10)

    def test_module(self, gw: Gateway, tmp_path: Path) -> None:
        text = "def double(x):\n    return 2 * x\n\nif __name__ == '__channelexec__':\n    channel.send(double(21))\n"
        module = load_module(tmp_path / "some_module.py", text)
        assert gw.remote_exec(module).receive(self.timeout) == 42

    def test_first_task_in_the_main_thread(self, make_gateway: Callable[..., Gateway]) -> None:
        gateway = make_gateway()
        code = """
            import threading
            thread = threading.current_thread()
            channel.send((thread is threading.main_thread(), thread.name))
            channel.receive()
        """
        first = gateway.remote_exec(code)
        assert first.receive(self.timeout) == (True, "MainThread")
        second = gateway.remote_exec(code)
        main, name = second.receive(self.timeout)
        assert not main
        assert name.startswith("farwire-task")

    def test_one_task_after_another_in_the_main_thread(self, make_gateway: Callable[..., Gateway]) -> None:
        gateway = make_gateway(execmodel="main_thread_only")
        code = """
            import threading
            channel.send(threading.current_thread() is threading.main_thread())
            raise ValueError("a task that raises harms no other")
        """
        channels = [gateway.remote_exec(code) for _ in range(3)]
        for channel in channels:
            assert channel.receive(self.timeout) is True
            with pytest.raises(farwire.RemoteError):
                channel.receive(self.timeout)

    def test_stdin_is_empty(self, gw: Gateway) -> None:
        code = "import os, sys; channel.send((sys.stdin.read(), os.read(0, 10)))"
        assert gw.remote_exec(code).receive(self.timeout) == ("", b"")

    def test_interrupt(self, make_gateway: Callable[..., Gateway]) -> None:
        gateway = make_gateway()
        channel = gateway.remote_exec("""
            import time
            try:
                channel.send("ready")
                time.sleep(1000)
            except KeyboardInterrupt:
                channel.send("interrupted")
        """)
        assert channel.receive(self.timeout) == "ready"
        gateway.signal(signal.SIGINT)
        assert channel.receive(self.timeout) == "interrupted"
        channel.waitclose(self.timeout)
        assert gateway.remote_exec("channel.send(1)").receive(self.timeout) == 1

    def test_error_of_text(self, gw: Gateway) -> None:
        channel = gw.remote_exec("channel.send(1)\n\nraise ValueError('with a \u20ac')")
        assert channel.receive(self.timeout) == 1
        with pytest.raises(farwire.RemoteError) as caught:
            channel.receive(self.timeout)
        error = caught.value
        assert (error.typename, error.message) == ("ValueError", "with a \u20ac")
        assert 'File "<remote exec>", line 3' in str(error)
        assert "raise ValueError('with a \u20ac')" in str(error)
        with pytest.raises(EOFError):  # an error is told once
            channel.receive(self.timeout)

    def test_error_of_function(self, gw: Gateway) -> None:
        def fails(channel: Any) -> None:
            numbers = [0]
            numbers[7] += 1  # here it happens

        channel = gw.remote_exec(fails)
        with pytest.raises(farwire.RemoteError) as caught:
            channel.waitclose(self.timeout)
        text = str(caught.value)
        assert caught.value.typename == "IndexError"
        assert f'File "{__file__}", line {fails.__code__.co_firstlineno + 2}, in fails' in text
        assert "here it happens" in text

    def test_error_with_cause_and_notes(self, gw: Gateway) -> None:
        channel = gw.remote_exec("""
            try:
                {}["inner"]
            except KeyError as inner:
                error = RuntimeError("outer")
                error.__notes__ = ["a note"]
                raise error from inner
        """)
        with pytest.raises(farwire.RemoteError) as caught:
            channel.receive(self.timeout)
        error = caught.value
        assert error.message == "outer"
        assert list(error.notes) == ["a note"]
        assert isinstance(error.__cause__, farwire.RemoteError)
        assert error.__cause__.typename == "KeyError"

    def test_error_in_the_source(self, gw: Gateway) -> None:
        with pytest.raises(farwire.RemoteError, match="SyntaxError") as caught:
            gw.remote_exec("x = 1\ny = = 2").waitclose(self.timeout)
        assert "line 2" in str(caught.value)


# ------------------------------------------------------------------------------------------------------------- channels

ITEMS: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1 << 70,
    -(1 << 4000),
    1.5,
    -0.0,
    float("inf"),
    complex(1, -2),
    "",
    "text",
    "\u00e4\u20ac\U0001f600\0",
    "\ud800",
    b"",
    bytes(range(256)),
    bytearray(b"ab"),
    [],
    [1, [2, [3]]],
    (),
    (1, (2,)),
    {},
    {"a": {1: 2}, None: (), b"b": 1.0},
    set(),
    {1, "two"},
    frozenset({3}),
    slice(1, None, 2),
    range(3, 9, 2),
    Ellipsis,
    {(1, frozenset({2})): [b"x", None, "y" * 1000]},
]


class ChannelConformance(Conformance):
    """Items go both ways whole, in order, and not more of them than the other end takes."""

    def test_every_builtin_type(self, gw: Gateway) -> None:
        channel = gw.remote_exec(ECHO)
        for item in ITEMS:
            channel.send(item)
            back = channel.receive(self.timeout)
            assert (type(back), back) == (type(item), item)
        channel.send(ITEMS)
        assert channel.receive(self.timeout) == ITEMS

    def test_shared_and_circular(self, gw: Gateway) -> None:
        channel = gw.remote_exec(ECHO)
        shared = [1]
        channel.send([shared, shared])
        first, second = channel.receive(self.timeout)
        assert first is second
        circle: list[Any] = []
        circle.append(circle)
        channel.send(circle)
        back = channel.receive(self.timeout)
        assert back[0] is back

    def test_what_cannot_be_sent(self, gw: Gateway) -> None:
        channel = gw.remote_exec(ECHO)
        with pytest.raises(farwire.DumpError, match=r"\[1\]\['x'\]"):
            channel.send([0, {"x": object()}])
        channel.send("the channel lives")
        assert channel.receive(self.timeout) == "the channel lives"

    def test_order(self, gw: Gateway) -> None:
        channel = gw.remote_exec(ECHO)

        def send() -> None:
            for i in range(2000):
                channel.send(i)
            channel.send_eof()

        assert together(send, lambda: list(channel), timeout=self.timeout)[1] == list(range(2000))

    def test_a_megabyte_both_ways_at_once(self, gw: Gateway) -> None:
        channel = gw.remote_exec("channel.send(bytes(1000000)); channel.send(len(channel.receive()))")
        channel.send(bytes(1_000_000))
        assert channel.receive(self.timeout) == bytes(1_000_000)
        assert channel.receive(self.timeout) == 1_000_000

    def test_megabytes_both_ways_at_once_without_end(self, make_gateway: Callable[..., Gateway]) -> None:
        gateway = make_gateway(window=SMALL_WINDOW)
        code = """
            import threading
            def send():
                for i in range(20):
                    channel.send(bytes(300000))
            thread = threading.Thread(target=send)
            thread.start()
            size = sum(len(channel.receive()) for i in range(20))
            thread.join()
            channel.send(size)
        """
        channel = gateway.remote_exec(code)

        def send() -> None:
            for _ in range(20):
                channel.send(bytes(300_000))

        def receive() -> int:
            return sum(len(channel.receive(self.timeout)) for _ in range(20))

        assert together(send, receive, timeout=self.timeout) == [None, 6_000_000]
        assert channel.receive(self.timeout) == 6_000_000

    def test_item_larger_than_the_window(self, make_gateway: Callable[..., Gateway]) -> None:
        channel = make_gateway(window=SMALL_WINDOW).remote_exec(ECHO)
        item = os.urandom(1_000_000)
        channel.send(item, timeout=self.timeout)
        assert channel.receive(self.timeout) == item
        channel.send([item.hex(), {"x": bytearray(item)}], timeout=self.timeout)
        assert channel.receive(self.timeout) == [item.hex(), {"x": bytearray(item)}]

    def test_20_megabytes(self, gw: Gateway) -> None:
        channel = gw.remote_exec(ECHO)
        item = os.urandom(20_000_000)
        channel.send(item, timeout=self.timeout)
        assert channel.receive(self.timeout) == item

    def test_nobody_receives(self, make_gateway: Callable[..., Gateway]) -> None:
        window = SMALL_WINDOW
        channel = make_gateway(window=window).remote_exec("""
            other = channel.receive()
            other.receive()
            for item in channel:
                other.send(item)
        """)
        other = channel.gateway.newchannel()
        channel.send(other)
        sent = 0
        with contextlib.suppress(farwire.TimeoutError):
            while sent <= window:
                channel.send(b"%09d" % sent + bytes(991), timeout=0.05)
                sent += 1000
        assert sent <= window
        with pytest.raises(builtins.TimeoutError):  # nothing of it arrives
            channel.send(bytes(10 * window), timeout=0.05)
        other.send("go")
        channel.send(b"last", timeout=self.timeout)
        for i in range(0, sent, 1000):
            assert other.receive(self.timeout)[:9] == b"%09d" % i
        assert other.receive(self.timeout) == b"last"

    def test_many_channels(self, gw: Gateway) -> None:
        channels = [gw.newchannel() for _ in range(200)]
        main = gw.remote_exec("""
            for i, other in enumerate(channel.receive()):
                other.send((i, other.receive()))
                other.close()
        """)
        main.send(channels)
        for i, channel in enumerate(channels):
            channel.send(i * i)
        assert [channel.receive(self.timeout) for channel in channels] == [(i, i * i) for i in range(200)]
        for channel in channels:
            channel.waitclose(self.timeout)
        main.waitclose(self.timeout)

    def test_channels_in_items(self, gw: Gateway) -> None:
        channel = gw.remote_exec("""
            mine = channel.gateway.newchannel()
            channel.send({"channels": [mine, (mine,)], "text": "x"})
            theirs = channel.receive()["reply to"]
            theirs.send(mine.receive() + 1)
        """)
        item = channel.receive(self.timeout)
        remote = item["channels"][0]
        assert item["channels"][1][0] is remote
        reply = gw.newchannel()
        channel.send({"reply to": reply})
        remote.send(41)
        assert reply.receive(self.timeout) == 42

    def test_half_close(self, gw: Gateway) -> None:
        channel = gw.remote_exec("channel.send(sum(channel)); channel.send('and more')")
        for i in range(10):
            channel.send(i)
        channel.send_eof()
        with pytest.raises(OSError, match="closed"):
            channel.send(1)
        assert list(channel) == [45, "and more"]

    def test_half_close_of_the_worker(self, gw: Gateway) -> None:
        channel = gw.remote_exec(
            "channel.send(1); channel.send_eof(); other = channel.receive(); other.send(channel.receive())"
        )
        assert list(channel) == [1]
        other = gw.newchannel()
        channel.send(other)
        channel.send("still open in this direction")
        assert other.receive(self.timeout) == "still open in this direction"

    def test_timeouts(self, gw: Gateway) -> None:
        channel = gw.remote_exec("channel.receive()")
        with pytest.raises(builtins.TimeoutError):
            channel.receive(timeout=0.01)
        with pytest.raises(channel.TimeoutError):
            channel.receive(timeout=0)
        with pytest.raises(farwire.TimeoutError):
            channel.waitclose(timeout=0.01)
        channel.send(None)
        channel.waitclose(self.timeout)

    def test_close_here(self, gw: Gateway) -> None:
        other = gw.newchannel()
        channel = gw.remote_exec("""
            other = channel.receive()
            try:
                channel.receive()
            except EOFError as error:
                other.send(type(error).__name__)
        """)
        channel.send(other)
        channel.close()
        assert channel.isclosed()
        assert other.receive(self.timeout) == "EOFError"
        with pytest.raises(OSError, match="closed"):
            channel.send(1)
        with pytest.raises(EOFError):
            channel.receive(self.timeout)

    def test_close_there(self, gw: Gateway) -> None:
        channel = gw.remote_exec("channel.send(1); channel.close(); other = None")
        channel.waitclose(self.timeout)
        assert channel.isclosed()
        assert channel.receive(self.timeout) == 1  # a closed channel may still hold items
        with pytest.raises(EOFError):
            channel.receive(self.timeout)

    def test_close_with_an_error(self, gw: Gateway) -> None:
        other = gw.newchannel()
        channel = gw.remote_exec("""
            other = channel.receive()
            try:
                channel.receive()
            except channel.RemoteError as error:
                other.send(str(error))
                other.close("and back")
        """)
        channel.send(other)
        channel.close("this went wrong")
        assert "this went wrong" in other.receive(self.timeout)
        with pytest.raises(farwire.RemoteError, match="and back"):
            other.receive(self.timeout)

    def test_callback(self, gw: Gateway) -> None:
        channel = gw.remote_exec("for i in range(100): channel.send(i)")
        found: list[Any] = []
        done = threading.Event()

        def callback(item: Any) -> None:
            found.append(item)
            if item == "end":
                done.set()

        channel.setcallback(callback, endmarker="end")
        assert done.wait(self.timeout)
        channel.waitclose(self.timeout)
        assert found == [*range(100), "end"]
        with pytest.raises(OSError, match="callback"):
            channel.receive()

    def test_callback_of_the_worker(self, gw: Gateway) -> None:
        channel = gw.remote_exec("""
            import threading
            done = threading.Event()
            found = []
            def callback(item):
                found.append(item)
                if item is None:
                    done.set()
            channel.setcallback(callback, endmarker=None)
            done.wait()
            channel.send(found)
        """)
        for i in range(10):
            channel.send(i)
        channel.send_eof()
        assert channel.receive(self.timeout) == [*range(10), None]

    def test_files(self, gw: Gateway) -> None:
        channel = gw.remote_exec("""
            lines = channel.makefile("r")
            out = channel.makefile("w")
            out.write(lines.readline().upper())
            print(lines.read(5), file=out)
            out.close()
        """)
        with channel.makefile("w") as file:
            print("one line", file=file)
            file.write("and five")
        channel.send_eof()
        assert channel.makefile("r").read() == "ONE LINE\nand f\n"

    def test_eight_threads(self, gw: Gateway) -> None:
        channel = gw.remote_exec("""
            last = {}
            for thread, number, data in channel:
                assert number == last.get(thread, -1) + 1 and len(data) == number * 37 % 5000 + (number == 50) * 100000
                last[thread] = number
            channel.send(last)
        """)

        def send(thread: int) -> None:
            for number in range(100):
                channel.send((thread, number, bytes(number * 37 % 5000 + (number == 50) * 100_000)))

        together(*[lambda thread=thread: send(thread) for thread in range(8)], timeout=self.timeout)
        channel.send_eof()
        assert channel.receive(self.timeout) == dict.fromkeys(range(8), 99)

    def test_eight_threads_each_with_a_channel(self, gw: Gateway) -> None:
        def talk(number: int) -> list[int]:
            channel = gw.remote_exec(ECHO)
            found = []
            for i in range(50):
                channel.send(number * 1000 + i)
                found.append(channel.receive(self.timeout))
            channel.close()
            return found

        results = together(*[lambda number=number: talk(number) for number in range(8)], timeout=self.timeout)
        assert results == [[number * 1000 + i for i in range(50)] for number in range(8)]


# --------------------------------------------------------------------------------------------------------------- output

WRITE_EVERYWHERE = """
    import os, sys
    print("printed")
    sys.stdout.write("without a line end, ")
    sys.stdout.flush()
    os.write(1, b"written to the descriptor\\n")
    os.system("echo by a shell")
    sys.stdout.flush()
    try:
        import ctypes
        libc = ctypes.CDLL(None)
        libc.puts(b"by C code")
        libc.fflush(None)
    except (ImportError, OSError, AttributeError):
        os.write(1, b"by C code\\n")
    print("and an error", file=sys.stderr)
    os.write(2, b"written to the other descriptor\\n")
    os.system("echo by a shell >&2")
"""
STDOUT = b"printed\nwithout a line end, written to the descriptor\nby a shell\nby C code\n"
STDERR = b"and an error\nwritten to the other descriptor\nby a shell\n"


class OutputConformance(Conformance):
    """What a worker writes arrives, all of it, and nothing else."""

    def test_from_everywhere(self, make_gateway: Callable[..., Gateway]) -> None:
        output = Collected()
        gateway = make_gateway(output=output)
        gateway.remote_exec(WRITE_EVERYWHERE).waitclose(self.timeout)
        output.wait("stdout", STDOUT, self.timeout)
        output.wait("stderr", STDERR, self.timeout)
        assert output.ids == {gateway.id}

    def test_before_an_exit(self, make_gateway: Callable[..., Gateway]) -> None:
        output = Collected()
        gateway = make_gateway(output=output)
        gateway.remote_exec("channel.send(1)\n" + textwrap.dedent(WRITE_EVERYWHERE)).receive(self.timeout)
        gateway.exit(timeout=self.timeout)
        output.wait("stdout", STDOUT, self.timeout)
        output.wait("stderr", STDERR, self.timeout)

    @pytest.mark.parametrize("death", ["os._exit(3)", "os.kill(os.getpid(), 9)"])
    def test_before_a_death(self, make_gateway: Callable[..., Gateway], death: str) -> None:
        output = Collected()
        gateway = make_gateway(output=output)
        code = f"""
            import os
            for i in range(200):
                os.write(1, b"%08d" % i * 125)
            os.write(2, b"last words")
            {death}
        """
        with pytest.raises(farwire.GatewayLost):
            gateway.remote_exec(code).receive(self.timeout)
        output.wait("stdout", b"".join(b"%08d" % i * 125 for i in range(200)), self.timeout)
        output.wait("stderr", b"last words", self.timeout)

    def test_bytes_are_bytes(self, make_gateway: Callable[..., Gateway]) -> None:
        output = Collected()
        gateway = make_gateway(output=output)
        data = bytes(range(256)) * 2000
        channel = gateway.remote_exec("""
            import os
            data = bytes(range(256)) * 2000
            for fd in (1, 2):
                rest = memoryview(data)
                while rest:
                    rest = rest[os.write(fd, rest):]
        """)
        channel.waitclose(self.timeout)
        output.wait("stdout", data, self.timeout)
        output.wait("stderr", data, self.timeout)

    def test_a_sink_that_is_slow(self, make_gateway: Callable[..., Gateway]) -> None:
        """The worker's writing waits; the channels do not."""
        go = threading.Event()
        collected = Collected()

        def output(gateway_id: str, stream: str, data: bytes) -> None:
            go.wait(self.timeout)
            collected(gateway_id, stream, data)

        gateway = make_gateway(output=output, window=SMALL_WINDOW)
        code = """
            import os
            data = bytes(8000000)
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(1, rest):]
        """
        writer = gateway.remote_exec(code)
        echo = gateway.remote_exec(ECHO)
        for i in range(50):
            echo.send(i)
            assert echo.receive(self.timeout) == i
        with pytest.raises(farwire.TimeoutError):
            writer.waitclose(timeout=0.1)
        go.set()
        writer.waitclose(self.timeout)
        collected.wait("stdout", bytes(8_000_000), self.timeout)

    def test_by_default_with_a_tag_on_ours(
        self, make_gateway: Callable[..., Gateway], capsys: pytest.CaptureFixture[str]
    ) -> None:
        gateway = make_gateway()
        gateway.remote_exec("import sys; print('one\\ntwo'); sys.stderr.write('three\\n')").waitclose(self.timeout)
        found = {"out": "", "err": ""}

        def all_there() -> bool:
            captured = capsys.readouterr()
            found["out"] += captured.out
            found["err"] += captured.err
            return found["out"].count("\n") >= 2 and "\n" in found["err"]

        self.eventually(all_there, "the output is written")
        assert found == {"out": f"[{gateway.id}] one\n[{gateway.id}] two\n", "err": f"[{gateway.id}] three\n"}

    def test_none(self, make_gateway: Callable[..., Gateway]) -> None:
        output = Collected()
        gateway = make_gateway(output=output, stdio="none")
        gateway.remote_exec(WRITE_EVERYWHERE).waitclose(self.timeout)
        gateway.exit()
        assert output.ids == set()


# ------------------------------------------------------------------------------------------------------------------ end

HAVE_CHILDREN = """
    import os, subprocess
    child = subprocess.Popen(["sleep", "1000"])
    channel.send([os.getpid(), child.pid])
"""

CONTROLLER = """
import sys
import farwire
group = farwire.Group()
for spec in sys.argv[2:]:
    gateway = group.makegateway(spec)
channel = gateway.remote_exec(sys.argv[1])
print(*channel.receive(), flush=True)
sys.stdin.read()
"""


class EndConformance(Conformance):
    """However it ends: everybody is told how, and nothing is left."""

    def all_gone(self, pids: list[int]) -> None:
        """Wait until the processes are gone."""
        if self.local:
            self.eventually(lambda: not any(map(is_running, pids)), f"{pids} are gone", self.gone_within)

    def lost(self, gateway: Gateway, code: str, *expected: str) -> None:
        """Run code that ends the worker; the error says so."""
        channel = gateway.remote_exec(code)
        with pytest.raises(farwire.GatewayLost) as caught:
            channel.receive(self.timeout)
        assert isinstance(caught.value, EOFError)
        assert isinstance(caught.value, OSError)
        for text in expected:
            assert text in str(caught.value)
        gateway.join(self.timeout)

    def test_exit(self, make_gateway: Callable[..., Gateway], place: Place) -> None:
        gateway = make_gateway()
        channel = gateway.remote_exec(HAVE_CHILDREN)
        pids = channel.receive(self.timeout)
        waiting = gateway.remote_exec("channel.receive()")
        gateway.exit(timeout=self.timeout)
        assert not gateway.hasreceiver()
        assert gateway not in place.group
        self.all_gone(pids)
        waiting.waitclose(self.timeout)
        for use in (lambda: channel.send(1), gateway.newchannel, lambda: gateway.remote_exec("")):
            with pytest.raises(OSError):  # noqa: PT011 - ChannelClosed or GatewayLost
                use()
        gateway.exit()  # once more does no harm

    def test_exit_while_it_is_stuck(self, make_gateway: Callable[..., Gateway]) -> None:
        gateway = make_gateway()
        channel = gateway.remote_exec("""
            import os, signal
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            channel.send([os.getpid()])
            while True:
                pass
        """)
        pids = channel.receive(self.timeout)
        start = time.monotonic()
        gateway.exit(timeout=1.0)
        assert time.monotonic() - start < 1.0 + self.gone_within
        assert not gateway.hasreceiver()
        self.all_gone(pids)

    def test_killed(self, make_gateway: Callable[..., Gateway], place: Place) -> None:
        gateway = make_gateway()
        self.lost(gateway, "import os; os.kill(os.getpid(), 9)", "SIGKILL")
        assert not gateway.hasreceiver()
        assert gateway not in place.group
        with pytest.raises(farwire.GatewayLost, match="SIGKILL"):
            gateway.remote_exec("")

    def test_exits(self, make_gateway: Callable[..., Gateway]) -> None:
        code = "import os, sys; os.write(2, b'my last words'); os._exit(3)"
        self.lost(make_gateway(), code, "exit status 3", "my last words")

    def test_crashes(self, make_gateway: Callable[..., Gateway]) -> None:
        code = """
            import faulthandler
            faulthandler._sigsegv()
        """
        self.lost(make_gateway(), code, "SIGSEGV", "Segmentation fault")

    def test_everybody_is_told(self, make_gateway: Callable[..., Gateway]) -> None:
        gateway = make_gateway()
        channels = [gateway.remote_exec("channel.receive()") for _ in range(4)]
        ended = threading.Event()
        channels[3].setcallback(lambda item: ended.set() if item == "end" else None, endmarker="end")
        ready = threading.Barrier(4)

        def waits(function: Callable[[], object]) -> str:
            ready.wait()
            try:
                function()
            except farwire.GatewayLost as error:
                return str(error)
            return "no error"

        def kill() -> None:
            ready.wait()
            gateway.remote_exec("import os; os._exit(9)")

        results = together(
            lambda: waits(lambda: channels[0].receive(self.timeout)),
            lambda: waits(lambda: channels[1].waitclose(self.timeout)),
            lambda: waits(lambda: list(channels[2])),
            kill,
            timeout=self.timeout,
        )
        for text in results[:3]:
            assert "exit status 9" in text
        assert ended.wait(self.timeout)
        with pytest.raises(OSError, match="exit status 9"):
            channels[0].send(1)

    def test_what_was_sent_before_a_death_arrives(self, make_gateway: Callable[..., Gateway]) -> None:
        channel = make_gateway().remote_exec("""
            import os
            for i in range(100):
                channel.send(i)
            channel.send(bytes(500000))
            os._exit(1)
        """)
        found: list[Any] = []
        with pytest.raises(farwire.GatewayLost):
            found.extend(channel)
        assert found == [*range(100), bytes(500_000)]

    @pytest.mark.parametrize("does", ["channel.receive()", "while True: pass", "sum(range(10**12))"])
    def test_the_link_is_closed(self, make_gateway: Callable[..., Gateway], does: str) -> None:
        gateway = make_gateway()
        channel = gateway.remote_exec(HAVE_CHILDREN + "\n    " + does)
        pids = channel.receive(self.timeout)
        self.close_link(gateway)
        self.all_gone(pids)
        with pytest.raises(farwire.GatewayLost):
            channel.receive(self.timeout)

    @pytest.mark.parametrize("does", ["channel.receive()", "sum(range(10**12))"])
    def test_the_controller_is_killed(self, specs: list[str], does: str) -> None:
        argv = [sys.executable, "-c", CONTROLLER, HAVE_CHILDREN + "\n    " + does, *specs]
        source = str(Path(farwire.__file__).parent.parent)
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([source, os.environ.get("PYTHONPATH", "")])}
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, text=True) as process:
            assert process.stdout is not None
            try:
                pids = [int(word) for word in process.stdout.readline().split()]
                assert len(pids) == 2
            finally:
                process.kill()
                process.stdout.close()
        self.all_gone(pids)

    def close_link(self, gateway: Gateway) -> None:
        """Let go of the link without a word to the worker."""
        error = farwire.GatewayLost("the test closed the link")
        gateway._reactor.call(lambda: gateway._fail(error))
        with contextlib.suppress(farwire.TimeoutError):
            gateway.join(self.timeout)


class GatewayConformance(StartConformance, TaskConformance, ChannelConformance, OutputConformance, EndConformance):
    """Everything."""
