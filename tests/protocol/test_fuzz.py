"""A small number of fuzzed inputs with every test run; ``make fuzz`` does a million of each."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "fuzz"
COUNT = 3000


@pytest.mark.parametrize("script", sorted(path.stem for path in FOLDER.glob("fuzz_*.py")))
def test_some_inputs(script: str) -> None:
    """New ones each time; a failure says which one it was, and how to repeat it."""
    seed = random.SystemRandom().randrange(1 << 20)
    argv = [sys.executable, str(FOLDER / f"{script}.py"), "--count", str(COUNT), "--seed", str(seed)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert f"{COUNT} inputs" in done.stdout


FAULTS = {
    "another error": ("c._HANDLERS[c.PING] = lambda *args: 1 / 0", "ZeroDivisionError"),
    "nothing is refused": ("c._overrun = lambda channel: None", "TypeError"),
    "a hang": ("c._HANDLERS[c.PING] = lambda *args: [0 for _ in iter(int, 1) if _]; f.SECONDS = 0.2", "Hang"),
    "no credit": ("c.Connection._on_abort = c._HANDLERS[c.ABORT] = lambda self, *args: None", "Broken"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failure_is_told(fault: str) -> None:
    """The fuzzer notices when the connection breaks its promise, and says which input it was."""
    code, error = FAULTS[fault]
    program = f"""
import sys
sys.path.insert(0, {str(FOLDER)!r})
import fuzz_connection as f
from farwire.protocol import connection as c
{code}
sys.argv[1:] = ["--count", "20000"]
sys.exit(f.main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 1
    assert error in done.stderr
    assert "--only" in done.stdout
