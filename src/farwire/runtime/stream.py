"""A two-way byte stream on file descriptors: pipes or a socket."""

from __future__ import annotations

import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

# POSIX: a write of up to PIPE_BUF bytes into a pipe happens whole or not at all; 512 is the least it may be.
ATOMIC = 4096 if os.name == "posix" and os.uname().sysname == "Linux" else 512
IOV_MAX = 64
F_SETPIPE_SZ = 1031
PIPE_SIZE = 1024 * 1024
# Small pieces of a byte stream that wait are put together up to this size: an object for each byte would take a hundred times
# what is charged for it.
MERGED = 4096


class FdStream:
    """Reads from one descriptor and writes to another (or the same), and owns both.

    Attributes:
        read_fd, write_fd: the descriptors. Writes never block. Reads of a pipe do, when nothing is there: a thread that waits for
            an answer saves the system call that asks first, which is a tenth of a round trip.
        atomic: writes up to this size happen whole or not at all.
        must_poll: reads do not block either (a socket shares the mode with its writing side).
    """

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self.read_fd = read_fd
        self.write_fd = write_fd
        self.closed = False
        os.set_blocking(write_fd, False)
        self.must_poll = not stat.S_ISFIFO(os.fstat(read_fd).st_mode)
        os.set_blocking(read_fd, not self.must_poll)
        self.atomic = 0
        if stat.S_ISFIFO(os.fstat(write_fd).st_mode):
            self.atomic = ATOMIC
            enlarge_pipe(write_fd)

    def write(self, buffers: Sequence[bytes | memoryview]) -> int:
        """Write what fits. Returns the count, 0 when nothing fits. Raises OSError when the peer is gone."""
        try:
            return writev(self.write_fd, buffers)
        except BlockingIOError:
            return 0

    def close_write(self) -> None:
        """Let the peer read an end of file."""
        if self.write_fd != self.read_fd:
            os.close(self.write_fd)
            self.write_fd = -1
        else:
            _shutdown(self.write_fd, 1)

    def close(self) -> None:
        """Close both directions, once."""
        if not self.closed:
            self.closed = True
            os.close(self.read_fd)
            if self.write_fd not in (-1, self.read_fd):
                os.close(self.write_fd)


def _write_first(fd: int, buffers: Sequence[bytes | memoryview]) -> int:
    return os.write(fd, buffers[0])


def _read_into_first(fd: int, buffers: Sequence[memoryview]) -> int:
    data = os.read(fd, min(len(buffers[0]), 1 << 20))
    buffers[0][: len(data)] = data
    return len(data)


# PyPy has neither; fewer bytes than asked for are right as well.
writev = getattr(os, "writev", _write_first)
readv = getattr(os, "readv", _read_into_first)


def enlarge_pipe(fd: int) -> None:
    """Give a pipe the largest size an ordinary user may have; not everywhere possible, never needed."""
    try:
        from fcntl import fcntl

        fcntl(fd, F_SETPIPE_SZ, PIPE_SIZE)
    except (ImportError, OSError):  # other systems; or the user's pipe quota is used up: a smaller pipe works too
        pass


def _shutdown(fd: int, how: int) -> None:
    import socket

    sock = socket.socket(fileno=os.dup(fd))
    try:
        sock.shutdown(how)
    except OSError:  # the peer is gone already
        pass
    finally:
        sock.close()
