"""``farwire.compat.install()``: ``import execnet`` means farwire, in the controller and in workers, and the real one is not in the way."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SHIM = Path(__file__).parents[2] / "packaging" / "execnet-shim"


def run(code: str, *path: Path) -> subprocess.CompletedProcess[str]:
    env = dict(os.environ)
    env["PYTHONPATH"] = os.pathsep.join([*map(str, path), *filter(None, [env.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60, env=env
    )


def fake_execnet(folder: Path) -> Path:
    """Stands for the real one, installed or not."""
    (folder / "execnet").mkdir()
    (folder / "execnet" / "__init__.py").write_text("real = True\n")
    (folder / "execnet" / "xspec.py").write_text("real = True\n")
    return folder


def test_it_goes_before_the_real_one(tmp_path: Path) -> None:
    code = """
import sys
import farwire.compat
farwire.compat.install()
farwire.compat.install()
import execnet
import execnet.multi, execnet.xspec
from execnet.gateway_base import Channel
assert execnet is farwire.compat
assert execnet.multi is sys.modules["farwire.compat.multi"] is sys.modules["execnet.multi"]
assert execnet.multi.__spec__.name == "farwire.compat.multi"
assert execnet.Channel is Channel
try:
    import execnet.no_such_module
except ModuleNotFoundError:
    pass
gateway = execnet.makegateway()
channel = gateway.remote_exec('''
import execnet, execnet.xspec
channel.send((execnet.__name__, hasattr(execnet.xspec, "real")))
''')
print(channel.receive())
gateway.exit()
"""
    done = run(code, fake_execnet(tmp_path))
    assert (done.stdout, done.stderr) == ("('farwire.compat', False)\n", "")


def test_it_comes_too_late(tmp_path: Path) -> None:
    done = run("import execnet, farwire.compat; farwire.compat.install()", fake_execnet(tmp_path))
    assert done.returncode == 1
    assert "ImportError: execnet is imported already, from" in done.stderr
    assert "-p farwire.pytest_plugin" in done.stderr


def test_the_distribution_of_execnets_name() -> None:
    """What the shim installs is this package, and an entry point of pytest."""
    code = """
import execnet.gateway_base, execnet, sys, farwire.compat
assert execnet is farwire.compat and execnet.gateway_base is farwire.compat.gateway_base
gateway = execnet.makegateway()
print(gateway.remote_exec("import execnet; channel.send(execnet.__name__)").receive())
gateway.exit()
"""
    done = run(code, SHIM)
    assert (done.stdout, done.stderr) == ("farwire.compat\n", "")


def test_a_program_written_for_execnet(tmp_path: Path) -> None:
    """Worker code that imports execnet, submodules first, over the interpreter's own path."""
    (tmp_path / "helper.py").write_text("import execnet.gateway_base\nVALUE = execnet.dumps(1)\n")
    code = f"""
import os
os.chdir({str(tmp_path)!r})
import farwire.compat; farwire.compat.install()
import execnet
channel = execnet.makegateway().remote_exec("import helper; channel.send(helper.VALUE)")
print(channel.receive() == execnet.dumps(1))
"""
    done = run(code)
    assert (done.stdout, done.stderr) == ("True\n", "")
