"""What programs can observe of execnet holds in farwire.compat: to the letter."""

from __future__ import annotations

import inspect
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import farwire
import farwire.compat as execnet
import servers


@pytest.fixture
def group() -> Iterator[Any]:
    fresh = execnet.Group()
    yield fresh
    fresh.terminate(3)


@pytest.fixture
def gw(group: Any) -> Any:
    return group.makegateway()


# ---------------------------------------------------------------------------------------------------------- the package


def test_all_names() -> None:
    names = """
        Channel DataFormatError DumpError Gateway Group HostNotFound LoadError MultiChannel RSync RemoteError
        TimeoutError XSpec __version__ default_group dump dumps load loads makegateway set_execmodel
    """
    assert set(execnet.__all__) == {*names.split(), "install"}
    for name in execnet.__all__:
        assert getattr(execnet, name) is not None
    assert set(execnet.__all__) <= set(dir(execnet))
    assert execnet.__version__.startswith("2.1.")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = execnet.no_such_name


def test_makegateway_and_set_execmodel_are_methods_of_the_default_group() -> None:
    assert execnet.makegateway.__self__ is execnet.default_group  # type: ignore[attr-defined]
    assert execnet.set_execmodel.__self__ is execnet.default_group  # type: ignore[attr-defined]


def test_errors_are_those_that_handlers_name() -> None:
    assert issubclass(execnet.DumpError, execnet.DataFormatError)
    assert issubclass(execnet.LoadError, execnet.DataFormatError)
    assert issubclass(execnet.TimeoutError, OSError)
    assert issubclass(execnet.TimeoutError, TimeoutError)
    assert execnet.Channel.RemoteError is execnet.RemoteError
    assert execnet.Channel.TimeoutError is execnet.TimeoutError


def test_a_controller_has_all_modules_from_the_start() -> None:
    """What is loaded later may be loaded twice: pytester forgets modules that were imported during a test."""
    code = """
import farwire.compat, sys
before = set(sys.modules)
gateway = farwire.compat.makegateway()
gateway.remote_exec("pass").waitclose()
print([name for name in set(sys.modules) - before if name.startswith("farwire.compat")])
gateway.exit()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout == "[]\n"


# --------------------------------------------------------------------------------------------------------------- specs


def test_spec_attributes_are_text_true_or_none() -> None:
    spec = execnet.XSpec("popen//python=/usr/bin/python3//nice=5//dont_write_bytecode//env:A=1//env:B=//mine=x//bare")
    assert (spec.popen, spec.python, spec.nice, spec.dont_write_bytecode) == (True, "/usr/bin/python3", "5", True)
    assert spec.env == {"A": "1", "B": ""}
    assert (spec.mine, spec.bare) == ("x", True)
    assert (spec.ssh, spec.chdir, spec.id, spec.whatever) == (None, None, None, None)
    spec.chdir = "there"
    spec.other = 3
    assert (spec.chdir, spec.other) == ("there", 3)


def test_a_spec_is_its_text() -> None:
    spec = execnet.XSpec("ssh=host//chdir=a//unknown=1")
    same = execnet.XSpec(str(spec))
    assert str(spec) == "ssh=host//chdir=a//unknown=1"
    assert repr(spec) == "<XSpec 'ssh=host//chdir=a//unknown=1'>"
    assert spec == same
    assert hash(spec) == hash(same)
    assert {spec, same} == {spec}
    assert spec != execnet.XSpec("popen")
    same.id = "x"
    assert spec == same
    assert execnet.XSpec(f"execmodel=main_thread_only//{spec}").execmodel == "main_thread_only"


def test_quotes_in_a_spec_are_not_ours() -> None:
    """``python=`` is a command line, quotes included."""
    assert execnet.XSpec('popen//python="/opt/a b/python" -u').python == '"/opt/a b/python" -u'


@pytest.mark.parametrize(
    "text", ["popen//", "//popen", "", "popen//id=a//id=b", "popen//env:A=1//env:A=2", "popen//env:A"]
)
def test_specs_that_were_accepted_silently_or_crashed(text: str) -> None:
    with pytest.raises(ValueError, match=r"spec|key"):
        execnet.XSpec(text)


def test_a_private_key_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="_x"):
        execnet.XSpec("_x=1")
    with pytest.raises(AttributeError):
        _ = execnet.XSpec("popen")._x


def test_a_url_cut_in_two_is_told() -> None:
    with pytest.raises(ValueError, match="'//' cannot be in a value"):
        execnet.XSpec("popen//env:URL=http://x")


def test_the_spec_that_was_given_is_the_gateways(group: Any) -> None:
    spec = execnet.XSpec("popen//unknown=1")
    gateway = group.makegateway(spec)
    assert gateway.spec is spec
    assert (spec.id, gateway.id, spec.execmodel) == ("gw0", "gw0", "thread")


def test_a_spec_without_a_transport(group: Any) -> None:
    with pytest.raises(ValueError, match="no gateway type found"):
        group.makegateway("chdir=x")


@pytest.mark.parametrize("model", ["gevent", "eventlet", "bogus"])
def test_execmodels_that_do_not_exist(model: str) -> None:
    with pytest.raises(ValueError, match=f"unknown execmodel '{model}'"):
        execnet.Group(execmodel=model)
    with pytest.raises(ValueError, match=f"unknown execmodel '{model}'"):
        execnet.Group().makegateway(f"popen//execmodel={model}")


# -------------------------------------------------------------------------------------------------------------- groups


def test_group_as_a_container(group: Any) -> None:
    one, two = group.makegateway(), group.makegateway("popen//id=other")
    assert len(group) == 2
    assert list(group) == [one, two]
    assert group[0] is group["gw0"] is group[one] is one
    assert group["other"] is two
    assert "gw0" in group
    assert two in group
    assert "gw7" not in group
    with pytest.raises(KeyError):
        group["gw7"]
    with pytest.raises(IndexError):
        group[7]
    assert repr(group) == "<Group ['gw0', 'other']>"
    one.exit()
    assert list(group) == [two]
    one.exit()  # again: nothing


def test_allocate_id_is_reentrant(group: Any) -> None:
    spec = execnet.XSpec("popen")
    group.allocate_id(spec)
    group.allocate_id(spec)
    assert spec.id == "gw0"
    assert group.makegateway(spec).id == "gw0"
    with pytest.raises(ValueError, match="already have gateway with id 'gw0'"):
        group.makegateway(spec)
    spec.id = None  # as xdist does for a worker that crashed
    group.allocate_id(spec)
    assert group.makegateway(spec).id == "gw1"


def test_set_execmodel(group: Any) -> None:
    group.set_execmodel("thread", "main_thread_only")
    assert (group.execmodel.backend, group.remote_execmodel.backend) == ("thread", "main_thread_only")
    gateway = group.makegateway()
    assert gateway.spec.execmodel == "main_thread_only"
    assert gateway.remote_status().execmodel == "main_thread_only"
    assert gateway.execmodel is group.execmodel
    with pytest.raises(ValueError, match="can not set execution models"):
        group.set_execmodel("thread")


def test_default_spec(group: Any, tmp_path: Path) -> None:
    group.defaultspec = f"popen//chdir={tmp_path}"
    assert group.makegateway().remote_exec("import os; channel.send(os.getcwd())").receive() == str(tmp_path)


def test_group_remote_exec_and_its_queue(group: Any) -> None:
    group.makegateway()
    group.makegateway()
    multi = group.remote_exec("channel.send(channel.gateway.id)")
    assert isinstance(multi, execnet.MultiChannel)
    results = multi.make_receive_queue(endmarker=None)
    got = sorted(
        (results.get(timeout=10) for _ in range(4)), key=lambda pair: (pair[0].id, pair[0].gateway.id, pair[1] is None)
    )
    assert [item for _, item in got] == ["gw0-worker", None, "gw1-worker", None]
    assert results.empty()  # a queue.Queue, with all that it has
    results.task_done()


def test_group_terminate_interrupts_and_kills(group: Any, tmp_path: Path) -> None:
    file = tmp_path / "interrupted"
    interrupted = group.makegateway().remote_exec(
        """
        import time
        try:
            channel.send("ready")
            time.sleep(100)
        except KeyboardInterrupt:
            with open(FILE, "w"):
                pass
    """.replace("FILE", repr(str(file)))
    )
    stubborn = group.makegateway()
    channel = stubborn.remote_exec("""
        import signal, time
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        channel.send("ready")
        time.sleep(100)
    """)
    assert interrupted.receive() == channel.receive() == "ready"
    pid = stubborn._io.popen.pid
    group.terminate(timeout=1.5)
    assert len(group) == 0
    assert not Path(f"/proc/{pid}").exists()  # reaped as well
    assert file.exists()


def test_group_terminate_reaps_what_exited_before(group: Any) -> None:
    gateway = group.makegateway()
    pid = gateway._io.popen.pid
    gateway.exit()
    assert len(group) == 0
    group.terminate(5)
    assert not Path(f"/proc/{pid}").exists()


def test_exit_does_not_wait(group: Any) -> None:
    gateway = group.makegateway()
    gateway.remote_exec("import time; channel.send(1); time.sleep(1000)").receive()
    gateway.exit()
    assert gateway.hasreceiver()  # it has not waited for the task, nor killed it


def test_default_group_is_terminated_at_the_end_of_the_program() -> None:
    code = """
import farwire.compat as execnet
gateway = execnet.makegateway()
gateway.remote_exec("import time; time.sleep(100)")
print(gateway._io.popen.pid)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert not Path(f"/proc/{done.stdout.strip()}").exists()


# ------------------------------------------------------------------------------------------------------------ gateways


def test_gateway_repr(gw: Any) -> None:
    assert repr(gw) == "<Gateway id='gw0' receive-live, thread model, 0 active channels>"
    channel = gw.newchannel()
    assert repr(gw) == "<Gateway id='gw0' receive-live, thread model, 1 active channels>"
    channel.close()
    gw.exit()
    gw.join(10)
    assert repr(gw).startswith("<Gateway id='gw0' not-receiving, thread model")


def test_popen_gateways_have_no_address(gw: Any) -> None:
    with pytest.raises(AttributeError):
        _ = gw.remoteaddress


def test_join_times_out(gw: Any) -> None:
    with pytest.raises(OSError, match="still there"):
        gw.join(timeout=0.01)


def test_history_that_does_nothing(gw: Any, capsys: pytest.CaptureFixture[str]) -> None:
    gw.reconfigure(py2str_as_py3str=False, py3str_as_py2str=False)
    gw.remote_init_threads(3)
    assert "no-op" in capsys.readouterr().out
    channel = gw.remote_exec("channel.reconfigure(py2str_as_py3str=False); channel.send(1)")
    channel.reconfigure(py3str_as_py2str=True)
    assert channel.receive() == 1


def test_remote_status(gw: Any) -> None:
    busy = gw.remote_exec("channel.receive()")
    status = gw.remote_status()
    assert (status.numexecuting, status.execmodel) == (1, "thread")
    assert status.numchannels == 1
    busy.send(None)
    busy.waitclose()


def test_a_dead_gateway_stays_in_the_group_until_it_exits(group: Any) -> None:
    gateway = group.makegateway()
    channel = gateway.remote_exec("import os; channel.send(1); os._exit(3)")
    assert list(channel) == [1]  # iteration stops
    assert not gateway.hasreceiver()
    assert "exit status 3" in gateway.death
    assert gateway in group
    with pytest.raises(OSError, match="exit status 3"):
        gateway.remote_exec("pass")
    with pytest.raises(OSError, match="exit status 3"):
        gateway.remote_status()
    gateway.exit()
    assert gateway not in group


# ------------------------------------------------------------------------------------------------- what a worker finds


def test_the_world_of_a_worker(gw: Any) -> None:
    channel = gw.remote_exec("""
        import os, sys
        channel.send((sys.argv, __name__, sys.path[0], os.getcwd(), os.read(0, 10)))
        channel.send((repr(channel), channel.gateway.id, channel.gateway.hasreceiver()))
        try:
            channel.gateway.remote_exec
        except AttributeError:
            channel.send("none")
        raise ValueError("here")
    """)
    assert channel.receive() == (["-c"], "__channelexec__", "", os.getcwd(), b"")
    assert channel.receive() == (f"<Channel id={channel.id} open>", "gw0-worker", True)
    assert channel.receive() == "none"
    with pytest.raises(channel.RemoteError) as caught:
        channel.receive()
    assert 'File "<remote exec>", line 9, in <module>' in str(caught.value)
    assert caught.value.formatted.strip().endswith("ValueError: here")
    assert repr(caught.value) == "RemoteError: " + caught.value.formatted
    with pytest.raises(EOFError):
        channel.receive()


def failing(channel) -> None:
    raise ValueError("here")


def test_lines_of_shipped_functions(gw: Any) -> None:
    line = inspect.getsourcelines(failing)[1] + 1
    with pytest.raises(execnet.RemoteError, match=f'File "{__file__}", line {line}, in failing'):
        gw.remote_exec(failing).waitclose()


def test_sys_path_has_nothing_of_ours(gw: Any) -> None:
    path = gw.remote_exec("import sys; channel.send(sys.path)").receive()
    plain = subprocess.run(
        [sys.executable, "-c", "import sys; print(sys.path)"], capture_output=True, text=True, check=True, timeout=30
    )
    assert repr(path) == plain.stdout.strip()


def test_a_worker_imports_execnet(gw: Any) -> None:
    channel = gw.remote_exec("""
        import sys
        import execnet
        import execnet.xspec
        from execnet.gateway_base import DumpError
        assert "farwire.group" not in sys.modules
        try:
            channel.send(object())
        except DumpError:
            channel.send("DumpError")
        channel.send((execnet.loads(execnet.dumps([1])), isinstance(channel, execnet.Channel), execnet.__version__))
        try:
            channel.receive(timeout=0)
        except execnet.TimeoutError:
            channel.send("TimeoutError")
        channel.send(execnet.makegateway().remote_exec("channel.send(6 * 7)").receive())
    """)
    assert channel.receive() == "DumpError"
    assert channel.receive() == ([1], True, execnet.__version__)
    assert channel.receive() == "TimeoutError"
    assert channel.receive() == 42


def test_stdout_goes_nowhere_and_stderr_is_ours() -> None:
    code = """
import os
import farwire.compat as execnet
channel = execnet.makegateway().remote_exec("import os; os.write(1, b'out'); os.write(2, b'err'); channel.send(os.isatty(0))")
channel.waitclose()
execnet.default_group.terminate(5)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=30)
    assert (done.stdout, done.stderr) == (b"", b"err")


def test_one_exception_does_not_poison_a_worker(group: Any) -> None:
    gateway = group.makegateway("popen//execmodel=main_thread_only")
    for _ in range(3):
        with pytest.raises(execnet.RemoteError):
            gateway.remote_exec("1/0").waitclose()
    assert gateway.remote_exec("channel.send(1)").receive() == 1


def test_a_task_waits_for_the_one_before_it(group: Any) -> None:
    gateway = group.makegateway("popen//execmodel=main_thread_only")
    first = gateway.remote_exec("import threading; channel.receive(); channel.send(threading.current_thread().name)")
    second = gateway.remote_exec("import threading; channel.send(threading.current_thread().name)")
    first.send(None)
    assert first.receive() == second.receive() == "MainThread"


def test_what_was_sent_survives_a_sudden_end(gw: Any) -> None:
    channel = gw.remote_exec("""
        import os
        for i in range(100):
            channel.send(i)
        os._exit(0)
    """)
    assert list(channel) == list(range(100))


def test_an_object_that_shows_itself_as_text_is_taken_for_it(gw: Any) -> None:
    class Source:
        def __str__(self) -> str:
            return "channel.send(1)"

    assert gw.remote_exec(Source()).receive() == 1
    with pytest.raises(TypeError):
        gw.remote_exec("pass", argument=1)
    with pytest.raises(ValueError, match="lambda"):
        gw.remote_exec(lambda channel: None)


# ------------------------------------------------------------------------------------------------------------ channels


def test_channel_attributes_and_repr(gw: Any) -> None:
    channel = gw.remote_exec("channel.receive()")
    channel.mine = 3
    assert channel.mine == 3
    assert isinstance(channel, execnet.Channel)
    assert isinstance(channel, farwire.Channel)
    assert repr(channel) == "<Channel id=1 open>"
    channel.close()
    assert repr(channel) == "<Channel id=1 closed>"
    with pytest.raises(OSError, match="cannot send to <Channel id=1 closed>"):
        channel.send(1)


def test_channel_timeouts_are_worded_as_before(gw: Any) -> None:
    channel = gw.remote_exec("channel.receive()")
    with pytest.raises(execnet.TimeoutError, match=r"no item after 0\.01 seconds"):
        channel.receive(timeout=0.01)
    with pytest.raises(execnet.TimeoutError, match=r"Timeout after 0\.01 seconds"):
        channel.waitclose(timeout=0.01)
    with pytest.raises(ValueError, match="negative"):
        channel.receive(timeout=-1)


def test_a_callback_gets_what_is_there_before_setcallback_returns(gw: Any) -> None:
    channel = gw.remote_exec("for i in range(3): channel.send(i)")
    channel.waitclose()
    got: list[Any] = []
    channel.setcallback(got.append, endmarker="end")
    assert got == [0, 1, 2, "end"]
    with pytest.raises(OSError, match="has callback already registered"):
        channel.setcallback(got.append)
    with pytest.raises(OSError, match="channel has receiver callback"):
        channel.receive()


def test_a_channel_is_itself_after_a_round_trip(gw: Any) -> None:
    channel = gw.remote_exec("channel.send(channel.receive())")
    other = gw.newchannel()
    channel.send([other])
    assert channel.receive() == [other]


def test_a_file_ends_when_the_worker_dies(gw: Any) -> None:
    channel = gw.remote_exec("import os; channel.send('a line'); os._exit(1)")
    file = channel.makefile("r")
    assert file.readline() == "a line"
    assert file.read(1) == ""


def test_a_remote_error_can_be_pickled(gw: Any) -> None:
    with pytest.raises(execnet.RemoteError) as caught:
        gw.remote_exec("1/0").waitclose()
    copy = pickle.loads(pickle.dumps(caught.value))
    assert copy.formatted == caught.value.formatted


# ---------------------------------------------------------------------------------------------------- ways to a worker


def test_ssh_starts_in_the_home_directory(group: Any, sshd: servers.Sshd) -> None:
    gateway = group.makegateway(f"ssh={sshd.host}//ssh_config={sshd.ssh_config}")
    assert gateway._rinfo().cwd == str(sshd.home)
    assert gateway.remoteaddress == sshd.host
    assert gateway.remote_exec("import sys; channel.send((sys.argv, sys.path[0]))").receive() == (["-c"], "")


def test_installvia_over_ssh(group: Any, sshd: servers.Sshd) -> None:
    master = group.makegateway(f"ssh={sshd.host}//ssh_config={sshd.ssh_config}//id=master")
    gateway = group.makegateway("socket//installvia=master")
    assert gateway.remote_exec("import os; channel.send(os.getpid())").receive() != master._rinfo().pid
    with pytest.raises(ValueError, match="installvia=none"):
        group.makegateway("socket//installvia=none")


def test_via(group: Any) -> None:
    group.makegateway("popen//id=master")
    gateway = group.makegateway("popen//via=master")
    assert gateway.remote_exec("channel.send(channel.gateway.execmodel.backend)").receive() == "thread"
    group.terminate(3)


def test_an_unreachable_host(group: Any) -> None:
    with pytest.raises(execnet.HostNotFound):
        group.makegateway("ssh=no.such.host.invalid")


def test_a_refused_login_is_a_host_not_found_too(group: Any, sshd: servers.Sshd) -> None:
    with pytest.raises(execnet.HostNotFound) as caught:
        group.makegateway(f"ssh=wrongkey//ssh_config={sshd.ssh_config}")
    assert isinstance(caught.value, farwire.AuthenticationError)


def test_vagrant(group: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``vagrant ssh box -- OPTIONS COMMAND`` runs the command in the machine; here that is a shell."""
    vagrant = tmp_path / "vagrant"
    vagrant.write_text('#!/bin/sh\n[ "$1 $2 $3 $4" = "ssh box -- -T" ] || exit 9\nshift 4\nexec sh -c "$*"\n')
    vagrant.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path))
    gateway = group.makegateway(f"vagrant_ssh=box//python={sys.executable}")
    assert gateway.remote_exec("import os; channel.send(os.getcwd())").receive() == str(tmp_path)
    assert gateway.spec.vagrant_ssh == "box"


def test_workers_started_early(group: Any) -> None:
    specs = [execnet.XSpec("popen"), execnet.XSpec("popen//python=no-such-python"), execnet.XSpec("popen")]
    group.start_early(specs)
    assert len(group) == 0
    first = group.makegateway(specs[0])
    assert first.remote_exec("channel.send(1)").receive() == 1
    with pytest.raises(farwire.PythonNotFound):
        group.makegateway(specs[1])
    group.terminate(3)  # also ends the third, which nobody asked for
    assert not [gateway for gateway in group._members if gateway.hasreceiver()]


def test_members_of_a_group_start_together() -> None:
    specs = ["popen", "popen//id=master", "popen//via=master", None]
    group = execnet.Group(specs, execmodel="main_thread_only")
    try:
        assert [gateway.id for gateway in group] == ["gw0", "master", "gw1", "gw2"]
        assert group.remote_exec("channel.send(1)").receive_each() == [1, 1, 1, 1]
    finally:
        group.terminate(3)


def test_a_group_of_which_one_member_does_not_start_leaves_nothing() -> None:
    before = set(servers.children(os.getpid()))
    with pytest.raises(farwire.PythonNotFound):
        execnet.Group(["popen", "popen//python=no-such-python", "popen"])
    assert set(servers.children(os.getpid())) <= before


def test_a_callback_that_raises_for_what_is_there_already(gw: Any, capsys: pytest.CaptureFixture[str]) -> None:
    channel = gw.remote_exec("for i in range(3): channel.send(i)\nchannel.receive()")
    assert channel.receive() == 0
    got: list[Any] = []

    def callback(item: Any) -> None:
        got.append(item)
        if item == 1:
            raise ValueError("on purpose")

    channel.setcallback(callback, endmarker="end")
    channel.waitclose(10)
    assert got == [1, "end"]
    assert "on purpose" in capsys.readouterr().err
    assert gw.remote_exec("channel.send(1)").receive() == 1


def test_what_was_sent_survives_a_sudden_end_also_when_the_pipe_was_full(gw: Any) -> None:
    channel = gw.remote_exec("""
        import os
        channel.receive()
        for i in range(6000):
            channel.send((i, bytes(1000)))
        os._exit(0)
    """)
    got: list[int] = []
    ended = threading.Event()

    def callback(item: Any) -> None:
        if item is None:
            ended.set()
        else:
            got.append(item[0])

    gw.pace()
    channel.setcallback(callback, endmarker=None)
    channel.send(None)
    assert ended.wait(30)
    assert got == list(range(6000))


@pytest.mark.parametrize("version", ["3.6", "3.8", "3.10", "3.12", "3.13"])
def test_other_interpreters(group: Any, version: str) -> None:
    found = servers.interpreters()
    if version not in found:
        pytest.skip(f"no {version} here")
    gateway = group.makegateway(f"popen//python={found[version]}")
    channel = gateway.remote_exec("""
        import sys
        try:
            from execnet import loads, dumps
            channel.send(loads(dumps([1])))
        except ImportError:
            channel.send(sys.version_info >= (3, 10))
        channel.send((channel.gateway.execmodel.backend, sys.argv, sys.path[0]))
        for i in range(2000):
            channel.send(bytes(1000))
        import os
        os._exit(0)
    """)
    assert channel.receive() in ([1], False)
    assert channel.receive() == ("thread", ["-c"], "")
    assert len(list(channel)) == 2000


def test_workers_on_a_host_start_together(group: Any, sshd: servers.Sshd) -> None:
    specs = [execnet.XSpec(f"ssh={sshd.host}//ssh_config={sshd.ssh_config}") for _ in range(3)]
    group.start_early(specs)
    assert (
        len([gateway for gateway in group._members if gateway.remoteaddress == sshd.host]) == 3
    )  # and none was waited for
    for spec in specs:
        group.makegateway(spec)
    pids = group.remote_exec("import os; channel.send(os.getpid())").receive_each()
    assert len(set(pids)) == 3
