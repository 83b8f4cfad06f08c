"""The API of execnet's RSync, as its documentation and pytest-xdist use it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import farwire
from farwire import Gateway, Group, RSync
from trees import assert_same, snapshot, write


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write(tmp_path / "source" / "sub" / "file1", "hello")
    write(tmp_path / "source" / "file2", "world!")
    return tmp_path / "source"


def test_without_targets(source: Path) -> None:
    rsync = RSync(source)
    with pytest.raises(OSError, match="no targets"):
        rsync.send()
    assert rsync.send(raises=False) is None


def test_a_directory_to_two_targets(source: Path, tmp_path: Path, group: Group) -> None:
    gateways = group.makegateways(["2*popen"])
    finished: list[int] = []
    rsync = RSync(source, verbose=False)
    for number, gateway in enumerate(gateways):
        rsync.add_target(gateway, tmp_path / f"dest{number}", finishedcallback=lambda n=number: finished.append(n))
    rsync.send()
    assert sorted(finished) == [0, 1]
    for number in range(2):
        assert_same(source, tmp_path / f"dest{number}")


def test_targets_are_used_up(source: Path, tmp_path: Path, gw: Gateway) -> None:
    rsync = RSync(source, verbose=False)
    rsync.add_target(gw, tmp_path / "dest")
    rsync.send()
    with pytest.raises(OSError, match="no targets"):
        rsync.send()
    rsync.add_target(gw, tmp_path / "dest2")
    rsync.send()
    assert_same(source, tmp_path / "dest2")


def test_one_gateway_may_have_two_targets(source: Path, tmp_path: Path, gw: Gateway) -> None:
    rsync = RSync(source, verbose=False)
    rsync.add_target(gw, tmp_path / "a")
    rsync.add_target(gw, tmp_path / "b")
    rsync.send()
    assert_same(source, tmp_path / "a")
    assert_same(source, tmp_path / "b")


def test_a_slash_at_the_end_means_nothing(source: Path, tmp_path: Path, gw: Gateway) -> None:
    rsync = RSync(f"{source}/", verbose=False)
    rsync.add_target(gw, f"{tmp_path}/dest/")
    rsync.send()
    assert_same(source, tmp_path / "dest")


def test_delete(source: Path, tmp_path: Path, gw: Gateway) -> None:
    dest = tmp_path / "dest"
    write(dest / "old" / "deep" / "file", "x")
    write(dest / "sub" / "other", "x")
    rsync = RSync(source, verbose=False)
    rsync.add_target(gw, dest)
    rsync.send()
    assert (dest / "old" / "deep" / "file").exists()
    assert (dest / "sub" / "other").exists()
    rsync.add_target(gw, dest, delete=True)
    rsync.send()
    assert_same(source, dest)


def test_other_options_are_refused(source: Path, gw: Gateway, tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        RSync(source).add_target(gw, tmp_path, compress=True)  # type: ignore[call-arg]


def test_filter_gets_paths_below_the_root_as_text(source: Path, tmp_path: Path, gw: Gateway) -> None:
    asked: list[str] = []

    class Filtered(RSync):
        def filter(self, path: str) -> bool:
            asked.append(path)
            return not path.endswith("sub")

    rsync = Filtered(source, verbose=False)
    rsync.add_target(gw, tmp_path / "dest")
    rsync.send()
    assert sorted(asked) == [f"{source}/file2", f"{source}/sub"]
    assert os.listdir(tmp_path / "dest") == ["file2"]


def test_what_is_filtered_is_deleted(source: Path, tmp_path: Path, gw: Gateway) -> None:
    class Filtered(RSync):
        def filter(self, path: str) -> bool:
            return "file2" not in path

    write(tmp_path / "dest" / "file2", "x")
    rsync = Filtered(source, verbose=False)
    rsync.add_target(gw, tmp_path / "dest", delete=True)
    rsync.send()
    assert not (tmp_path / "dest" / "file2").exists()


def test_an_error_in_the_filter_ends_the_sync(source: Path, tmp_path: Path, gw: Gateway, no_leaks: None) -> None:
    class Failing(RSync):
        def filter(self, path: str) -> bool:
            raise LookupError(path)

    rsync = Failing(source, verbose=False)
    rsync.add_target(gw, tmp_path / "dest")
    with pytest.raises(LookupError):
        rsync.send()
    assert gw.remote_exec("channel.send(1)").receive() == 1


def test_a_file_that_disappears_while_listed(source: Path, tmp_path: Path, gw: Gateway) -> None:
    class Removing(RSync):
        def filter(self, path: str) -> bool:
            if path.endswith("file2"):
                os.unlink(path)
            return True

    rsync = Removing(source, verbose=False)
    rsync.add_target(gw, tmp_path / "dest")
    rsync.send()
    assert (tmp_path / "dest" / "sub" / "file1").read_text() == "hello"
    assert not (tmp_path / "dest" / "file2").exists()
    assert rsync.reports[0].problems == [("file2", "No such file or directory")]


def test_reporting(source: Path, tmp_path: Path, gw: Gateway, capsys: pytest.CaptureFixture[str]) -> None:
    rsync = RSync(source)
    rsync.add_target(gw, tmp_path / "dest")
    rsync.send()
    lines = capsys.readouterr().out.splitlines()
    assert sorted(lines) == [f"{gw} <= file2", f"{gw} <= sub/file1"]
    rsync.add_target(gw, tmp_path / "dest")
    rsync.send()
    assert capsys.readouterr() == ("", "")


def test_not_verbose(source: Path, tmp_path: Path, gw: Gateway, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(source / "fifo")
    rsync = RSync(source, verbose=False)
    rsync.add_target(gw, tmp_path / "dest")
    rsync.send()
    assert capsys.readouterr() == ("", "")


def test_the_hook_of_xdist(source: Path, tmp_path: Path, gw: Gateway) -> None:
    """pytest-xdist overrides it, and reads ``_sourcedir`` and ``_verbose``."""
    reported: list[tuple[Gateway, str]] = []

    class Hooked(RSync):
        def _report_send_file(self, gateway: Gateway, modified_rel_path: str) -> None:
            assert self._verbose == 1
            assert os.fspath(self._sourcedir) == str(source)
            reported.append((gateway, modified_rel_path))

    rsync = Hooked(source, verbose=1)  # type: ignore[arg-type] # xdist gives the count of -v
    rsync.add_target(gw, tmp_path / "dest")
    rsync.send()
    assert sorted(path for gateway, path in reported if gateway is gw) == ["file2", "sub/file1"]


def test_callback(source: Path, tmp_path: Path, gw: Gateway) -> None:
    called: list[tuple[str, int]] = []

    def callback(command: str, number: int, channel: farwire.Channel) -> None:
        assert channel.gateway is gw
        called.append((command, number))

    rsync = RSync(source, callback=callback, verbose=False)
    rsync.add_target(gw, tmp_path / "dest")
    rsync.send()
    assert called[0] == ("list", 11)
    assert sorted(called[1:]) == [("ack", 5), ("ack", 6)]


def test_list_is_called_once_for_each_target(source: Path, tmp_path: Path, gw: Gateway) -> None:
    called: list[tuple[str, int]] = []
    rsync = RSync(source, callback=lambda *args: called.append(args[:2]), verbose=False)
    rsync.add_target(gw, tmp_path / "a")
    rsync.add_target(gw, tmp_path / "b")
    rsync.send()
    assert [number for command, number in called if command == "list"] == [11, 11]
    called.clear()
    rsync.add_target(gw, tmp_path / "a")
    rsync.send()
    assert called == [("list", 0)]


def test_the_programs_functions_run_in_its_thread(source: Path, tmp_path: Path, gw: Gateway) -> None:
    import threading

    threads: set[threading.Thread] = set()

    def note(*args: object) -> None:
        threads.add(threading.current_thread())

    class Noting(RSync):
        def filter(self, path: str) -> bool:
            note()
            return True

        def _report_send_file(self, gateway: Gateway, modified_rel_path: str) -> None:
            note()

    write(source / "large", bytes(1 << 20))
    rsync = Noting(source, callback=note, progress=note)
    rsync.add_target(gw, tmp_path / "dest", finishedcallback=note)
    rsync.send()
    assert threads == {threading.current_thread()}


def test_permissions(source: Path, tmp_path: Path, gw: Gateway) -> None:
    file, dest = source / "file2", tmp_path / "dest"
    for mode in (0o764, 0o400, 0o644):
        file.chmod(mode)
        rsync = RSync(source, verbose=False)
        rsync.add_target(gw, dest)
        rsync.send()
        assert (dest / "file2").stat().st_mode & 0o7777 == mode


def test_read_only_directories(source: Path, tmp_path: Path, gw: Gateway) -> None:
    (source / "sub" / "deeper").mkdir()
    for path in (source / "sub" / "deeper", source / "sub"):
        path.chmod(0o500)
    for _ in range(2):
        rsync = RSync(source, verbose=False)
        rsync.add_target(gw, tmp_path / "dest")
        rsync.send()
        assert_same(source, tmp_path / "dest")
        write(source / "sub" / "file1", "changed")


def test_same_size_and_other_time_is_compared(source: Path, tmp_path: Path, gw: Gateway) -> None:
    dest = tmp_path / "dest"
    write(dest / "file2", "world!", mtime=10**18)
    write(dest / "sub" / "file1", "HELLO", mtime=10**18)
    rsync = RSync(source, verbose=False)
    rsync.add_target(gw, dest)
    rsync.send()
    assert rsync.reports[0].files == 1
    assert_same(source, dest)


def test_same_size_and_time_counts_as_the_same(source: Path, tmp_path: Path, gw: Gateway) -> None:
    dest = tmp_path / "dest"
    write(dest / "file2", "WORLD!", mtime=(source / "file2").stat().st_mtime_ns)
    rsync = RSync(source, verbose=False)
    rsync.add_target(gw, dest)
    rsync.send()
    assert (dest / "file2").read_text() == "WORLD!"
    rsync = RSync(source, verbose=False, checksum=True)
    rsync.add_target(gw, dest)
    rsync.send()
    assert_same(source, dest)


def test_symlinks(source: Path, tmp_path: Path, gw: Gateway) -> None:
    dest = tmp_path / "dest"
    (source / "relative").symlink_to("sub/file1")
    (source / "absolute").symlink_to(source / "sub" / "file1")
    (source / "sub" / "up").symlink_to("../file2")
    (source / "outside").symlink_to("/nowhere/at/all")
    (source / "directory").symlink_to("sub")
    rsync = RSync(source, verbose=False)
    rsync.add_target(gw, dest)
    rsync.send()
    links = {path.name: os.readlink(path) for path in [*dest.iterdir(), *(dest / "sub").iterdir()] if path.is_symlink()}
    assert links == {
        "relative": "sub/file1",
        "absolute": f"{dest}/sub/file1",
        "up": "../file2",
        "outside": "/nowhere/at/all",
        "directory": "sub",
    }


def test_a_single_file(source: Path, tmp_path: Path, gw: Gateway) -> None:
    file = source / "file2"
    (tmp_path / "dir").mkdir()
    rsync = RSync(file, verbose=False)
    rsync.add_target(gw, tmp_path / "new" / "name")
    rsync.add_target(gw, tmp_path / "dir", delete=True)
    rsync.send()
    assert snapshot(tmp_path / "new" / "name") == snapshot(file)
    assert snapshot(tmp_path / "dir" / "file2") == snapshot(file)
    assert os.listdir(tmp_path / "new") == ["name"]


def test_no_source(tmp_path: Path, gw: Gateway) -> None:
    rsync = RSync(tmp_path / "missing")
    rsync.add_target(gw, tmp_path / "dest")
    with pytest.raises(FileNotFoundError, match="missing"):
        rsync.send()
    assert gw.remote_exec("channel.send(1)").receive() == 1


def test_a_target_that_is_a_file(source: Path, tmp_path: Path, gw: Gateway) -> None:
    write(tmp_path / "file", "keep me")
    rsync = RSync(source, verbose=False)
    rsync.add_target(gw, tmp_path / "file")
    with pytest.raises(farwire.RemoteError, match="NotADirectoryError"):
        rsync.send()
    assert (tmp_path / "file").read_text() == "keep me"


def test_a_dead_worker(source: Path, tmp_path: Path, group: Group) -> None:
    dead, live = group.makegateway("popen"), group.makegateway("popen")
    rsync = RSync(source, verbose=False)
    rsync.add_target(dead, tmp_path / "a")
    rsync.add_target(live, tmp_path / "b")
    dead.signal(9)
    with pytest.raises(farwire.GatewayLost):
        rsync.send()
    assert_same(source, tmp_path / "b")  # the others go on


def test_targets_that_never_get_anything(source: Path, tmp_path: Path, gw: Gateway) -> None:
    rsync = RSync(source)
    rsync.add_target(gw, tmp_path / "dest")
    del rsync
    assert gw.remote_exec("channel.send(1)").receive() == 1
    assert not (tmp_path / "dest").exists()
