"""Whatever is killed, and when: each file is the old or the new one, and the next run completes.

The victim counts its own system calls that change something (and its messages) and kills itself at the nth; so each test
is a point in the sync that can be had again.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

import farwire
from farwire.rsync import pull, push
from trees import assert_same, leftovers, write

# Runs in the process that is to be killed. os.supports_dir_fd is asked by the sync, so the stand-ins are in it.
ARM = """
import os

def arm(at, names):
    count = 0
    def counted(function):
        def step(*args, **kwargs):
            nonlocal count
            if getattr(function, "__name__", "") == "open" and not args[1] & os.O_CREAT:
                return function(*args, **kwargs)
            count += 1
            if count == at:
                os.kill(os.getpid(), 9)
            return function(*args, **kwargs)
        return step
    for name in names:
        function = getattr(os, name, None)
        if function is not None:
            step = counted(function)
            os.supports_dir_fd.add(step)
            setattr(os, name, step)
"""
CHANGING = [
    "open",
    "rename",
    "unlink",
    "rmdir",
    "mkdir",
    "symlink",
    "link",
    "utime",
    "fchmod",
    "chmod",
    "ftruncate",
    "copy_file_range",
    "lseek",
]

PULL = (
    ARM
    + """
import sys
import farwire
from farwire.rsync import pull
gateway = farwire.makegateway("popen")
pull(gateway, sys.argv[1] + "/warm", sys.argv[1] + "/warmed")
arm(int(sys.argv[2]), sys.argv[3].split())
pull(gateway, sys.argv[1] + "/source", sys.argv[1] + "/target", delete=True)
gateway.exit()
print("whole")
"""
)

PUSH = """
import os, sys
import farwire
from farwire import Channel
from farwire.rsync import push
gateway = farwire.makegateway("popen")
at = int(sys.argv[2])
count = 0
send = Channel.send
def counted(self, item, timeout=None):
    global count
    count += 1
    if count == at:
        os.kill(os.getpid(), 9)
    send(self, item, timeout)
Channel.send = counted
push(gateway, sys.argv[1] + "/source", sys.argv[1] + "/target", delete=True)
gateway.exit()
print("whole")
"""


def make(folder: Path) -> dict[str, tuple[bytes | None, bytes | None]]:
    """A source, and a target that was synced from an older one; returns path -> (old, new) contents."""
    files: dict[str, tuple[bytes | None, bytes | None]] = {}
    large = random.Random(1).randbytes(1_500_000)
    changed = bytearray(large)
    changed[700_000:700_100] = bytes(100)
    for name, old, new in (
        ("same", b"same", b"same"),
        ("changed", b"old" * 1000, b"newer" * 1000),
        ("deep/er/changed", b"old", b"new"),
        ("large", large, bytes(changed)),
        ("deep/large", large[:900_000], random.Random(2).randbytes(900_000)),
        ("created", None, b"created"),
        ("new/created", None, large[::-1]),
        ("deleted", b"deleted", None),
        ("gone/deleted", b"deleted", None),
    ):
        files[name] = (old, new)
        for root, data in (("target", old), ("source", new)):
            if data is not None:
                write(folder / root / name, data, mtime=10**18 + (root == "source" and old != new))
    (folder / "source" / "link").symlink_to("large")
    (folder / "target" / "link").symlink_to("changed")
    os.link(folder / "source" / "changed", folder / "source" / "linked")
    write(folder / "warm" / "file", "x")
    return files


def check_no_torn_file(folder: Path, files: dict[str, tuple[bytes | None, bytes | None]]) -> None:
    for name, versions in files.items():
        path = folder / "target" / name
        data = path.read_bytes() if path.exists() else None
        assert data in versions, f"{name} is neither old nor new: {len(data or b'')} bytes"
    assert os.readlink(folder / "target" / "link") in ("large", "changed")


def complete(folder: Path) -> None:
    with farwire.makegateway("popen") as gateway:
        report = push(gateway, folder / "source", folder / "target", delete=True)
    assert not report.problems
    assert_same(folder / "source", folder / "target")
    assert not leftovers(folder / "target")


def points(seed: int, last: int, count: int) -> list[int]:
    return sorted(random.Random(seed).sample(range(1, last), count))


@pytest.mark.parametrize("at", points(1, 51, 14))
def test_the_worker_that_receives(tmp_path: Path, group: farwire.Group, at: int) -> None:
    files = make(tmp_path)
    gateway = group.makegateway("popen")
    push(gateway, tmp_path / "warm", tmp_path / "warmed")
    gateway.remote_exec(ARM + f"arm({at}, {CHANGING})").waitclose()
    with pytest.raises(farwire.GatewayLost):
        push(gateway, tmp_path / "source", tmp_path / "target", delete=True)
    check_no_torn_file(tmp_path, files)
    complete(tmp_path)


def test_the_points_of_the_worker_reach_to_the_end(tmp_path: Path, group: farwire.Group) -> None:
    """There are about as many steps as ``points`` is told: neither does a sync end before most of them, nor go on long after."""
    make(tmp_path)
    gateway = group.makegateway("popen")
    push(gateway, tmp_path / "warm", tmp_path / "warmed")
    gateway.remote_exec(
        ARM.replace("os.kill(os.getpid(), 9)", "pass").replace("count += 1", "count += 1; os.steps = count")
        + f"arm(0, {CHANGING})"
    ).waitclose()
    push(gateway, tmp_path / "source", tmp_path / "target", delete=True)
    steps = gateway.remote_exec("import os; channel.send(os.steps)").receive()
    assert 51 <= steps <= 60, steps


@pytest.mark.parametrize("at", points(2, 51, 8))
def test_the_controller_that_receives(tmp_path: Path, at: int) -> None:
    files = make(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", PULL, str(tmp_path), str(at), " ".join(CHANGING)],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (done.returncode, done.stdout) == (-9, ""), done.stderr
    check_no_torn_file(tmp_path, files)
    complete(tmp_path)


@pytest.mark.parametrize("at", [1, 2, 3, 4, 5, 6, 7, 8, 9])
def test_the_controller_that_sends(tmp_path: Path, at: int) -> None:
    files = make(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", PUSH, str(tmp_path), str(at)], capture_output=True, text=True, timeout=50, check=False
    )
    assert (done.returncode, done.stdout) == (-9, ""), done.stderr
    check_no_torn_file(tmp_path, files)
    complete(tmp_path)


@pytest.mark.parametrize("at", points(3, 12, 4))
def test_the_worker_that_sends(tmp_path: Path, group: farwire.Group, at: int) -> None:
    files = make(tmp_path)
    gateway = group.makegateway("popen")
    pull(gateway, tmp_path / "warm", tmp_path / "warmed")
    gateway.remote_exec(
        f"""
        import os
        from _farwire.runtime.channel import Channel
        send, count = Channel.send, 0
        def counted(self, item, timeout=None):
            global count
            count += 1
            if count == {at}:
                os.kill(os.getpid(), 9)
            send(self, item, timeout)
        Channel.send = counted
        """
    ).waitclose()
    with pytest.raises(farwire.GatewayLost):
        pull(gateway, tmp_path / "source", tmp_path / "target", delete=True)
    check_no_torn_file(tmp_path, files)
    with farwire.makegateway("popen") as other:
        pull(other, tmp_path / "source", tmp_path / "target", delete=True)
    assert_same(tmp_path / "source", tmp_path / "target")
    assert not leftovers(tmp_path / "target")


def test_a_cut_file_goes_on_where_it_was(tmp_path: Path, group: farwire.Group) -> None:
    data = random.Random(3).randbytes(20 << 20)
    write(tmp_path / "source" / "large", data)
    gateway = group.makegateway("popen")
    gateway.remote_exec(ARM + "arm(1, ['ftruncate'])").waitclose()
    with pytest.raises(farwire.GatewayLost):
        push(gateway, tmp_path / "source", tmp_path / "target")
    # It was killed with all of the file; with a part of it can be seen how much is sent then.
    (left,) = (tmp_path / "target").iterdir()
    (part,) = left.iterdir()
    part.write_bytes(data[: 15 << 20])
    report = push(group.makegateway("popen"), tmp_path / "source", tmp_path / "target")
    assert (tmp_path / "target" / "large").read_bytes() == data
    assert 5 << 20 <= report.literal < 6 << 20
    assert not leftovers(tmp_path / "target")


def test_what_a_living_sync_has_is_left_alone(tmp_path: Path, gw: farwire.Gateway) -> None:
    write(tmp_path / "source" / "file", "x")
    ours = tmp_path / "target" / ".farwire-sync-0123456789ab"
    write(ours / "new", "half")
    fd = os.open(ours, os.O_RDONLY)
    try:
        import fcntl

        fcntl.flock(fd, fcntl.LOCK_EX)
        report = push(gw, tmp_path / "source", tmp_path / "target", delete=True)
        assert not report.problems
        assert (ours / "new").read_text() == "half"
    finally:
        os.close(fd)
    push(gw, tmp_path / "source", tmp_path / "target", delete=True)
    assert_same(tmp_path / "source", tmp_path / "target")


def test_an_error_of_the_whole_leaves_the_large_part_only(tmp_path: Path, gw: farwire.Gateway) -> None:
    """The source vanishes in the middle, as it were: the worker's end fails and cleans up after itself."""
    write(tmp_path / "source" / "large", random.Random(4).randbytes(12 << 20))

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        push(gw, tmp_path / "source", tmp_path / "target", progress=fail)
    push(gw, tmp_path / "source", tmp_path / "target")
    assert_same(tmp_path / "source", tmp_path / "target")
    assert not leftovers(tmp_path / "target")


def test_what_a_kill_left_anywhere_is_removed(tmp_path: Path, gw: farwire.Gateway) -> None:
    """In the root, and in other directories: another sync had its root there, or moved something across file systems."""
    write(tmp_path / "source" / "sub" / "file", "x")
    for folder in ("target", "target/sub"):
        write(tmp_path / folder / ".farwire-sync-000000000000" / "1.t" / "deep" / "file", "half")
        write(tmp_path / folder / ".farwire-sync-000000000001.t" / "file", "half")
        write(tmp_path / folder / ".farwire-sync-000000000002", "half")
        (tmp_path / folder / ".farwire-sync-000000000003").symlink_to("nowhere")
    assert not push(gw, tmp_path / "source", tmp_path / "target").problems
    assert not leftovers(tmp_path / "target")
    assert_same(tmp_path / "source", tmp_path / "target")
