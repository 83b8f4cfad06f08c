"""Names that were never public and that released programs use all the same. Each test says whose it is."""

from __future__ import annotations

import io
import os
import queue
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import farwire.compat as execnet


@pytest.fixture
def group() -> Iterator[Any]:
    fresh = execnet.Group(execmodel="main_thread_only")
    yield fresh
    fresh.terminate(3)


@pytest.fixture
def gateway(group: Any) -> Any:
    return group.makegateway()


def test_xdist_annotates_with_exec_model_after_a_plain_import() -> None:
    """pytest-xdist, remote.py: ``execmodel: execnet.gateway_base.ExecModel``."""
    code = """
import farwire.compat; farwire.compat.install()
import execnet
print(execnet.gateway_base.ExecModel.__name__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout == "ExecModel\n"


def test_xdist_makes_locks_and_events_with_the_execmodel_of_the_workers_gateway(gateway: Any) -> None:
    """pytest-xdist, remote.py: ``channel.gateway.execmodel.RLock()`` and ``.Event()``."""
    channel = gateway.remote_exec("""
        execmodel = channel.gateway.execmodel
        with execmodel.RLock() as lock, execmodel.RLock():
            pass
        event = execmodel.Event()
        event.set()
        channel.send((event.wait(1), execmodel.backend, repr(execmodel)))
    """)
    assert channel.receive() == (True, "main_thread_only", "<ExecModel 'main_thread_only'>")


def test_xdist_asks_for_the_error_in_the_end_marker_callback(gateway: Any) -> None:
    """pytest-xdist, workermanage.py: ``channel._getremoteerror()``."""
    found: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for source in ("raise ValueError('mine')", "pass", "import os; os._exit(3)"):
        channel = gateway.remote_exec(source)

        def ended(item: Any, channel: Any = channel) -> None:
            found.put((item, channel._getremoteerror()))

        channel.setcallback(ended, endmarker="end")
    item, error = found.get(timeout=10)
    assert item == "end"
    assert "ValueError: mine" in error.formatted
    assert repr(error).startswith("RemoteError: Traceback")
    assert found.get(timeout=10) == ("end", None)
    item, error = found.get(timeout=10)
    assert item == "end"
    assert isinstance(error, EOFError)


def test_xdist_and_pytest_cov_ask_for_rinfo(gateway: Any) -> None:
    """pytest-xdist, workermanage.py and dsession.py; pytest-cov, engine.py: ``gateway._rinfo()``, also while a task runs."""
    busy = gateway.remote_exec("channel.receive()")
    info = gateway._rinfo()
    assert info.executable == sys.executable
    assert info.version_info == sys.version_info[:5]
    assert info.platform == sys.platform
    assert info.cwd == os.getcwd()
    assert info.pid != os.getpid()
    assert gateway._rinfo() is info
    assert gateway._rinfo(update=True) is not info
    assert repr(info).startswith('<RInfo "cwd=')
    busy.send(None)
    busy.waitclose()


def test_xdist_derives_from_rsync_and_uses_what_it_holds(gateway: Any, tmp_path: Path) -> None:
    """pytest-xdist, workermanage.py: ``_sourcedir``, ``_verbose``, and ``_report_send_file`` overridden."""
    reported = []

    class Mine(execnet.RSync):
        def _report_send_file(self, gateway: Any, modified_rel_path: str) -> None:
            reported.append((gateway.id, os.path.basename(self._sourcedir), modified_rel_path, self._verbose))

    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").write_text("text")
    sync = Mine(sourcedir=tmp_path / "source", verbose=True)
    finished = []
    sync.add_target(gateway, str(tmp_path / "there"), finishedcallback=lambda: finished.append(1), delete=True)
    sync.send()
    assert (tmp_path / "there" / "file").read_text() == "text"
    assert reported == [("gw0", "source", "file", True)]
    assert finished == [1]


def test_xdist_keeps_its_node_at_the_gateway(gateway: Any) -> None:
    """pytest-xdist, workermanage.py: ``gw.node = node``."""
    gateway.node = marker = object()
    assert gateway.node is marker


def test_xdist_asks_a_spec_for_its_file_system() -> None:
    """pytest-xdist, testing/test_workermanage.py: ``spec._samefilesystem()``."""
    assert execnet.XSpec("popen")._samefilesystem()
    assert not execnet.XSpec("popen//chdir=x")._samefilesystem()
    assert not execnet.XSpec("ssh=host")._samefilesystem()


def test_batou_puts_its_own_command_in_the_place_of_ssh_args(
    group: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """batou: replaces ``execnet.gateway_io.ssh_args`` and runs ``popen_bootstrapline`` through sudo, vagrant or kitchen."""
    program = tmp_path / "transport"
    program.write_text('#!/bin/sh\n[ "$1" = "myhost" ] || exit 255\nshift\nexec sh -c "$*"\n')
    program.chmod(0o755)
    specs = []

    def ssh_args(spec: Any) -> list[str]:
        from farwire.compat.gateway_io import popen_bootstrapline

        specs.append(spec)
        return [str(program), spec.ssh, f'{sys.executable} -c "{popen_bootstrapline}"']

    monkeypatch.setattr(execnet.gateway_io, "ssh_args", ssh_args)
    gateway = group.makegateway("ssh=myhost//type=vagrant//env:MINE=1//nice=0")
    assert specs[0] is gateway.spec
    assert specs[0].type == "vagrant"
    assert gateway.remote_exec("import os; channel.send(os.environ['MINE'])").receive() == "1"
    assert gateway.remoteaddress == "myhost"


@pytest.mark.parametrize("quotes", ['"', "'"])
def test_batou_puts_the_bootstrap_line_between_quotes_for_a_shell(quotes: str) -> None:
    """batou: ``'%s -c "%s"' % (python, popen_bootstrapline)``."""
    assert not set("\"'$`\\!\n") & set(execnet.gateway_io.popen_bootstrapline)
    command = f"{sys.executable} -c {quotes}{execnet.gateway_io.popen_bootstrapline}{quotes}"
    program = b"print('well')"
    given = b"%06d" % len(program) + program
    done = subprocess.run(["sh", "-c", command], input=given, capture_output=True, check=True, timeout=30)
    assert done.stdout == b"well\n"


@pytest.mark.parametrize("name", ["ssh_args", "popen_args", "vagrant_ssh_args"])
def test_programs_look_at_command_lines(name: str) -> None:
    """Deployment tools build on the lists that these functions of ``execnet.gateway_io`` return."""
    spec = execnet.XSpec("popen//ssh=-p 22 host//vagrant_ssh=box//python=python3.9//ssh_config=file")
    argv = getattr(execnet.gateway_io, name)(spec)
    assert execnet.gateway_io.popen_bootstrapline in argv[-1]
    assert all(isinstance(word, str) for word in argv)


def test_programs_patch_popen2iomaster_and_bootstrap(group: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs that want process groups or a limit to the start wrap these; farwire has both, and does not need the wrapped."""
    master = execnet.gateway_io.Popen2IOMaster
    original = master.__init__

    def init(self: Any, args: Any, execmodel: Any) -> None:
        original(self, args, execmodel)

    monkeypatch.setattr(master, "__init__", init)
    monkeypatch.setattr(execnet.gateway_bootstrap, "bootstrap", execnet.gateway_bootstrap.bootstrap)
    assert group.makegateway().remote_exec("channel.send(1)").receive() == 1


def test_programs_signal_the_process_of_a_gateway(gateway: Any) -> None:
    """Programs reach the local process by ``gateway._io.popen.pid``."""
    pid = gateway._io.popen.pid
    assert pid in (gateway._rinfo().pid, gateway.remote_exec("import os; channel.send(os.getppid())").receive())
    gateway._io.kill()
    gateway.join(10)
    assert gateway._io.wait() is not None
    assert not gateway.hasreceiver()


def test_devpi_compares_its_serializer_with_execnets() -> None:
    """devpi-server, its tests: ``_Serializer`` and ``Unserializer`` of ``execnet.gateway_base``."""
    base = execnet.gateway_base
    stream = io.BytesIO()
    base._Serializer(write=stream.write).save({"key": [1, "text", b"bytes"]}, versioned=True)
    assert stream.getvalue() == execnet.dumps({"key": [1, "text", b"bytes"]})
    stream.seek(0)
    assert base.Unserializer(stream).load(versioned=True) == {"key": [1, "text", b"bytes"]}


@pytest.mark.parametrize(
    "name",
    [
        "Channel DataFormatError DumpError ExecModel INTERRUPT_TEXT LoadError MAIN_THREAD_ONLY_DEADLOCK_TEXT RemoteError TimeoutError",
        "dump dumps dumps_internal get_execmodel load loads loads_internal sysex trace NO_ENDMARKER_WANTED",
    ],
)
def test_programs_import_from_gateway_base(name: str) -> None:
    """Programs, devpi among them, take these from ``execnet.gateway_base``, where execnet's own modules took them."""
    for each in name.split():
        assert hasattr(execnet.gateway_base, each), each
        if hasattr(execnet, each):
            assert getattr(execnet, each) is getattr(execnet.gateway_base, each)


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("gateway", "Gateway RInfo rinfo_source"),
        ("gateway_bootstrap", "HostNotFound bootstrap"),
        ("gateway_io", "Popen2IOMaster popen_bootstrapline shell_split_path ssh_args"),
        ("gateway_socket", "HostNotFound start_via"),
        ("multi", "Group MultiChannel default_group makegateway set_execmodel"),
        ("rsync", "RSync"),
        ("xspec", "XSpec"),
    ],
)
def test_programs_import_submodules(module: str, names: str) -> None:
    """Programs import from where execnet defined a name, as pylint and type checkers suggest."""
    for name in names.split():
        assert hasattr(getattr(execnet, module), name), name
