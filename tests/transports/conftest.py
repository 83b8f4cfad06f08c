"""Servers for the transports' tests."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator

import pytest

from socket_server import Server


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
