"""execnet 2.x, on farwire: every name of it, and what programs can observe of it.

    import farwire.compat as execnet

or, for programs that one does not want to touch, ``farwire.compat.install()`` before they import execnet. What is
different on purpose is listed in the documentation ("Coming from execnet").

In a worker, names are loaded when they are asked for: most workers want ``execnet.dumps`` and nothing of the controller's side.

PYTEST_DONT_REWRITE: the distribution that has execnet's name brings a plugin, so pytest would rewrite this module too, and warn that
it comes too late.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..errors import DataFormatError, DumpError, HostNotFound, LoadError, RemoteError, TimeoutError
    from ._install import install
    from .gateway import Gateway
    from .gateway_base import Channel
    from .multi import Group, MultiChannel, default_group, makegateway, set_execmodel
    from .rsync import RSync
    from .serializer import dump, dumps, load, loads
    from .xspec import XSpec

# The release whose interface this is: programs compare it.
__version__ = "2.1.2"

__all__ = [
    "Channel",
    "DataFormatError",
    "DumpError",
    "Gateway",
    "Group",
    "HostNotFound",
    "LoadError",
    "MultiChannel",
    "RSync",
    "RemoteError",
    "TimeoutError",
    "XSpec",
    "__version__",
    "default_group",
    "dump",
    "dumps",
    "install",
    "load",
    "loads",
    "makegateway",
    "set_execmodel",
]

# Where each name is, from here.
_PLACES = {
    "Channel": ".gateway_base",
    "DataFormatError": "..errors",
    "DumpError": "..errors",
    "Gateway": ".gateway",
    "Group": ".multi",
    "HostNotFound": "..errors",
    "LoadError": "..errors",
    "MultiChannel": ".multi",
    "RSync": ".rsync",
    "RemoteError": "..errors",
    "TimeoutError": "..errors",
    "XSpec": ".xspec",
    "default_group": ".multi",
    "dump": ".serializer",
    "dumps": ".serializer",
    "install": "._install",
    "load": ".serializer",
    "loads": ".serializer",
    "makegateway": ".multi",
    "set_execmodel": ".multi",
}

# Submodules that programs reach after a plain ``import execnet``.
_MODULES = ("gateway", "gateway_base", "gateway_bootstrap", "gateway_io", "gateway_socket", "multi", "rsync", "xspec")


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _PLACES:
        value = getattr(import_module(_PLACES[name], __name__), name)
    elif name in _MODULES:
        value = import_module("." + name, __name__)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


# Elsewhere all is loaded at once, as with execnet: pytest's own fixtures forget modules that were imported during a test, and a part
# that came later would be a second one, with classes of its own.
if "_farwire" not in sys.modules:
    for _name in (*_PLACES, *_MODULES):
        __getattr__(_name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES, *_MODULES})
