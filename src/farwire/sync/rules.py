"""What a sync leaves out: patterns in the manner of ``.gitignore``.

    *.pyc        a name, in any directory          build/       a directory only
    /NOTES       in the root only                  docs/*.html  with a slash inside: from the root
    a/**/b       any directories between           !keep.pyc    not left out after all

The last pattern that fits decides; what is in a directory that is left out is left out too. Empty lines and lines that
begin with ``#`` are nothing; ``\\#`` and ``\\!`` are the characters themselves.
"""

from __future__ import annotations

import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


class Rules:
    """Compiled patterns.

    Args:
        patterns: one pattern each.

    Raises:
        ValueError: a set of characters, ``[a-z]``, has no end or is not in order.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        rules = []  # (keeps, for directories only, matches the path)
        for pattern in patterns:
            text = pattern.rstrip("\r\n")
            if not text.endswith("\\ "):
                text = text.rstrip(" ")
            if not text or text.startswith("#"):
                continue
            keeps = text.startswith("!")
            if keeps:
                text = text[1:]
            directory = text.endswith("/")
            text = text.rstrip("/")
            if text:
                try:
                    match = re.compile(_expression(text), re.DOTALL).match
                except re.error as error:
                    raise ValueError("pattern %r: %s" % (pattern, error)) from None
                rules.append((keeps, directory, match))
        self._rules = rules[::-1]

    def __bool__(self) -> bool:
        return bool(self._rules)

    def excludes(self, path: str, directory: bool) -> bool:
        """Whether a path, relative to the root, is left out. The directories on its way are not looked at."""
        for keeps, only_directories, match in self._rules:
            if (directory or not only_directories) and match(path):
                return not keeps
        return False


def _expression(text: str) -> str:
    anchored = "/" in text
    text = text.lstrip("/")
    out = "" if anchored else "(?:.*/)?"
    at = 0
    while at < len(text):
        char = text[at]
        if text.startswith("**/", at) and (not at or text[at - 1] == "/"):
            out += "(?:.*/)?"
            at += 3
        elif text[at:] == "**" and (not at or text[at - 1] == "/"):
            out += ".+"
            at += 2
        elif char == "*":
            out += "[^/]*"
            at += 1
        elif char == "?":
            out += "[^/]"
            at += 1
        elif char == "[":
            end = text.find("]", at + (3 if text[at + 1 : at + 2] in ("!", "^") else 2))
            if end < 0:
                raise ValueError("pattern %r: the set that begins with '[' has no end" % text)
            inside = text[at + 1 : end]
            negated = inside[:1] in ("!", "^")
            inside = inside[negated:].replace("\\", "\\\\").replace("[", "\\[").replace("^", "\\^")
            if inside.startswith("]"):
                inside = "\\" + inside
            out += "(?!/)[%s%s]" % ("^" if negated else "", inside)
            at = end + 1
        else:
            if char == "\\" and at + 1 < len(text):
                at += 1
                char = text[at]
            out += re.escape(char)
            at += 1
    return out + r"\Z"
