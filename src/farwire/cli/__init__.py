"""``python -m farwire COMMAND ...``: one module of this package for each command, one row for each here."""

from __future__ import annotations

import argparse
import importlib
import sys
from typing import TYPE_CHECKING

from .. import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

# Name -> one line of help. The module of that name has ``run(argv) -> exit status`` and is imported only to run it.
COMMANDS: dict[str, str] = {
    "serve": "start Python interpreters for clients that know a secret (a remote shell)",
    "shell": "type Python statements that a worker runs",
    "trace": "show in words what FARWIRE_TRACE recorded",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: the command and its arguments; None for those of the process.

    Returns:
        The exit status. Wrong usage raises SystemExit(2), as argparse does it.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="farwire",
        description="Run Python on any machine you can reach, with nothing installed there.",
        epilog="commands:\n" + "\n".join(f"  {name:<10} {text}" for name, text in COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"farwire {__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of those below")
    if not arguments:
        parser.print_help(sys.stderr)
        return 2
    # Only the first argument is for this parser: the others, --help too, belong to the command.
    command: str = parser.parse_args(arguments[:1]).command
    module = importlib.import_module(f".{command}", __name__)
    status: int = module.run(arguments[1:])
    return status
