"""The shipped code, as bytes that a worker can mount.

Two forms. A *source bundle* goes anywhere: blanked source, compressed. A *code bundle* goes to a worker whose ``tag()``
is ours: code objects, most of them from ``.pyc`` files, which saves that worker the compiling (about 6 ms per 1000 lines).

Modules are named relative to the package they are mounted as (``_farwire``): ``""`` is that package, which is empty,
``"worker.main"`` a module in it.

Shipped code is found and read through import finders and loaders, so an installation in a zip file will do, and it is
not imported: the controller never imports ``worker``.
"""

from __future__ import annotations

import importlib.util
import marshal
import pkgutil
import sys
import zlib
from _thread import allocate_lock

from .blank import blank, squeeze

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from importlib.machinery import ModuleSpec

__all__ = ["LATER", "SHIPPED", "code_bundle", "extra_bundle", "later_bundle", "modules", "source_bundle", "tag"]

SHIPPED = ("protocol", "runtime", "worker")
"""The packages that are sent, by their names in ours."""

LATER = frozenset(
    (
        "protocol.structured",
        "runtime.channel_file",
        "runtime.dispatcher",
        "runtime.remote_error",
        "runtime.sending",
        "worker.introspect",
        "worker.relay",
        "worker.stdio",
    )
)
"""Modules that a worker can start without: they are in ``later_bundle()`` instead of ``source_bundle()``.

The controller sends them when the worker has said its hello, and before anything for which the thread that reads the link needs them.
Any other thread that imports one waits for it, perhaps with the link's state lock, never with the reader role.
"""

TRACE = "runtime.trace"
"""The module that is sent only where ``FARWIRE_TRACE`` is set."""

_ROOT = __name__.rpartition(".bootstrap.")[0]

# Every CPython since 2.5 and every PyPy reads marshal version 2 of plain dicts, tuples, strings and booleans. The module
# is built in; json or ast would cost every worker milliseconds.
_MARSHAL_VERSION = 2

_lock = allocate_lock()
_made: dict[str, bytes] = {}


def source_bundle(trace: bool = False) -> bytes:
    """What any worker needs to start: zlib of marshal of ``{name: (is_package, source)}``.

    Made once per process.

    Args:
        trace: with the module ``TRACE``.

    Raises:
        ImportError: the shipped code is not there, or without its source.
    """
    if trace:
        return _once("traced source", lambda: _pack(lambda name: name not in LATER))
    return _once("source", lambda: _pack(lambda name: name not in LATER and name != TRACE))


def later_bundle() -> bytes:
    """The modules of ``LATER``, in the form of ``source_bundle()``."""
    return _once("later", lambda: _pack(lambda name: name in LATER))


def code_bundle(trace: bool = False) -> bytes:
    """All of the shipped code for a worker with our ``tag()``: marshal of ``{name: (is_package, marshal of code, path)}``.

    The paths, and the file names within the code, are those of this machine. Not compressed, because the workers that it
    fits are near. Made once per process.

    Args:
        trace: with the module ``TRACE``.

    Raises:
        ImportError: the shipped code is not there.
    """
    if trace:
        return _once("traced code", lambda: _pack_code(lambda name: True))
    return _once("code", lambda: _pack_code(lambda name: name != TRACE))


def extra_bundle(package: str, same_python: bool) -> bytes:
    """A package of ours that no worker starts with, for one that needs it: marshal of what its importer's ``modules`` take.

    Args:
        package: its name below ours.
        same_python: the worker has our ``tag()``, and gets code; else blanked source, compressed with zlib.

    Raises:
        ImportError: it is not there.
    """

    def make() -> bytes:
        spec = importlib.util.find_spec(f"{_ROOT}.{package}")
        if spec is None:
            raise ImportError(f"no {_ROOT}.{package}")
        found = list(_below(package, spec))
        return marshal.dumps(_codes(found)) if same_python else _compressed(_sources(found))

    return _once(f"{package} {same_python}", make)


def tag() -> str:
    """Names the bytecode of this interpreter: a worker with an equal tag can run our ``code_bundle()``."""
    return f"{sys.implementation.cache_tag}-{importlib.util.MAGIC_NUMBER.hex()}"


def modules() -> Iterator[tuple[str, ModuleSpec]]:
    """Every shipped module, packages before what is in them: name in the bundle and import spec.

    Raises:
        ImportError: one of ``SHIPPED`` is not there.
    """
    for package in SHIPPED:
        name = f"{_ROOT}.{package}"
        spec = importlib.util.find_spec(name)  # imports our own package at most
        if spec is None or spec.origin is None:  # not there, or a folder without modules
            raise ImportError(f"no {name}, which workers need", name=name)
        yield from _below(package, spec)


def _below(name: str, spec: ModuleSpec) -> Iterator[tuple[str, ModuleSpec]]:
    yield name, spec
    for finder, module, _ in pkgutil.iter_modules(spec.submodule_search_locations or []):
        # Not importlib.util.find_spec, which would import the package.
        found = finder.find_spec(f"{spec.name}.{module}", None)
        if found is not None:
            yield from _below(f"{name}.{module}", found)


def _once(key: str, make: Callable[[], bytes]) -> bytes:
    with _lock:
        if key not in _made:
            _made[key] = make()
        return _made[key]


def _pack(wanted: Callable[[str], bool]) -> bytes:
    bundle = {"": (True, "")} if wanted("") else {}
    bundle.update(_sources((name, spec) for name, spec in modules() if wanted(name)))
    return _compressed(bundle)


def _compressed(bundle: dict[str, tuple[bool, str]]) -> bytes:
    return zlib.compress(marshal.dumps(bundle, _MARSHAL_VERSION), 9)


def _sources(found: Iterable[tuple[str, ModuleSpec]]) -> dict[str, tuple[bool, str]]:
    return {
        name: (
            spec.submodule_search_locations is not None,
            squeeze(blank(_source(spec), comments=True, docstrings=True, annotations=True)),
        )
        for name, spec in found
    }


def _source(spec: ModuleSpec) -> str:
    # Not get_source: it imports tokenize to look for an encoding, and ours is always UTF-8.
    loader = spec.loader
    try:
        return loader.get_data(spec.origin).decode()  # type: ignore[union-attr, no-any-return]
    except (AttributeError, OSError, UnicodeDecodeError):
        raise ImportError(f"no source of {spec.name}, which workers need", name=spec.name) from None


def _pack_code(wanted: Callable[[str], bool]) -> bytes:
    bundle: dict[str, tuple[bool, bytes, str]] = {"": (True, marshal.dumps(compile("", "<farwire>", "exec")), "")}
    bundle.update(_codes((name, spec) for name, spec in modules() if wanted(name)))
    return marshal.dumps(bundle)


def _codes(found: Iterable[tuple[str, ModuleSpec]]) -> dict[str, tuple[bool, bytes, str]]:
    bundle = {}
    for name, spec in found:
        code = spec.loader.get_code(spec.name)  # type: ignore[union-attr]
        if code is None:
            raise ImportError(f"no code of {spec.name}, which workers need", name=spec.name)
        # Marshalled apart: a worker reads what it imports.
        bundle[name] = (spec.submodule_search_locations is not None, marshal.dumps(code), spec.origin or "")
    return bundle
