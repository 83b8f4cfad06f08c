"""Directory trees for the tests of file sync: made of random values, compared, and cut."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path
from typing import Any

PREFIX = ".farwire-sync-"


def snapshot(root: str | os.PathLike[str], *, times: bool = True, modes: bool = True) -> dict[bytes, Any]:
    """All that a sync brings over: path -> what is there, with names of one file told apart from copies."""
    top = os.fsencode(root)
    found: dict[bytes, Any] = {}
    first: dict[tuple[int, int], bytes] = {}

    def look(path: bytes) -> None:
        full = os.path.join(top, path) if path else top
        st = os.lstat(full)
        mode = stat.S_IMODE(st.st_mode) if modes else 0
        mtime = st.st_mtime_ns if times else 0
        if stat.S_ISDIR(st.st_mode):
            found[path] = ("directory", mode, mtime)
            for name in sorted(os.listdir(full)):
                look(os.path.join(path, name))
        elif stat.S_ISLNK(st.st_mode):
            found[path] = ("link", os.readlink(full).replace(top, b"ROOT"), mtime)
        elif stat.S_ISREG(st.st_mode):
            with open(full, "rb") as file:
                data = file.read()
            same_as = first.setdefault((st.st_dev, st.st_ino), path) if st.st_nlink > 1 else path
            found[path] = ("file", mode, mtime, len(data), data, b"" if same_as == path else same_as)
        else:
            found[path] = ("special",)

    look(b"")
    return found


def differences(a: dict[bytes, Any], b: dict[bytes, Any]) -> list[str]:
    """What a reader of a failed test wants to see, without megabytes."""
    return [
        f"{path!r}: {str(a.get(path))[:150]} is not {str(b.get(path))[:150]}"
        for path in sorted(a.keys() | b.keys())
        if a.get(path) != b.get(path)
    ]


def assert_same(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    found = differences(snapshot(source), snapshot(target))
    assert not found, "\n".join(found[:20])


def leftovers(root: str | os.PathLike[str]) -> list[str]:
    """What a sync has left in a tree of its own things."""
    return [
        os.path.join(folder, name)
        for folder, folders, files in os.walk(root)
        for name in folders + files
        if name.startswith(PREFIX)
    ]


def write(path: Path, data: str | bytes, *, mtime: int | None = None, mode: int | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    if mode is not None:
        path.chmod(mode)
    if mtime is not None:
        os.utime(path, ns=(mtime, mtime))
    return path


def remove_tree(path: str | os.PathLike[str]) -> None:
    shutil.rmtree(os.fsencode(path), ignore_errors=True)
