"""via: interpreters started from other gateways' hosts, at any depth, over every transport."""

from __future__ import annotations

import pytest

import farwire
import servers
from farwire.testing import (
    ChannelConformance,
    EndConformance,
    GatewayConformance,
    OutputConformance,
    StartConformance,
)
from socket_server import Server


class TestPopenViaPopen(GatewayConformance):
    @pytest.fixture
    def specs(self) -> list[str]:
        return ["popen//id=hop", "popen//via=hop"]


@pytest.mark.needs_sshd
class TestPopenViaSsh(GatewayConformance):
    @pytest.fixture
    def specs(self, sshd: servers.Sshd) -> list[str]:
        return [f"{sshd.spec}//id=hop", "popen//via=hop"]


@pytest.mark.needs_sshd
class TestSshViaPopen(StartConformance, OutputConformance, EndConformance):
    @pytest.fixture
    def specs(self, sshd: servers.Sshd) -> list[str]:
        return ["popen//id=hop", f"{sshd.spec}//via=hop"]


@pytest.mark.needs_sshd
class TestDepthThree(GatewayConformance):
    @pytest.fixture
    def specs(self, sshd: servers.Sshd) -> list[str]:
        return [f"{sshd.spec}//id=first", "popen//id=second//via=first", "popen//via=second"]


class TestSocketViaPopen(StartConformance, ChannelConformance, EndConformance):
    @pytest.fixture
    def specs(self, tcp_server: Server) -> list[str]:
        return ["popen//id=hop", f"{tcp_server.spec}//via=hop"]


class TestTlsViaPopen(ChannelConformance, OutputConformance, EndConformance):
    @pytest.fixture
    def specs(self, tls_server: Server) -> list[str]:
        return ["popen//id=hop", f"{tls_server.spec}//via=hop"]


class TestCmdViaUnixSocket(StartConformance, EndConformance):
    early_env = False

    @pytest.fixture
    def specs(self, unix_server: Server) -> list[str]:
        return [f"{unix_server.spec}//id=hop", "cmd=env python3//via=hop"]
