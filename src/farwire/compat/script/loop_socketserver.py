"""``loop_socketserver [HOST:PORT]``: the same as ``socketserver``, which goes on by itself after each client."""

from __future__ import annotations

import sys

from .socketserver import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
