"""The programs in examples/, run as a user would run them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import servers
from conftest import wait_for

DEMO = Path(__file__).parents[1] / "examples" / "parse_stdlib.py"


def start_demo(*arguments: str, token: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(DEMO), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "200", "FARWIRE_TEST_DEMO": token},
        start_new_session=True,
    )


def run_demo(*arguments: str, token: str) -> str:
    process = start_demo(*arguments, token=token)
    try:
        out, err = process.communicate(timeout=50)
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert "Traceback" not in err
    return out


def test_parse_stdlib(tmp_path: Path) -> None:
    out = run_demo("--limit", "80", token=str(tmp_path))
    assert "local-1" in out
    for version in servers.interpreters():
        assert re.search(rf"\b{re.escape(version)}\.\d+", out), f"no worker of Python {version}"
    assert re.search(r"all\D+80\D", out), out
    assert "longest function" in out
    assert "speed-up" in out
    assert not servers.processes_with_environment("FARWIRE_TEST_DEMO", str(tmp_path))


@pytest.mark.needs_sshd
def test_parse_stdlib_with_a_host(sshd: servers.Sshd, tmp_path: Path) -> None:
    out = run_demo("--limit", "60", "--ssh", sshd.host, "--ssh-config", sshd.ssh_config, token=str(tmp_path))
    assert re.search(rf"{sshd.host} +\D? +3\.\d+\.\d+", out), out


def test_interrupted(tmp_path: Path) -> None:
    """Ctrl-C ends the demo, and every worker, without a traceback."""
    process = start_demo(token=str(tmp_path))
    try:
        workers = os.cpu_count() or 1
        wait_for(
            lambda: len(servers.processes_with_environment("FARWIRE_TEST_DEMO", str(tmp_path))) > workers,
            "workers run",
            timeout=20,
        )
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 130, (out, err)
    assert err == "interrupted\n"
    wait_for(lambda: not servers.processes_with_environment("FARWIRE_TEST_DEMO", str(tmp_path)), "all have gone")
