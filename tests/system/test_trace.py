"""FARWIRE_TRACE: what both ends record agrees, whatever the transport; and nothing of it is there when it is off."""

from __future__ import annotations

import marshal
import os
import random
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import servers
from farwire.bootstrap import bundle
from farwire.cli import main
from farwire.cli.trace import NotATrace, read
from farwire.protocol.frames import HEADER, HEADER_SIZE, NAMES, RAW
from farwire.runtime import trace
from farwire.runtime.trace import NOTE, RECEIVED, RECORD, SENT, describe
from socket_server import Server

SRC = Path(trace.__file__).parents[2]
Frames = dict[tuple[str, int, str], list[bytes]]


def run(program: str, target: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a controller with a trace."""
    env = {**os.environ, "PYTHONPATH": str(SRC)}
    env.pop("FARWIRE_TRACE", None)
    if target:
        env["FARWIRE_TRACE"] = target
    argv = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr
    return done


def recorded(folder: Path) -> dict[str, Path]:
    """The name of each process -> its file."""
    return {path.name.split(".")[1]: path for path in folder.iterdir()}


def frames(path: Path) -> Frames:
    """(sent or received, other end) -> frames."""
    found: Frames = {}
    for _, who, what, name, data in read(str(path)):
        if what in (SENT, RECEIVED):
            found.setdefault((who, what, name), []).append(data)
    return found


def agree(folder: Path, *gateways: str) -> None:
    """What one end sent, the other received; of the last frames the worker may be gone before."""
    files = recorded(folder)
    assert set(files) == {"controller", *(f"{gateway}-worker" for gateway in gateways)}
    controller = frames(files["controller"])
    for gateway in gateways:
        worker = frames(files[f"{gateway}-worker"])
        assert set(worker) == {(f"{gateway}-worker", SENT, "controller"), (f"{gateway}-worker", RECEIVED, "controller")}
        for what, reverse in ((SENT, RECEIVED), (RECEIVED, SENT)):
            here = controller["controller", what, gateway]
            there = worker[f"{gateway}-worker", reverse, "controller"]
            count = min(len(here), len(there))
            for one, other in zip(here[:count], there[:count]):
                # The controller keeps no content of what carries another link.
                assert one == (other[:HEADER_SIZE] if one[8] == RAW and len(one) == HEADER_SIZE else other)
            assert abs(len(here) - len(there)) <= 2
            assert NAMES[here[0][8]] == "HELLO"
            assert "GOODBYE" in [NAMES[frame[8]] for frame in here]


TRAFFIC = """
import sys, threading, farwire
gateway = farwire.makegateway(sys.argv[1])
for spec in sys.argv[2:]:
    gateway = farwire.makegateway(spec)
channel = gateway.remote_exec("for item in channel: channel.send(item)")
for item in (1, "text", None, [1, {"a": channel}], b"x" * 100_000, bytearray(3_000_000)):
    channel.send(item)
    assert channel.receive(20) == item
def send():
    for number in range(300):
        channel.send((number, "y" * number))
threads = [threading.Thread(target=send) for _ in range(3)]
for thread in threads:
    thread.start()
seen = [channel.receive(20)[0] for _ in range(900)]
assert sorted(seen) == sorted(list(range(300)) * 3)
for thread in threads:
    thread.join()
gateway.remote_exec("print('out' * 50_000)").waitclose(20)
try:
    gateway.remote_exec("1/0").waitclose(20)
except farwire.RemoteError:
    pass
gateway.status()
farwire.default_group.terminate(5)
"""


def test_popen(tmp_path: Path) -> None:
    """The same Python, which gets code; and another start, which gets source and the rest later."""
    for name, spec in (("code", "popen//id=gw"), ("source", f"popen//id=gw//env:A=1//python={sys.executable} -B")):
        folder = tmp_path / name
        folder.mkdir()
        run(TRAFFIC, str(folder / "t"), spec)
        agree(folder, "gw")
        for path in recorded(folder).values():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_old_python(tmp_path: Path) -> None:
    python = servers.interpreters().get("3.6") or pytest.skip("no Python 3.6 here")
    run(TRAFFIC, str(tmp_path / "t"), f"popen//id=gw//python={python}")
    agree(tmp_path, "gw")


def test_via(tmp_path: Path) -> None:
    """The inner links are seen through the outer one; its frames that carry them are there as well, without their content."""
    run(TRAFFIC, str(tmp_path / "t"), "popen//id=a", "popen//id=b//via=a", "popen//id=c//via=b")
    agree(tmp_path, "a", "b", "c")
    outer = frames(recorded(tmp_path)["controller"])["controller", SENT, "a"]
    raw = [frame for frame in outer if frame[8] == RAW]
    assert raw
    assert {len(frame) for frame in raw} == {HEADER_SIZE}


@pytest.mark.parametrize("kind", ["tcp_server", "tls_server"])
def test_socket(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Directly, and through a worker: then what goes over its link is encrypted, if it is TLS."""
    server: Server = request.getfixturevalue(kind)
    (tmp_path / "direct").mkdir()
    run(TRAFFIC, str(tmp_path / "direct" / "t"), f"{server.spec}//id=gw")
    agree(tmp_path / "direct", "gw")
    (tmp_path / "via").mkdir()
    run(TRAFFIC, str(tmp_path / "via" / "t"), "popen//id=hop", f"{server.spec}//id=gw//via=hop")
    agree(tmp_path / "via", "hop", "gw")


@pytest.mark.needs_sshd
def test_ssh(sshd: servers.Sshd, tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    for parent in tmp_path.parents[:-1]:
        if stat.S_IMODE(parent.stat().st_mode) & 0o5 != 0o5 and parent.owner() != "root":
            pytest.skip("another user cannot enter the folder of the test")
    parents = [parent for parent in tmp_path.parents if not parent.stat().st_mode & stat.S_IXOTH]
    for parent in parents:
        parent.chmod(parent.stat().st_mode | stat.S_IXOTH)
    run(TRAFFIC, str(tmp_path / "t"), f"{sshd.spec}//id=gw")
    agree(tmp_path, "gw")


def test_stderr() -> None:
    """The controller's lines; a worker's stderr is not filled with it."""
    program = """
import farwire
gateway = farwire.makegateway("popen//id=gw")
channel = gateway.remote_exec("import sys; print('err', file=sys.stderr); channel.send(channel.receive() + 1)")
channel.send(1)
assert channel.receive() == 2
gateway.exit()
"""
    shown = run(program, "stderr").stderr
    # The worker's own line may come between two of the trace, or in the midst of one.
    assert shown.split(" ", 1)[1].startswith("controller - gw opens\n")
    for text in (
        "controller > gw EXEC, channel 1, ",
        "controller > gw ITEM, channel 1, 8 bytes: 1",
        "controller < gw ITEM, channel 1, 8 bytes: 2",
        "controller < gw GOODBYE",
        "controller - gw the link ended: ",
        "[gw] err",
    ):
        assert text in shown, shown
    assert "gw-worker" not in shown


def test_off() -> None:
    """Not a byte more is sent, and no function is another."""
    program = """
import os, sys, farwire
gateway = farwire.makegateway("popen")
remote = gateway.remote_exec(
    "import sys; channel.send([name for name in sys.modules if name.endswith('.trace') and 'farwire' in name])"
)
assert remote.receive() == []
assert "farwire.runtime.trace" not in sys.modules
from farwire.runtime import channel, link
assert channel.write is link.write is os.write and link.read is os.read and not hasattr(link, "map")
gateway.exit()
"""
    run(program, "")
    assert bundle.TRACE not in marshal.loads(bundle.code_bundle())
    assert bundle.TRACE in marshal.loads(bundle.code_bundle(True))
    assert len(bundle.source_bundle()) < len(bundle.source_bundle(True))


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    """Said once by each process; the program goes on."""
    done = run(TRAFFIC, str(tmp_path / "missing" / "t"), "popen//id=gw")
    lines = [line for line in done.stderr.splitlines() if "no trace" in line]
    assert len(lines) == 2
    assert any(line.startswith("farwire: controller: no trace: ") and "missing" in line for line in lines)
    assert any("farwire: gw-worker: no trace: " in line for line in lines)


def test_a_full_disk_ends_the_trace_only(tmp_path: Path) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    program = """
import os
from farwire.runtime import trace
start = trace.start
def full(target, who):
    tracer = start(target, who)
    os.dup2(os.open("/dev/full", os.O_WRONLY), tracer.fd)
    return tracer
trace.start = full
"""
    done = run(program + TRAFFIC, str(tmp_path / "t"), "popen//id=gw")
    assert done.stderr.count("farwire: controller: the trace ends: ") == 1
    assert "No space left" in done.stderr


def test_no_file_that_is_there_is_opened(tmp_path: Path) -> None:
    """In a folder that others write to, a link or file of a name that could be guessed is not followed or used."""
    target = tmp_path / "target"
    target.write_text("precious")
    first = tmp_path / f"t.who.{os.getpid()}"
    first.symlink_to(target)
    Path(f"{first}.1").write_text("somebody's")
    path, fd = trace._create(str(tmp_path / "t"), "who")
    os.close(fd)
    assert path == f"{first}.2"
    assert target.read_text() == "precious"
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    path, fd = trace._create(str(tmp_path / "t"), "../../odd id")
    os.close(fd)
    assert Path(path).name == f"t.______odd_id.{os.getpid()}"


def test_signals(tmp_path: Path) -> None:
    """A handler that raises anywhere in the main thread, many times: no byte is lost, and the trace stays readable."""
    program = """
import signal, farwire
class Ring(Exception):
    pass
def ring(signum, frame):
    if frame.f_globals is not globals():  # within farwire, or what it calls
        raise Ring
signal.signal(signal.SIGALRM, ring)
gateway = farwire.makegateway("popen//id=gw")
channel = gateway.remote_exec("for item in channel: channel.send(item)")
sent = got = 0
signal.setitimer(signal.ITIMER_REAL, 0.002, 0.0017)
answers = []
while len(answers) < 1500:
    try:
        channel.send(sent)
    except Ring:
        pass
    sent += 1
    try:
        answers.append(channel.receive(1))
    except (Ring, farwire.TimeoutError):
        pass
signal.setitimer(signal.ITIMER_REAL, 0)
# An item may have been sent or not, taken or not, when the signal raised; but each comes once at most, in order.
assert answers == sorted(set(answers)), answers
gateway.exit()
"""
    run(program, str(tmp_path / "t"))
    files = recorded(tmp_path)
    for name in ("controller", "gw-worker"):
        for found in frames(files[name]).values():
            assert {NAMES.get(frame[8]) for frame in found} <= set(NAMES.values())
            assert (
                len(found) > 500
            )  # an interrupted receive leaves several items to the reactor, which reads them together


# -- the command ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trace")
    run(TRAFFIC, str(folder / "t"), "popen//id=a", "popen//id=b//via=a")
    return folder


def test_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(path) for path in recorded(folder).values()]
    assert main(["trace", *files]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 2000
    times = [line.split()[0] for line in lines]
    assert times == sorted(times) or times[0] > times[-1]  # unless it is midnight
    assert {line.split()[1] for line in lines} == {"controller", "a-worker", "b-worker"}
    assert sum("with an error: ZeroDivisionError: division by zero" in line for line in lines) == 2
    assert sum("ITEM, channel 1, 62 bytes" in line or "<channel 1>" in line for line in lines) >= 4


def test_command_filters(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(path) for path in recorded(folder).values()]
    assert main(["trace", "--gateway", "b", "--kind", "exec", *files]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert all(" EXEC, " in line and ("b-worker <" in line or "controller > b" in line) for line in lines)
    assert main(["trace", "--channel", "3", "--gateway", "a", *files]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines
    assert all(", channel 3" in line for line in lines)


def test_command_on_what_is_no_trace(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x"
    for content, text in (
        (b"", "is not a trace"),
        (b"something else", "is not a trace"),
        (trace.MAGIC + b"me\n" + bytes([255]) * 50, "damaged at byte 19"),
        (trace.MAGIC + b"me\n" + RECORD.pack(1.0, SENT, 0, 0, 3) + b"abc", "damaged at byte 19"),
        (trace.MAGIC + b"me\n" + RECORD.pack(1.0, NOTE, 0, 0, 1 << 30), "damaged at byte 19"),
    ):
        path.write_bytes(content)
        assert main(["trace", str(path)]) == 2
        assert text in capsys.readouterr().err
    assert main(["trace", str(tmp_path / "missing")]) == 2
    assert "No such file" in capsys.readouterr().err
    with pytest.raises(NotATrace):
        list(read(__file__))


def test_command_on_a_file_that_is_being_written(folder: Path, tmp_path: Path) -> None:
    whole = recorded(folder)["controller"].read_bytes()[:5000]
    records = [RECORD.size + len(record[-1]) for record in read(str(recorded(folder)["controller"]))]
    path = tmp_path / "x"
    for size in range(len(trace.MAGIC) + 20, 3000, 7):
        path.write_bytes(whole[:size])
        count = len(list(read(str(path))))
        start = whole.index(b"\n", len(trace.MAGIC)) + 1
        assert start + sum(records[:count]) <= size < start + sum(records[: count + 1])


def test_nothing_reaches_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a worker sent is shown with escapes."""
    evil = b"\x1b]0;evil\x07\r\n"
    record = HEADER.pack(len(evil), 0, RAW, 1) + evil
    for kind in (1, 2, 3, 9, 11):
        record += b""
    path = tmp_path / "x"
    data = trace.MAGIC + evil[:-2] + b"\n"
    for what, content in (
        (trace.LINK, evil),
        (NOTE, evil),
        (RECEIVED, record),
        *((RECEIVED, HEADER.pack(len(evil), 1, kind, 7) + evil) for kind in range(20)),
        (RECEIVED, HEADER.pack(17 + 3 * len(evil), 1, 2, 2) + b"\x0b\0\0\0" * 3 + bytes(5) + evil * 3),
    ):
        data += RECORD.pack(1.0, what, 0, 0, len(content)) + content
    path.write_bytes(data)
    assert main(["trace", str(path)]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 24
    assert all(char.isprintable() or char == "\n" for char in out)


def test_any_frame_can_be_described() -> None:
    """Also damaged ones, in little time and memory: that is when one looks at a trace."""
    chance = random.Random(5)
    bomb = b"\x80\x04]\x94(" + b"h\x00" * 200 + b"e."
    lists = b"\x80\x04]\x94" + b"".join(b"]\x94(h%ch%ce" % (n, n) for n in range(100)) + b"."
    for payload in (b"Nr\xff\xff\xff\x0f.", bomb, lists, b"(" * 400 + b"t" * 100 + b"."):
        text = describe(HEADER.pack(len(payload), 1, 3, 10) + payload)
        assert len(text) < 300
    for _ in range(20_000):
        payload = chance.randbytes(chance.choice([0, 1, 4, 8, 30]))
        kind, code = chance.randrange(20), chance.randrange(14)
        size = len(payload) if chance.random() < 0.8 else chance.randrange(1 << 20)
        text = describe(HEADER.pack(size, chance.randrange(3), kind, code) + payload)
        assert text.startswith(NAMES.get(kind, f"kind {kind}"))
        assert len(text) < 300
