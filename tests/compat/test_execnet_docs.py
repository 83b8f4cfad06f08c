"""Programs as execnet's documentation of the 2.x releases teaches to write them, each run as its own process with
``farwire.compat.install()`` before ``import execnet``.

Left out is what needs Python 2, Jython or IronPython. A place in the documentation is named by its page and heading.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import farwire
import servers
from conftest import wait_for
from socket_server import Server

SRC = Path(farwire.__file__).parents[1]
PRELUDE = "import farwire.compat; farwire.compat.install()\n"


class Program:
    """Runs programs in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {**os.environ, "PYTHONPATH": str(SRC)}

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(textwrap.dedent(text))

    def run(self, text: str, *arguments: str) -> str:
        """Run a program; returns what it printed. It must leave nothing on stderr, and no process."""
        self.write("program.py", PRELUDE + textwrap.dedent(text))
        token = f"{self.folder}-{os.urandom(4).hex()}"
        done = subprocess.run(
            [sys.executable, "program.py", *arguments],
            cwd=self.folder,
            env={**self.env, "DOCS_TOKEN": token},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        shown = [line for line in done.stderr.splitlines() if not line.startswith("farwire-serve: ")]  # its log
        assert not shown, done.stderr
        # What ends by itself when its gateway is gone (a server that was installed) may take a moment.
        wait_for(lambda: not servers.processes_with_environment("DOCS_TOKEN", token), "nothing is left behind")
        return done.stdout


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    return Program(tmp_path)


# -- index, "API in a nutshell" -------------------------------------------------------------------------------------------


def test_basics_gateways_from_specs(program: Program) -> None:
    """basics, examples for valid specifications: those of popen."""
    out = program.run(
        """
        import os, sys, execnet
        gw = execnet.makegateway()
        print(gw.id, gw.spec)
        nice = execnet.makegateway("popen//python=%s//nice=5" % sys.executable)
        ch = nice.remote_exec("import os, sys; channel.send((os.nice(0), os.getcwd(), sys.executable))")
        value, cwd, executable = ch.receive()
        print(value - os.nice(0), cwd == os.getcwd())
        gw = execnet.makegateway("popen//dont_write_bytecode")
        print(gw.remote_exec("import sys; channel.send(sys.dont_write_bytecode)").receive())
        gw = execnet.makegateway("popen//env:GREETING=hello world//chdir=sub")
        ch = gw.remote_exec("import os; channel.send((os.environ['GREETING'], os.path.basename(os.getcwd())))")
        print(*ch.receive())
        print(os.path.isdir("sub"))
        """
    )
    assert out.splitlines() == ["gw0 popen", "5 True", "True", "hello world sub", "True"]


@pytest.mark.needs_sshd
def test_basics_ssh(program: Program, sshd: servers.Sshd) -> None:
    """basics: a host by its name, arguments for the ssh client in the spec, a directory and an interpreter."""
    program.env["PATH"] = f"{sshd.bin}:{program.env['PATH']}"
    out = program.run(
        """
        import sys, execnet
        user, python = sys.argv[1:]
        gw = execnet.makegateway("ssh=wyvern//chdir=mycache//python=" + python)
        ch = gw.remote_exec("import os, getpass; channel.send((getpass.getuser(), os.path.basename(os.getcwd())))")
        print(ch.receive() == (user, "mycache"), gw.remoteaddress)
        gw = execnet.makegateway("ssh=-o ServerAliveInterval=60 wyvern")
        ch = gw.remote_exec(
            '''
            import sys, os
            channel.send((sys.platform, tuple(sys.version_info), os.getpid()))
            '''
        )
        platform, version_info, remote_pid = ch.receive()
        print(platform == sys.platform, version_info >= (3, 6), remote_pid > 0)
        # without chdir, where a login begins
        print(gw.remote_exec("import os; channel.send(os.getcwd() == os.path.expanduser('~'))").receive())
        """,
        sshd.user,
        sshd.python,
    )
    assert out.splitlines() == ["True wyvern", "True True True", "True"]


def test_basics_remote_status(program: Program) -> None:
    """basics, "remote_status": low-level information, also while a task runs."""
    out = program.run(
        """
        import execnet
        gw = execnet.makegateway()
        print(gw.remote_status())
        ch = gw.remote_exec("channel.send(1); channel.receive()")
        ch.receive()
        status = gw.remote_status()
        print(status.numexecuting, status.numchannels, status.execmodel)
        ch.send(None)
        """
    )
    assert out.splitlines() == ["<RInfo 'execmodel=thread, numchannels=0, numexecuting=0'>", "1 1 thread"]


@pytest.mark.parametrize("local", ["thread", "main_thread_only"])
def test_basics_execmodel(program: Program, local: str) -> None:
    """basics, threading models: for a spec, for the default group, for a group."""
    out = program.run(
        f"""
        import execnet
        execnet.set_execmodel("{local}", "main_thread_only")
        gw = execnet.makegateway()
        print(gw.execmodel, gw.execmodel.backend, gw.remote_status().execmodel)
        gw = execnet.makegateway("popen//execmodel=thread")
        print(gw.remote_status().execmodel, gw.spec.execmodel)
        try:
            execnet.set_execmodel("thread")
        except ValueError as error:
            print("late:", error)
        group = execnet.Group(execmodel="main_thread_only")
        gw = group.makegateway()
        ch = gw.remote_exec("import threading as t; channel.send(t.current_thread() is t.main_thread())")
        print(ch.receive())
        ch.waitclose()
        print(gw)
        group.terminate()
        """
    )
    assert out.splitlines() == [
        f"<ExecModel '{local}'> {local} main_thread_only",
        "thread thread",
        "late: can not set execution models if gateways have been created already",
        "True",
        "<Gateway id='gw0' receive-live, main_thread_only model, 0 active channels>",
    ]


def test_basics_channel_api(program: Program) -> None:
    """basics, "Channels": each method that is documented."""
    out = program.run(
        """
        import execnet
        gw = execnet.makegateway()
        ch = gw.remote_exec("for item in channel: channel.send(item * 2)")
        ch.send(21)
        print(ch.receive(timeout=10), ch.isclosed())
        try:
            ch.receive(timeout=0.01)
        except ch.TimeoutError as error:
            print("timeout:", isinstance(error, execnet.TimeoutError))
        ch.close()
        print(ch.isclosed())
        try:
            ch.send(1)
        except OSError:
            print("closed")
        ch = gw.remote_exec("raise ValueError('a reason')")
        try:
            ch.waitclose(timeout=10)
        except ch.RemoteError as error:
            print(isinstance(error, execnet.RemoteError), "ValueError: a reason" in error.formatted)
        ch = gw.remote_exec("channel.close('my error text')")
        try:
            ch.waitclose()
        except ch.RemoteError as error:
            print(error)
        f = gw.remote_exec("f = channel.makefile('w'); f.write('one\\\\ntwo'); f.flush(); f.close()").makefile("r")
        print([f.readline(), f.read(1), f.readline(), f.read(10)])
        """
    )
    lines = out.splitlines()
    assert lines[:-2] == ["42 False", "timeout: True", "True", "closed", "True True"]
    assert lines[-2:] in (
        ["my error text", "['one\\n', 't', 'wo', '']"],
        ["RemoteError: my error text", "['one\\n', 't', 'wo', '']"],
    )


def test_basics_dumps_and_loads(program: Program) -> None:
    """basics, "cross-interpreter serialization": bytes, files, conversions of strings, errors."""
    out = program.run(
        """
        import execnet
        value = {"key": [1, 2.5, None, True, (b"bytes", "text"), {3}, frozenset("a"), 1j]}
        print(execnet.loads(execnet.dumps(value)) == value)
        with open("data", "wb") as f:
            execnet.dump(f, value)
            execnet.dump(f, "second")
        with open("data", "rb") as f:
            print(execnet.load(f) == value, execnet.load(f))
        # ["hello", "world"] as Python 2 wrote it
        old = b"\\x02K\\0\\0\\0\\x02F\\0\\0\\0\\0M\\0\\0\\0\\x05helloPF\\0\\0\\0\\x01M\\0\\0\\0\\x05worldPQ"
        print(execnet.loads(old, py2str_as_py3str=True), execnet.loads(old))
        try:
            execnet.dumps(object())
        except execnet.DumpError as error:
            print(isinstance(error, execnet.DataFormatError))
        try:
            execnet.loads(b"\\x01garbage")
        except execnet.DataFormatError as error:
            print(type(error).__name__)
        """
    )
    assert out.splitlines() == ["True", "True second", "['hello', 'world'] [b'hello', b'world']", "True", "LoadError"]


def test_basics_rsync(program: Program) -> None:
    """basics, "rsync": a tree to several targets, with a filter, and again with deletion."""
    out = program.run(
        """
        import os, execnet
        os.makedirs("source/sub")
        for name in ("a.py", "b.pyc", "sub/c.txt"):
            with open(os.path.join("source", name), "w") as f:
                f.write(name)
        class Sync(execnet.RSync):
            def filter(self, path):
                return not path.endswith(".pyc")
        group = execnet.Group(["popen"] * 2)
        done = []
        def tree(root):
            return sorted(os.path.relpath(os.path.join(d, f), root) for d, _, fs in os.walk(root) for f in fs)
        sync = Sync("source", verbose=False)
        for number, gw in enumerate(group):
            sync.add_target(gw, "target%d" % number, finishedcallback=lambda: done.append(1))
        sync.send()
        print(tree("target0"), tree("target0") == tree("target1"), len(done))
        os.remove("source/sub/c.txt")
        sync = Sync("source", verbose=False)
        sync.add_target(group[0], "target0", delete=True)
        sync.add_target(group[1], "target1")
        sync.send()
        print(tree("target0"), tree("target1"))
        seen = []
        sync = execnet.RSync("source", callback=lambda *args: seen.append(args[0]), verbose=False)
        sync.add_target(group[0], "target2")
        sync.send()
        print(seen.count("list"), seen.count("ack"))
        group.terminate()
        """
    )
    assert out.splitlines() == [
        "['a.py', 'sub/c.txt'] True 2",
        "['a.py'] ['a.py', 'sub/c.txt']",
        "1 2",
    ]


# -- examples: "basic local and remote communication" ----------------------------------------------------------------------


def test_info_execute_and_communicate(program: Program) -> None:
    out = program.run(
        """
        import execnet
        gw = execnet.makegateway()
        channel = gw.remote_exec("channel.send(channel.receive()+1)")
        channel.send(1)
        print(channel.receive())
        """
    )
    assert out == "2\n"


def test_info_function_with_arguments(program: Program) -> None:
    """A pure function, parametrized by keyword arguments; a function that is not pure is refused."""
    out = program.run(
        """
        import execnet

        factor_here = 5

        def times(channel, factor):
            while not channel.isclosed():
                number = channel.receive()
                channel.send(factor * number)

        def impure(channel):
            channel.send(factor_here)

        gw = execnet.makegateway()
        channel = gw.remote_exec(times, factor=10)
        for number in range(3):
            channel.send(number)
            print(channel.receive())
        try:
            gw.remote_exec(impure)
        except ValueError as error:
            print("factor_here" in str(error))
        """
    )
    assert out.splitlines() == ["0", "10", "20", "True"]


def test_info_module(program: Program) -> None:
    program.write("remote1.py", "if __name__ == '__channelexec__':\n    channel.send('initialized')\n")
    out = program.run(
        """
        import execnet, remote1
        gw = execnet.makegateway()
        ch = gw.remote_exec(remote1)
        print(ch.receive())
        """
    )
    assert out == "initialized\n"


def test_info_working_directories(program: Program) -> None:
    out = program.run(
        """
        import execnet, os
        gw = execnet.makegateway()
        ch = gw.remote_exec("import os; channel.send(os.getcwd())")
        res = ch.receive()
        assert res == os.getcwd()
        print("same")
        """
    )
    assert out == "same\n"


def test_info_callback_instead_of_receive(program: Program) -> None:
    out = program.run(
        """
        import execnet
        gw = execnet.makegateway()
        channel = gw.remote_exec("for i in range(10): channel.send(i)")
        l = []
        channel.setcallback(l.append, endmarker=None)
        channel.waitclose()
        print(l)
        """
    )
    assert out == "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, None]\n"


def test_info_channels_over_channels(program: Program) -> None:
    out = program.run(
        """
        import execnet
        gw = execnet.makegateway()
        channel = gw.remote_exec('''
            ch1, ch2 = channel.receive()
            ch2.send("world")
            ch1.send("hello")
        ''')
        c1 = gw.newchannel()
        c2 = gw.newchannel()
        channel.send((c1, c2))
        print(c1.receive(), c2.receive())
        """
    )
    assert out == "hello world\n"


def test_info_command_loop(program: Program) -> None:
    """A module with a loop that evaluates what comes."""
    program.write(
        "remotecmd.py",
        """
        def simple(arg):
            return arg + 1

        if __name__ == '__channelexec__':
            for item in channel:
                channel.send(eval(item))
        """,
    )
    out = program.run(
        """
        import execnet, remotecmd
        gw = execnet.makegateway()
        ch = gw.remote_exec(remotecmd)
        ch.send('simple(10)')
        print(ch.receive())
        ch.close()
        """
    )
    assert out == "11\n"


def test_info_sockets(program: Program, tcp_server: Server) -> None:
    """ "Instantiate gateways through sockets"; the server wants a secret, which execnet's did not."""
    program.env["FARWIRE_SECRET"] = Path(tcp_server.secret_file).read_text()
    out = program.run(
        """
        import sys, execnet
        gw = execnet.makegateway("socket=" + sys.argv[1])
        print(gw.remoteaddress == sys.argv[1])
        ch = gw.remote_exec("channel.send(channel.receive() * 2)")
        ch.send("ab")
        print(ch.receive())
        """,
        tcp_server.address,
    )
    assert out.splitlines() == ["True", "abab"]


def test_info_installvia(program: Program) -> None:
    """basics: a socket server that another gateway starts."""
    out = program.run(
        """
        import execnet
        group = execnet.Group(["popen//id=starter"])
        gw = group.makegateway("socket//installvia=starter//id=sock")
        print(gw.remote_exec("channel.send(6 * 7)").receive(), list(g.id for g in group))
        group.terminate()
        """
    )
    assert out == "42 ['starter', 'sock']\n"


@pytest.mark.needs_sshd
def test_ssh_file_server(program: Program, sshd: servers.Sshd) -> None:
    """ "Receive file contents from remote SSH account"."""
    program.env["PATH"] = f"{sshd.bin}:{program.env['PATH']}"
    program.write(
        "servefiles.py",
        """
        def servefiles(channel):
            for fn in channel:
                f = open(fn, "rb")
                channel.send(f.read())
                f.close()

        if __name__ == "__channelexec__":
            servefiles(channel)
        """,
    )
    out = program.run(
        """
        import execnet, servefiles
        gw = execnet.makegateway("ssh=myhost")
        channel = gw.remote_exec(servefiles)
        for fn in ("/etc/passwd", "/etc/group"):
            channel.send(fn)
            content = channel.receive()
            print(fn, content.count(b"root:") > 0)
        """
    )
    assert out.splitlines() == ["/etc/passwd True", "/etc/group True"]


# -- examples: "Managing multiple gateways and clusters" ----------------------------------------------------------------


def test_group_as_container(program: Program) -> None:
    out = program.run(
        """
        import execnet
        group = execnet.Group(['popen'] * 2)
        print(len(group), group)
        print(list(group))
        print('gw0' in group and 'gw1' in group, group['gw0'] == group[0], group['gw1'] == group[1])
        group.terminate()
        print(group)
        """
    )
    assert out.splitlines() == [
        "2 <Group ['gw0', 'gw1']>",
        "[<Gateway id='gw0' receive-live, thread model, 0 active channels>,"
        " <Gateway id='gw1' receive-live, thread model, 0 active channels>]",
        "True True True",
        "<Group []>",
    ]


def test_group_ids(program: Program) -> None:
    """Ids that are given, and ids that are known before there is a gateway."""
    out = program.run(
        """
        import execnet
        group = execnet.Group()
        gw = group.makegateway("popen//id=sub1")
        print(gw.id, group['sub1'])
        spec = execnet.XSpec("popen")
        group.allocate_id(spec)
        allocated_id = spec.id
        gw = group.makegateway(spec)
        print(gw.id == allocated_id, gw.spec is spec)
        try:
            group.makegateway("popen//id=sub1")
        except ValueError:
            print("taken")
        group.terminate()
        """
    )
    assert out.splitlines() == [
        "sub1 <Gateway id='sub1' receive-live, thread model, 0 active channels>",
        "True True",
        "taken",
    ]


def test_group_default_group(program: Program) -> None:
    out = program.run(
        """
        import execnet
        gw = execnet.makegateway()
        print(gw in execnet.default_group, execnet.default_group.defaultspec)
        """
    )
    assert out == "True popen\n"


def test_group_robust_termination(program: Program) -> None:
    """A worker that sleeps is gone after the timeout, and the program does not wait for its sleep."""
    out = program.run(
        """
        import execnet, os, time
        group = execnet.Group()
        gw = group.makegateway("popen//id=sleeper")
        ch = gw.remote_exec("import os, time; channel.send(os.getpid()); time.sleep(1000)")
        pid = ch.receive()
        print(group)
        group.terminate(timeout=1.0)
        print(group)
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            print("gone")
        """
    )
    assert out.splitlines() == ["<Group ['sleeper']>", "<Group []>", "gone"]


@pytest.mark.needs_sshd
def test_group_default_spec(program: Program, sshd: servers.Sshd) -> None:
    """A group as a factory of one kind of gateway."""
    program.env["PATH"] = f"{sshd.bin}:{program.env['PATH']}"
    out = program.run(
        """
        import execnet
        group = execnet.Group()
        group.defaultspec = "ssh=localhost//chdir=mytmp//nice=20"
        gw = group.makegateway()
        ch = gw.remote_exec('''
            import os.path
            basename = os.path.basename(os.getcwd())
            channel.send((basename, os.nice(0)))
        ''')
        print(*ch.receive())
        group.terminate()
        """
    )
    assert out == "mytmp 19\n"


def test_proxied_gateways(program: Program) -> None:
    """ "Managing Proxied gateways": a master, and workers that it starts."""
    out = program.run(
        """
        import execnet
        group = execnet.Group()
        group.defaultspec = 'popen//via=master'
        master = group.makegateway('popen//id=master')
        print(master)
        worker = group.makegateway()
        print(worker)
        print(group)
        code = "import os; channel.send((os.getpid(), os.getppid()))"
        pids = [gw.remote_exec(code).receive()[0] for gw in group]
        print(len(set(pids)))
        group.terminate()
        """
    )
    assert out.splitlines() == [
        "<Gateway id='master' receive-live, thread model, 0 active channels>",
        "<Gateway id='gw0' receive-live, thread model, 0 active channels>",
        "<Group ['master', 'gw0']>",
        "2",
    ]


# -- examples: "advanced (multi) channel communication" --------------------------------------------------------------------


def test_multi_container(program: Program) -> None:
    out = program.run(
        """
        import execnet
        ch1 = execnet.makegateway().remote_exec("channel.send(1)")
        ch2 = execnet.makegateway().remote_exec("channel.send(2)")
        mch = execnet.MultiChannel([ch1, ch2])
        print(len(mch), mch[0] is ch1 and mch[1] is ch2, ch1 in mch and ch2 in mch, sum(mch.receive_each()))
        """
    )
    assert out == "2 True True 3\n"


def test_multi_receive_with_channel_and_send_each(program: Program) -> None:
    """basics: the other methods of ``MultiChannel``."""
    out = program.run(
        """
        import execnet
        group = execnet.Group(["popen"] * 2)
        mch = group.remote_exec("channel.send(channel.receive() + 1)")
        mch.send_each(41)
        print([(ch.gateway.id, item) for ch, item in mch.receive_each(withchannel=True)])
        mch.waitclose()
        print([ch.isclosed() for ch in mch])
        mch = group.remote_exec("raise KeyError('x')")
        try:
            mch.waitclose()
        except execnet.RemoteError:
            print("remote error")
        group.terminate()
        """
    )
    assert out.splitlines() == ["[('gw0', 42), ('gw1', 42)]", "[True, True]", "remote error"]


def test_multi_receive_queue(program: Program) -> None:
    out = program.run(
        """
        import execnet
        ch1 = execnet.makegateway().remote_exec("channel.send(1)")
        ch2 = execnet.makegateway().remote_exec("channel.send(2)")
        mch = execnet.MultiChannel([ch1, ch2])
        queue = mch.make_receive_queue()
        chan1, res1 = queue.get()
        chan2, res2 = queue.get(timeout=3)
        print(res1 + res2, {chan1, chan2} == {ch1, ch2})
        """
    )
    assert out == "3 True\n"


def test_multi_callbacks(program: Program) -> None:
    out = program.run(
        """
        import execnet
        gw = execnet.makegateway()
        ch = gw.remote_exec("channel.receive() ; channel.send(42)")
        l = []
        ch.setcallback(l.append)
        ch.send(1)
        ch.waitclose()
        print(l)
        """
    )
    assert out == "[42]\n"


def test_multi_termination_notice(program: Program) -> None:
    """The end marker comes also from workers that are ended while they wait."""
    out = program.run(
        """
        import execnet
        group = execnet.Group(['popen'] * 3)
        mch = group.remote_exec("channel.send(channel.receive()+1)")
        queue = mch.make_receive_queue(endmarker=42)
        mch[0].send(1)
        chan1, res1 = queue.get()
        print(res1)
        group.terminate(timeout=1)
        for i in range(3):
            chan1, res1 = queue.get()
            assert res1 == 42
        print(group)
        """
    )
    assert out.splitlines() == ["2", "<Group []>"]


def test_multi_task_server(program: Program) -> None:
    """ "saturate multiple Hosts and CPUs": no result is lost, and all workers end when the tasks do."""
    out = program.run(
        """
        import execnet

        group = execnet.Group()
        for i in range(3):
            group.makegateway()

        def process_item(channel):
            import time, random
            channel.send("ready")
            for x in channel:
                if x is None:
                    break
                time.sleep(random.random() / 50)
                channel.send(x * 10)

        mch = group.remote_exec(process_item)
        q = mch.make_receive_queue(endmarker=-1)
        tasks = list(range(30))
        terminated = 0
        results = []
        while 1:
            channel, item = q.get()
            if item == -1:
                terminated += 1
                if terminated == len(mch):
                    break
                continue
            if item != "ready":
                results.append(item)
            if tasks:
                channel.send(tasks.pop())
            elif tasks is not None:
                mch.send_each(None)
                tasks = None
        print(sorted(results) == [10 * n for n in range(30)], terminated)
        group.terminate()
        """
    )
    assert out == "True 3\n"


# -- the scripts beside the documentation ----------------------------------------------------------------------------------


def test_redirect_remote_output(program: Program) -> None:
    """A channel made at the other end, as the file that ``print`` writes to there; a callback gets the text here."""
    out = program.run(
        """
        import execnet
        gw = execnet.makegateway()
        outchan = gw.remote_exec('''
            import sys
            outchan = channel.gateway.newchannel()
            sys.stdout = outchan.makefile("w")
            channel.send(outchan)
        ''').receive()
        assert isinstance(outchan, execnet.Channel)
        def write(data):
            print("received:", repr(data))
        outchan.setcallback(write)
        gw.remote_exec('''
            print('hello world')
            print('remote execution ends')
        ''').waitclose()
        """
    )
    assert out.splitlines() == [
        "received: 'hello world'",
        "received: '\\n'",
        "received: 'remote execution ends'",
        "received: '\\n'",
    ]


def test_popen_read_multiple(program: Program) -> None:
    """A queue with a timeout, of workers that do not answer yet."""
    out = program.run(
        """
        import execnet, queue as queue_module
        channels = []
        for i in range(3):
            gw = execnet.makegateway()
            channels.append(gw.remote_exec("n = channel.receive(); channel.send('waited for %d' % n)"))
        mc = execnet.MultiChannel(channels)
        queue = mc.make_receive_queue()
        try:
            queue.get(timeout=0.05)
        except queue_module.Empty:
            print("nothing yet")
        mc.send_each(1)
        for i in range(3):
            channel, result = queue.get(timeout=10)
            print(result)
        """
    )
    assert out.splitlines() == ["nothing yet", *["waited for 1"] * 3]


def test_pull_in_pieces_with_acknowledgements(program: Program) -> None:
    """svn-sync-repo: a loop at the other end makes a channel for each transfer; the reader paces it by acknowledging."""
    out = program.run(
        """
        import execnet
        gw = execnet.makegateway()
        c = gw.remote_exec('''
            start, end = channel.receive()
            while start < end:
                dump = channel.gateway.newchannel()
                channel.send((start, start + 10))
                channel.send(dump)
                limit = count = dump.receive()
                for number in range(start, start + 10):
                    dump.send(b"%d;" % number)
                    count -= 1
                    if count <= 0:
                        dump.receive()
                        count = limit
                dump.close()
                start += 10
            channel.send(None)
        ''')
        c.send((0, 30))
        data = b""
        while 1:
            message = c.receive()
            if message is None:
                break
            dump = c.receive()
            count = 4
            dump.send(4)
            for piece in dump:
                data += piece
                count -= 1
                if count <= 0:
                    dump.send(4)
                    count = 4
            print(*message)
        print(data == b"".join(b"%d;" % n for n in range(30)))
        """
    )
    assert out.splitlines() == ["0 10", "10 20", "20 30", "True"]


def test_system_information(program: Program) -> None:
    """sysinfo: an object that asks a gateway, and remembers."""
    out = program.run(
        """
        import execnet, sys

        class RemoteInfo:
            def __init__(self, gateway):
                self.gw = gateway
                self._cache = {}

            def exreceive(self, execstring):
                if execstring not in self._cache:
                    channel = self.gw.remote_exec(execstring)
                    self._cache[execstring] = channel.receive()
                return self._cache[execstring]

            def getmodattr(self, modpath):
                module = modpath.split(".")[0]
                return self.exreceive('''
                    import %s
                    channel.send(%s)
                ''' % (module, modpath))

        info = RemoteInfo(execnet.makegateway())
        print(info.getmodattr("sys.platform") == sys.platform)
        print(info.exreceive("import socket; channel.send(socket.gethostname())") != "")
        try:
            info.getmodattr("sys.version_info")
        except execnet.RemoteError as error:
            print("DumpError" in str(error))  # a named tuple: tuple() of it can be sent, in execnet as here
        """
    )
    assert out.splitlines() == ["True", "True", "True"]


def test_hybrid_python(program: Program) -> None:
    """ "Connecting different Python interpreters", with the oldest one here in the place of Python 2."""
    python = next(iter(servers.interpreters().values()))
    out = program.run(
        """
        import execnet, sys
        gw = execnet.makegateway("popen//python=" + sys.argv[1])
        channel = gw.remote_exec('''
            import array
            numbers = array.array("i", [1, 2, 3])
            while 1:
                x = channel.receive()
                if x is None:
                    break
                numbers.append(x)
            channel.send(repr(numbers))
        ''')
        for x in range(10):
            channel.send(x)
        channel.send(None)
        print(channel.receive())
        gw.reconfigure(py3str_as_py2str=True)
        channel.reconfigure(py2str_as_py3str=False)
        print(gw.remote_exec("channel.send('text')").receive())
        """,
        python,
    )
    assert out.splitlines() == ["array('i', [1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9])", "text"]


def test_debug_trace(program: Program) -> None:
    """ "Debugging execnet": every message, on stderr; asked for by FARWIRE_TRACE here."""
    program.env["FARWIRE_TRACE"] = str(program.folder / "trace")
    program.run("import execnet; execnet.makegateway().remote_exec('42').waitclose()")
    files = sorted(program.folder.glob("trace.*"))
    argv = [sys.executable, "-m", "farwire", "trace", *map(str, files)]
    done = subprocess.run(argv, env=program.env, capture_output=True, text=True, timeout=50, check=True)
    for text in ("controller > gw0 EXEC, channel 1", "gw0-worker < controller EXEC", "'42'", "CLOSE, channel 1"):
        assert text in done.stdout


def test_a_program_without_end(program: Program) -> None:
    """basics, "robust termination": what a program leaves open is ended at its exit."""
    out = program.run(
        """
        import execnet
        gw = execnet.makegateway()
        ch = gw.remote_exec("import time; channel.send(1); time.sleep(1000)")
        print(ch.receive())
        """
    )
    assert out == "1\n"
