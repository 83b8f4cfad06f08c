"""A real socket server for the tests of gateways."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

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
