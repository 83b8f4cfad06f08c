"""The first program of ours that runs in a worker: claims the descriptors, forks the guard, mounts the bundle.

Sent as text or code and run by stage 0, which leaves ``r`` (read exactly n bytes of fd 0), ``os`` and ``sys`` behind. What follows
on fd 0: six digits, that many bytes of configuration (marshal), the bundle, then frames.

The guard
---------
The process that the transport started stays as the guard, and its child becomes the worker. The guard never reads the link and has
one thread, so nothing that user code does can keep it from noticing that the link is gone (poll reports a hang-up even while data
is unread): it gives the worker a moment to end by itself, then kills its whole process group. It also

* reports on stderr, between marks that only the controller knows, how the worker ended and what was left of its stdout, in the pipe
  and on the way from there into the link;
* asks a worker that has left the link unread for a second (user code holds the interpreter lock) for its stacks, by a signal
  that faulthandler answers without the lock, and reports them the same way; with heartbeats on, it says that such a worker is alive;
* ends a worker whose code has closed our descriptors, or has become another program (os.exec): the link would stay open without
  anybody who answers;
* ends a worker whose link is silent for three heartbeats, when heartbeats are on and the worker cannot see to it itself.
"""

from __future__ import annotations

import marshal
import os
import sys
from _thread import allocate_lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

GRACE = 0.4  # seconds between the hang-up and the kill; everything is to be gone within one


def guard(
    pid: int, config: dict[str, Any], link_r: int, link_w: int, pet_r: int, stdout_r: int, dump_r: int
) -> NoReturn:
    """Watch over the worker ``pid``; never returns."""
    import _signal
    import select
    from time import monotonic

    unread: int | None = None
    ioctl: Any = None
    fionread = 0
    try:
        import termios
        from fcntl import ioctl

        fionread = termios.FIONREAD
    except ImportError:
        pass
    mark = ("\0" + config["nonce"] + ":").encode()

    def report(part: bytes, last: bytes, data: bytes) -> None:
        # In pieces that the kernel writes whole or not at all: the worker and its children write to stderr as well.
        room = getattr(select, "PIPE_BUF", 512) - len(mark) - 9
        ready = select.poll()
        ready.register(2, select.POLLOUT)
        while True:
            piece, data = data[:room], data[room:]
            if not ready.poll(1000 if piece else 0):  # it is full and nobody reads it
                return
            try:
                os.write(2, mark + (part if data else last) + b"%08d" % len(piece) + piece)
            except OSError:  # nobody reads stderr any more
                return
            if not data:
                return

    for name in ("SIGINT", "SIGHUP", "SIGQUIT"):
        _signal.signal(getattr(_signal, name), _signal.SIG_IGN)
    wake_r, wake_w = os.pipe()
    os.set_blocking(wake_w, False)
    for name in ("SIGCHLD", "SIGTERM"):
        _signal.signal(getattr(_signal, name), lambda *args: None)
    _signal.set_wakeup_fd(wake_w)
    poll = select.poll()
    hangup = getattr(select, "POLLRDHUP", 0)
    poll.register(link_r, hangup)
    poll.register(link_w, hangup)
    poll.register(wake_r, select.POLLIN)
    poll.register(pet_r, select.POLLIN)
    poll.register(dump_r, select.POLLIN)
    deadline = None
    silence = config["heartbeat"] * 3
    petted = monotonic()
    dump = b""
    dumped = can_dump = deserted = False
    while True:
        if ended(pid):
            break
        wait = 1.0 if ioctl else 5.0
        if deadline is not None:
            wait = deadline - monotonic()
            if wait <= 0:
                if deserted:
                    os.write(
                        2, b"farwire: the worker's code closed descriptors that are not its own (closerange, exec)\n"
                    )
                    deserted = False
                kill_group(pid)
                wait = 1.0
        for fd, _ in poll.poll(max(1, int(wait * 1000))):
            over = fd in (link_r, link_w)
            if fd == wake_r:
                # SIGTERM to us is for the worker, which is in a group of its own
                over = _signal.SIGTERM in os.read(wake_r, 512)
                if over and deadline is None:
                    kill_group(pid, _signal.SIGTERM)
            elif fd == pet_r:
                petted = monotonic()
                data = os.read(pet_r, 512)
                if b"d" in data:
                    can_dump = True  # faulthandler answers the signal; without it, the signal would kill
                if not data:
                    poll.unregister(pet_r)
                    # The worker is ending, or has closed this and surely the link, too, and nobody would be told.
                    over = deserted = True
            elif fd == dump_r:
                data = os.read(dump_r, 65536)
                if data:
                    dump = dump[-65536:] + data
                else:
                    poll.unregister(dump_r)
            if over and deadline is None:
                deadline = monotonic() + GRACE
                for watched in {link_r, link_w}:
                    poll.unregister(watched)
        if dump and not poll.poll(250):  # a worker that other programs push aside pauses in the midst of it
            report(b"s", b"S", dump)
            dump = b""
        if ioctl and deadline is None:
            try:
                now = int.from_bytes(ioctl(link_r, fionread, b"\0\0\0\0"), sys.byteorder)
            except OSError:
                now = 0
            if now and now == unread:
                if not dumped and can_dump:
                    os.kill(pid, config["dump_signal"])
                dumped = True
            else:
                dumped = False
                if now:
                    petted = monotonic()
            unread = now
            if silence and now:
                report(b"A", b"A", b"")
            if silence and monotonic() - petted > silence:
                deadline = monotonic()
    kill_group(pid)
    status = reaped[0] if reaped else os.waitpid(pid, 0)[1]
    # Whoever sees the end of the link reads the rest of stderr, however much of it waits there.
    for fd in {link_r, link_w}:
        os.close(fd)
    shared = config["shared"]
    if shared is not None:
        chunk = shared[16 : 16 + int.from_bytes(shared[8:16], "little")]
        if chunk and not (config["nonce"].encode() * 2048).startswith(chunk):
            report(b"b", b"B", shared[:8] + chunk)
    rest = b""
    if stdout_r >= 0:
        os.set_blocking(stdout_r, False)
        try:
            while len(rest) < 1 << 20:
                data = os.read(stdout_r, 65536)
                if not data:
                    break
                rest += data
        except OSError:  # BlockingIOError: empty; a grandchild in a group of its own may hold it open
            pass
    if rest:
        report(b"O", b"O", rest)
    report(b"X", b"X", b"%d" % status)
    os._exit(128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status))


reaped: list[int] = []


def ended(pid: int) -> bool:
    """Whether the worker has ended; does not reap it, except on a Python without waitid (PyPy), where the status is kept."""
    if hasattr(os, "waitid"):
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    if not reaped:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            reaped.append(status)
    return bool(reaped)


def kill_group(pid: int, signum: int = 9) -> None:
    """A signal to the worker and everything it started, before it is reaped: then its number could be somebody else's."""
    try:
        os.killpg(pid, signum)
    except OSError:
        pass


class BundleImporter:
    """Imports ``_farwire`` and what is below it from memory."""

    def __init__(self, modules: dict[str, Any], later: Any) -> None:
        self.modules = modules  # name below _farwire -> (is package, source text or code, file name)
        self.later = later  # names of those that a MODULES frame will bring
        self.arrived = allocate_lock()
        self.arrived.acquire()

    def add(self, data: bytes) -> None:
        """The rest has come."""
        if self.later:
            import zlib

            self.modules.update(marshal.loads(zlib.decompress(data)))
            self.later = ()
            self.arrived.release()

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> Any:
        """For ``sys.meta_path``."""
        if fullname != "_farwire" and not fullname.startswith("_farwire."):
            return None
        found = self.modules.get(fullname[9:])
        if found is None and fullname[9:] in self.later:
            with self.arrived:
                found = self.modules.get(fullname[9:])
        if found is None:
            return None
        make_spec: Any = type(sys.__spec__)  # ModuleSpec, without importing importlib
        spec = make_spec(fullname, self, origin="farwire", is_package=found[0])
        if found[0]:
            spec.submodule_search_locations = []
        return spec

    def create_module(self, spec: object) -> None:
        """An ordinary module."""

    def exec_module(self, module: Any) -> None:
        """Run the module's code."""
        name = module.__name__
        code = self.modules[name[9:]][1]
        if isinstance(code, str):
            code = compile(code, self.filename(name), "exec", dont_inherit=True)
        else:
            code = marshal.loads(code)
        exec(code, module.__dict__)

    def filename(self, name: str) -> str:
        """What tracebacks show; not a path that exists."""
        return "farwire:/%s.py" % name.replace(".", "/")

    def get_source(self, name: str) -> str | None:
        """For ``linecache``: source lines in tracebacks."""
        code = self.modules[name[9:]][1]
        return code if isinstance(code, str) else None


def boot(read: Callable[[int], bytes]) -> None:
    """Everything from the configuration to the worker's main loop."""
    config = marshal.loads(read(int(read(6))))
    link_r, link_w = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    stdout_r = -1
    config["shared"] = None
    if config["stdout"]:
        try:
            import mmap

            config["shared"] = mmap.mmap(-1, 16 + 65536)  # see worker/stdio.py
        except (ImportError, OSError):
            pass
        stdout_r, stdout_w = os.pipe()
        os.dup2(stdout_w, 1)
        os.close(stdout_w)
    else:
        os.dup2(null, 1)
    if not config["stderr"]:
        os.dup2(null, 2)
    os.close(null)
    pet_w = dump_w = -1
    if hasattr(os, "fork"):
        pet_r, pet_w = os.pipe()
        dump_r, dump_w = os.pipe()
        pid = os.fork()
        if pid:
            try:
                os.setpgid(pid, pid)
            except OSError:  # it did so itself, or has ended
                pass
            os.close(pet_w)
            os.close(dump_w)
            try:
                guard(pid, config, link_r, link_w, pet_r, stdout_r, dump_r)
            except BaseException as error:  # noqa: BLE001 - told to the controller, and the end of the worker and of this process
                os.write(2, b"farwire: the guard failed: %r\n" % (error,))
            finally:
                kill_group(pid)
                os._exit(70)
        os.setpgid(0, 0)
        os.close(pet_r)
        os.close(dump_r)

    def read_link(count: int) -> Any:
        data = bytearray()
        while len(data) < count:
            more = os.read(link_r, count - len(data))
            if not more:
                os._exit(3)
            data += more
        return data

    for key, value in config["env"].items():
        os.environ[key] = value
    if config["nice"]:
        try:
            os.nice(config["nice"])
        except (OSError, AttributeError) as error:
            sys.stderr.write("farwire: nice: %s\n" % error)
    if config["chdir"]:
        path = os.path.expanduser(config["chdir"])
        try:
            if not os.path.isdir(path):
                os.makedirs(path)
            os.chdir(path)
        except OSError as error:
            sys.stderr.write("farwire: chdir: %s\n" % error)
            sys.stderr.flush()
            os._exit(4)
    if config["dont_write_bytecode"]:
        sys.dont_write_bytecode = True
    bundle = read_link(config["bundle"])
    if config["compressed"]:
        import zlib

        bundle = zlib.decompress(bundle)
    importer = config["importer"] = BundleImporter(marshal.loads(bundle), config["later"])
    sys.meta_path.append(importer)
    from _farwire.worker.main import main

    main(config, link_r, link_w, stdout_r, pet_w, dump_w)


boot(globals()["r"])  # stage 0 left it
