"""The same over ssh, through other workers, on other Pythons; and as an ordinary user, which the tests' root is not."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

import farwire
import servers
from farwire import Group
from farwire.rsync import pull, push
from servers import Sshd
from trees import assert_same, leftovers, remove_tree, snapshot, write


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "source"
    write(root / "file", "hello", mtime=10**18 + 1, mode=0o640)
    write(root / "sub" / os.fsdecode(b"\xff name\n"), "odd")
    write(root / "large", random.Random(1).randbytes(3_000_000))
    (root / "link").symlink_to("file")
    (root / "empty").mkdir()
    return root


def there_and_back(gateway: farwire.Gateway, source: Path, there: str, back: Path) -> None:
    assert not push(gateway, source, there, delete=True).problems
    assert not pull(gateway, there, back, delete=True).problems
    assert_same(source, back)
    with open(source / "large", "r+b") as file:
        file.seek(1_000_000)
        file.write(b"changed")
    report = push(gateway, source, there, delete=True)
    assert (report.files, report.problems) == (1, [])
    assert report.literal < 100_000
    assert pull(gateway, there, back, delete=True).literal < 100_000
    assert_same(source, back)


def test_ssh(group: Group, sshd: Sshd, source: Path, tmp_path: Path) -> None:
    gateway = group.makegateway(sshd.spec)
    there = sshd.run("mktemp -d").strip()
    try:
        there_and_back(gateway, source, f"{there}/new/target", tmp_path / "back")
    finally:
        sshd.run(f"rm -rf {there}")


@pytest.mark.parametrize("through", ["popen", "ssh"])
def test_via(group: Group, request: pytest.FixtureRequest, source: Path, tmp_path: Path, through: str) -> None:
    if through == "ssh":
        sshd: Sshd = request.getfixturevalue("sshd")
        group.makegateway(f"{sshd.spec}//id=first")
        there = sshd.run("mktemp -d").strip()
    else:
        group.makegateway("popen//id=first")
        there = str(tmp_path / "there")
    gateway = group.makegateway("popen//via=first")
    try:
        there_and_back(gateway, source, f"{there}/target", tmp_path / "back")
    finally:
        if through == "ssh":
            sshd.run(f"rm -rf {there}")


@pytest.mark.parametrize("python", servers.INTERPRETERS)
def test_pythons(group: Group, source: Path, tmp_path: Path, python: str) -> None:
    os.link(source / "file", source / "hard")
    with open(source / "sparse", "wb") as file:
        file.truncate(1 << 20)
    there_and_back(group.makegateway(f"popen//python={python}"), source, str(tmp_path / "target"), tmp_path / "back")
    assert_same(source, tmp_path / "target")


def test_several_hosts_at_the_same_time(group: Group, sshd: Sshd, source: Path, tmp_path: Path) -> None:
    gateways = group.makegateways([f"3*{sshd.spec}", "popen"])
    there = sshd.run("mktemp -d").strip()
    try:
        rsync = farwire.RSync(source, verbose=False)
        for gateway in gateways[:3]:
            rsync.add_target(gateway, f"{there}/{gateway.id}")
        rsync.add_target(gateways[3], tmp_path / "target")
        rsync.send()
        assert_same(source, tmp_path / "target")
        assert [report.files for report in rsync.reports] == [3, 3, 3, 3]
        for gateway in gateways[:3]:
            pull(gateway, f"{there}/{gateway.id}", tmp_path / gateway.id)
            assert_same(source, tmp_path / gateway.id)
    finally:
        sshd.run(f"rm -rf {there}")


# -- as an ordinary user ----------------------------------------------------------------------------------------------


@pytest.fixture
def user(group: Group, sshd: Sshd) -> farwire.Gateway:
    """A gateway to a worker of the ordinary user."""
    if not sshd.own_user:
        pytest.skip("the worker would be our own user's, and may be root's")
    return group.makegateway(sshd.spec)


@pytest.fixture
def there(sshd: Sshd) -> object:
    folder = sshd.run("mktemp -d").strip()
    yield folder
    sshd.run(f"chmod -R u+rwx {folder}; rm -rf {folder}")


def test_unreadable_files(user: farwire.Gateway, sshd: Sshd, there: str, tmp_path: Path) -> None:
    """What cannot be read is told and left out; what the target has of it stays, also with ``delete``."""
    sshd.run(
        f"cd {there}; mkdir shut open; echo a > open/a; echo b > open/b; echo c > shut/c; chmod 0 open/b shut; echo l > l; chmod 0 l"
    )
    write(tmp_path / "target" / "shut" / "c", "old")
    write(tmp_path / "target" / "open" / "b", "old")
    report = pull(user, there, tmp_path / "target", delete=True)
    assert sorted(report.problems) == [
        ("l", "Permission denied"),
        ("open/b", "Permission denied"),
        ("shut", "Permission denied"),
    ]
    assert (tmp_path / "target" / "open" / "a").read_text() == "a\n"
    assert (tmp_path / "target" / "open" / "b").read_text() == "old"
    assert (tmp_path / "target" / "shut" / "c").read_text() == "old"


def test_read_only_directories(user: farwire.Gateway, there: str, tmp_path: Path, source: Path) -> None:
    """They are opened for the time of the sync, and have their modes in the end."""
    for version in range(3):
        write(source / "sub" / "deep" / "file", f"{version}")
        write(source / "sub" / "deep" / f"{version}", "")
        for path, mode in ((source / "sub" / "deep", 0o500), (source / "sub", 0o000), (source, 0o555)):
            path.chmod(mode)
        assert not push(user, source, f"{there}/target", delete=True).problems
        # The worker cannot look into a directory of mode 0, and must not be asked to.
        shown = user.remote_exec(
            """
            import os
            path = channel.receive()
            modes = [os.stat(path).st_mode & 0o777, os.stat(path + "/sub").st_mode & 0o777]
            os.chmod(path + "/sub", 0o700)
            modes += [os.stat(path + "/sub/deep").st_mode & 0o777]
            channel.send((modes, sorted(os.listdir(path + "/sub/deep"))))
            """
        )
        shown.send(f"{there}/target")
        assert shown.receive() == (
            [0o555, 0o000, 0o500],
            sorted(["file", *(f"{number}" for number in range(version + 1))]),
        )


def test_a_read_only_directory_in_which_nothing_changes(
    user: farwire.Gateway, there: str, tmp_path: Path, source: Path
) -> None:
    (source / "empty").chmod(0o500)
    for _ in range(2):
        assert not push(user, source, f"{there}/target").problems
        assert Path(there, "target", "empty").stat().st_mode & 0o777 == 0o500


def test_what_may_not_be_written(user: farwire.Gateway, there: str, tmp_path: Path, source: Path) -> None:
    """Directories of somebody else: each path is told, the others are synced."""
    os.chmod(there, 0o777)
    theirs = Path(there, "target", "sub")
    theirs.mkdir(parents=True, mode=0o755)
    os.chmod(there + "/target", 0o777)
    try:
        report = push(user, source, f"{there}/target")
        problems = dict(report.problems)
        assert problems.pop(os.fsdecode(b"sub/\xff name\n")) == "Permission denied"
        assert set(problems) <= {"sub", "."}
        assert Path(there, "target", "file").read_text() == "hello"
        assert not leftovers(there)
    finally:
        theirs.rmdir()


def test_the_other_names_of_a_file_that_cannot_be_synced(user: farwire.Gateway, there: str, source: Path) -> None:
    """The directory of its first name, whichever that is, cannot be made."""
    write(source / "one" / "name", "a file")
    (source / "two").mkdir()
    os.link(source / "one" / "name", source / "two" / "name")
    Path(there, "target").mkdir(mode=0o755)
    problems = dict(push(user, source, f"{there}/target").problems)
    assert problems["one"] == problems["two"] == "Permission denied"
    assert os.listdir(f"{there}/target") == []
    os.rmdir(f"{there}/target")


def test_the_owner_of_a_replaced_file_stays(group: Group, sshd: Sshd, there: str, source: Path) -> None:
    """Root syncs into the tree of a user."""
    if os.geteuid():
        pytest.skip("needs root")
    sshd.run(f"mkdir {there}/target; echo old > {there}/target/file; cp /bin/sh {there}/target/large")
    owner = os.stat(f"{there}/target/file").st_uid
    assert owner
    push(group.makegateway("popen"), source, f"{there}/target")
    assert os.stat(f"{there}/target/file").st_uid == owner
    assert os.stat(f"{there}/target/large").st_uid == owner
    assert snapshot(f"{there}/target/large")[b""][4] == (source / "large").read_bytes()
    remove_tree(f"{there}/target")
