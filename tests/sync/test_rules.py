"""Patterns of what is left out, against what git makes of them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from farwire import Gateway
from farwire.rsync import pull, push
from farwire.sync.rules import Rules
from trees import assert_same, write

PATTERNS = """\
# a comment
*.pyc
/top
build/
docs/*.html
a/**/z
**/deep/x
logs/**
!keep.pyc
\\#sharp
\\!bang
[a-c]?.txt
[!0-9]1
sp ace
trailing{spaces}
end\\\\
?
*.[oa]
""".replace("{spaces}", "   ").splitlines()

PATHS = [
    "x.pyc",
    "sub/x.pyc",
    "keep.pyc",
    "sub/keep.pyc",
    "top",
    "sub/top",
    "build/f",
    "sub/build/f",
    "docs/i.html",
    "docs/sub/i.html",
    "a/z",
    "a/b/z",
    "a/b/c/z",
    "sub/a/z",
    "deep/x",
    "q/deep/x",
    "q/w/deep/xx",
    "logs/f",
    "logs/g/h",
    "sub/logs/f",
    "#sharp",
    "!bang",
    "ab.txt",
    "dz.txt",
    "a.txt",
    "b1",
    "01",
    "x1",
    "trailing",
    "n",
    "name.o",
    "lib.a",
    "lib.so",
]


@pytest.mark.skipif(shutil.which("git") is None, reason="no git here")
def test_as_git_does(tmp_path: Path) -> None:
    def git(*arguments: str, text: str = "") -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=tmp_path, input=text, capture_output=True, text=True, timeout=30, check=False
        )
        assert done.returncode in (0, 1), done.stderr
        return done.stdout

    git("init", "-q")
    (tmp_path / ".gitignore").write_text("\n".join(PATTERNS) + "\n")
    for path in [*PATHS, "sp ace", "end\\"]:
        write(tmp_path / path, "")
    ignored = set(
        git("check-ignore", "--no-index", "--stdin", "-z", text="\0".join([*PATHS, "sp ace", "end\\"])).split("\0")
    )
    rules = Rules(PATTERNS)

    def excluded(path: str) -> bool:
        parts = path.split("/")
        return any(rules.excludes("/".join(parts[:depth]), depth < len(parts)) for depth in range(1, len(parts) + 1))

    wrong = [path for path in [*PATHS, "sp ace", "end\\"] if excluded(path) != (path in ignored)]
    assert not wrong, f"git ignores {sorted(set(wrong) & ignored)} and does not ignore {sorted(set(wrong) - ignored)}"


def test_nothing() -> None:
    assert not Rules(["", "  ", "# comment"])
    assert not Rules([]).excludes("a", False)


@pytest.mark.parametrize("pattern", ["[a", "[z-a]"])
def test_wrong_patterns(pattern: str, gw: Gateway, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pattern"):
        Rules([pattern])
    with pytest.raises(ValueError, match="pattern"):
        push(gw, tmp_path, tmp_path / "target", exclude=[pattern])


@pytest.mark.parametrize("sync", [push, pull])
def test_what_is_left_out_is_neither_sent_nor_deleted(tmp_path: Path, gw: Gateway, sync: object) -> None:
    for root in ("source", "wanted"):
        write(tmp_path / root / "a.py", "a", mtime=10**18)
        write(tmp_path / root / "sub" / "b.py", "b", mtime=10**18)
    for path in ("a.pyc", "sub/b.pyc", "build/x"):
        write(tmp_path / "source" / path, "source")
    for path in ("old.pyc", "sub/old.pyc", "build/y", "gone/old.pyc"):
        for root in ("target", "wanted"):
            write(tmp_path / root / path, "target", mtime=10**18)
    for path in ("gone/other", "other"):
        write(tmp_path / "target" / path, "target")
    for folder in ("", "sub"):
        for root in ("wanted", "source"):
            import os

            os.utime(tmp_path / root / folder, ns=(10**18, 10**18))
    report = sync(gw, tmp_path / "source", tmp_path / "target", delete=True, exclude=["*.pyc", "build/"])  # type: ignore[operator]
    assert not report.problems
    import os

    for root in ("target", "wanted"):
        for folder in ("build", "gone"):
            os.utime(tmp_path / root / folder, ns=(0, 0))
    assert_same(tmp_path / "wanted", tmp_path / "target")
    assert report.deleted == 2
