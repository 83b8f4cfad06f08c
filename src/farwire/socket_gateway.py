"""Gateways to socket servers (``farwire.serve``)."""

from __future__ import annotations

from .group import default_group
from .xspec import XSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .gateway import Gateway


def SocketGateway(host: str, port: int) -> Gateway:  # noqa: N802
    return default_group.makegateway(XSpec.build(socket=f"{host}:{port}"))
