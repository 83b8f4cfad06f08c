"""ssh: the conformance suite on a real sshd as an ordinary user, and what is ssh's own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import farwire
import servers
from farwire.testing import GatewayConformance
from farwire.transports.ssh import REMOTE, split_host

pytestmark = pytest.mark.needs_sshd


class TestSsh(GatewayConformance):
    @pytest.fixture
    def specs(self, sshd: servers.Sshd) -> list[str]:
        return [sshd.spec]
