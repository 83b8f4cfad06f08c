"""``quitserver HOST:PORT``: ends a socket server, and the workers that it started.

Whoever may start interpreters there (``FARWIRE_SECRET`` or ``--secret-file``) may do that: one of them sends SIGTERM to the server.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from ... import Group
from ...errors import FarwireError
from .shell import as_spec

if TYPE_CHECKING:
    from collections.abc import Sequence

# Climbs from the worker to the topmost process with the server's command line: between them are the guard and, with TLS, a pump.
_QUIT = """
import os, signal, subprocess

def ask(pid, what):
    command = ["ps", "-o", what + "=", "-p", str(pid)]
    return subprocess.run(command, stdout=subprocess.PIPE, check=False).stdout.decode("utf-8", "replace").strip()

server = 0
pid = os.getppid()
while pid > 1:
    line = ask(pid, "args")
    if " -c " not in line and any(name in line for name in ("farwire", "socketserver")):
        server = pid
    pid = int(ask(pid, "ppid") or 0)
channel.send(server)
channel.receive()
os.kill(server, signal.SIGTERM)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """End the server; returns the exit status."""
    parser = argparse.ArgumentParser(prog="quitserver", description="End a socket server, with its workers.")
    parser.add_argument("address", metavar="HOST:PORT", help="or a whole spec: socket=HOST:PORT//tls//...")
    parser.add_argument("--secret-file", metavar="FILE", help="holds the secret (default: the variable FARWIRE_SECRET)")
    options = parser.parse_args(argv)
    group = Group(output=lambda *_: None)
    try:
        gateway = group.makegateway(as_spec(options.address, options.secret_file))
        channel = gateway.remote_exec(_QUIT)
        if not channel.receive(20):
            print("quitserver: no server was found above the worker; is ps installed there?", file=sys.stderr)
            return 1
        channel.send(None)
        gateway.join(20)  # it goes with the server
    except FarwireError as error:
        print(f"quitserver: {error}", file=sys.stderr)
        return 1
    finally:
        group.terminate(timeout=3)
    return 0


if __name__ == "__main__":
    sys.exit(main())
