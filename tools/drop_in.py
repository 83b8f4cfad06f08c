"""Run other projects' tests on farwire, in an environment in which execnet is not installed.

    python tools/drop_in.py xdist       the test suite of pytest-xdist, from its source distribution, as it is
    python tools/drop_in.py projects    two projects' suites under ``pytest -n 2``, with the counts that they have without xdist

Everything that is needed is put under ``.venvs``, once. pip is asked for the source distributions.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
from pathlib import Path
from typing import TextIO
from xml.etree import ElementTree as ET

ROOT = Path(__file__).resolve().parents[1]
VENVS = ROOT / ".venvs"
XDIST = "3.8.0"
PYTEST = "8.4.2"  # with later ones, tests of this xdist fail on execnet as well
PROJECTS = {"click": "8.5.1", "more-itertools": "11.2.1"}
TIMEOUT = 900

# Tests of pytest-xdist that do not pass here, each with the reason.
EXCEPTIONS: dict[str, str] = {}

# What the same versions of pytest and xdist give on execnet 2.1.2.
EXPECTED = {"passed": 200, "skipped": 2, "xfailed": 10}


def run(*command: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    """A command that must not fail."""
    return subprocess.run([str(part) for part in command], check=True, text=True, timeout=TIMEOUT, **options)  # type: ignore[call-overload]


class Environment:
    """A virtual environment with pytest, pytest-xdist, and farwire under the name of execnet."""

    def __init__(self, name: str, pytest: str) -> None:
        self.folder = VENVS / name
        self.python = self.folder / "bin" / "python"
        self.pytest = pytest

    def make(self, *more: str) -> None:
        """Make it, unless it is there and as it should be."""
        stamp = self.folder / "made.json"
        shim = ROOT / "packaging" / "execnet-shim" / "pyproject.toml"
        wanted = [self.pytest, XDIST, *more, shim.read_text(), sys.version]
        if stamp.exists() and json.loads(stamp.read_text()) == wanted:
            return
        print(f"setting up {self.folder}", flush=True)
        venv.create(self.folder, clear=True, with_pip=True)
        self.pip("install", self.pytest, *more)
        self.pip("install", "-e", str(ROOT), str(shim.parent))
        self.pip("install", f"pytest-xdist=={XDIST}")  # its requirement of execnet is met
        stamp.write_text(json.dumps(wanted))

    def pip(self, *arguments: str) -> None:
        """Run pip in it."""
        run(self.python, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments)

    def sources(self, project: str, version: str) -> Path:
        """The unpacked source distribution of a project."""
        folder = self.folder / "sources"
        if not (found := list(folder.glob(f"{project.replace('-', '[-_]')}-{version}/"))):
            self.pip("download", "--no-deps", "--no-binary", project, "--dest", str(folder), f"{project}=={version}")
            (archive,) = folder.glob(f"{project.replace('-', '[-_]')}-{version}.tar.gz")
            with tarfile.open(archive) as file:
                file.extractall(folder, filter="data")
            found = list(folder.glob(f"{project.replace('-', '[-_]')}-{version}/"))
        return found[0]

    def check(self) -> None:
        """Execnet must be farwire, or the tests say nothing."""
        code = (
            "import importlib.metadata, execnet, execnet.gateway_base, farwire.compat\n"
            "assert execnet is farwire.compat and execnet.gateway_base is farwire.compat.gateway_base\n"
            "print(importlib.metadata.version('execnet'))"
        )
        version = run(self.python, "-c", code, stdout=subprocess.PIPE).stdout.strip()
        assert "+farwire" in version, version
        print(f"execnet is {version}", flush=True)


def clean_environment() -> dict[str, str]:
    """The environment variables without those that would change a pytest run."""
    return {
        key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "PYTHON", "COV_", "MAKE"))
    }


def outcomes(report: Path) -> dict[str, str]:
    """Test -> outcome, from a JUnit report."""
    found = {}
    for case in ET.parse(report).getroot().iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        kinds = {child.tag: child for child in case}
        if "failure" in kinds or "error" in kinds:
            found[name] = "failed"
        elif "skipped" in kinds:
            found[name] = "xfailed" if kinds["skipped"].get("type") == "pytest.xfail" else "skipped"
        else:
            found[name] = "passed"
    return found


def count(found: dict[str, str]) -> dict[str, int]:
    """How many of each outcome."""
    return {outcome: sum(each == outcome for each in found.values()) for outcome in sorted(set(found.values()))}


def xdist() -> int:
    """The test suite of pytest-xdist: its tests share nothing, so half of them run beside the other half."""
    environment = Environment("drop-in", f"pytest=={PYTEST}")
    environment.make("filelock", "pexpect", "psutil", "setproctitle")
    environment.check()
    sources = environment.sources("pytest-xdist", XDIST)
    # They take about the same time.
    halves = [
        ["testing/acceptance_test.py", "-k", "not TestLocking and not TestLoadScope"],
        ["testing", "-k", "not acceptance_test or TestLocking or TestLoadScope"],
    ]
    begun = time.monotonic()
    running: list[tuple[subprocess.Popen[bytes], Path, TextIO]] = []
    temporaries: list[str] = []
    for number, half in enumerate(halves):
        report = environment.folder / f"report{number}.xml"
        report.unlink(missing_ok=True)
        command = [environment.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *half]
        log = (environment.folder / f"log{number}.txt").open("w+")
        # One for each half: pytest keeps the folders of the last three runs, and takes those of the other half for older ones.
        # Outside of this project, whose settings would count for the tests that the tests make.
        temporary = tempfile.mkdtemp(prefix="farwire-xdist-")
        temporaries.append(temporary)
        env = {**clean_environment(), "PYTEST_DEBUG_TEMPROOT": temporary}
        process = subprocess.Popen(list(map(str, command)), cwd=sources, env=env, stdout=log, stderr=subprocess.STDOUT)
        running.append((process, report, log))
    found: dict[str, str] = {}
    try:
        for process, report, log in running:
            process.wait(TIMEOUT)
            if not report.exists():
                log.seek(0)
                print(log.read())
                raise SystemExit("pytest ended without a report")
            found.update(outcomes(report))
    finally:
        for process, _, _ in running:
            process.kill()
            process.wait()
        for temporary in temporaries:
            shutil.rmtree(temporary, ignore_errors=True)
    wrong = [name for name, outcome in found.items() if (outcome == "failed") != (name in EXCEPTIONS)]
    wrong += sorted(EXCEPTIONS.keys() - found.keys())
    if wrong:
        for _, _, log in running:
            log.seek(0)
            print(log.read())
        print("not as expected:", *wrong, sep="\n  ")
    counts = count(found)
    expected = dict(EXPECTED)
    if EXCEPTIONS:
        expected.update(passed=EXPECTED["passed"] - len(EXCEPTIONS), failed=len(EXCEPTIONS))
    told = ", ".join(f"{number} {outcome}" for outcome, number in counts.items())
    print(f"pytest-xdist {XDIST} on farwire, pytest {PYTEST}: {told} in {time.monotonic() - begun:.0f} s")
    if not wrong and counts != expected:
        print(f"expected: {expected}")
        return 1
    return 1 if wrong else 0


def projects() -> int:
    """Suites of projects that know nothing of us."""
    environment = Environment("drop-in-projects", f"pytest=={PYTEST}")
    environment.make(*(f"{name}=={version}" for name, version in PROJECTS.items()), "pytest-timeout")
    environment.check()
    status = 0
    for name, version in PROJECTS.items():
        sources = environment.sources(name, version)
        counts = []
        for workers in ("0", "2"):
            report = environment.folder / f"{name}-{workers}.xml"
            report.unlink(missing_ok=True)
            command = [environment.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
            begun = time.monotonic()
            done = subprocess.run(
                [*map(str, command), "-n", workers, "tests"],
                cwd=sources,
                env=clean_environment(),
                check=False,
                timeout=TIMEOUT,
                capture_output=True,
                text=True,
            )
            if done.returncode:
                print(done.stdout, done.stderr)
                status = 1
            counts.append(count(outcomes(report)))
            print(f"{name} {version} -n {workers}: {counts[-1]} in {time.monotonic() - begun:.1f} s", flush=True)
        if counts[0] != counts[1]:
            print(f"{name}: not the same counts")
            status = 1
    return status


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description="Run other projects' tests on farwire in the place of execnet.")
    parser.add_argument("what", choices=["xdist", "projects"])
    return {"xdist": xdist, "projects": projects}[parser.parse_args().what]()


if __name__ == "__main__":
    sys.exit(main())
