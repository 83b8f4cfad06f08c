"""``popen``: a process on this machine (or, with ``via``, on another gateway's)."""

from __future__ import annotations

import sys

from ..bootstrap.stage0 import CODE, SOURCE
from .base import Boot, Command, CommandTransport, is_this_python, python_argv


class Popen(CommandTransport):
    """By default the interpreter that runs here, in the current directory."""

    def command(self, boot: Boot, local: bool) -> Command:
        """See ``CommandTransport``."""
        spec = boot.spec
        if spec.python is not None:
            argv = python_argv(spec.python)
        else:
            argv = [sys.executable if local else ""]
        code = local and is_this_python(argv)
        return Command(
            [*argv, "-c", CODE if code else SOURCE],
            env=spec.env,
            chdir=spec.chdir,
            late_nice=spec.nice,
            code=code,
        )
