"""Every public exception.

    FarwireError
     +-- SpecError (ValueError)          an xspec string is wrong
     +-- SourceError (ValueError)        code cannot be sent as it is
     +-- ProtocolError
     +-- DataFormatError (ValueError)
     |    +-- DumpError
     |    +-- LoadError
     +-- RemoteError                     code in the worker raised
     +-- TimeoutError                    (also the builtin one)
     +-- ChannelClosed (OSError)
     +-- GatewayLost (EOFError, OSError) the worker died or the link broke
     +-- StartError (GatewayLost)        a gateway could not be started
          +-- HostNotFound               the host does not resolve or cannot be reached
          +-- AuthenticationError        the host or the server refused us, or we refused it
          +-- PythonNotFound             no interpreter by that name
          +-- PythonTooOld               the interpreter is older than 3.6
          +-- NotAPython                 the program started is not a Python interpreter
          +-- DirectoryError             the working directory is missing or cannot be entered
          +-- StartTimeout (TimeoutError)  no answer in time

A ``StartError`` is a ``GatewayLost`` because a gateway opened with ``wait=False`` reports it wherever one waits.
"""

from __future__ import annotations

from .protocol.errors import (
    ChannelClosed,
    DataFormatError,
    DumpError,
    FarwireError,
    GatewayLost,
    LoadError,
    ProtocolError,
    RemoteError,
    TimeoutError,
)

__all__ = [
    "AuthenticationError",
    "ChannelClosed",
    "DataFormatError",
    "DirectoryError",
    "DumpError",
    "FarwireError",
    "GatewayLost",
    "HostNotFound",
    "LoadError",
    "NotAPython",
    "ProtocolError",
    "PythonNotFound",
    "PythonTooOld",
    "RemoteError",
    "SourceError",
    "SpecError",
    "StartError",
    "StartErrors",
    "StartTimeout",
    "TimeoutError",
]


class SpecError(FarwireError, ValueError):
    """An xspec string cannot be understood; the message says which part, and suggests the key that was meant."""


class SourceError(FarwireError, ValueError):
    """Code given to ``remote_exec`` cannot run remotely as it is: a closure, a global it does not carry, a lambda."""


class StartError(GatewayLost):
    """A gateway could not be started.

    Attributes:
        gateway_id: the id the gateway would have had.
        command: the command that was run, or what was connected to.
        status: how the local process ended ("exit status 1", "killed by SIGKILL"), or ``""``.
        stderr: the last of what it wrote to stderr.
        noise: what arrived in the place of a worker's hello.
        hint: what to do about it.
    """

    def __init__(
        self,
        message: str,
        *,
        gateway_id: str = "",
        command: str = "",
        status: str = "",
        stderr: str = "",
        noise: str = "",
        hint: str = "",
    ) -> None:
        self.gateway_id = gateway_id
        self.command = command
        self.status = status
        self.stderr = stderr
        self.noise = noise
        self.hint = hint
        lines = [f"gateway {gateway_id}: {message}" if gateway_id else message]
        if command:
            lines.append(f"  command: {command}")
        if status:
            lines.append(f"  status:  {status}")
        if stderr:
            lines.append("  stderr:  " + stderr.strip().replace("\n", "\n           "))
        if noise:
            lines.append("  output:  " + noise.strip().replace("\n", "\n           "))
        if hint:
            lines.append(f"  hint:    {hint}")
        super().__init__("\n".join(lines))


class HostNotFound(StartError):
    """The host does not resolve or cannot be reached."""


class AuthenticationError(StartError):
    """The host or server refused our credentials, or could not prove its own."""


class PythonNotFound(StartError):
    """There is no interpreter by that name."""


class PythonTooOld(StartError):
    """The interpreter is older than Python 3.6."""


class NotAPython(StartError):
    """The program that was started is not a Python interpreter."""


class DirectoryError(StartError):
    """The working directory does not exist, cannot be made or cannot be entered."""


class StartTimeout(StartError, TimeoutError):
    """No hello arrived in time."""


class StartErrors(StartError):
    """Several gateways opened together could not be started.

    Attributes:
        errors: spec text -> error, for those that failed.
        gateways: the gateways that did start; they are live.
    """

    def __init__(self, errors: dict[str, StartError], gateways: list[object]) -> None:
        self.errors = errors
        self.gateways = gateways
        total = len(errors) + len(gateways)
        super().__init__(
            f"{len(errors)} of {total} gateways did not start:\n" + "\n".join(str(e) for e in errors.values())
        )
