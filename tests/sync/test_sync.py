"""push and pull: what becomes of the things in a tree, and what is said about it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import farwire
from farwire import Gateway, RSync
from farwire.rsync import Report, pull, push
from trees import assert_same, leftovers, snapshot, write

Sync = Callable[..., Report]
both = pytest.mark.parametrize("sync", [push, pull])


@pytest.fixture(scope="module")
def gw() -> Iterator[Gateway]:
    with farwire.makegateway("popen") as gateway:
        yield gateway


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write(tmp_path / "source" / "sub" / "file", "hello", mtime=10**18 + 1)
    return tmp_path / "source"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "target"


# -- what is in a tree ------------------------------------------------------------------------------------------------


@both
def test_hard_links(gw: Gateway, source: Path, target: Path, sync: Sync) -> None:
    write(source / "a", "one file", mtime=10**18)
    os.link(source / "a", source / "sub" / "b")
    os.link(source / "a", source / "c")
    assert sync(gw, source, target).files == 2
    assert_same(source, target)
    assert (target / "a").stat().st_nlink == 3
    assert sync(gw, source, target).links == 0
    # one of them goes its own way
    (source / "c").unlink()
    write(source / "c", "another", mtime=10**18)
    sync(gw, source, target)
    assert_same(source, target)
    assert (target / "a").stat().st_nlink == 2


@both
def test_files_that_are_one_at_the_target_and_two_in_the_source(
    gw: Gateway, source: Path, target: Path, sync: Sync
) -> None:
    """Contents are the same, modes or times are not: setting those of one must not set those of the other."""
    for number, (mode, mtime) in enumerate([(0o644, 1), (0o600, 1), (0o644, 2)]):
        write(source / f"{number}", "same", mode=mode, mtime=mtime)
    write(target / "0", "same", mode=0o644, mtime=1)
    os.link(target / "0", target / "1")
    os.link(target / "0", target / "2")
    sync(gw, source, target)
    found = {path: node[:5] for path, node in snapshot(target).items()}
    assert found == {path: node[:5] for path, node in snapshot(source).items()}


@both
def test_holes(gw: Gateway, source: Path, target: Path, sync: Sync) -> None:
    with open(source / "sparse", "wb") as file:
        file.truncate(64 << 20)
        file.seek(20 << 20)
        file.write(b"data")
    report = sync(gw, source, target)
    assert report.literal < 1 << 20
    assert (target / "sparse").stat().st_blocks * 512 < 1 << 20
    assert_same(source, target)
    with open(source / "sparse", "r+b") as file:
        file.seek(40 << 20)
        file.write(b"more")
    sync(gw, source, target)
    assert (target / "sparse").stat().st_blocks * 512 < 2 << 20
    assert_same(source, target)


@both
def test_special_files(gw: Gateway, source: Path, target: Path, sync: Sync) -> None:
    os.mkfifo(source / "fifo")
    os.mkfifo(source / "in-the-way")
    write(target / "in-the-way", "stays")
    report = sync(gw, source, target, delete=True)
    assert sorted(report.problems) == [
        ("fifo", "not sent: it is a FIFO"),
        ("in-the-way", "not sent: it is a FIFO"),
    ]
    assert sorted(os.listdir(target)) == ["in-the-way", "sub"]
    assert (target / "sub" / "file").read_text() == "hello"


@both
def test_every_type_in_the_place_of_every_other(gw: Gateway, tmp_path: Path, sync: Sync) -> None:
    def make(path: Path, kind: str) -> None:
        if kind == "file":
            write(path, path.parent.name)
        elif kind == "link":
            path.symlink_to("nowhere")
        elif kind == "directory":
            write(path / "sub" / "file", path.parent.name)
        else:
            write(path, bytes(1 << 20))

    kinds = ["file", "link", "directory", "large"]
    for old in kinds:
        for new in kinds:
            make_in(tmp_path / "target", f"{old}-{new}", old, make)
            make_in(tmp_path / "source", f"{old}-{new}", new, make)
    assert not sync(gw, tmp_path / "source", tmp_path / "target", delete=True).problems
    assert_same(tmp_path / "source", tmp_path / "target")
    assert not leftovers(tmp_path / "target")


def make_in(root: Path, name: str, kind: str, make: Callable[[Path, str], None]) -> None:
    root.mkdir(exist_ok=True)
    make(root / name, kind)


@both
def test_deep_trees(gw: Gateway, source: Path, target: Path, sync: Sync) -> None:
    """Deeper than there are descriptors kept open, than a path may be long, and than Python recurses."""
    before = os.getcwd()
    try:
        os.chdir(source)
        for number in range(1100):
            os.mkdir("directory")
            os.chdir("directory")
            if not number % 10:
                Path("file").write_text(str(number))
    finally:
        os.chdir(before)
    report = sync(gw, source, target)
    assert (report.files, report.problems) == (111, [])
    again = sync(gw, source, target)
    assert (again.files, again.same, again.problems) == (0, 111, [])
    sync(gw, write(source.parent / "empty" / "x", "").parent, target, delete=True)
    assert os.listdir(target) == ["x"]
    sync(gw, source.parent / "empty", source, delete=True)  # or pytest cannot remove it


@both
def test_a_source_that_is_a_link(gw: Gateway, source: Path, target: Path, sync: Sync) -> None:
    (source.parent / "link").symlink_to(source)
    (source / "absolute").symlink_to(source.parent / "link" / "sub")
    sync(gw, source.parent / "link", target)
    assert os.readlink(target / "absolute") == f"{target}/sub"
    assert (target / "sub" / "file").read_text() == "hello"


@both
def test_a_target_that_is_a_link_to_a_directory(gw: Gateway, source: Path, tmp_path: Path, sync: Sync) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "target").symlink_to("real")
    sync(gw, source, tmp_path / "target")
    assert_same(source, tmp_path / "real")


@both
def test_single_files(gw: Gateway, source: Path, target: Path, sync: Sync) -> None:
    file = write(source / "large", random.Random(1).randbytes(1 << 20))
    report = sync(gw, file, target / "copy")
    assert (report.files, os.listdir(target)) == (1, ["copy"])
    assert snapshot(file) == snapshot(target / "copy")
    with open(file, "ab") as opened:
        opened.write(b"more")
    assert sync(gw, file, target / "copy", delete=True).literal < 100_000
    assert snapshot(file) == snapshot(target / "copy")
    assert os.listdir(target) == ["copy"]


@pytest.mark.parametrize("change", ["longer", "shorter", "other"])
def test_a_file_that_changes_while_it_is_read(gw: Gateway, source: Path, target: Path, change: str) -> None:
    """The target gets what was read, with the time from before; it is told; and the next run notices."""
    size = 30 << 20
    file = write(source / "large", random.Random(1).randbytes(size), mtime=10**18)
    done = []

    class Changing(RSync):
        def _report_send_file(self, gateway: Gateway, modified_rel_path: str) -> None:
            if not done and modified_rel_path == "large":
                done.append(1)
                if change == "shorter":
                    os.truncate(file, 1 << 20)
                else:
                    with open(file, "r+b") as opened:
                        opened.seek(0 if change == "other" else size)
                        opened.write(b"other")

    from farwire.sync.sender import Sender

    begun = threading.Event()

    def report(self: Any, gateway: Gateway, path: str) -> None:
        report_send(self, gateway, path)
        begun.set()

    report_send = Changing._report_send_file
    Changing._report_send_file = report  # type: ignore[method-assign]
    original = Sender._send

    def slow(self: Any, number: int, index: int, *args: Any) -> None:
        """The thread that sends waits, with the file open and looked at, until it was changed."""
        self.event("send", self.source.relative(number, index))
        begun.wait(10)
        original(self, number, index, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sender, "_send", slow)
        rsync = Changing(source, verbose=False)
        rsync.add_target(gw, target)
        rsync.send()
    assert rsync.reports[0].problems == [("large", "it changed while it was read; sync again")]
    assert (target / "large").stat().st_mtime_ns == 10**18
    push(gw, source, target)
    assert_same(source, target)


@pytest.mark.parametrize("old", [None, b"old", random.Random(5).randbytes(2 << 20)], ids=["none", "small", "large"])
def test_a_disk_that_fails_in_the_middle(
    gw: Gateway, source: Path, target: Path, monkeypatch: pytest.MonkeyPatch, old: bytes | None
) -> None:
    """The file is left out, the old one stays, and the others are synced, whatever was sent of it."""
    write(source / "large", random.Random(1).randbytes(2 << 20))
    os.link(source / "large", source / "same")
    if old is not None:
        write(target / "large", old)
        write(target / "same", old)
    pread = os.pread

    def failing(fd: int, count: int, offset: int) -> bytes:
        if offset >= 1 << 20:
            raise OSError(5, os.strerror(5))
        return pread(fd, count, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", failing)
        report = push(gw, source, target)
    first = report.problems[0][0]  # whichever of the two names was listed first
    second = "same" if first == "large" else "large"
    assert report.problems == [
        (first, os.strerror(5)),
        (second, "it is the same file as one that could not be synced"),
    ]
    for name in (first, second):
        assert ((target / name).read_bytes() if (target / name).exists() else None) == old
    assert (target / "sub" / "file").read_text() == "hello"
    assert not push(gw, source, target).problems
    assert_same(source, target)
    assert not leftovers(target)


# -- what is said -----------------------------------------------------------------------------------------------------


@both
def test_a_dry_run_changes_nothing_and_tells_all(gw: Gateway, source: Path, target: Path, sync: Sync) -> None:
    assert sync(gw, source, target, dry_run=True).changes == [("directory", "sub"), ("send", "sub/file")]
    assert not target.exists()
    for root in (source, target):
        write(root / "mode", "same", mtime=10**18, mode=0o644 if root is source else 0o600)
        write(root / "time", "same", mtime=10**18 + (root is source))
        write(root / "large", random.Random(root is source).randbytes(300_000))
    write(target / "gone" / "deep", "x")
    (source / "link").symlink_to("large")
    os.link(source / "large", source / "hard")
    (target / "sub").symlink_to("gone")
    before = snapshot(target)
    report = sync(gw, source, target, dry_run=True, delete=True)
    assert snapshot(target) == before
    assert sorted(report.changes) == [
        ("delete", "gone"),
        ("directory", "sub"),
        ("hard link", "hard") if ("send", "large") in report.changes else ("hard link", "large"),
        ("link", "link"),
        ("mode", "mode"),
        ("send", "hard") if ("send", "hard") in report.changes else ("send", "large"),
        ("send", "sub/file"),
        ("time", "time"),
    ]
    sync(gw, source, target, delete=True)
    assert_same(source, target)


@both
def test_progress(gw: Gateway, source: Path, target: Path, sync: Sync) -> None:
    size = 3 << 20
    write(source / "large", random.Random(1).randbytes(size))
    seen: list[tuple[str, int, int]] = []
    sync(gw, source, target, progress=lambda gateway, *rest: seen.append(rest))
    done = [done for path, done, total in seen if path == "large" and total == size]
    assert len(done) >= 6
    assert done == sorted(done)
    assert done[-1] == size


@both
def test_reports(gw: Gateway, source: Path, target: Path, sync: Sync) -> None:
    data = random.Random(1).randbytes(1 << 20)
    write(source / "large", data)
    write(target / "large", data[: 1 << 19] + b"!" + data[1 << 19 :])
    write(target / "old", "x")
    report = sync(gw, source, target, delete=True)
    assert (report.gateway, report.destination) == (gw, str(target))
    assert (report.files, report.bytes, report.deleted, report.directories) == (2, (1 << 20) + 5, 1, 1)
    assert report.literal + report.matched == report.bytes
    assert report.literal < 50_000
    assert "2 files" in repr(report)


def test_problems_are_printed(gw: Gateway, source: Path, target: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(source / "fifo\udcff")
    rsync = RSync(source)
    rsync.add_target(gw, target)
    rsync.send()
    assert capsys.readouterr().err == f"{gw}: not synced: fifo\\udcff: not sent: it is a FIFO\n"


def test_a_pull_from_nowhere(gw: Gateway, target: Path) -> None:
    with pytest.raises(farwire.RemoteError, match="FileNotFoundError"):
        pull(gw, target / "missing", target)


def test_a_source_of_another_kind(gw: Gateway, tmp_path: Path, target: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="neither a directory nor a regular file"):
        push(gw, tmp_path / "fifo", target)


# -- how it ends ------------------------------------------------------------------------------------------------------


def test_an_error_in_a_callback_ends_the_sync(gw: Gateway, source: Path, target: Path, no_leaks: None) -> None:
    write(source / "large", bytes(range(256)) * 100_000)

    def fail(*_: object) -> None:
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        push(gw, source, target, progress=fail)
    with pytest.raises(LookupError, match="mine"):
        pull(gw, source, target, progress=fail)
    assert gw.remote_exec("channel.send(1)").receive(timeout=10) == 1


def test_ctrl_c(source: Path, target: Path) -> None:
    """The main thread waits in send() for a worker that is stopped; an interrupt ends that, and the program."""
    for number in range(20):
        write(source / f"{number}", bytes(1 << 20))
    program = """
import os, signal, sys
import farwire
gateway = farwire.makegateway("popen")
rsync = farwire.RSync(sys.argv[1])
rsync.add_target(gateway, sys.argv[2])
os.kill(gateway.info().pid, signal.SIGSTOP)
try:
    print("waiting", flush=True)
    rsync.send()
except KeyboardInterrupt:
    print("interrupted", flush=True)
gateway.exit()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(source), str(target)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process:
        try:
            assert process.stdout.readline() == "waiting\n"
            process.send_signal(signal.SIGINT)
            assert process.communicate(timeout=30)[0].splitlines()[-1] == "interrupted"
        finally:
            process.kill()


def test_nothing_is_left(gw: Gateway, source: Path, target: Path, no_leaks: None) -> None:
    for _ in range(3):
        push(gw, source, target)
        pull(gw, source, target)


def test_a_small_window(source: Path, target: Path) -> None:
    """Much to be asked and much to be said at both ends at the same time, through little room."""
    for number in range(3000):
        write(source / f"{number}", "x" * (number % 100), mtime=number)
    for number in range(20):
        write(source / f"large{number}", random.Random(number).randbytes(300_000))
    with farwire.makegateway("popen//window=1") as gateway:
        for sync in (push, pull):
            sync(gateway, source, target, delete=True)
            assert_same(source, target)
            for number in range(20):
                with open(target / f"large{number}", "r+b") as file:
                    file.write(b"changed")
            for number in range(3000):
                os.utime(target / f"{number}", ns=(1, 10**18))
            sync(gateway, source, target)
            assert_same(source, target)
            sync(gateway, write(source.parent / "empty" / "x", "").parent, target, delete=True)


# -- memory -----------------------------------------------------------------------------------------------------------

MEASURE = """
import os, sys
import farwire
from farwire.rsync import pull, push
MIB = 1 << 20

def peak(pid):
    with open("/proc/%d/status" % pid) as file:
        return int(next(line for line in file if line.startswith("VmHWM")).split()[1]) * 1024 / MIB

gateway = farwire.makegateway("popen")
pids = [gateway.info().pid, os.getpid()]
base = sys.argv[1]
for sync in (push, pull):
    sync(gateway, base + "/small", base + "/small2")
for what, sync, source, target in (
    ("push", push, "large", "t"), ("delta", push, "changed", "t"), ("shifted", push, "shifted", "t"),
    ("pull", pull, "large", "t2"), ("pull delta", pull, "changed", "t2")
):
    for pid in pids:
        with open("/proc/%d/clear_refs" % pid, "w") as file:
            file.write("5")
    before = [peak(pid) for pid in pids]
    sync(gateway, base + "/" + source, base + "/" + target)
    print(what, *(round(peak(pid) - was, 1) for pid, was in zip(pids, before)))
gateway.exit()
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs /proc/PID/clear_refs")
def test_memory(tmp_path: Path) -> None:
    """At both ends at most 32 MiB more than before, for a file of several times that."""
    rng = random.Random(1)
    pieces = [rng.randbytes(1 << 20) for _ in range(96)]
    write(tmp_path / "small" / "file", "x")
    write(tmp_path / "large" / "file", b"".join(pieces))
    write(tmp_path / "shifted" / "file", b"inserted" + b"".join(pieces))
    pieces[50] = rng.randbytes(1 << 20)
    write(tmp_path / "changed" / "file", b"".join(pieces))
    del pieces
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)], capture_output=True, text=True, timeout=55, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 5
    assert all(float(number) <= 32 for line in lines for number in line.split()[-2:]), done.stdout
