"""Programs that end with gateways open, in every way and on every Python: quietly, soon, and with all they started."""

from __future__ import annotations

import sys

import pytest

import servers
from processes import Controller

PYTHONS = {
    version: path
    for version, path in servers.interpreters().items()
    if tuple(map(int, version.split("."))) >= (3, 10) and path != sys.executable
}
PYTHONS["this"] = sys.executable

START = """
import farwire, os, sys, threading
group = farwire.Group()
gateway = group.makegateway("popen")
echo = gateway.remote_exec("for item in channel: channel.send(item)")
echo.send(1)
assert echo.receive(timeout=20) == 1


def until_lost(function, *args):
    # a daemon thread is told of the end like everybody, and an error that it does not catch would be printed
    try:
        function(*args)
    except (EOFError, OSError):
        pass


def daemon(*args):
    threading.Thread(target=until_lost, args=args, daemon=True).start()


"""
FLOOD = """
flood = gateway.remote_exec("import itertools\\nfor i in itertools.count(): channel.send(i)")
"""
# name -> (program, exit status, the last line of stderr)
ENDS = {
    "end of the program": ("pass", 0, ""),
    "sys.exit": ("sys.exit(3)", 3, ""),
    "an exception": ("raise ValueError('of the program')", 1, "ValueError: of the program"),
    "os._exit": ("os._exit(4)", 4, ""),
    "gateways without a reference": ("del group, gateway, echo", 0, ""),
    "everything lost by exec": ("os.execv(sys.executable, [sys.executable, '-c', 'pass'])", 0, ""),
    "the default group": ("farwire.makegateway().remote_exec('while True: pass')", 0, ""),
    "opened at the end": (
        "import atexit\n"
        "def late():\n"
        "    assert group.makegateway('popen').remote_exec('channel.send(2)').receive(timeout=20) == 2\n"
        "atexit.register(late)",
        0,
        "",
    ),
    "not waited for": ("group.makegateway('popen', wait=False)", 0, ""),
    "a worker that is stuck": ("gateway.remote_exec('while True: pass').send(1)", 0, ""),
    "via": ("group.makegateway('popen//via=gw0').remote_exec('while True: pass')", 0, ""),
    "unread items": (FLOOD + "flood.receive()", 0, ""),
    "a callback in the midst of a flood": (FLOOD + "flood.setcallback(lambda item: None)", 0, ""),
    "a callback that never returns": (
        FLOOD
        + "entered = threading.Event()\n"
        + "flood.setcallback(lambda item: (entered.set(), threading.Event().wait()))\nentered.wait()",
        0,
        "",
    ),
    "a callback that is called at the end": ("echo.setcallback(lambda item: None, endmarker=None)", 0, ""),
    "a daemon thread that receives": ("daemon(echo.receive)", 0, ""),
    "a daemon thread that iterates over a flood": (
        FLOOD + "daemon(sum, flood)\nflood.receive()",
        0,
        "",
    ),
    "a daemon thread that waits for the end": ("daemon(echo.waitclose)", 0, ""),
    "a daemon thread that asks": (
        "daemon(lambda: [gateway.info() for i in iter(int, 1)])\ngateway.info()",
        0,
        "",
    ),
    "a daemon thread that is blocked in send": (
        "silent = gateway.remote_exec('import threading; threading.Event().wait()')\n"
        "daemon(silent.send, bytes(50_000_000))",
        0,
        "",
    ),
    "a thread that goes on": (
        "import time\ndef work():\n    time.sleep(0.2)\n    for i in range(100):\n        echo.send(i)\n"
        "        assert echo.receive(timeout=10) == i\n    print('worked')\nthreading.Thread(target=work).start()",
        0,
        "",
    ),
    "sys.exit in a callback": (
        "over = threading.Event()\necho.setcallback(lambda item: sys.exit(5), endmarker=None)\necho.send(1)\n"
        "try:\n    echo.waitclose(10)\nexcept Exception:\n    pass",
        0,
        None,
    ),
    "sys.exit in a thread": (
        "thread = threading.Thread(target=lambda: (gateway.info(), sys.exit(5)))\nthread.start()\nthread.join()",
        0,
        "",
    ),
    "in a context manager": ("with farwire.Group() as other:\n    other.makegateway()\n    sys.exit(6)", 6, ""),
    "an atexit handler that uses it": (
        "import atexit\n@atexit.register\ndef last():\n    echo.send(7)\n    print(echo.receive(timeout=10))",
        0,
        "",
    ),
    "an atexit handler that ends it": ("import atexit\natexit.register(group.terminate)", 0, ""),
    "references in a cycle with a finalizer": (
        "class Holder:\n    def __init__(self):\n        self.me = self\n        self.channel = echo\n"
        "    def __del__(self):\n        self.channel.close()\nHolder()",
        0,
        "",
    ),
    "a finalizer at the very end": (
        "class Last:\n    def __init__(self): self.channel, self.gateway = echo, gateway\n"
        "    def __del__(self):\n        self.channel.close()\n        self.gateway.exit()\n"
        "sys.last_of_all = Last()\nsys.modules['last'] = Last()",
        0,
        "",
    ),
    "output on its way": (
        "gateway.remote_exec('for i in range(1000): print(i)').waitclose(10)",
        0,
        "",
    ),
    "stdout closed": ("sys.stdout.close()\ngateway.remote_exec('print(1)').waitclose(10)", 0, None),
    "worker dead": ("os.kill(gateway._process.worker_pid, 9)", 0, ""),
    "worker stopped": ("os.kill(gateway._process.worker_pid, 19)", 0, ""),
    "after fork": ("if not os.fork(): sys.exit(0)\nassert os.wait()[1] == 0", 0, None),
}


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("end", ENDS)
def test_end(end: str, python: str) -> None:
    code, status, last = ENDS[end]
    with Controller(START + code, python=PYTHONS[python], flags=("-X", "faulthandler")) as controller:
        found, out, err = controller.finish(timeout=15)
        assert found == status, err
        if last is not None:
            assert err.rstrip().rpartition("\n")[2] == last, err
        assert "can't create new thread" not in err
        assert "Fatal" not in err
        if end == "output on its way":
            assert out.count("\n") == 1000
        controller.all_gone()
