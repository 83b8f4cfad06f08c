"""socket: the conformance suite over TCP, a unix socket and TLS, and what is its own."""

from __future__ import annotations

import pytest

from farwire.testing import ChannelConformance, EndConformance, GatewayConformance, OutputConformance, StartConformance
from socket_server import Server


class TestTcp(GatewayConformance):
    @pytest.fixture
    def specs(self, tcp_server: Server) -> list[str]:
        return [tcp_server.spec]


class TestUnix(StartConformance, EndConformance):
    @pytest.fixture
    def specs(self, unix_server: Server) -> list[str]:
        return [unix_server.spec]


class TestTls(StartConformance, ChannelConformance, OutputConformance, EndConformance):
    @pytest.fixture
    def specs(self, tls_server: Server) -> list[str]:
        return [tls_server.spec]
