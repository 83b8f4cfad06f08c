"""execnet's reading of specs: ``key1=value1//key2=value2//...``, in which nothing is quoted and no key is unknown.

``resolve`` makes of it what farwire understands.
"""

from __future__ import annotations

from ..errors import SpecError
from ..xspec import KEYS
from ..xspec import XSpec as Resolved

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# What else had a meaning in execnet.
OWN_KEYS = ("installvia", "vagrant_ssh")


class XSpec:
    """How to reach a worker and how to configure it: the values of a spec as attributes.

    A part without ``=`` is True, an attribute that the spec does not have is None, values are text. Attributes may be assigned, which
    leaves the text as it is. Specs are equal if their texts are.

    Args:
        string: the spec.

    Attributes:
        env: name -> value, from ``env:NAME=value``.

    Raises:
        AttributeError: a key begins with an underscore.
        SpecError: a key is given twice or empty, or a value was cut in two by the ``//`` in it. (A ``ValueError``.)
    """

    def __init__(self, string: str) -> None:
        self._spec = string
        self.env: dict[str, str] = {}
        before, value = "", ""
        for part in string.split("//"):
            key, equals, text = part.partition("=")
            if not key:
                raise SpecError(f"spec {string!r}: there is nothing between two '//', or at the end")
            if value.endswith(":") and not equals and key not in KEYS and key not in OWN_KEYS:
                raise SpecError(f"spec {string!r}: '//' cannot be in a value, it ends that of {before!r}")
            if key.startswith("_"):
                raise AttributeError(f"{key!r} not a valid XSpec key")
            if key in self.__dict__ or (key.startswith("env:") and key[4:] in self.env):
                raise SpecError(f"duplicate key: {key!r} in {string!r}")
            before, value = key, text
            if key.startswith("env:"):
                if not equals or not key[4:]:
                    raise SpecError(f"spec {string!r}: {key!r} must be written env:NAME=value")
                self.env[key[4:]] = text
            else:
                setattr(self, key, text if equals else True)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return None

    if TYPE_CHECKING:

        def __setattr__(self, name: str, value: Any) -> None: ...

    def __repr__(self) -> str:
        return f"<XSpec {self._spec!r}>"

    def __str__(self) -> str:
        return self._spec

    def __hash__(self) -> int:
        return hash(self._spec)

    def __eq__(self, other: object) -> bool:
        return self._spec == getattr(other, "_spec", None)

    def _samefilesystem(self) -> bool:
        return self.popen is not None and self.chdir is None


def resolve(spec: XSpec, **instead: object) -> Resolved:
    """What farwire understands, from what the attributes are now.

    Keys that farwire does not know are left out, as execnet left them alone.

    Args:
        spec: the spec.
        instead: values that take the place of those in the spec.

    Raises:
        SpecError: it does not say how to reach a worker, or a value is none.
    """
    keys: dict[str, object] = {}
    for name, value in vars(spec).items():
        if name.startswith("_") or value in (None, False, ""):
            continue
        if name == "socket" and value is True and spec.installvia:
            continue  # its address comes from the server that is started
        if name == "env":
            keys["env"] = value
        elif name in KEYS:
            keys[name] = value
    keys.update(instead)
    if not any(keys.get(row.name) for row in KEYS.values() if row.transport or row.name == "via"):
        if not spec.vagrant_ssh and not spec.installvia:
            raise SpecError(f"no gateway type found for {str(spec)!r}")
        keys["popen"] = True
    if keys.get("ssh") and not keys.get("chdir"):
        keys["chdir"] = "~"  # execnet's workers start where a login starts
    if "popen" in keys:
        keys["popen"] = True  # whatever its value was
    keys.setdefault("stdio", "stderr")  # what execnet left of a worker's output
    dont_write = keys.get("dont_write_bytecode")
    if dont_write is not None:
        keys["dont_write_bytecode"] = True
    resolved = Resolved.build(**keys)
    resolved.id = spec.id
    return resolved
