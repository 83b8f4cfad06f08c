"""The string that says how to reach a worker and how to configure it.

    popen//python=python3.12//nice=20
    ssh=build7//chdir=work//env:PROXY="http://proxy:3128"

A spec is a list of parts with ``//`` between them. A part is ``key=value``, or a bare ``key`` where no value is
needed. A value that contains ``//``, that ends in ``/`` before another part, or that starts with a quote is put in
single or double quotes right after the ``=``; within them the quote itself is written twice, and a backslash is
only a backslash (it is common in Windows paths). ``quote`` and ``XSpec.build`` get this right.

Exactly one part names the transport; ``via=<gateway id>`` without one means ``popen`` at that gateway. ``KEYS`` has a
row for every key; a transport of somebody else's adds its own with ``register_key``.
"""

from __future__ import annotations

from .errors import SpecError

TYPE_CHECKING = False  # typing costs every start some milliseconds; type checkers take this name for true
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

__all__ = ["KEYS", "Key", "XSpec", "expand", "format_spec", "on_unknown_key", "quote", "register_key"]


# -- what a value may be: each takes the text, or None for a bare key, and raises ValueError with a reason ------------


def flag(value: str | None) -> bool:
    """A switch: bare or ``1`` is on, ``0`` is off."""
    word = "1" if value is None else value.lower()
    if word in ("1", "true", "yes", "on"):
        return True
    if word in ("0", "false", "no", "off"):
        return False
    raise ValueError("is a switch: give it no value, or 1 or 0")


def text(value: str | None) -> str:
    """Any text but the empty one."""
    if not value:
        raise ValueError("needs a value")
    return value


def integer(value: str | None) -> int:
    """A whole number."""
    try:
        return int(text(value))
    except ValueError:
        raise ValueError("needs a whole number") from None


def size(value: str | None) -> int:
    """A number of bytes."""
    number = integer(value)
    if number < 1:
        raise ValueError("needs a number of bytes above 0")
    return number


def seconds(value: str | None) -> float:
    """A length of time; 0 usually means "off"."""
    try:
        number = float(text(value))
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):  # also refuses nan
        raise ValueError("needs a number of seconds, 0 or more")
    return number


def one_of(*words: str) -> Callable[[str | None], str]:
    """Makes a parser that takes only these words."""

    def word(value: str | None) -> str:
        if value not in words:
            raise ValueError("must be one of " + ", ".join(words))
        return value

    return word


# -- the table --------------------------------------------------------------------------------------------------------


class Key:
    """What is known about one key: a row of ``KEYS``.

    Attributes:
        name: the key as it is written, and the attribute of ``XSpec``.
        parse: makes the value from its text (None: a bare key), or raises ``ValueError`` with the reason.
        help: one line for the documentation.
        transport: whether the key is itself a way to reach a worker.
        transports: the transports that take this key; None: all.
        accepts: for a transport: keys it takes though their rows do not list it.
        secret: whether the value stays out of messages and logs.
    """

    __slots__ = ("accepts", "help", "name", "parse", "secret", "transport", "transports")

    def __init__(
        self,
        name: str,
        parse: Callable[[str | None], object],
        help: str,  # noqa: A002 - what it is, everywhere
        *,
        transport: bool = False,
        transports: tuple[str, ...] | None = None,
        accepts: tuple[str, ...] = (),
        secret: bool = False,
    ) -> None:
        self.name = name
        self.parse = parse
        self.help = help
        self.transport = transport
        self.transports = transports
        self.accepts = accepts
        self.secret = secret

    def __repr__(self) -> str:
        return f"<Key {self.name!r}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Key):
            return NotImplemented
        return all(getattr(self, field) == getattr(other, field) for field in self.__slots__)

    def __hash__(self) -> int:
        return hash(self.name)


KEYS: dict[str, Key] = {
    key.name: key
    for key in (
        Key("popen", flag, "a process on this machine", transport=True),
        Key("ssh", text, "a host: [user@]host, after ssh options if need be", transport=True),
        Key("socket", text, "a socket server: host:port", transport=True),
        Key("cmd", text, "a command line that starts an interpreter", transport=True),
        Key("via", text, "the id of the gateway whose worker is to open this one"),
        Key("python", text, "the interpreter: a name, a path or a version", transports=("popen", "ssh")),
        Key("chdir", text, "the directory to work in; made if it is missing"),
        Key("nice", integer, "added to the process's niceness: above 0 is lower priority"),
        Key("id", text, "the gateway's name in its group"),
        Key("execmodel", one_of("thread", "main_thread_only"), "whether tasks past the first get threads of their own"),
        Key("ssh_config", text, "the ssh configuration file to use", transports=("ssh",)),
        Key(
            "stdio",
            one_of("forward", "none", "inherit", "stderr"),
            "what becomes of the worker's output; default: forward",
        ),
        Key("dont_write_bytecode", flag, "the worker writes no .pyc files"),
        Key("heartbeat", seconds, "how often to ask a silent worker for a sign of life; 0: never"),
        Key("window", size, "how many bytes may be on their way in one direction of a channel"),
        Key("secret_file", text, "the file with the secret shared with the server", transports=("socket",)),
        Key("tls", flag, "encrypt, and check the server's certificate", transports=("socket",)),
        Key("tls_ca", text, "the file with the certificates to trust", transports=("socket",)),
        Key("tls_name", text, "the host name that the certificate must have", transports=("socket",)),
        Key("env", text, "written env:NAME=value: an environment variable of the worker", secret=True),
    )
}

_finders: list[Callable[[], object]] = []


def register_key(row: Key) -> None:
    """Makes a key known. Doing it again with an equal row changes nothing.

    Args:
        row: what is to be known about the key.

    Raises:
        ValueError: the name is taken, or cannot be an attribute of ``XSpec``.
    """
    known = KEYS.get(row.name)
    if known == row:
        return
    if known is not None:
        raise ValueError(f"the xspec key {row.name!r} is taken: {known.help}")
    if not row.name.isidentifier() or row.name.startswith("_") or hasattr(XSpec, row.name):
        raise ValueError(f"{row.name!r} cannot be an xspec key")
    KEYS[row.name] = row


def on_unknown_key(finder: Callable[[], object]) -> None:
    """Names a function to be called, once, before the first unknown key is refused.

    Looking for installed transports is slow, and most programs use none but ours.

    Args:
        finder: called without arguments; it may call ``register_key``.
    """
    if finder not in _finders:
        _finders.append(finder)


def _find_key(name: str) -> Key | None:
    while name not in KEYS and _finders:
        _finders.pop(0)()
    return KEYS.get(name)


# -- text -> parts, and back ------------------------------------------------------------------------------------------


def quote(value: str) -> str:
    """Writes a value so that it can stand after ``key=`` wherever the part stands in the spec.

    Args:
        value: any text.

    Returns:
        The value itself where that is safe, else in quotes.
    """
    if value and "//" not in value and value[0] not in "\"'" and value[-1] != "/":
        return value
    mark = "'" if '"' in value and "'" not in value else '"'
    return mark + value.replace(mark, mark * 2) + mark


def format_spec(keys: Mapping[str, object]) -> str:
    """Makes the text of a spec.

    Args:
        keys: key -> value. True is a bare key; None and False leave the key out; ``env`` is a mapping of its own.

    Returns:
        The text, in the order of the mapping. Whether it makes sense is for ``XSpec`` to say.

    Raises:
        SpecError: a key cannot be written.
        TypeError: a value is not text, a number, a path or a bool.
    """
    from os import PathLike, fspath

    parts = []
    for key, value in _flat(keys):
        if not key or "=" in key or "/" in key:
            raise SpecError(f"{key!r} cannot be a key in a spec")
        if value is None or value is False:
            continue
        if value is True:
            parts.append(key)
            continue
        if isinstance(value, PathLike):
            value = fspath(value)
        if not isinstance(value, (str, int, float)):
            raise TypeError(f"{key}: a spec holds text, numbers and paths, not {type(value).__name__}")
        parts.append(f"{key}={quote(str(value))}")
    return "//".join(parts)


def _flat(keys: Mapping[str, object]) -> Iterable[tuple[str, object]]:
    for key, value in keys.items():
        if key != "env":
            yield key, value
        elif value is not None:
            items = getattr(value, "items", None)
            if items is None:
                raise TypeError(f"env must be a mapping of names to values, not {type(value).__name__}")
            for name, content in items():
                yield f"env:{name}", content


def _split(spec: str, strict: bool) -> list[tuple[str, str | None]]:
    """Cuts a spec into keys and values (None for a bare key). What the keys mean is not looked at."""
    parts: list[tuple[str, str | None]] = []
    start = 0
    while True:
        end = spec.find("//", start)
        if end < 0:
            end = len(spec)
        equals = spec.find("=", start, end)
        key = spec[start : end if equals < 0 else equals]
        value = None
        if equals >= 0:
            value = spec[equals + 1 : end]
            if value[:1] in ('"', "'"):
                try:
                    value, end = _unquote(spec, equals + 1)
                except ValueError as why:
                    if strict:
                        raise SpecError(f"the value of {key!r} {why}") from None
        if not key:
            raise SpecError(_why_empty(spec, parts, start, end))
        parts.append((key, value))
        if end == len(spec):
            return parts
        start = end + 2


def _unquote(spec: str, start: int) -> tuple[str, int]:
    mark = spec[start]
    value = ""
    end = start
    while True:
        begin, end = end + 1, spec.find(mark, end + 1)
        if end < 0:
            raise ValueError(
                f"starts with {mark} but does not end with it; if the {mark} belongs to it, put it in quotes"
            )
        value += spec[begin:end]
        end += 1
        if spec[end : end + 1] != mark:
            break
        value += mark
    if end < len(spec) and not spec.startswith("//", end):
        raise ValueError(f"goes on after its closing {mark}; put quotes around the whole of it")
    return value, end


def _why_empty(spec: str, parts: list[tuple[str, str | None]], start: int, end: int) -> str:
    if not spec:
        return "the spec is empty; the simplest one is 'popen'"
    if start < end:
        return f"there is a value without a key in spec {_shown(parts)!r}"
    where = "starts with" if not parts else "ends with" if end == len(spec) else "has nothing between two"
    reason = f"a spec {where} '//'"
    return f"{reason}, after {_shown(parts)!r}{_cut(parts)}" if parts else reason


def _cut(parts: list[tuple[str, str | None]]) -> str:
    """A hint for after the last of these parts, if a '//' that was meant to be in its value may have ended it."""
    if not parts or parts[-1][1] is None:
        return ""
    return f'; a value with // in it must be in quotes: {parts[-1][0]}="..."'


def _shown(parts: list[tuple[str, str | None]]) -> str:
    """The spec again, fit for a message: values of secret keys are not in it."""
    shown = []
    hidden = False
    for key, value in parts:
        row = KEYS.get("env" if key.startswith("env:") else key)
        if hidden and row is None:
            shown.append("...")  # most likely the rest of a secret with // in it
            continue
        hidden = row is not None and row.secret and value is not None
        shown.append(key if value is None else f"{key}={'...' if hidden else quote(value)}")
    return "//".join(shown)


def _nearest(name: str, names: Iterable[str]) -> str:
    from difflib import get_close_matches

    found = get_close_matches(name.lower(), list(names), n=1)
    return f", did you mean {found[0]!r}?" if found else ""


def _no_spec(value: object) -> TypeError:
    return TypeError(f"a spec is a str or an XSpec, not {type(value).__name__}")


# -- the spec ---------------------------------------------------------------------------------------------------------


class XSpec:
    """How to reach a worker and how to configure it.

    There is an attribute for every key in ``KEYS``; it is None where the spec does not have that key, and may be
    assigned, which leaves the text as it is. Two specs are equal if their texts are.

    Attributes:
        env: the environment variables to set; ``{}`` if none.
    """

    popen: bool | None
    ssh: str | None
    socket: str | None
    cmd: str | None
    via: str | None
    python: str | None
    chdir: str | None
    nice: int | None
    id: str | None
    execmodel: str | None
    ssh_config: str | None
    stdio: str | None
    dont_write_bytecode: bool | None
    heartbeat: float | None
    window: int | None
    secret_file: str | None
    tls: bool | None
    tls_ca: str | None
    tls_name: str | None
    env: dict[str, str]
    _text: str
    _strict: bool

    def __init__(self, spec: str | XSpec, *, strict: bool = True) -> None:
        """Reads a spec.

        Args:
            spec: the text, or a spec to copy together with what was assigned to it.
            strict: False keeps unknown keys as attributes, takes every attribute that is missing for None, lets a bare
                key stand for True, and leaves it to others which keys go together; for old programs.

        Raises:
            SpecError: the text is not a spec.
            TypeError: ``spec`` is neither text nor a spec.
        """
        if isinstance(spec, XSpec):
            self.__dict__.update(spec.__dict__)
            self.env = dict(spec.env)
            return
        if not isinstance(spec, str):
            raise _no_spec(spec)
        self.__dict__.update(_text=spec, _strict=strict, env={})
        parts = _split(spec, strict)
        seen = set()
        for place, (key, value) in enumerate(parts):
            if key in seen:
                raise self._wrong(parts, f"{key!r} is given twice")
            seen.add(key)
            self._take(parts, place, key, value)
        if strict:
            self._check(parts)

    def _take(self, parts: list[tuple[str, str | None]], place: int, key: str, value: str | None) -> None:
        """Stores one part."""
        if value is not None and "\0" in value:
            raise self._wrong(parts, f"the value of {key!r} has a null character in it")
        if key.startswith("env:") or key == "env":
            name = key[4:]
            if not name or "\0" in name or value is None:
                raise self._wrong(parts, f"{key!r} must be written env:NAME=value")
            self.env[name] = value
            return
        if key.startswith("_"):
            raise self._wrong(parts, f"{key!r} cannot be a key: it starts with an underscore")
        row = _find_key(key)
        if row is None:
            if self._strict or hasattr(type(self), key):
                raise self._unknown(parts, place)
            self.__dict__[key] = True if value is None else value
            return
        try:
            self.__dict__[key] = row.parse(value)
        except ValueError as why:
            if self._strict or value is not None:
                raise self._wrong(parts, f"{key!r} {why}") from None
            self.__dict__[key] = True

    def _check(self, parts: list[tuple[str, str | None]]) -> None:
        """Whether the keys go together."""
        ways = [row.name for row in KEYS.values() if row.transport and self.__dict__.get(row.name)]
        if len(ways) > 1:
            raise self._wrong(parts, f"there is more than one way to reach a worker: {' and '.join(ways)}")
        transport = self.transport
        if not transport:
            known = [row.name if row.parse is flag else f"{row.name}=..." for row in KEYS.values() if row.transport]
            raise self._wrong(parts, f"it says no way to reach a worker; add one of {', '.join(known)}")
        for name in self.__dict__:
            row = KEYS.get(name)
            if row is None or row.transports is None or name in KEYS[transport].accepts:
                continue
            if transport not in row.transports:
                others = ", ".join(row.transports)
                raise self._wrong(parts, f"{name!r} means nothing for {transport}, only for {others}")

    def _unknown(self, parts: list[tuple[str, str | None]], place: int) -> SpecError:
        key, before = parts[place][0], parts[:place]
        count, star, _ = key.partition("*")
        if star and count.strip().isdecimal():
            return self._wrong(parts, f"the count {count.strip()!r} makes it several specs; here one is wanted")
        last = before[-1][1] if before else None
        cut = last is not None and (last.endswith(":") or key.startswith("/"))
        near = "" if cut else _nearest(key, KEYS)
        if before and _shown(before).endswith("=...") and not near:
            return self._wrong(parts, f"unknown key after {before[-1][0]!r}{_cut(before)}")  # may be part of a secret
        return self._wrong(parts, f"unknown key {key!r}{near or _cut(before)}")

    def _wrong(self, parts: list[tuple[str, str | None]], reason: str) -> SpecError:
        return SpecError(f"spec {_shown(parts)!r}: {reason}")

    @classmethod
    def build(cls, **keys: object) -> XSpec:
        """Makes a spec from keys and values, with quotes where they are needed.

        Args:
            keys: as for ``format_spec``.

        Returns:
            The spec.

        Raises:
            SpecError: the keys do not make a spec.
            TypeError: a value is not text, a number, a path or a bool.
        """
        return cls(format_spec(keys))

    @property
    def transport(self) -> str:
        """The key that says how the worker is reached; ``""`` only for a spec that is not strict and has none."""
        for row in KEYS.values():
            if row.transport and self.__dict__.get(row.name):
                return row.name
        return "popen" if self.__dict__.get("via") else ""

    @property
    def shown(self) -> str:
        """The text without the values of secret keys: for messages and logs."""
        return _shown(_split(self._text, self._strict))

    def copy(self) -> XSpec:
        """A spec of its own with the same text and attributes."""
        return type(self)(self)

    __copy__ = copy

    def __getattr__(self, name: str) -> Any:
        # Only for what is not stored. Private names come first: pickle asks for some before there is any state.
        if name.startswith("_") or (name not in KEYS and self._strict):
            near = "" if name.startswith("_") else _nearest(name, KEYS)
            raise AttributeError(f"a spec has no {name!r}{near}")
        return None

    def __setattr__(self, name: str, value: object) -> None:
        if name not in KEYS and self._strict:
            raise AttributeError(f"a spec has no {name!r}{_nearest(name, KEYS)}")
        object.__setattr__(self, name, value)

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"<XSpec {self._text!r}>"

    def __eq__(self, other: object) -> bool:
        return self._text == other._text if isinstance(other, XSpec) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._text)


def expand(specs: Iterable[str | XSpec] | str | XSpec, *, strict: bool = True) -> list[XSpec]:
    """Reads several specs, of which those with a count (``3*popen``) stand for as many.

    Args:
        specs: texts and specs; a single one will do.
        strict: as for ``XSpec``.

    Returns:
        A spec for each gateway to be made. A spec that was given is in it as it is, not as a copy.

    Raises:
        SpecError: a text is not a spec, a count is below 1, or several gateways would have one id.
        TypeError: one is neither text nor a spec.
    """
    several: Iterable[str | XSpec] = [specs] if isinstance(specs, (str, XSpec)) else specs
    result: list[XSpec] = []
    for spec in several:
        if isinstance(spec, XSpec):
            result.append(spec)
            continue
        count, rest = _counted(spec)
        first = XSpec(rest, strict=strict)
        if count > 1 and first.id is not None:
            raise SpecError(f"spec {first.shown!r}: {count} gateways cannot all have the id {first.id!r}")
        result.append(first)
        result.extend(first.copy() for _ in range(count - 1))
    return result


def _counted(spec: str) -> tuple[int, str]:
    if not isinstance(spec, str):
        raise _no_spec(spec)
    digits, star, rest = spec.partition("*")
    digits = digits.strip()
    if not star or not digits.lstrip("+-").isdecimal():
        return 1, spec  # a star in some value
    try:
        count = int(digits)
    except ValueError:  # "--3", or thousands of digits
        count = 0
    if count < 1:
        raise SpecError(f"{digits[:20]!r} cannot be the count of gateways; it must be 1 or more")
    return count, rest.strip()
