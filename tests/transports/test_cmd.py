"""cmd: any command whose stdin and stdout reach a Python."""

from __future__ import annotations

import shlex
import shutil
import sys

import pytest

import farwire
from farwire.testing import EndConformance, OutputConformance, StartConformance

PYTHON = shlex.quote(sys.executable)


class TestEnv(StartConformance, OutputConformance, EndConformance):
    early_env = False  # what the command sets is, what the spec sets is not

    @pytest.fixture
    def specs(self) -> list[str]:
        return [f"cmd=env FARWIRE_X='one two' {PYTHON}"]


class TestShell(StartConformance, EndConformance):
    """A program of its own stays between us and the interpreter."""

    early_env = False

    @pytest.fixture
    def specs(self) -> list[str]:
        return [f"cmd=sh -c '{PYTHON} \"$@\"; exit $?' sh"]


@pytest.mark.parametrize(
    "words", [["setpriv", "--no-new-privs"], ["nice", "-n", "1"], ["timeout", "100"], ["setsid", "-w"]]
)
def test_wrapped(group: farwire.Group, words: list[str]) -> None:
    if shutil.which(words[0]) is None:
        pytest.skip(f"no {words[0]} here")
    gateway = group.makegateway(f"cmd={shlex.join(words)} {PYTHON}")
    assert gateway.remote_exec("channel.send(1)").receive(10) == 1


def test_the_command_sets_the_environment(group: farwire.Group) -> None:
    gateway = group.makegateway(f"cmd=env FARWIRE_X='one two' {PYTHON}//env:FARWIRE_Y=3")
    channel = gateway.remote_exec("import os; channel.send([os.environ.get('FARWIRE_' + x) for x in 'XY'])")
    assert channel.receive(10) == ["one two", "3"]


@pytest.mark.parametrize(
    ("command", "error", "text"),
    [
        ("no-such-program", farwire.PythonNotFound, "no-such-program"),
        ("true", farwire.NotAPython, "exit status 0"),
        ("false", farwire.NotAPython, "exit status 1"),
        ("sh -c 'echo something else; exit 7'", farwire.NotAPython, "something else"),
        ("cat", farwire.NotAPython, "invalid option"),
        (
            "ls",
            farwire.NotAPython,
            "without becoming a worker",
        ),  # it quotes our program, with what an old Python would say
        ("sh -c cat", farwire.NotAPython, "repeats what it is sent"),
        ("sh -c 'while read line; do echo $line; done; cat'", farwire.NotAPython, "repeats what it is sent"),
        ("sh -c 'kill -9 $$'", farwire.NotAPython, "SIGKILL"),
        ("/dev/null", farwire.PythonNotFound, "ermission denied"),
        ("env no-such-python", farwire.PythonNotFound, "no-such-python"),
    ],
)
def test_not_a_python(group: farwire.Group, command: str, error: type[farwire.StartError], text: str) -> None:
    with pytest.raises(error) as caught:
        group.makegateway(farwire.XSpec.build(cmd=command), timeout=10)
    assert text in str(caught.value)
    assert caught.value.gateway_id
    assert caught.value.command
    assert caught.value.hint
    assert not isinstance(caught.value, farwire.TimeoutError)
    assert not list(group)


def test_empty() -> None:
    with pytest.raises(farwire.SpecError):
        farwire.makegateway("cmd='  '")
    with pytest.raises(farwire.SpecError, match="quotation"):
        farwire.makegateway("cmd=sh -c 'x")


def test_a_program_that_does_not_answer(group: farwire.Group) -> None:
    with pytest.raises(farwire.StartTimeout, match=r"no answer within 0\.2 seconds"):
        group.makegateway("cmd=sh -c 'exec sleep 1000'", timeout=0.2)
    with pytest.raises(farwire.StartTimeout, match="some words"):
        group.makegateway("cmd=sh -c 'echo some words; exec sleep 1000'", timeout=0.5)
