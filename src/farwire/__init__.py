"""farwire runs Python on any machine you can reach, with nothing installed there.

import farwire

gateway = farwire.makegateway("ssh=myhost")
channel = gateway.remote_exec("import os; channel.send(os.getpid())")
print(channel.receive())
"""

from __future__ import annotations

from .errors import (
    AuthenticationError,
    ChannelClosed,
    DataFormatError,
    DirectoryError,
    DumpError,
    FarwireError,
    GatewayLost,
    HostNotFound,
    LoadError,
    NotAPython,
    ProtocolError,
    PythonNotFound,
    PythonTooOld,
    RemoteError,
    SourceError,
    SpecError,
    StartError,
    StartErrors,
    StartTimeout,
    TimeoutError,
)
from .gateway import Gateway
from .group import Group, PopenGateway, SshGateway, default_group, makegateway
from .multichannel import MultiChannel
from .rsync import RSync
from .runtime.channel import Channel
from .socket_gateway import SocketGateway
from .xspec import XSpec

__version__ = "0.1.0"

__all__ = [
    "AuthenticationError",
    "Channel",
    "ChannelClosed",
    "DataFormatError",
    "DirectoryError",
    "DumpError",
    "FarwireError",
    "Gateway",
    "GatewayLost",
    "Group",
    "HostNotFound",
    "LoadError",
    "MultiChannel",
    "NotAPython",
    "PopenGateway",
    "ProtocolError",
    "PythonNotFound",
    "PythonTooOld",
    "RSync",
    "RemoteError",
    "SocketGateway",
    "SourceError",
    "SpecError",
    "SshGateway",
    "StartError",
    "StartErrors",
    "StartTimeout",
    "TimeoutError",
    "XSpec",
    "__version__",
    "default_group",
    "makegateway",
]
