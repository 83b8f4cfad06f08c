"""What the tests need of the machine: a private sshd, and the interpreters that are installed.

``running_sshd()`` starts OpenSSH's real server on a free port of 127.0.0.1, with keys and configuration of its own in a
folder in /tmp. As root it lets an ordinary user log in, made for the purpose; otherwise the user who runs the tests.
Whoever was started through it, however far it has run away, carries ``FARWIRE_TEST_SSHD=<token>`` in its environment,
is found by that, and is ended with it.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

TOKEN_NAME = "FARWIRE_TEST_SSHD"
RC_NAME = "FARWIRE_TEST_RC"
# Makes a login noisy for the tests of one session only: the home directory is shared between sessions.
BASHRC = f'[ -z "${RC_NAME}" ] || [ ! -r "${RC_NAME}" ] || . "${RC_NAME}"\n'

SSHD_CONFIG = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {dir}/hostkey
PidFile {dir}/sshd.pid
AuthorizedKeysFile {dir}/id.pub
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin no
AllowTcpForwarding yes
MaxStartups 200
MaxSessions 100
KexAlgorithms curve25519-sha256
SetEnv {token_name}={token} {rc_name}={dir}/rc PATH={dir}/bin:/usr/local/bin:/usr/bin:/bin
Subsystem sftp internal-sftp
LogLevel VERBOSE
"""

# h1 works. The other hosts go wrong in one way each.
SSH_CONFIG = """\
Host h1 wrongkey wronghostkey
  HostName 127.0.0.1
  Port {port}
Host unresolvable
  HostName no-such-host.invalid
Host refused
  HostName 127.0.0.1
  Port {closed_port}
Host wrongkey
  IdentityFile {dir}/otherid
Host !wrongkey *
  IdentityFile {dir}/id
Host wronghostkey
  UserKnownHostsFile {dir}/known_hosts_wrong
Host *
  User {user}
  IdentitiesOnly yes
  UserKnownHostsFile {dir}/known_hosts
  GlobalKnownHostsFile /dev/null
  StrictHostKeyChecking yes
  HostKeyAlias [127.0.0.1]:{port}
  KexAlgorithms curve25519-sha256
  BatchMode yes
  LogLevel ERROR
"""


class Sshd:
    """A running sshd.

    Attributes:
        ssh_config: path of the client configuration (``ssh -F``); readable by root and by ``user``.
        host: the host in it that works. ``wrongkey``, ``wronghostkey``, ``unresolvable`` and ``refused`` do not.
        user: who logs in; ``home`` is the home directory. ``python`` is an interpreter that user may run.
        spec: an xspec for a gateway on it.
        pid: the server's.
        log: path of the server's log.
        bin: a folder with an ``ssh`` that leads here whatever the host is called; in PATH of those who log in.
    """

    host = "h1"

    def __init__(self, directory: Path, port: int, user: str, own_user: bool, process: subprocess.Popen[bytes]) -> None:
        self.directory = directory
        self.ssh_config = str(directory / "ssh_config")
        self.port = port
        self.user = user
        self.own_user = own_user
        self.home = pwd.getpwnam(user).pw_dir
        self.python = "/usr/bin/python3" if own_user else sys.executable
        self.log = directory / "log"
        self.bin = str(directory / "bin")
        self.process = process
        self.pid = process.pid
        self.token = directory.name
        self.spec = f"ssh={self.host}//ssh_config={self.ssh_config}"

    def run(self, command: str, *, check: bool = True) -> str:
        """Run a shell command on the host, as the user; returns its stdout."""
        argv = ["ssh", "-F", self.ssh_config, self.host, command]
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False)
        if check and done.returncode != 0:
            raise AssertionError(f"{command!r} on {self.host}: status {done.returncode}\n{done.stderr}")
        return done.stdout

    @contextlib.contextmanager
    def shell_startup(self, script: str) -> Iterator[None]:
        """Have each login source this script first, as a chatty ``.bashrc`` would."""
        if not self.own_user:
            pytest.skip("changes a .bashrc: only done to the user made for the tests, which needs root")
        rc = self.directory / "rc"
        rc.write_text(script)
        rc.chmod(0o644)
        try:
            yield
        finally:
            rc.unlink()

    def processes(self) -> list[int]:
        """The living processes that were started by logins, and by what those started."""
        return processes_with_environment(TOKEN_NAME, self.token)

    def stop(self) -> None:
        # Its own sessions first (privileged halves of sshd carry no token but are its descendants), then what escaped.
        victims = [self.pid, *descendants(self.pid)]
        for pid in victims:
            kill(pid)
        self.process.wait(10)
        # Twice: in the middle of an exec a process has no environment to be found by.
        for _round in range(2):
            for pid in self.processes():
                kill(pid)
            time.sleep(0.01)
        shutil.rmtree(self.directory, ignore_errors=True)


@contextlib.contextmanager
def running_sshd() -> Iterator[Sshd]:
    """Start a private sshd; skips the test when this machine cannot."""
    reason = why_no_sshd()
    if reason:
        pytest.skip(reason)
    own_user = os.geteuid() == 0
    user = make_user(os.environ.get("FARWIRE_TEST_USER", "fwtest")) if own_user else pwd.getpwuid(os.geteuid()).pw_name
    server = None
    for _attempt in range(5):
        server = start_sshd(user, own_user)
        if server is not None:
            break
    if server is None:
        raise RuntimeError("sshd did not start on any of five ports")
    try:
        yield server
    finally:
        server.stop()


def why_no_sshd() -> str:
    """Why there can be no sshd here; empty when there can."""
    if not sys.platform.startswith("linux"):
        return "the private sshd of these tests is known to work on Linux only"
    if sshd_path() is None:
        return "no sshd here (Debian: apt install openssh-server)"
    for tool in ("ssh", "ssh-keygen"):
        if shutil.which(tool) is None:
            return f"no {tool} here (Debian: apt install openssh-client)"
    if os.geteuid() == 0 and not Path("/usr/bin/python3").exists():
        return "no /usr/bin/python3 here, which an ordinary user could run"
    return ""


def sshd_path() -> str | None:
    return shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin:/sbin")


def make_user(name: str) -> str:
    """The ordinary user of that name, made if there is none, with bash and a ``.bashrc`` that tests can steer."""
    for _attempt in range(20):
        try:
            entry = pwd.getpwnam(name)
            break
        except KeyError:
            # The password "*" is no password; useradd's default "!" would be a locked account, which sshd refuses.
            # Another test session may be at it at the same time: then one of the two fails, and finds the user.
            argv = ["useradd", "--create-home", "--shell", "/bin/bash", "--password", "*", name]
            subprocess.run(argv, capture_output=True, check=False, timeout=30)
            time.sleep(0.1)
    else:
        raise RuntimeError(f"could not make the user {name}")
    bashrc = Path(entry.pw_dir, ".bashrc")
    if not bashrc.exists() or bashrc.read_text() != BASHRC:
        bashrc.write_text(BASHRC)
        os.chown(bashrc, entry.pw_uid, entry.pw_gid)
    return name


def start_sshd(user: str, own_user: bool) -> Sshd | None:
    """One try on one port; None when the port was taken meanwhile."""
    # Not pytest's tmp_path: the ordinary user must reach it, and ssh's paths have to be short.
    directory = Path(tempfile.mkdtemp(prefix="farwire-sshd-", dir="/tmp"))
    port, closed_port = free_port(), free_port()
    entry = pwd.getpwnam(user)
    for name in ("hostkey", "otherhostkey", "id", "otherid"):
        argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "farwire tests", "-f", str(directory / name)]
        subprocess.run(argv, check=True, timeout=30)
    values = {
        "dir": directory,
        "port": port,
        "closed_port": closed_port,
        "user": user,
        "token_name": TOKEN_NAME,
        "token": directory.name,
        "rc_name": RC_NAME,
    }
    (directory / "sshd_config").write_text(SSHD_CONFIG.format(**values))
    (directory / "ssh_config").write_text(SSH_CONFIG.format(**values))
    # Last of the -F options wins: whoever gives one of their own means that.
    (directory / "any_host").write_text(
        SSH_CONFIG.format(**values).replace("Host h1 ", "Host * !unresolvable !refused ")
    )
    (directory / "bin").mkdir(mode=0o755)
    (directory / "bin" / "ssh").write_text(f'#!/bin/sh\nexec /usr/bin/ssh -F {directory}/any_host "$@"\n')
    (directory / "bin" / "ssh").chmod(0o755)
    for name, key in (("known_hosts", "hostkey"), ("known_hosts_wrong", "otherhostkey")):
        kind, text = (directory / f"{key}.pub").read_text().split()[:2]
        (directory / name).write_text(f"[127.0.0.1]:{port} {kind} {text}\n")
    if own_user:
        # A client key must not be readable by others, but both root and the user (for ssh through ssh) use this one:
        # root may read what belongs to the user.
        for name in ("id", "otherid"):
            os.chown(directory / name, entry.pw_uid, entry.pw_gid)
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    directory.chmod(0o711)

    path = sshd_path()
    assert path is not None
    with open(directory / "log", "wb") as log:
        process = subprocess.Popen(
            [path, "-D", "-e", "-f", str(directory / "sshd_config")],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C ends the tests, which end it.
        )
    server = Sshd(directory, port, user, own_user, process)
    deadline = time.monotonic() + 20
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            if connection.recv(4) == b"SSH-":
                return server
        time.sleep(0.02)
    text = (directory / "log").read_text(errors="replace")
    server.stop()
    if "Address already in use" in text:
        return None
    raise RuntimeError(f"sshd did not start:\n{text}")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


# ---------------------------------------------------------------- processes


def process_status(pid: int) -> tuple[str, int]:
    """State letter and parent of a process; ``("", 0)`` when it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return "", 0
    state, parent = text.rpartition(")")[2].split()[:2]
    return state, int(parent)


def all_processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def is_alive(pid: int) -> bool:
    """Whether a process runs. A zombie does not: process 1 may be slow to reap orphans."""
    return process_status(pid)[0] not in {"", "Z", "X"}


def children(pid: int) -> list[int]:
    """The children of a process, zombies included."""
    return [child for child in all_processes() if process_status(child)[1] == pid]


def descendants(pid: int) -> list[int]:
    parents = {child: process_status(child)[1] for child in all_processes()}
    found, frontier = [], [pid]
    while frontier:
        frontier = [child for child, parent in parents.items() if parent in frontier]
        found += frontier
    return found


def processes_with_environment(name: str, value: str) -> list[int]:
    """The living processes in whose environment at start the variable has that value."""
    wanted = f"{name}={value}".encode()
    found = []
    for pid in all_processes():
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            continue
        if wanted in environment.split(b"\0") and is_alive(pid):
            found.append(pid)
    return found


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)


# ---------------------------------------------------------------- interpreters

VERSIONS = [(3, minor) for minor in range(6, 16)]


@cache
def interpreters() -> dict[str, str]:
    """``"3.6"`` -> path, for each CPython found here: from pyenv, PATH and /usr/bin, one for each minor version."""
    candidates = [sys.executable]
    candidates += sorted(map(str, Path("~/.pyenv/versions").expanduser().glob("*/bin/python")))
    for major, minor in VERSIONS:
        path = shutil.which(f"python{major}.{minor}")
        candidates += [path] if path else []
        candidates.append(f"/usr/bin/python{major}.{minor}")
    show = "import sys; print('%d.%d' % sys.version_info[:2], sys.implementation.name)"
    asked = []
    for path in dict.fromkeys(candidates):
        if os.path.exists(path):
            argv = [path, "-I", "-S", "-c", show]
            asked.append((path, subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)))
    found: dict[str, str] = {}
    for path, process in asked:
        version, _, implementation = process.communicate(timeout=30)[0].strip().partition(" ")
        if process.returncode == 0 and implementation == "cpython":
            found.setdefault(version, path)
    return {f"{a}.{b}": found[f"{a}.{b}"] for a, b in VERSIONS if f"{a}.{b}" in found}


def __getattr__(name: str) -> object:
    if name == "INTERPRETERS":
        # For @pytest.mark.parametrize("python", INTERPRETERS); found when first asked for.
        return [pytest.param(path, id=version) for version, path in interpreters().items()]
    raise AttributeError(name)
