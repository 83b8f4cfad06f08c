"""How to reach an interpreter: one file and one row each.

Third parties add a transport with an entry point in the group ``farwire.transports``: its name is the xspec key, its object a
class like those here; ``xspec.register_key`` makes the key known. Check it with ``farwire.testing``.
"""

from __future__ import annotations

from ..errors import SpecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .base import Transport

# xspec key -> module and class, imported when used
REGISTRY = {
    "popen": "farwire.transports.popen:Popen",
    "ssh": "farwire.transports.ssh:Ssh",
    "socket": "farwire.transports.socket:Socket",
    "cmd": "farwire.transports.cmd:Cmd",
}
ENTRY_POINTS = "farwire.transports"


def find_transport(key: str) -> Transport:
    """The transport for an xspec key.

    Raises:
        SpecError: there is none.
    """
    from importlib import import_module

    target = REGISTRY.get(key)
    if target is not None:
        module, _, name = target.partition(":")
        found: Transport = getattr(import_module(module), name)()
        return found
    from importlib.metadata import entry_points

    for entry in entry_points(group=ENTRY_POINTS):
        if entry.name == key:
            made: Transport = entry.load()()
            return made
    raise SpecError(f"there is no transport {key!r}")


def register_keys() -> None:
    """Make the keys of installed transports known; called before an unknown key is refused."""
    from importlib.metadata import entry_points

    from ..xspec import KEYS, Key, register_key, text

    for entry in entry_points(group=ENTRY_POINTS):
        if entry.name not in KEYS:
            register_key(Key(entry.name, text, f"a transport of {entry.value}", transport=True))
