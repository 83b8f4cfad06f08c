"""Gateways to socket servers (``farwire.serve``), also to one that is started for the purpose."""

from __future__ import annotations

import os

from .group import default_group
from .xspec import XSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .gateway import Gateway

# Runs in the worker. The server ends with its stdin, which the worker keeps open as long as it lives.
START_SERVER = """
script, host, port, secret = channel.receive()
namespace = {"__name__": "farwire_serve"}
exec(compile(script, "<farwire serve>", "exec"), namespace)
process, host, port = namespace["spawn_server"](script, host, port, secret)
vars(channel.gateway).setdefault("servers", []).append(process)
channel.send((host, port))
"""


class _SocketGateway:
    """A worker started by a socket server: ``SocketGateway(host, port)``.

    The server's secret is the content of ``secret_file``, or the environment variable FARWIRE_SECRET. The worker starts in the directory
    ``pyexecnet-cache``, which is made if missing.

    Args:
        host: name or address of the server's host, or the path of a unix socket.
        port: its port; None for a unix socket, or for the usual one (8888).
        secret_file: the file with the secret.
        tls: encrypt.
        tls_ca: a file with the certificates to trust; without, the secret alone proves that the server is the right one.
    """

    def __call__(
        self,
        host: str,
        port: int | None = None,
        *,
        secret_file: str | None = None,
        tls: bool = False,
        tls_ca: str | None = None,
    ) -> Gateway:
        """Connect to a server. Raises ``StartError``."""
        spec = XSpec.build(socket=_address(host, port), secret_file=secret_file, tls=tls, tls_ca=tls_ca)
        return default_group.makegateway(spec)

    def new_remote(self, gateway: Gateway, hostport: tuple[str, int] = ("127.0.0.1", 0)) -> Gateway:
        """Start a server through a gateway, and open a gateway to that server.

        The server is a process of its own on the gateway's host, with a random secret that goes through the gateway and is kept nowhere. It
        lives as long as the gateway. When the gateway leads to another host, the new one goes through it, so the server need not be
        reachable from here.

        Args:
            gateway: where to start the server.
            hostport: the address on which it listens, a loopback one, and the port there; 0 for a free one.

        Returns:
            The new gateway, in the group of the other.

        Raises:
            RemoteError: the server cannot listen on that address.
            StartError: it cannot be reached.
        """
        from .transports.socket import Socket

        address, secret = start_server(gateway, hostport)
        here = gateway.spec.transport == "popen" and gateway.spec.via is None
        spec = XSpec.build(socket=address, via=None if here else gateway.id)
        group = gateway.group
        opened = group._start(spec, None, None, transport=Socket(secret.encode()))
        group._await(opened)
        return opened

    def __repr__(self) -> str:
        return "<function SocketGateway>"


def start_server(gateway: Gateway, hostport: tuple[str, int] = ("127.0.0.1", 0)) -> tuple[str, str]:
    """Start a server as ``SocketGateway.new_remote`` does. Returns its address, as a spec has it, and its secret.

    Raises:
        RemoteError: the server cannot listen on that address.
    """
    from .serve import script_text

    secret = os.urandom(32).hex()
    with gateway.remote_exec(START_SERVER) as channel:
        channel.send((script_text(), *hostport, secret))
        host, port = channel.receive()
    return _address(host, port), secret


def _address(host: str, port: int | None) -> str:
    if port is None:
        return host
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


SocketGateway = _SocketGateway()
SocketGateway.__doc__ = _SocketGateway.__doc__
