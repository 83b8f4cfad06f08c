"""Fixtures for all tests, and the checks that nothing is left behind."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

import servers
from socket_server import tcp_server, tls_server, unix_server  # noqa: F401 - fixtures

if TYPE_CHECKING:
    import farwire


@pytest.fixture(scope="session")
def sshd() -> Iterator[servers.Sshd]:
    """A private sshd on this machine (see ``servers.Sshd``); skips where there can be none."""
    with servers.running_sshd() as server:
        yield server


@pytest.fixture
def group() -> Iterator[farwire.Group]:
    """A group of its own for the test; afterwards it is terminated, and nothing it started may be left."""
    import farwire

    before = set(servers.children(os.getpid()))
    fresh = farwire.Group()
    try:
        yield fresh
    finally:
        fresh.terminate(timeout=3)
        no_new_children(before)


@pytest.fixture
def gw(group: farwire.Group) -> farwire.Gateway:
    """A popen gateway of the same interpreter."""
    return group.makegateway("popen")


@pytest.fixture
def no_leaks() -> Iterator[None]:
    """The test leaves as many threads, descriptors and children as there were; open one gateway first to warm up."""
    with_leaks = Leaks()
    yield
    with_leaks.check()


def wait_for(condition: Callable[[], object], what: str, timeout: float = 5) -> None:
    """Wait until the condition is true; fails with the text if it does not become so."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not after {timeout} s: {what}")
        time.sleep(0.01)


def no_new_children(before: set[int], timeout: float = 3) -> None:
    """Every child of this process that was not there before is gone, and reaped."""

    def left() -> list[int]:
        return [pid for pid in servers.children(os.getpid()) if pid not in before]

    deadline = time.monotonic() + timeout
    while left() and time.monotonic() < deadline:
        time.sleep(0.01)
    still = [(pid, servers.process_status(pid)[0], command_line(pid)) for pid in left()]
    assert not still, f"left behind: {still}"


def command_line(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().replace(b"\0", b" ").decode(errors="replace")[:200]
    except OSError:
        return ""


class Leaks:
    """Threads, descriptors and children of this process, now; ``check()`` compares with later."""

    def __init__(self) -> None:
        wait_for(lambda: "farwire-start" not in self.count()["threads"], "no gateway is being started")  # type: ignore[operator]
        self.before = self.count()

    @staticmethod
    def count() -> dict[str, object]:
        return {
            "threads": sorted(thread.name for thread in threading.enumerate()),
            "kernel threads": len(os.listdir("/proc/self/task")),
            # Listing opens a descriptor of its own, each time.
            "descriptors": len(os.listdir("/proc/self/fd")) - 1,
            "children": sorted(servers.children(os.getpid())),
        }

    def check(self, timeout: float = 5) -> None:
        """Wait until all is as it was, or fail and say what is not."""
        deadline = time.monotonic() + timeout
        while (wrong := self._wrong()) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not wrong, f"leaked (before, now): {wrong}"

    def _wrong(self) -> dict[str, tuple[object, object]]:
        now = self.count()
        # For the kernel a thread may end a moment later than for Python, so that there were more of them before.
        now["kernel threads"] = max(now["kernel threads"], self.before["kernel threads"])  # type: ignore[type-var]
        return {key: (self.before[key], value) for key, value in now.items() if value != self.before[key]}
