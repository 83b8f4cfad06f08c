"""The same as ``python -m benchmarks``, for those who start files."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from benchmarks.__main__ import main

    sys.exit(main())
