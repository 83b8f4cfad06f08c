"""Names that programs take from ``execnet.gateway_io``, among them those that they replace.

``ssh_args`` is asked for the command line of an ssh gateway if it has been replaced, as deployment tools do to go through something else
than ssh; what it returns must run ``popen_bootstrapline`` in a Python.
"""

from __future__ import annotations

import os
import shlex
import sys

from ..bootstrap.stage0 import SOURCE
from ..transports.base import Command, CommandTransport
from ..transports.ssh import REMOTE, Ssh, shell_line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from subprocess import Popen
    from typing import Any

    from ..transports.base import Boot
    from .gateway import Gateway
    from .xspec import XSpec

__all__ = [
    "Popen2IOMaster",
    "WorkerIO",
    "popen_args",
    "popen_bootstrapline",
    "shell_split_path",
    "ssh_args",
    "vagrant_ssh_args",
]

# It stands between quotes of either kind, so it has none; it reads six digits and so many bytes of program.
popen_bootstrapline = (
    "import os;r=lambda n,b=bytes():b if len(b)>=n else r(n,b+(os.read(0,n-len(b))or exit(3)));exec(r(int(r(6))))"
)


def shell_split_path(path: str) -> list[str]:
    """A command line as a shell would split it."""
    return shlex.split(path, posix=os.name != "nt")


def popen_args(spec: XSpec) -> list[str]:
    """The command line of a local worker."""
    args = shell_split_path(spec.python) if spec.python else [sys.executable]
    args.append("-u")
    if spec.dont_write_bytecode:
        args.append("-B")
    return [*args, "-c", popen_bootstrapline]


def ssh_args(spec: XSpec) -> list[str]:
    """The command line of an ssh worker."""
    args = ["ssh", "-C"]
    if spec.ssh_config is not None:
        args += ["-F", str(spec.ssh_config)]
    return [*args, *spec.ssh.split(), f'{spec.python or "python3"} -c "{popen_bootstrapline}"']


def vagrant_ssh_args(spec: XSpec) -> list[str]:
    """The command line of a worker in a Vagrant machine."""
    args = ["vagrant", "ssh", spec.vagrant_ssh, "--", "-C"]
    if spec.ssh_config is not None:
        args += ["-F", str(spec.ssh_config)]
    return [*args, f'{spec.python or "python3"} -c "{popen_bootstrapline}"']


_our_ssh_args = ssh_args


class SshCommand(CommandTransport):
    """Whatever the function that a program put in the place of ``ssh_args`` says."""

    heartbeat = 5.0

    def __init__(self, spec: XSpec) -> None:
        self.spec = spec

    def command(self, boot: Boot, local: bool) -> Command:
        """See ``CommandTransport``."""
        program = SOURCE.encode()
        chdir = self.spec.chdir  # not what farwire makes of it: execnet's workers stay where they start
        return Command(
            ssh_args(self.spec),
            first=b"%06d" % len(program) + program,
            late_env=boot.spec.env,
            late_chdir=chdir,
            late_nice=boot.spec.nice,
            address=self.spec.ssh,
        )


class Vagrant(CommandTransport):
    """``vagrant_ssh=``: ``vagrant ssh`` in the directory of the Vagrantfile, which is the current one."""

    heartbeat = Ssh.heartbeat

    def __init__(self, spec: XSpec) -> None:
        self.spec = spec

    def command(self, boot: Boot, local: bool) -> Command:
        """See ``CommandTransport``."""
        spec = boot.spec
        argv = ["vagrant", "ssh", self.spec.vagrant_ssh, "--", "-T"]
        if self.spec.ssh_config:
            argv += ["-F", self.spec.ssh_config]
        line = shell_line(spec.chdir or "~", spec.env, spec.nice, spec.python)
        return Command([*argv, REMOTE], first=line.encode(), address=self.spec.vagrant_ssh)


def transport_for(spec: XSpec) -> CommandTransport | None:
    """The transport that farwire itself does not have, or None."""
    if spec.vagrant_ssh:
        return Vagrant(spec)
    if spec.ssh and ssh_args is not _our_ssh_args:
        return SshCommand(spec)
    return None


class WorkerIO:
    """What a program finds as ``gateway._io``.

    Attributes:
        popen: the process that was started here, for its ``pid``; an AttributeError if there is none.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    @property
    def popen(self) -> Popen[bytes]:
        """The local process: the interpreter, or ssh."""
        found: Popen[bytes] = self._gateway._process.popen  # type: ignore[attr-defined]
        return found

    @property
    def remoteaddress(self) -> str:
        """As that of the gateway."""
        return self._gateway.remoteaddress

    def kill(self) -> None:
        """End the worker at once."""
        self._gateway._kill()

    def wait(self) -> int | None:
        """Wait for the end of the worker; its exit status if there is a local process."""
        self._gateway.join()
        return self._gateway._process.returncode


class Popen2IOMaster:
    """Here so that programs which replace methods of it find it; farwire starts its processes otherwise, in sessions of their own."""

    def __init__(self, args: Any, execmodel: Any) -> None:
        self.args = args
        self.execmodel = execmodel
