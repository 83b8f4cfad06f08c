"""Runs every fuzzer of this folder, each in a process of its own, with the same options.

python tests/fuzz/run.py --count 1000000 --seed 1
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

FOLDER = Path(__file__).parent


def main() -> int:
    parser = argparse.ArgumentParser(description="Run every fuzzer.")
    parser.add_argument("--count", type=int, default=100_000, help="inputs for each (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="default: the time, which is printed")
    options = parser.parse_args()
    failed = []
    for script in sorted(FOLDER.glob("fuzz_*.py")):
        print(f"== {script.stem}, seed {options.seed}", flush=True)
        argv = [sys.executable, str(script), "--count", str(options.count), "--seed", str(options.seed)]
        if subprocess.run(argv, check=False).returncode:
            failed.append(script.stem)
    print("failed: " + ", ".join(failed) if failed else "all passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
