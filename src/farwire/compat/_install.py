"""``import execnet`` made to mean ``farwire.compat``.

``execnet`` and ``farwire.compat`` are then two names of one module, and so are ``execnet.gateway_base`` and
``farwire.compat.gateway_base``, and the rest.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

NAME = "execnet"


class _Finder:
    """For ``sys.meta_path``: before those that would find the real one."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """The spec of ``execnet`` or of a module in it."""
        return find_spec(name) if name.partition(".")[0] == NAME else None


class _Loader:
    """Gives out a module of ours under its other name, as it is."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Import it under its own name."""
        module = importlib.import_module(our_name(spec.name))
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: Any) -> None:
        """It has been run; only take back what the import system noted on it."""
        spec = module.__spec__
        if spec.loader_state is not None:
            module.__spec__ = spec.loader_state


def our_name(name: str) -> str:
    """``execnet.multi`` -> ``farwire.compat.multi``."""
    return "farwire.compat" + name[len(NAME) :]


def find_spec(name: str) -> ModuleSpec | None:
    """How to import ``execnet`` or a module in it; None if there is no such module."""
    found = importlib.util.find_spec(our_name(name))
    if found is None:
        return None
    loader: Any = _Loader()
    spec = importlib.util.spec_from_loader(
        name, loader, origin=found.origin, is_package=found.submodule_search_locations is not None
    )
    if spec is not None and found.submodule_search_locations is not None:
        spec.submodule_search_locations = list(found.submodule_search_locations)
    return spec


def install() -> None:
    """Make ``import execnet`` mean ``farwire.compat`` from here on, in this process and in the workers that it opens with it.

    Doing it again changes nothing. It must happen before anybody imports execnet: under pytest, ``-p farwire.pytest_plugin`` does
    it in time.

    Raises:
        ImportError: the real execnet is imported already.
    """
    there = sys.modules.get(NAME)
    ours = importlib.import_module("farwire.compat")
    if there is not None and there is not ours:
        raise ImportError(
            f"execnet is imported already, from {getattr(there, '__file__', None)}; what has taken names from it would go on with it. "
            "Call farwire.compat.install() before anything imports execnet (with pytest: -p farwire.pytest_plugin on the command "
            "line or in addopts)",
            name=NAME,
        )
    sys.modules[NAME] = ours
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        finder: Any = _Finder()
        sys.meta_path.insert(0, finder)
