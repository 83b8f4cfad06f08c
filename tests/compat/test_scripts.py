"""execnet's scripts by their old names: a server, a shell on it, and its end."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import farwire
import servers
from conftest import wait_for
from farwire.compat.script.shell import as_spec

SRC = Path(farwire.__file__).parents[1]
ENV = {**os.environ, "PYTHONPATH": str(SRC), "FARWIRE_SECRET": "a secret that is used in tests only"}


def run(script: str, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", f"farwire.compat.script.{script}", *arguments]
    return subprocess.run(argv, input=stdin, env=ENV, capture_output=True, text=True, timeout=50, check=False)


@pytest.fixture(params=["socketserver", "loop_socketserver"])
def server(request: pytest.FixtureRequest) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Started as execnet's is, with a port only."""
    argv = [sys.executable, "-m", f"farwire.compat.script.{request.param}", ":0"]
    process = subprocess.Popen(argv, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline().split()
        assert line[:2] == ["listening", "on"]
        assert line[2].startswith("127.0.0.1:")
        yield line[2], process
    finally:
        process.kill()
        process.communicate()


def test_server_shell_quit(
    server: tuple[str, subprocess.Popen[str]], group: farwire.Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, process = server
    done = run("shell", address, stdin="import os; print(os.path.basename(os.getcwd()), 6 * 7)")
    assert (done.returncode, done.stdout, done.stderr) == (0, "pyexecnet-cache 42\n", "")
    monkeypatch.setenv("FARWIRE_SECRET", ENV["FARWIRE_SECRET"])
    gateway = group.makegateway(f"socket={address}")
    pid = gateway.info().pid
    done = run("quitserver", address)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    process.wait(10)
    wait_for(lambda: not servers.is_alive(pid), "its workers end with it")
    gateway.join(10)


def test_no_secret_no_server() -> None:
    env = {name: value for name, value in ENV.items() if name != "FARWIRE_SECRET"}
    argv = [sys.executable, "-m", "farwire.compat.script.socketserver", ":0"]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 1
    assert "secret" in done.stderr


def test_nobody_there() -> None:
    port = servers.free_port()
    done = run("quitserver", f"127.0.0.1:{port}")
    assert done.returncode == 1
    assert done.stderr.startswith("quitserver: ")
    assert run("shell", f"127.0.0.1:{port}").returncode == 2


@pytest.mark.parametrize(
    ("address", "spec"),
    [
        ("example.org:8888", "socket=example.org:8888"),
        ("[::1]:8888", "socket=[::1]:8888"),
        ("ssh=me@host", "ssh=me@host"),
        ("popen//python=3.12", "popen//python=3.12"),
        ("socket=localhost:1//tls", "socket=localhost:1//tls"),
    ],
)
def test_addresses(address: str, spec: str) -> None:
    assert as_spec(address) == spec
    assert as_spec(address, "file") == spec + "//secret_file=file"
