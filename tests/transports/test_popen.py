"""popen: the conformance suite, here and on every Python found; and what is its own."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import farwire
import servers
from farwire.testing import (
    ChannelConformance,
    GatewayConformance,
    OutputConformance,
    StartConformance,
    TaskConformance,
)

PYPY = shutil.which("pypy3")
PYTHON_2 = sorted(map(str, Path("~/.pyenv/versions").expanduser().glob("2.*/bin/python")))


class TestPopen(GatewayConformance):
    @pytest.fixture
    def specs(self) -> list[str]:
        return ["popen"]


@pytest.mark.parametrize("python", servers.INTERPRETERS)
class TestInterpreters(StartConformance, TaskConformance, ChannelConformance):
    @pytest.fixture
    def specs(self, python: str) -> list[str]:
        return [f"popen//python={python}"]


@pytest.mark.skipif(PYPY is None, reason="no pypy3 here (Debian: apt install pypy3)")
class TestPyPy(StartConformance, TaskConformance, ChannelConformance, OutputConformance):
    @pytest.fixture
    def specs(self) -> list[str]:
        return [f"popen//python={PYPY}"]


def test_the_caller_s_directory_and_interpreter(
    group: farwire.Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    info = group.makegateway("popen").info()
    assert Path(info.cwd).samefile(tmp_path)
    assert info.executable == sys.executable


def test_a_relative_directory(group: farwire.Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Path(group.makegateway("popen//chdir=a/b").info().cwd).samefile(tmp_path / "a" / "b")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert Path(group.makegateway("popen//chdir=~/c").info().cwd).samefile(tmp_path / "home" / "c")


def test_a_directory_that_may_not_be_entered(group: farwire.Group, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(farwire.DirectoryError, match="file"):
        group.makegateway(farwire.XSpec.build(popen=True, chdir=tmp_path / "file"))
    assert not list(group)


def test_nothing_of_the_directory_is_imported(group: farwire.Group, tmp_path: Path) -> None:
    for name in ("zlib", "struct", "threading", "socket", "_farwire", "site", "encodings"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module was imported')")
    for spec in ("popen", f"cmd={shlex.quote(sys.executable)}"):
        gateway = group.makegateway(f"{spec}//chdir={tmp_path}")
        assert gateway.remote_exec("import struct, threading; channel.send(struct.__file__)").receive(10)


@pytest.mark.parametrize("python", ["python3", "env python3", f"{shlex.quote(sys.executable)} -X dev -W error"])
def test_python_is_a_name_or_a_command(group: farwire.Group, python: str) -> None:
    gateway = group.makegateway(farwire.XSpec.build(popen=True, python=python))
    assert gateway.remote_exec("channel.send(1)").receive(10) == 1


def test_python_is_a_version(group: farwire.Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "python3.99").symlink_to(sys.executable)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert group.makegateway("popen//python=3.99//nice=1").remote_exec("channel.send(1)").receive(10) == 1
    with pytest.raises(farwire.PythonNotFound, match=r"python3\.98"):
        group.makegateway("popen//python=3.98")


@pytest.mark.parametrize("python", PYTHON_2 or [pytest.param("", marks=pytest.mark.skip("no Python 2 here"))])
def test_too_old(group: farwire.Group, python: str) -> None:
    with pytest.raises(farwire.PythonTooOld, match=r"this is 2\.7"):
        group.makegateway(f"popen//python={python}")


@pytest.mark.parametrize(
    ("python", "error", "text"),
    [
        ("/bin/false", farwire.NotAPython, "exit status 1"),
        ("/no/such/python", farwire.PythonNotFound, "/no/such/python"),
        ("no-such-python", farwire.PythonNotFound, "no-such-python"),
        ("/etc/passwd", farwire.PythonNotFound, "/etc/passwd"),
        ("/", farwire.PythonNotFound, "Permission denied"),
        ("echo", farwire.NotAPython, "import sys"),
    ],
)
def test_not_a_python(group: farwire.Group, python: str, error: type[farwire.StartError], text: str) -> None:
    with pytest.raises(error) as caught:
        group.makegateway(f"popen//python={python}", timeout=10)
    assert type(caught.value) is error
    assert text in str(caught.value)
    assert not list(group)


def test_too_few_descriptors() -> None:
    """Those that started work, the others say what there is too little of."""
    program = """
import resource, farwire
resource.setrlimit(resource.RLIMIT_NOFILE, (24, 24))
group = farwire.Group()
try:
    group.makegateways("12*popen")
except farwire.StartErrors as failed:
    for error in failed.errors.values():
        assert type(error) is farwire.StartError, error
        assert "Too many open files" in str(error) and "ulimit -n" in error.hint, error
    channels = group.remote_exec("channel.send(1)")
    assert channels.receive_each(timeout=30) == [1] * len(failed.gateways)
    print(len(failed.errors) + len(failed.gateways))
group.terminate()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("12\n", "")


def test_the_environment_is_added_to_ours(group: farwire.Group, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARWIRE_OURS", "ours")
    monkeypatch.setenv("FARWIRE_BOTH", "ours")
    gateway = group.makegateway("popen//env:FARWIRE_BOTH=theirs")
    channel = gateway.remote_exec("import os; channel.send([os.environ['FARWIRE_OURS'], os.environ['FARWIRE_BOTH']])")
    assert channel.receive(10) == ["ours", "theirs"]
