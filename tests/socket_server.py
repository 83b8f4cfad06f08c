"""Real socket servers for the tests of gateways; the fixtures are imported by ``conftest``."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import farwire


class Server:
    """A running ``farwire serve``.

    Attributes:
        address: what to write after ``socket=``.
        spec: a whole spec for a gateway to it.
        log: path of what it wrote to stderr.
        directory: where workers' directories are made.
    """

    def __init__(self, directory: Path, address: str, *options: str, more: str = "") -> None:
        self.directory = directory
        self.log = directory / "log"
        secret = directory / "secret"
        secret.touch(0o600)
        secret.write_text("the secret of these tests\n")
        argv = [sys.executable, "-m", "farwire", "serve", "--secret-file", str(secret), *options, address]
        source = str(Path(farwire.__file__).parent.parent)
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=directory,
                env={**os.environ, "PYTHONPATH": source},
                start_new_session=True,
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline().decode()
        assert line.startswith("listening on "), self.log.read_text()
        self.address = line.removeprefix("listening on ").strip()
        self.secret_file = str(secret)
        self.spec = f"socket={self.address}//secret_file={secret}{more}"

    def stop(self) -> None:
        """End it, and what it started."""
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(10)


@pytest.fixture(scope="session")
def tcp_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """On a free port of 127.0.0.1."""
    server = Server(tmp_path_factory.mktemp("tcp"), "127.0.0.1:0")
    yield server
    server.stop()


@pytest.fixture(scope="session")
def unix_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """On a unix socket."""
    directory = tmp_path_factory.mktemp("unix")
    server = Server(directory, str(directory / "socket"))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def tls_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """On a free port, with TLS."""
    directory = tmp_path_factory.mktemp("tls")
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here, which makes the certificate")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=farwire"
    names = ["-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost", "-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run([*command.split(), *names], cwd=directory, check=True, capture_output=True, timeout=30)
    certificate = ["--tls-cert", str(directory / "cert.pem"), "--tls-key", str(directory / "key.pem")]
    server = Server(directory, "127.0.0.1:0", *certificate, more=f"//tls//tls_ca={directory}/cert.pem")
    yield server
    server.stop()
