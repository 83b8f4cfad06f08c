"""The bundle: what is in it, that every Python can run it, what it costs, and where it may be read from."""

from __future__ import annotations

import ast
import glob
import marshal
import os
import shutil
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from farwire.bootstrap import bundle
from farwire.bootstrap.blank import blank

PACKAGE = Path(bundle.__file__).parents[1]
FILES = {
    ".".join(file.relative_to(PACKAGE).with_suffix("").parts).replace(".__init__", ""): file
    for package in bundle.SHIPPED
    for file in (PACKAGE / package).rglob("*.py")
}
# Every worker waits for these bytes. The number is there so that something large does
# not slip in unnoticed.
BUDGET = 22_800


def interpreters() -> dict[str, tuple[int, ...]]:
    """One of every Python 3 here, of those of pyenv and those on the path by their number: its path and version."""
    found = glob.glob(os.path.expanduser("~/.pyenv/versions/3.*/bin/python"))
    found += [path for minor in range(6, 20) if (path := shutil.which(f"python3.{minor}"))]
    versions: dict[str, tuple[int, ...]] = {}
    for path in [sys.executable, *found]:
        code = "import sys; print(*sys.version_info[:2])"
        # The shims of pyenv are there for Pythons that are not chosen, too, and fail.
        asked = subprocess.run([path, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
        version = tuple(map(int, asked.stdout.split()))
        if not asked.returncode and version not in versions.values():
            versions[path] = version
    return versions


def run(python: str, code: str, data: bytes = b"", **environ: str) -> bytes:
    """The output of a fresh interpreter; warnings are errors."""
    environ = {**os.environ, **environ}
    return subprocess.run(
        [python, "-W", "error", "-c", code], input=data, stdout=subprocess.PIPE, env=environ, check=True, timeout=50
    ).stdout


def unpacked(data: bytes) -> dict[str, tuple[bool, str]]:
    content: dict[str, tuple[bool, str]] = marshal.loads(zlib.decompress(data))
    return content


PYTHONS = interpreters()


# -- source --------------------------------------------------------------------------------------------------------------


def test_every_shipped_file_is_there() -> None:
    content = {**unpacked(bundle.source_bundle()), **unpacked(bundle.later_bundle())}
    assert content.pop("") == (True, "")
    assert set(content) == set(FILES) - {bundle.TRACE}
    content.update(unpacked(bundle.source_bundle(trace=True)))
    assert content.pop("") == (True, "")
    assert set(content) == set(FILES)
    for name, (is_package, source) in content.items():
        assert is_package == (FILES[name].name == "__init__.py")
        text = FILES[name].read_text("utf-8")
        blanked = blank(text, comments=True, docstrings=True, annotations=True)
        assert source.count("\n") == text.count("\n")
        assert ast.dump(ast.parse(source)) == ast.dump(ast.parse(blanked))
        lines = [node.lineno for node in ast.walk(ast.parse(source)) if isinstance(node, ast.expr)]
        assert lines == [node.lineno for node in ast.walk(ast.parse(blanked)) if isinstance(node, ast.expr)]


def test_modules_for_later_are_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "LATER", frozenset(["protocol.errors"]))
    monkeypatch.setattr(bundle, "_made", {})
    assert "protocol.errors" not in unpacked(bundle.source_bundle())
    assert set(unpacked(bundle.later_bundle())) == {"protocol.errors"}


@pytest.mark.parametrize("python", PYTHONS, ids=["%d.%d" % version for version in PYTHONS.values()])
def test_every_python_compiles_it(python: str) -> None:
    code = (
        "import marshal, sys, zlib\n"
        "for name, (package, source) in marshal.loads(zlib.decompress(sys.stdin.buffer.read())).items():\n"
        "    compile(source, name, 'exec', dont_inherit=True)\n"
        "    print(name)\n"
    )
    names = run(python, code, bundle.source_bundle()).decode().splitlines()
    assert names == list(unpacked(bundle.source_bundle()))


def test_size() -> None:
    size = len(bundle.source_bundle())
    lines = sum(source.count("\n") for _, source in unpacked(bundle.source_bundle()).values())
    print(f"source bundle: {size} bytes for {lines} lines; code bundle: {len(bundle.code_bundle())} bytes")
    assert size <= BUDGET


def test_shipped_code_does_not_need_what_is_blanked() -> None:
    # These read annotations or docstrings while they run.
    for name, file in FILES.items():
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            word = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
            assert word not in ("__doc__", "__annotations__", "NamedTuple", "TypedDict", "dataclass"), (name, word)


# -- code ----------------------------------------------------------------------------------------------------------------


def test_code_bundle() -> None:
    content = marshal.loads(bundle.code_bundle())
    assert set(content) == {"", *FILES} - {bundle.TRACE}
    for name, (is_package, code, path) in content.items():
        if name:
            assert is_package == (FILES[name].name == "__init__.py")
            assert Path(path) == Path(marshal.loads(code).co_filename) == FILES[name]
    namespace: dict[str, object] = {"__name__": "elsewhere.protocol.frames", "__package__": "elsewhere.protocol"}
    exec(marshal.loads(content["protocol.frames"][1]), namespace)
    assert "HEADER" in namespace
    exec(marshal.loads(content[""][1]), {})


def test_tag() -> None:
    code = "import farwire.bootstrap.bundle as b; print(b.tag())"
    able = [python for python, version in PYTHONS.items() if version >= (3, 10)]
    tags = [run(python, code, PYTHONPATH=str(PACKAGE.parent)) for python in able]
    assert len(set(tags)) == len(able)
    assert bundle.tag().startswith(f"{sys.implementation.cache_tag}-")
    # What the worker works out for itself has to give the same.
    worker = (
        "import sys, _frozen_importlib_external as e; print(sys.implementation.cache_tag + '-' + e.MAGIC_NUMBER.hex())"
    )
    assert run(sys.executable, worker).decode().strip() == bundle.tag()


# -- where it comes from -------------------------------------------------------------------------------------------------

DIGEST = (
    "import sys, zlib, marshal, farwire.bootstrap.bundle as b\n"
    "assert 'farwire.worker' not in sys.modules\n"
    "source, code = b.source_bundle(), marshal.loads(b.code_bundle())\n"
    "assert 'farwire.worker' not in sys.modules\n"
    "print(zlib.crc32(source), *sorted(code))\n"
    "print(b.__file__)\n"
)


def here() -> str:
    return f"{zlib.crc32(bundle.source_bundle())} {' '.join(sorted({'', *FILES} - {bundle.TRACE}))}"


def test_the_worker_is_not_imported() -> None:
    assert run(sys.executable, DIGEST, PYTHONPATH=str(PACKAGE.parent)).decode().splitlines()[0] == here()


def copy(target: Path) -> None:
    """The files that the bundle takes, as a package of their own at ``target``."""
    for package in ("bootstrap", *bundle.SHIPPED):
        shutil.copytree(PACKAGE / package, target / package, ignore=shutil.ignore_patterns("__pycache__"))
    (target / "__init__.py").touch()


def test_from_a_zip_file(tmp_path: Path) -> None:
    copy(tmp_path / "farwire")
    archive = shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path, "farwire")
    digest, origin = run(sys.executable, DIGEST, PYTHONPATH=archive).decode().splitlines()
    assert origin.startswith(archive)
    assert digest == here()


def test_under_another_name(tmp_path: Path) -> None:
    copy(tmp_path / "vendor" / "wires")
    code = "import zlib, vendor.wires.bootstrap.bundle as b; print(zlib.crc32(b.source_bundle()))"
    assert int(run(sys.executable, code, PYTHONPATH=str(tmp_path))) == zlib.crc32(bundle.source_bundle())


def test_without_source(tmp_path: Path) -> None:
    copy(tmp_path / "farwire")
    code = (
        "import compileall, os, farwire.bootstrap.bundle as b\n"
        "path = os.path.join(os.environ['PYTHONPATH'], 'farwire', 'protocol')\n"
        "compileall.compile_dir(path, quiet=2, legacy=True)\n"
        "os.remove(os.path.join(path, 'errors.py'))\n"
        "b.code_bundle()\n"
        "try: b.source_bundle()\n"
        "except ImportError as error: print(error, error.name)\n"
    )
    printed = run(sys.executable, code, PYTHONPATH=str(tmp_path)).decode().strip()
    assert printed == "no source of farwire.protocol.errors, which workers need farwire.protocol.errors"


def test_without_a_package(tmp_path: Path) -> None:
    copy(tmp_path / "farwire")
    shutil.rmtree(tmp_path / "farwire" / "worker")
    code = "import farwire.bootstrap.bundle as b\ntry: b.source_bundle()\nexcept ImportError as error: print(error)\n"
    printed = run(sys.executable, code, PYTHONPATH=str(tmp_path)).decode().strip()
    assert printed == "no farwire.worker, which workers need"


# -- once ----------------------------------------------------------------------------------------------------------------


def test_made_once_for_all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "_made", {})
    packed: list[bool] = []
    pack = bundle._pack

    def counting(wanted: Callable[[str], bool]) -> bytes:
        packed.append(wanted(bundle.TRACE))
        return pack(wanted)

    monkeypatch.setattr(bundle, "_pack", counting)
    results: list[bytes] = []
    threads = [threading.Thread(target=lambda: results.append(bundle.source_bundle())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert packed == [False]
    assert all(result is results[0] for result in results)


def test_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(make: Callable[[], bytes]) -> float:
        monkeypatch.setattr(bundle, "_made", {})
        start = time.process_time()
        make()
        return time.process_time() - start

    source = min(measure(bundle.source_bundle) for _ in range(3))
    code = min(measure(bundle.code_bundle) for _ in range(3))
    print(f"source bundle: {source * 1000:.0f} ms; code bundle: {code * 1000:.0f} ms")
    assert source < 2  # on a machine ten times slower than ours, too
