"""A private sshd on loopback, with keys of its own, run by an ordinary user.

When we are root, that user exists for the server and what it starts only: in a mount namespace where another passwd
file lies over the real one. Nothing outside the temporary folder is changed.
"""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

USER, UID = "farwire-bench", 48211

SERVER = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/hostkey
PidFile {folder}/sshd.pid
AuthorizedKeysFile {folder}/authorized_keys
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
MaxStartups 200
MaxSessions 100
"""

CLIENT = """\
Host h1
  HostName 127.0.0.1
  Port {port}
  User {user}
  IdentityFile {folder}/id
  IdentitiesOnly yes
  UserKnownHostsFile {folder}/known_hosts
  GlobalKnownHostsFile /dev/null
  StrictHostKeyChecking yes
  BatchMode yes
  LogLevel ERROR
"""


class NoServer(Exception):
    """There is no sshd here, or it does not start; the text says which."""


def find_sshd(given: str = "") -> str:
    """The program, which must be called by its full path."""
    path = (
        given
        or os.environ.get("FARWIRE_SSHD")
        or shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    )
    if not path:
        raise NoServer("no sshd on this machine (Debian: openssh-server)")
    return path


class PrivateServer:
    """``config`` and the host name ``h1`` reach it."""

    host = "h1"

    def __init__(self, sshd: str = "") -> None:
        sshd = find_sshd(sshd)
        self.folder = Path(tempfile.mkdtemp(prefix="farwire-bench-sshd-"))
        self.config = self.folder / "ssh_config"
        self.process: subprocess.Popen[bytes] | None = None
        try:
            self._start(sshd)
        except BaseException:
            self.close()
            raise

    def _start(self, sshd: str) -> None:
        folder, root = self.folder, os.geteuid() == 0
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        for name in ("hostkey", "id"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
        shutil.copy(folder / "id.pub", folder / "authorized_keys")
        user = USER if root else getpass.getuser()
        (folder / "sshd_config").write_text(SERVER.format(port=port, folder=folder), encoding="utf-8")
        self.config.write_text(CLIENT.format(port=port, folder=folder, user=user), encoding="utf-8")
        key = " ".join((folder / "hostkey.pub").read_text(encoding="ascii").split()[:2])
        (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {key}\n", encoding="ascii")
        command = [sshd, "-D", "-e", "-f", str(folder / "sshd_config")]
        if root:
            command = self._as_ordinary_user(command)
        with open(folder / "log", "wb") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._wait(port)

    def _as_ordinary_user(self, command: list[str]) -> list[str]:
        folder, home = self.folder, self.folder / "home"
        home.mkdir()
        passwd = Path("/etc/passwd").read_text(encoding="utf-8")
        (folder / "passwd").write_text(f"{passwd}{USER}:x:{UID}:{UID}::{home}:/bin/sh\n", encoding="utf-8")
        folder.chmod(0o755)
        for path in (home, folder / "hostkey", folder / "authorized_keys", folder / "sshd_config"):
            os.chown(path, UID, UID)
        script = 'mount --bind "$1" /etc/passwd && shift && exec "$@"'
        inner = ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", *command]
        return ["unshare", "--mount", "sh", "-c", script, "sh", str(folder / "passwd"), *inner]

    def _wait(self, port: int) -> None:
        assert self.process is not None
        end = time.monotonic() + 10
        while time.monotonic() < end and self.process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
            except OSError:
                time.sleep(0.02)
            else:
                return
        log = (self.folder / "log").read_text(encoding="utf-8", errors="replace")
        raise NoServer(f"sshd did not start: {log.strip()[-300:]}")

    def close(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(10)
        shutil.rmtree(self.folder, ignore_errors=True)
