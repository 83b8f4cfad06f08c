"""``socketserver [HOST:PORT]``: what is ``farwire serve`` now.

execnet's listened on all interfaces and ran what anybody sent. This one takes the same argument, needs a secret
(``FARWIRE_SECRET`` or ``--secret-file``), and stays on loopback unless there is a TLS certificate.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from ... import serve

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the server; returns its exit status. All options of ``farwire serve`` are taken."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for index, argument in enumerate(arguments):
        if argument.startswith(":") and argument[1:].isdigit():
            arguments[index] = "127.0.0.1" + argument
            print(
                f"socketserver: {argument} is {arguments[index]} here; for other machines give an address, and --tls-cert",
                file=sys.stderr,
            )
    return serve.main(arguments, "socketserver")


if __name__ == "__main__":
    sys.exit(main())
