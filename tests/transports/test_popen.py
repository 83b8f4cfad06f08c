"""popen: the conformance suite, here and on every Python found; and what is its own."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

import farwire
import servers
from farwire.testing import ChannelConformance, GatewayConformance, StartConformance, TaskConformance

PYPY = shutil.which("pypy3")


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
class TestPyPy(StartConformance, TaskConformance, ChannelConformance):
    @pytest.fixture
    def specs(self) -> list[str]:
        return [f"popen//python={PYPY}"]
