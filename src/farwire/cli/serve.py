"""``farwire serve``: run the socket server, or print it to be run elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import serve

if TYPE_CHECKING:
    from collections.abc import Sequence


def run(argv: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    return serve.main(argv, "farwire serve")
