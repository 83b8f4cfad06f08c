"""``socket=...//installvia=ID``: a socket server started by another gateway of the group."""

from __future__ import annotations

from ..errors import HostNotFound, SpecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .gateway import Gateway
    from .multi import Group
    from .xspec import XSpec

__all__ = ["HostNotFound", "start_via"]


def start_via(group: Group, spec: XSpec) -> Gateway:
    """Open a gateway through a socket server on the host of the gateway that ``installvia`` names.

    The server listens on the loopback interface there and asks for a secret; the connection goes through that gateway, so it
    works over ssh too.

    Raises:
        SpecError: there is no such gateway.
        StartError: the server, or the worker, did not start.
    """
    from ..socket_gateway import start_server
    from ..transports.socket import Socket
    from .xspec import resolve

    if spec.installvia not in group:
        raise SpecError(f"installvia={spec.installvia}: there is no such gateway in this group; give its id")
    host = group[spec.installvia]
    address, secret = start_server(host)
    here = host._boot.spec.transport == "popen" and host._boot.spec.via is None
    resolved = resolve(spec, socket=address, via=None if here else host.id)
    return group._open(spec, resolved, Socket(secret.encode()))
