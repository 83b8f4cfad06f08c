"""ssh: the conformance suite on a real sshd as an ordinary user, and what is ssh's own."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

import farwire
import servers
from farwire.testing import GatewayConformance
from farwire.transports.base import Boot
from farwire.transports.ssh import REMOTE, Ssh

pytestmark = pytest.mark.needs_sshd


class TestSsh(GatewayConformance):
    @pytest.fixture
    def specs(self, sshd: servers.Sshd) -> list[str]:
        return [sshd.spec]


def spec_for(sshd: servers.Sshd, host: str, **keys: object) -> farwire.XSpec:
    return farwire.XSpec.build(ssh=host, ssh_config=sshd.ssh_config, **keys)


# ---------------------------------------------------------------------------------------------------------------- start


def test_the_default_directory_is_made(group: farwire.Group, sshd: servers.Sshd) -> None:
    sshd.run("rm -rf pyexecnet-cache")
    gateway = group.makegateway(sshd.spec)
    info = gateway.info()
    assert info.cwd == f"{sshd.home}/pyexecnet-cache"
    assert gateway.remoteaddress == sshd.host
    assert gateway.remote_exec("import getpass; channel.send(getpass.getuser())").receive(10) == sshd.user
    assert sshd.run("ls -A pyexecnet-cache") == ""


@pytest.mark.parametrize(
    ("chdir", "cwd"), [("fw-a/b", "{home}/fw-a/b"), ("~/fw-a", "{home}/fw-a"), ("~", "{home}"), ("/", "/")]
)
def test_directories(group: farwire.Group, sshd: servers.Sshd, chdir: str, cwd: str) -> None:
    assert group.makegateway(f"{sshd.spec}//chdir={chdir}").info().cwd == cwd.format(home=sshd.home)


def test_a_directory_of_somebody_else(group: farwire.Group, sshd: servers.Sshd) -> None:
    if not sshd.own_user:
        pytest.skip("which directories one may not enter is known for the user made for the tests")
    with pytest.raises(farwire.DirectoryError, match="/root"):
        group.makegateway(f"{sshd.spec}//chdir=/root/x")


def test_ssh_gateway(sshd: servers.Sshd) -> None:
    gateway = farwire.SshGateway(sshd.host, python=sshd.python, ssh_config=sshd.ssh_config)
    try:
        assert gateway.info().executable == sshd.python
        assert gateway in farwire.default_group
    finally:
        gateway.exit()


def test_options_before_the_host(group: farwire.Group, sshd: servers.Sshd) -> None:
    spec = spec_for(sshd, f"-p {sshd.port} -o ConnectTimeout=5 -oCompression=yes -C {sshd.user}@127.0.0.1")
    # its key is known under that name too, by the alias in the configuration; the identity is for all hosts
    assert group.makegateway(spec).remote_exec("channel.send(1)").receive(10) == 1


@pytest.mark.parametrize(
    "value",
    [
        "-oProxyCommand=x",
        "h1 -oProxyCommand=x",
        "-o ProxyCommand=x",
        "-N h1",
        "-f h1",
        "-L 1:2:3 h1",
        "-E/tmp/x h1",
        "h1 true",
        "' '",
        "''",
    ],
)
def test_option_injection(group: farwire.Group, sshd: servers.Sshd, value: str, tmp_path: Path) -> None:
    with pytest.raises(farwire.SpecError):
        group.makegateway(spec_for(sshd, value))


def test_a_host_is_no_option_for_ssh(group: farwire.Group, sshd: servers.Sshd) -> None:
    """What follows ``--`` is a host, whatever it is called."""
    argv = Ssh().command(Boot(spec_for(sshd, "-p 22 user@host"), "gw0", 0.0, 1.0), True).argv
    assert argv[-3:] == ["--", "user@host", REMOTE]


def test_hostile_values_stay_values(group: farwire.Group, sshd: servers.Sshd) -> None:
    values = {
        "A": "$(touch pwned)",
        "B": "`touch pwned`; touch pwned",
        "C": "'; touch pwned; '",
        "D": "\\'; touch pwned",
    }
    name = "fw-h'; touch pwned; '$(touch pwned)`touch pwned`\"; touch pwned"
    gateway = group.makegateway(spec_for(sshd, sshd.host, chdir=name, env=values))
    channel = gateway.remote_exec("import os; channel.send([os.getcwd(), [os.environ[x] for x in 'ABCD']])")
    assert channel.receive(10) == [f"{sshd.home}/{name}", list(values.values())]
    assert sshd.run("find . -name pwned") == ""


def test_environment_names(group: farwire.Group, sshd: servers.Sshd) -> None:
    with pytest.raises(farwire.SpecError, match="env:A-B"):
        group.makegateway(f"{sshd.spec}//env:A-B=1")


def test_nothing_secret_in_the_process_list(group: farwire.Group, sshd: servers.Sshd) -> None:
    gateway = group.makegateway(f"{sshd.spec}//env:PASSWORD=swordfish//chdir=fw-secret-place")
    lines = gateway.remote_exec("import os; channel.send(os.popen('ps -eo args').read())").receive(10)
    assert "farwire: Python 3.6 or newer" in lines  # stage 0 is there
    assert "swordfish" not in lines
    assert "fw-secret-place" not in lines


@pytest.mark.parametrize("shell", ["sh", "bash", "dash", "ksh", "mksh", "zsh", "csh", "tcsh", "fish", "busybox sh"])
def test_whatever_the_login_shell(shell: str, tmp_path: Path) -> None:
    """sshd runs ``$SHELL -c REMOTE``."""
    argv = shell.split()
    if shutil.which(argv[0]) is None:
        pytest.skip(f"no {argv[0]} here")
    text = """echo "it's $0 $((1+2))" '\\n' "!x" $HOME\n"""
    done = subprocess.run(
        [*argv, "-c", REMOTE],
        input=text + "exec cat\nno more\n",
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout.startswith("it's sh 3 ")


def test_the_remote_command_is_plain_to_every_shell() -> None:
    """Outside of single quotes there are only words; inside there is nothing that csh looks for there."""
    plain, quoted, end = REMOTE.split("'")
    assert plain.replace(" ", "").replace("-", "").isalnum()
    assert end == ""
    assert not set("!\n\\'`") & set(quoted)


# ---------------------------------------------------------------------------------------------------------------- noise

BANNER = "Welcome! Tervetuloa \u20ac\n\0\x1b[31mfar\0wire"


def noisy(exit_code: str = "") -> str:
    return f"""
printf 'Welcome! Tervetuloa \\342\\202\\254\\n\\0\\033[31mfar\\0wire'
i=0; while [ $i -lt 1000 ]; do echo "a line of sixty-four bytes and a half, number $i of the noise......"; i=$((i+1)); done
echo "and on stderr" >&2
printf 'without an end of line'
{exit_code}
"""


def test_noise_before_the_start_is_skipped(group: farwire.Group, sshd: servers.Sshd) -> None:
    with sshd.shell_startup(noisy()):
        output: list[tuple[str, bytes]] = []
        gateway = group.makegateway(sshd.spec, output=lambda _id, stream, data: output.append((stream, data)))
        assert gateway.remote_exec("channel.send(1)").receive(10) == 1
        gateway.exit()
    assert b"".join(data for stream, data in output if stream == "stdout") == b""
    assert b"and on stderr" in b"".join(data for stream, data in output if stream == "stderr")


def test_noise_is_shown_in_errors(group: farwire.Group, sshd: servers.Sshd) -> None:
    with sshd.shell_startup(noisy("exit 9")), pytest.raises(farwire.StartError) as caught:
        group.makegateway(sshd.spec)
    error = caught.value
    assert error.status == "exit status 9"
    assert "number 999 of the noise" in error.noise
    assert "and on stderr" in error.stderr
    assert len(str(error)) < 8000
    assert error.command.startswith("ssh ")


def test_noise_that_reads(group: farwire.Group, sshd: servers.Sshd) -> None:
    """It takes what was meant for Python; that is an error, and prompt."""
    with sshd.shell_startup("read line; echo $line"), pytest.raises(farwire.StartError):
        group.makegateway(sshd.spec, timeout=10)


# --------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("host", "error", "text"),
    [
        ("wrongkey", farwire.AuthenticationError, "Permission denied"),
        ("wronghostkey", farwire.AuthenticationError, "Host key verification failed"),
        ("unresolvable", farwire.HostNotFound, "does not resolve"),
        ("refused", farwire.HostNotFound, "Connection refused"),
    ],
)
def test_cannot_log_in(
    group: farwire.Group, sshd: servers.Sshd, host: str, error: type[farwire.StartError], text: str
) -> None:
    with pytest.raises(error) as caught:
        group.makegateway(spec_for(sshd, host))
    assert type(caught.value) is error
    assert text in str(caught.value)
    assert caught.value.status == "exit status 255"
    assert caught.value.hint
    assert f"-- {host} " in caught.value.command


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param("ssh=h1//ssh_config=/no/such/config", id="no such file"),
        pytest.param("ssh=h1//ssh_config=/etc/passwd", id="another file"),
        pytest.param("ssh=-o NoSuchOption=1 h1", id="no such option"),
        pytest.param("ssh=-o Port=many h1", id="not a port"),
    ],
)
def test_configuration_that_ssh_refuses(group: farwire.Group, sshd: servers.Sshd, spec: str) -> None:
    with pytest.raises(farwire.StartError, match="ssh does not accept its configuration") as caught:
        group.makegateway(spec)
    assert type(caught.value) is farwire.StartError
    assert "ssh_config=" in caught.value.hint


def test_no_ssh_here(group: farwire.Group, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/no/such/folder")
    with pytest.raises(farwire.PythonNotFound) as caught:
        group.makegateway("ssh=h1")
    assert "OpenSSH" in caught.value.hint


def test_later_uses_are_told_too(group: farwire.Group, sshd: servers.Sshd) -> None:
    gateway = group.makegateway(spec_for(sshd, "wrongkey"), wait=False)
    channel = gateway.remote_exec("channel.send(1)")
    with pytest.raises(farwire.AuthenticationError):
        channel.receive(30)
    with pytest.raises(farwire.AuthenticationError):
        gateway.wait_ready(30)


def test_several_errors_are_collected(group: farwire.Group, sshd: servers.Sshd) -> None:
    specs = [spec_for(sshd, host) for host in ("h1", "wrongkey", "unresolvable")]
    with pytest.raises(farwire.StartErrors) as caught:
        group.makegateways(specs)
    assert sorted(type(error).__name__ for error in caught.value.errors.values()) == [
        "AuthenticationError",
        "HostNotFound",
    ]
    assert [gateway.spec.ssh for gateway in caught.value.gateways] == ["h1"]


def test_no_python_on_the_host(group: farwire.Group, sshd: servers.Sshd) -> None:
    if any(
        map(os.path.exists, ("/usr/local/bin/python3", "/opt/homebrew/bin/python3", "/usr/libexec/platform-python"))
    ):
        pytest.skip("there is a Python where one is looked for outside of the PATH")
    tools = sshd.directory / "no-python"
    tools.mkdir()
    for name in ("sh", "mkdir"):
        (tools / name).symlink_to(f"/bin/{name}")
    with (
        sshd.shell_startup(f"PATH={tools}"),
        pytest.raises(farwire.PythonNotFound, match="no Python was found") as caught,
    ):
        group.makegateway(sshd.spec)
    assert caught.value.status == "exit status 127"


def test_python_that_is_not_there(group: farwire.Group, sshd: servers.Sshd) -> None:
    with pytest.raises(farwire.PythonNotFound, match="no/such/python"):
        group.makegateway(f"{sshd.spec}//python=/no/such/python")
    with pytest.raises(farwire.PythonNotFound, match="/etc/passwd"):
        group.makegateway(f"{sshd.spec}//python=/etc/passwd")


def test_python_that_is_none(group: farwire.Group, sshd: servers.Sshd) -> None:
    with pytest.raises(farwire.NotAPython, match="exit status 1"):
        group.makegateway(f"{sshd.spec}//python=/bin/false")


def test_python_that_is_too_old(group: farwire.Group, sshd: servers.Sshd) -> None:
    found = sorted(Path("~/.pyenv/versions").expanduser().glob("2.*/bin/python2.7"))
    if not found:
        pytest.skip("no Python 2 here")
    # Its own folder may be closed to the user; without the standard library it starts with -S.
    folder = Path(sshd.bin)
    shutil.copy(found[0], folder)
    for library in found[0].parents[1].glob("lib/libpython2.7.so*"):
        shutil.copy(library, folder)
    with pytest.raises(farwire.PythonTooOld, match=r"this is 2\.7"):
        group.makegateway(f"{sshd.spec}//python=env LD_LIBRARY_PATH={folder} {folder}/python2.7 -S")


def test_a_python_with_arguments(group: farwire.Group, sshd: servers.Sshd) -> None:
    gateway = group.makegateway(f"{sshd.spec}//python={sshd.python} -O -X 'some thing'")
    code = "import sys; channel.send([sys.flags.optimize, sys._xoptions])"
    assert gateway.remote_exec(code).receive(10) == [1, {"some thing": True}]


# ----------------------------------------------------------------------------------------------------------------- cost


def test_what_is_sent_until_the_first_result(
    group: farwire.Group, sshd: servers.Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What goes out before anything has to come back stays near what it is; the target, 16 kB, is not reached."""
    sent = tmp_path / "sent"
    ssh = tmp_path / "ssh"
    ssh.write_text(f"#!/bin/sh\nexec cat > {sent}\n")  # never answers
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    gateway = group.makegateway(sshd.spec, wait=False)
    gateway.remote_exec("import os; channel.send(os.getpid())")
    gateway.exit()  # what was written before the end of file is in the pipe
    size = sent.stat().st_size
    assert b"os.getpid()" in sent.read_bytes()[-300:]
    assert size <= 27_200


# ------------------------------------------------------------------------------------------------------- one connection


def test_several_share_one_connection(group: farwire.Group, sshd: servers.Sshd) -> None:
    before = sshd.log.read_text(errors="replace").count("Accepted publickey")
    gateways = group.makegateways([f"3*{sshd.spec}", "popen"])
    assert sshd.log.read_text(errors="replace").count("Accepted publickey") == before + 1
    assert len(group) == 4
    assert [gateway.spec.transport for gateway in gateways].count("popen") >= 1
    infos = [gateway.info() for gateway in gateways]
    assert len({info.pid for info in infos}) == 4
    assert [info.cwd for info in infos[:3]] == [f"{sshd.home}/pyexecnet-cache"] * 3
    results = group.remote_exec("import getpass; channel.send(getpass.getuser())").receive_each(timeout=10)
    assert results[:3] == [sshd.user] * 3
    gateways[0].exit()
    assert gateways[1].remote_exec("channel.send(1)").receive(10) == 1
    group.terminate()
    assert not list(group)
    # The log's last lines come when sshd gets to write them; that the processes are gone is what counts.
    assert not [pid for pid in sshd.processes() if servers.is_alive(pid)]


def test_each_of_several_has_its_own_settings(group: farwire.Group, sshd: servers.Sshd) -> None:
    spec = f"2*{sshd.spec}//chdir=fw-shared//env:FARWIRE_X=1//nice=2"
    for gateway in group.makegateways([spec]):
        assert gateway.info().cwd == f"{sshd.home}/fw-shared"
        code = "import os; channel.send([os.environ['FARWIRE_X'], os.nice(0)])"
        assert gateway.remote_exec(code).receive(10) == ["1", os.nice(0) + 2]


def test_several_that_cannot_log_in(group: farwire.Group, sshd: servers.Sshd) -> None:
    with pytest.raises(farwire.StartErrors) as caught:
        group.makegateways([spec_for(sshd, "wrongkey"), spec_for(sshd, "wrongkey"), "popen"])
    assert len(caught.value.errors) == 2
    for error in caught.value.errors.values():
        assert "Permission denied" in str(error)
    assert len(caught.value.gateways) == 1
