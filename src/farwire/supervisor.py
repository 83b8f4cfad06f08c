"""One local process: started in a session of its own, watched, ended, reaped.

A worker over popen is two processes: the one we start becomes the guard, its child (a process group of its own, the number of which the
worker's hello tells) is the worker. Whatever the transport, killing the started process's group and closing the link ends all of it.
"""

from __future__ import annotations

import os
from time import monotonic, sleep

TYPE_CHECKING = False
if TYPE_CHECKING:
    import subprocess
    from collections.abc import Mapping, Sequence


class LocalProcess:
    """A process that we started and reap.

    Attributes:
        pid: its number, and that of its session and process group (unless it shares ours).
        read_fd, write_fd, stderr_fd: our ends of its stdout, stdin and stderr; whoever takes them owns them.
    """

    def __init__(
        self, argv: Sequence[str], env: Mapping[str, str] | None, cwd: str | None, own_session: bool = True
    ) -> None:
        """Start it.

        Args:
            argv: program and arguments.
            env: its whole environment, None for ours.
            cwd: its directory, None for ours.
            own_session: keep Ctrl-C of our terminal away from it.

        Raises:
            OSError: it cannot be started.
        """
        import subprocess

        self.own_session = own_session
        fds: list[int] = []
        try:
            for _ in range(3):
                fds.extend(os.pipe())
            stdin_r, self.write_fd, self.read_fd, stdout_w, self.stderr_fd, stderr_w = fds
            self.popen: subprocess.Popen[bytes] = subprocess.Popen(
                list(argv),
                stdin=stdin_r,
                stdout=stdout_w,
                stderr=stderr_w,
                env=None if env is None else dict(env),
                cwd=cwd,
                start_new_session=own_session,
            )
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise
        for fd in (stdin_r, stdout_w, stderr_w):
            os.close(fd)
        self.pid = self.popen.pid
        self.worker_pid = 0

    def poll(self) -> int | None:
        """Exit status, negative for a signal; None while it runs. Reaps it."""
        return self.popen.poll()

    @property
    def returncode(self) -> int | None:
        """What ``poll`` returned last."""
        return self.popen.returncode

    def wait(self, deadline: float) -> bool:
        """Wait until it has ended and is reaped, or until ``deadline`` (monotonic)."""
        delay = 0.0005
        while self.popen.poll() is None:
            left = deadline - monotonic()
            if left <= 0:
                return False
            sleep(min(delay, left))
            delay = min(delay * 2, 0.02)
        return True

    def terminate(self) -> None:
        """SIGTERM to the worker's group, or to the process when it is no guard of ours."""
        self._signal(15)

    def kill(self) -> None:
        """SIGKILL to everything it started."""
        self._signal(9)

    def _signal(self, signum: int) -> None:
        # Before reaping, its number and the number of its child's group cannot be anybody else's: the guard reaps the
        # worker just before it ends itself.
        from contextlib import suppress

        if self.popen.poll() is not None:
            return
        if self.worker_pid:
            with suppress(ProcessLookupError, PermissionError):  # gone; or run by sudo as another user
                os.killpg(self.worker_pid, signum)
        if signum == 9 or not self.worker_pid:
            with suppress(ProcessLookupError, PermissionError):
                if self.own_session:
                    os.killpg(self.pid, signum)
                else:
                    os.kill(self.pid, signum)


def describe_status(returncode: int) -> str:
    """``0`` -> "exit status 0", ``-9`` -> "killed by SIGKILL"."""
    if returncode < 0:
        return f"killed by {_signal_name(-returncode)}"
    return f"exit status {returncode}"


def describe_wait_status(status: int) -> str:
    """The same for a status as ``os.waitpid`` returns it."""
    return describe_status(os.waitstatus_to_exitcode(status))


def _signal_name(signum: int) -> str:
    import signal

    try:
        return signal.Signals(signum).name
    except ValueError:
        return f"signal {signum}"
