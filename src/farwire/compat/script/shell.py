"""``shell HOST:PORT``: what is ``farwire shell`` now; any spec will do."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

from ...cli import shell

if TYPE_CHECKING:
    from collections.abc import Sequence


def as_spec(address: str, secret_file: str | None = None) -> str:
    """``host:port`` as a spec; a spec as it is."""
    spec = f"socket={address}" if re.fullmatch(r"[^=/]*:\d+", address) else address
    return spec if secret_file is None else f"{spec}//secret_file={secret_file}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the shell; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return shell.run([as_spec(argument) if not argument.startswith("-") else argument for argument in arguments])


if __name__ == "__main__":
    sys.exit(main())
