"""pytest-xdist on farwire by ``-p farwire.pytest_plugin``, run as a user runs it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("xdist", reason="needs pytest-xdist")

Start = Callable[..., "subprocess.Popen[str]"]


class Project:
    """A folder with tests, and pytest to run in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, **files: str) -> None:
        for name, text in files.items():
            (self.folder / f"{name}.py").write_text(text)

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        env = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:randomly"]
        options.setdefault("stderr", subprocess.STDOUT)
        return subprocess.Popen(
            [*command, *arguments], cwd=self.folder, env=env, stdout=subprocess.PIPE, text=True, **options
        )

    def run(self, *arguments: str) -> str:
        with self.start("-p", "farwire.pytest_plugin", "-n", "2", *arguments) as process:
            out, _ = process.communicate(timeout=50)
        return out


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    return Project(tmp_path)


def test_the_header_says_so(project: Project) -> None:
    project.write(test_it="def test(): pass")
    out = project.run()
    assert "\nfarwire: " in out
    assert "1 passed" in out


def test_without_xdists_workers_it_says_nothing(project: Project) -> None:
    project.write(test_it="def test(): pass")
    with project.start("-p", "farwire.pytest_plugin") as process:
        out, _ = process.communicate(timeout=50)
    assert "\nfarwire: " not in out
    assert "1 passed" in out


def test_a_setting_in_pyproject(project: Project) -> None:
    (project.folder / "pytest.ini").unlink()
    (project.folder / "pyproject.toml").write_text(
        '[tool.pytest.ini_options]\naddopts = ["-p", "farwire.pytest_plugin", "-n", "2"]\nfarwire_output = "live"\n'
    )
    project.write(test_it="import execnet\ndef test(): assert execnet.__name__ == 'farwire.compat'")
    with project.start() as process:
        out, _ = process.communicate(timeout=50)
    assert "\nfarwire: " in out
    assert "1 passed" in out


def test_a_setting_that_is_none(project: Project) -> None:
    (project.folder / "pytest.ini").write_text("[pytest]\nfarwire_output = loud\n")
    assert "farwire_output must be one of live, none, not 'loud'" in project.run()


def test_output_is_shown_with_the_workers_name(project: Project) -> None:
    project.write(
        test_it="""
import os, subprocess, sys
def test_print():
    print("printed")
    sys.stderr.write("complained\\n")
    subprocess.run(["echo", "by a child"])
    os.write(1, b"without an end")
"""
    )
    lines = project.run("-s").splitlines()
    for text in ("printed", "complained", "by a child", "without an end"):
        assert f"[gw0] {text}" in lines or f"[gw1] {text}" in lines, (text, lines)
    assert not [line for line in lines if "test session starts" in line and line.startswith("[gw")]
    lines = project.run().splitlines()
    assert not [line for line in lines if "printed" in line]
    lines = project.run("-s", "--farwire-output=none").splitlines()
    assert not [line for line in lines if "printed" in line]


def test_live_logs(project: Project) -> None:
    project.write(test_it="import logging\ndef test(): logging.warning('logged')")
    lines = project.run("-o", "log_cli=true").splitlines()
    assert [line for line in lines if line.startswith("[gw") and "WARNING" in line and "logged" in line]


def test_a_crash_is_reported(project: Project) -> None:
    project.write(
        test_it="""
import os, signal, sys
def test_crash():
    os.write(2, b"last words\\n")
    import ctypes
    ctypes.string_at(0)
"""
    )
    out = project.run()
    report = out[out.index("FAILURES") :]
    assert "crashed while running 'test_it.py::test_crash'" in report
    assert "killed by SIGSEGV" in report
    assert "last words" not in report  # captured by the test's own pytest
    assert "Fatal Python error: Segmentation fault" in report
    assert "in test_crash" in report


def test_the_exit_status_of_a_worker_that_ran_no_test(project: Project) -> None:
    project.write(conftest="import os\nif 'PYTEST_XDIST_WORKER' in os.environ: os._exit(7)", test_it="def test(): pass")
    out = project.run("--max-worker-restart=0")
    assert "exit status 7" in out


def test_ctrl_c_interrupts_the_tests_and_tears_down(project: Project) -> None:
    project.write(
        test_it="""
import pathlib, time
import pytest

@pytest.fixture
def resource():
    yield
    pathlib.Path("torn_down").touch()

def test_fast():
    pass

def test_slow(resource):
    print("now")
    time.sleep(100)
"""
    )
    with project.start("-p", "farwire.pytest_plugin", "-n", "1", "-s", "-v", bufsize=1) as process:
        assert process.stdout is not None
        missing = {
            "[gw0] now",
            "PASSED test_it.py::test_fast",
        }  # in either order: output and results come on ways of their own
        for line in process.stdout:
            missing = {text for text in missing if text not in line}
            if not missing:
                break
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=30)
    assert "KeyboardInterrupt" in out
    assert "1 passed" in out
    assert process.returncode == 2
    assert (project.folder / "torn_down").exists()


def test_workers_are_ready_in_their_order(project: Project) -> None:
    """The second has collected its tests before the first is configured; still the first file goes to the first worker."""
    tests = "import os, pytest\n@pytest.mark.parametrize('i', range(%d))\ndef test(i): print(os.environ['PYTEST_XDIST_WORKER'])"
    project.write(
        test_a=tests % 2,
        test_b=tests % 4,
        conftest="""
import os, pathlib, time
def pytest_configure():
    if os.environ.get("PYTEST_XDIST_WORKER") == "gw0":
        while not pathlib.Path("gw1_is_ready").exists():
            time.sleep(0.01)
def pytest_collection_finish():
    if os.environ.get("PYTEST_XDIST_WORKER") == "gw1":
        pathlib.Path("gw1_is_ready").touch()
""",
    )
    out = project.run("--dist=loadscope", "-v")
    assert out.count("[gw0]") == 4
    assert out.count("[gw1]") == 2


def test_workers_have_no_stray_path(project: Project) -> None:
    project.write(
        conftest="""
import sys
def pytest_configure(config):
    if not hasattr(config, "workerinput"):
        config.path = list(sys.path)
def pytest_configure_node(node):
    node.workerinput["path"] = node.config.path
""",
        test_it="import sys\ndef test(request): assert sys.path == request.config.workerinput['path']",
    )
    assert "1 passed" in project.run()


def test_a_real_execnet_that_came_first_is_told(project: Project) -> None:
    (project.folder / "first.py").write_text("import execnet")
    with project.start("-p", "first", "-p", "farwire.pytest_plugin", "-n", "2") as process:
        out, _ = process.communicate(timeout=50)
    if "+farwire" in __import__("importlib.metadata").metadata.version("execnet"):
        pytest.skip("execnet is farwire here")
    assert "execnet is imported already" in out


def test_without_xdist_it_does_no_harm(project: Project) -> None:
    project.write(test_it="def test(): pass")
    with project.start("-p", "no:xdist", "-p", "no:xdist.looponfail", "-p", "farwire.pytest_plugin") as process:
        out, _ = process.communicate(timeout=50)
    assert "1 passed" in out
