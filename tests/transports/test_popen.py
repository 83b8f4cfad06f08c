"""popen: the conformance suite, and what is its own."""

from __future__ import annotations

import pytest

from farwire.testing import GatewayConformance


class TestPopen(GatewayConformance):
    @pytest.fixture
    def specs(self) -> list[str]:
        return ["popen"]
