"""``cmd=``: any command line that runs a Python, such as ``cmd=docker exec -i box python3``; ``-c PROGRAM`` is appended."""

from __future__ import annotations

from ..bootstrap.stage0 import SOURCE
from .base import Boot, Command, CommandTransport, split_command


class Cmd(CommandTransport):
    """chdir, nice and env take effect in the interpreter that the command reaches, before any user code."""

    def command(self, boot: Boot, local: bool) -> Command:
        """See ``CommandTransport``."""
        spec = boot.spec
        assert spec.cmd is not None
        return Command(
            [*split_command(spec.cmd, "cmd"), "-c", SOURCE],
            late_env=spec.env,
            late_chdir=spec.chdir,
            late_nice=spec.nice,
        )
