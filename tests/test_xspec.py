"""Specs: what they say, what they refuse and in which words, and that text -> spec -> text loses nothing."""

from __future__ import annotations

import contextlib
import copy
import itertools
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

from farwire import xspec
from farwire.errors import SpecError
from farwire.xspec import KEYS, Key, XSpec, expand, format_spec, on_unknown_key, quote, register_key

SOURCES = Path(__file__).parents[1] / "src"


@pytest.fixture
def own_table(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the test registers is gone afterwards."""
    monkeypatch.setattr(xspec, "_finders", [])
    before = dict(KEYS)
    yield
    KEYS.clear()
    KEYS.update(before)


def refusal(spec: str, *, strict: bool = True) -> str:
    with pytest.raises(SpecError) as caught:
        XSpec(spec, strict=strict)
    return str(caught.value)


class TestReading:
    def test_popen_alone(self) -> None:
        spec = XSpec("popen")
        assert spec.popen is True
        assert spec.transport == "popen"
        assert spec.env == {}

    @pytest.mark.parametrize(
        ("text", "transport", "values"),
        [
            ("ssh=wyvern//python=python2.4//chdir=mycache", "ssh", {"ssh": "wyvern", "chdir": "mycache"}),
            ("popen//python=2.5//nice=20", "popen", {"python": "2.5", "nice": 20}),
            ("socket=192.168.1.4:8888", "socket", {"socket": "192.168.1.4:8888"}),
            ("ssh=-p 5000 host//ssh_config=/etc/x", "ssh", {"ssh": "-p 5000 host", "ssh_config": "/etc/x"}),
            (r"popen//python=c:\py\python.exe//chdir=d:\x", "popen", {"python": r"c:\py\python.exe", "chdir": r"d:\x"}),
            ("execmodel=main_thread_only//popen", "popen", {"execmodel": "main_thread_only"}),
            ("popen//id=a=b", "popen", {"id": "a=b"}),
            ("popen//via=gw0", "popen", {"via": "gw0"}),
            ("via=gw0//nice=-3", "popen", {"via": "gw0", "nice": -3, "popen": None}),
            ("cmd=docker exec -i box python3", "cmd", {"cmd": "docker exec -i box python3"}),
            ("popen//dont_write_bytecode", "popen", {"dont_write_bytecode": True}),
            ("popen//dont_write_bytecode=0", "popen", {"dont_write_bytecode": False}),
            ("popen//heartbeat=1.5//window=65536", "popen", {"heartbeat": 1.5, "window": 65536}),
            ("popen//heartbeat=0//stdio=none", "popen", {"heartbeat": 0.0, "stdio": "none"}),
            (
                "socket=h:1//tls//tls_ca=ca.pem//tls_name=h",
                "socket",
                {"tls": True, "tls_ca": "ca.pem", "tls_name": "h"},
            ),
            ("socket=h:1//tls=1//secret_file=s", "socket", {"tls": True, "secret_file": "s"}),
        ],
    )
    def test_values(self, text: str, transport: str, values: dict[str, object]) -> None:
        spec = XSpec(text)
        assert spec.transport == transport
        assert {name: getattr(spec, name) for name in values} == values
        assert str(spec) == text

    def test_missing_is_none(self) -> None:
        spec = XSpec("ssh=h")
        assert all(getattr(spec, name) is None for name in KEYS if name not in ("ssh", "env"))

    def test_env(self) -> None:
        spec = XSpec("popen//env:A=1//env:EMPTY=//env:B=x=y")
        assert spec.env == {"A": "1", "EMPTY": "", "B": "x=y"}

    @pytest.mark.parametrize(
        ("written", "value"),
        [
            ('"http://x//y"', "http://x//y"),
            ("'http://x//y'", "http://x//y"),
            ('""', ""),
            ("''", ""),
            ('"say ""hi"""', 'say "hi"'),
            ("'it''s'", "it's"),
            ('"it\'s"', "it's"),
            (r'"C:\dir\"', "C:\\dir\\"),
            ('a"b', 'a"b'),
            ("/a/b", "/a/b"),
            ('"/tmp/"', "/tmp/"),
        ],
    )
    def test_quotes(self, written: str, value: str) -> None:
        spec = XSpec(f"popen//env:X={written}//id=last")
        assert spec.env == {"X": value}
        assert spec.id == "last"
        assert XSpec(f"popen//env:X={written}").env == {"X": value}

    def test_a_slash_at_the_very_end_needs_no_quotes(self) -> None:
        assert XSpec("popen//chdir=/tmp/").chdir == "/tmp/"


class TestRefusing:
    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("", "empty"),
            ("popen//", "ends with '//'"),
            ("//popen", "starts with '//'"),
            ("popen////id=x", "nothing between two '//'"),
            ("popen//=x", "without a key"),
            ("Popen", "did you mean 'popen'?"),
            ("popen//pyton=3", "unknown key 'pyton', did you mean 'python'?"),
            ("shh=host", "did you mean 'ssh'?"),
            ("popen//id=1//id=1", "'id' is given twice"),
            ("popen//env:A=1//env:A=2", "'env:A' is given twice"),
            ("popen//popen", "'popen' is given twice"),
            ("popen//ssh=h", "more than one way to reach a worker: popen and ssh"),
            ("python=python3", "no way to reach a worker; add one of popen, ssh=..., socket=..., cmd=..."),
            ("popen=0", "no way to reach a worker"),
            ("popen=maybe", "'popen' is a switch"),
            ("popen//ssh_config=x", "'ssh_config' means nothing for popen, only for ssh"),
            ("socket=h:1//python=x", "'python' means nothing for socket"),
            ("cmd=sudo python3//python=x", "'python' means nothing for cmd"),
            ("via=gw0//tls", "'tls' means nothing for popen"),
            ("popen//nice=high", "'nice' needs a whole number"),
            ("popen//nice", "'nice' needs a whole number"),
            ("popen//window=0", "'window' needs a number of bytes"),
            ("popen//heartbeat=soon", "'heartbeat' needs a number of seconds"),
            ("popen//heartbeat=-1", "'heartbeat' needs a number of seconds"),
            ("popen//heartbeat=inf", "'heartbeat' needs a number of seconds"),
            ("popen//heartbeat=nan", "'heartbeat' needs a number of seconds"),
            ("popen//execmodel=gevent", "'execmodel' must be one of thread, main_thread_only"),
            ("popen//stdio", "'stdio' must be one of forward, none, inherit"),
            ("ssh", "'ssh' needs a value"),
            ("ssh=", "'ssh' needs a value"),
            ("popen//python", "'python' needs a value"),
            ("popen//_spec=1", "'_spec' cannot be a key: it starts with an underscore"),
            ("popen//env=A", "must be written env:NAME=value"),
            ("popen//env:=A", "must be written env:NAME=value"),
            ("popen//env:A", "must be written env:NAME=value"),
            ("popen//chdir=a\0b", "null character"),
            ('popen//id="a', "the value of 'id' starts with \" but does not end with it"),
            ('cmd="my python" -u', "the value of 'cmd' goes on after its closing \""),
            ("3*popen", "the count '3' makes it several specs"),
            ("popen//copy=1", "unknown key 'copy'"),
            ("popen//transport=ssh", "unknown key 'transport'"),
        ],
    )
    def test_says_what_is_wrong(self, text: str, words: str) -> None:
        assert words in refusal(text)

    @pytest.mark.parametrize(
        ("text", "key"),
        [
            ("popen//env:URL=http://x.org", "env:URL"),
            ("popen//env:URL=http://", "env:URL"),
            ("popen//chdir=/tmp///python=x", "chdir"),
            ("cmd=tool file://zzz", "cmd"),
        ],
    )
    def test_a_value_that_was_cut_in_two(self, text: str, key: str) -> None:
        assert f'a value with // in it must be in quotes: {key}="..."' in refusal(text)

    @pytest.mark.parametrize(
        "text",
        [
            "popen//env:TOKEN=hunter2//nice=x",
            'popen//env:TOKEN="hunter2"//',
            "popen//env:DB=pg://hunter2@host//nice=x",
            "popen//env:DB=pg//hunter2@host",
            "popen//env:TOKEN=hunter2//env:TOKEN=hunter2",
            'popen//env:TOKEN="hunter2',
            'popen//env:TOKEN="hunter2"x',
            "popen//env:TOKEN=hunter2\0",
        ],
    )
    def test_values_of_variables_stay_out_of_messages(self, text: str) -> None:
        assert "hunter2" not in refusal(text)

    def test_only_text_is_a_spec(self) -> None:
        with pytest.raises(TypeError, match="a spec is a str or an XSpec, not int"):
            XSpec(3)  # type: ignore[arg-type]

    def test_whatever_the_text_there_is_one_error_type(self) -> None:
        pieces = ["popen", "id", "env:A", "=", "//", "/", '"', "'", "3*", "x"]
        for length in range(5):
            for chosen in itertools.product(pieces, repeat=length):
                with contextlib.suppress(SpecError):
                    assert XSpec("".join(chosen)).transport == "popen"


class TestObject:
    def test_assigning_leaves_the_text(self) -> None:
        spec = XSpec("popen//id=a")
        spec.id = "b"
        spec.chdir = "/tmp"
        assert (spec.id, spec.chdir, str(spec)) == ("b", "/tmp", "popen//id=a")
        spec.id = None
        assert spec.id is None

    def test_unknown_attribute(self) -> None:
        spec = XSpec("popen")
        with pytest.raises(AttributeError, match="did you mean 'python'"):
            _ = spec.pyton
        with pytest.raises(AttributeError, match="did you mean 'chdir'"):
            spec.chdri = "x"
        with pytest.raises(AttributeError):
            _ = spec._spec
        assert not hasattr(spec, "__array__")

    def test_repr_eq_hash(self) -> None:
        one, other = XSpec("popen//id=a"), XSpec("popen//id=a")
        other.id = "b"
        assert repr(one) == "<XSpec 'popen//id=a'>"
        assert one == other
        assert len({one, other, XSpec("popen")}) == 2
        assert one != "popen//id=a"

    def test_copies_are_independent_and_complete(self) -> None:
        spec = XSpec("popen//env:A=1")
        spec.id = "assigned"
        for made in (spec.copy(), XSpec(spec), copy.copy(spec), copy.deepcopy(spec), pickle.loads(pickle.dumps(spec))):
            assert (str(made), made.id, made.env, made.popen) == (str(spec), "assigned", {"A": "1"}, True)
            made.env["A"] = "2"
            made.id = "other"
            assert (spec.env, spec.id) == ({"A": "1"}, "assigned")

    def test_shown(self) -> None:
        assert XSpec('ssh=h//env:A=secret//chdir="/a/"//popen=0').shown == 'ssh=h//env:A=...//chdir="/a/"//popen=0'


class TestRelaxed:
    """For programs written for execnet."""

    def test_unknown_keys_become_attributes(self) -> None:
        spec = XSpec("popen//rsync=x//flag", strict=False)
        assert (spec.rsync, spec.flag, spec.anything) == ("x", True, None)
        spec.more = 1
        assert spec.more == 1
        assert not hasattr(spec, "_private")

    def test_what_strict_specs_refuse(self) -> None:
        assert XSpec("socket//installvia=gw0", strict=False).installvia == "gw0"
        assert XSpec("vagrant_ssh=box", strict=False).transport == ""
        assert XSpec("popen//ssh_config=x", strict=False).ssh_config == "x"
        assert XSpec("popen//python='a b' -u", strict=False).python == "'a b' -u"
        assert XSpec("""popen//python="a""", strict=False).python == '"a'

    @pytest.mark.parametrize(
        "text",
        ["", "popen//", "popen//id=a//id=b", "popen//_x", "popen//nice=x", "popen//copy=1", "popen//transport=x"],
    )
    def test_what_stays_refused(self, text: str) -> None:
        assert refusal(text, strict=False)

    def test_copies_stay_relaxed(self) -> None:
        spec = XSpec("popen//extra=1", strict=False)
        for made in (spec.copy(), pickle.loads(pickle.dumps(spec))):
            assert (made.extra, made.nothing) == ("1", None)


class TestWriting:
    def test_every_short_text_survives(self) -> None:
        # All texts of up to five of the characters that mean something, in each place of a spec.
        for length in range(1, 6):
            for chosen in itertools.product("/\"'=\\a", repeat=length):
                value = "".join(chosen)
                written = quote(value)
                assert XSpec(f"popen//env:X={written}").env == {"X": value}
                spec = XSpec(f"id={written}//env:X={written}//popen")
                assert (spec.id, spec.env) == (value, {"X": value})

    def test_plain_values_stay_plain(self) -> None:
        for value in ("host", "/a/b", "a b", "it's", "a=b", "c:\\x"):
            assert quote(value) == value

    def test_shown_reads_back(self) -> None:
        spec = XSpec.build(ssh="h", chdir="a//b", id='it\'s "it"//')
        again = XSpec(spec.shown)
        assert (again.ssh, again.chdir, again.id) == (spec.ssh, spec.chdir, spec.id)

    def test_build(self) -> None:
        spec = XSpec.build(
            popen=True,
            python=PurePosixPath("/opt/x"),
            nice=5,
            heartbeat=0.5,
            id=None,
            dont_write_bytecode=False,
            env={"URL": "http://x//y", "EMPTY": "", "N": 1},
        )
        text = 'popen//python=/opt/x//nice=5//heartbeat=0.5//env:URL="http://x//y"//env:EMPTY=""//env:N=1'
        assert str(spec) == text
        assert spec.env == {"URL": "http://x//y", "EMPTY": "", "N": "1"}
        assert (spec.nice, spec.heartbeat, spec.python) == (5, 0.5, "/opt/x")

    @pytest.mark.parametrize("keys", [{"a=b": "c"}, {"a//b": True}, {"": "x"}, {"env": {"A=B": "c"}}])
    def test_keys_that_cannot_be_written(self, keys: dict[str, object]) -> None:
        with pytest.raises(SpecError, match="cannot be a key"):
            format_spec(keys)

    @pytest.mark.parametrize("value", [b"x", [1], object()])
    def test_values_that_cannot_be_written(self, value: object) -> None:
        with pytest.raises(TypeError, match="a spec holds text, numbers and paths, not"):
            format_spec({"id": value})
        with pytest.raises(TypeError):
            format_spec({"env": {"A": value}})

    def test_env_must_be_a_mapping(self) -> None:
        with pytest.raises(TypeError, match="env must be a mapping"):
            format_spec({"env": "A=1"})

    def test_nothing(self) -> None:
        assert format_spec({}) == ""
        with pytest.raises(SpecError):
            XSpec.build()


class TestExpand:
    def test_counts(self) -> None:
        specs = expand(["3*popen//python=3.9", "ssh=a", " 2 * popen", "cmd=echo 2*3"])
        assert [str(spec) for spec in specs] == ["popen//python=3.9"] * 3 + ["ssh=a"] + ["popen"] * 2 + ["cmd=echo 2*3"]
        assert len({id(spec) for spec in specs}) == len(specs)
        specs[0].env["A"] = "1"
        assert specs[1].env == {}

    def test_given_specs_stay_the_same_objects(self) -> None:
        spec = XSpec("popen")
        assert expand([spec, spec])[1] is spec
        assert expand(spec) == [spec]

    def test_a_single_text(self) -> None:
        assert expand("2*popen") == [XSpec("popen")] * 2

    def test_relaxed(self) -> None:
        assert expand("2*popen//x=1", strict=False)[1].x == "1"

    @pytest.mark.parametrize("text", ["0*popen", "-1*popen", "+-3*popen", "9" * 5000 + "*popen"])
    def test_bad_counts(self, text: str) -> None:
        with pytest.raises(SpecError, match="cannot be the count"):
            expand([text])

    def test_one_id_for_several(self) -> None:
        with pytest.raises(SpecError, match="2 gateways cannot all have the id 'x'"):
            expand(["2*popen//id=x"])
        assert expand(["1*popen//id=x"])[0].id == "x"

    def test_the_rest_is_checked(self) -> None:
        for text in ("2*", "2*2*popen", "x*popen"):
            with pytest.raises(SpecError):
                expand([text])
        with pytest.raises(TypeError, match="not int"):
            expand([3])  # type: ignore[list-item]


@pytest.mark.usefixtures("own_table")
class TestRegistering:
    def test_a_transport_of_somebody_elses(self) -> None:
        assert "unknown key" in refusal("podman=box")
        register_key(Key("podman", xspec.text, "a container", transport=True, accepts=("python",)))
        register_key(Key("podman_user", xspec.text, "who to be", transports=("podman",)))
        spec = XSpec("podman=box//podman_user=me//python=pypy//nice=3")
        assert (spec.transport, spec.podman, spec.podman_user) == ("podman", "box", "me")
        assert "'tls' means nothing for podman" in refusal("podman=box//tls")
        assert "only for podman" in refusal("popen//podman_user=x")
        assert XSpec("popen").podman is None

    def test_again(self) -> None:
        for _ in range(2):
            register_key(Key("podman", xspec.text, "a container", transport=True))
        with pytest.raises(ValueError, match="'podman' is taken: a container"):
            register_key(Key("podman", xspec.flag, "a container", transport=True))

    @pytest.mark.parametrize("name", ["_x", "a-b", "", "copy", "transport", "env:x", "shown"])
    def test_names_that_cannot_be(self, name: str) -> None:
        with pytest.raises(ValueError, match="cannot be an xspec key"):
            register_key(Key(name, xspec.text, "x"))

    def test_ours_cannot_be_changed(self) -> None:
        with pytest.raises(ValueError, match="taken"):
            register_key(Key("python", xspec.text, "mine"))

    def test_finders_run_once_and_only_for_unknown_keys(self) -> None:
        calls = []

        def find() -> None:
            calls.append(1)
            register_key(Key("podman", xspec.text, "a container", transport=True))

        on_unknown_key(find)
        on_unknown_key(find)
        XSpec("popen//id=x")
        assert calls == []
        assert XSpec("podman=x").transport == "podman"
        refusal("zzz")
        refusal("zzz")
        assert calls == [1]


def test_the_table_is_fit_for_the_documentation() -> None:
    transports = {name for name, row in KEYS.items() if row.transport}
    assert transports >= {"popen", "ssh", "socket", "cmd"}
    for name, row in KEYS.items():
        assert name == row.name
        assert row.help
        assert "\n" not in row.help
        assert set(row.transports or ()) <= transports


def test_importing_it_is_cheap() -> None:
    code = """
import sys
import types
sys.path.insert(0, sys.argv[1])
before = set(sys.modules)
package = types.ModuleType("farwire")
package.__path__ = [sys.argv[1] + "/farwire"]
sys.modules["farwire"] = package
import farwire.xspec
print(*sorted(name for name in set(sys.modules) - before if "farwire" not in name))
"""
    run = subprocess.run([sys.executable, "-I", "-c", code, str(SOURCES)], capture_output=True, text=True, check=True)
    assert not set(run.stdout.split()) & {"re", "typing", "enum", "dataclasses", "difflib", "collections", "inspect"}
