"""The public API is a list, and this test guards it."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import farwire
import farwire.errors

ERRORS = {
    "AuthenticationError",
    "ChannelClosed",
    "DataFormatError",
    "DirectoryError",
    "DumpError",
    "FarwireError",
    "GatewayLost",
    "HostNotFound",
    "LoadError",
    "NotAPython",
    "ProtocolError",
    "PythonNotFound",
    "PythonTooOld",
    "RemoteError",
    "SourceError",
    "SpecError",
    "StartError",
    "StartErrors",
    "StartTimeout",
    "TimeoutError",
}

NAMES = ERRORS | {
    "Channel",
    "Gateway",
    "Group",
    "MultiChannel",
    "PopenGateway",
    "RSync",
    "SocketGateway",
    "SshGateway",
    "XSpec",
    "__version__",
    "default_group",
    "makegateway",
}

METHODS = {
    "Group": {
        "allocate_id",
        "defaultspec",
        "makegateway",
        "makegateways",
        "remote_exec",
        "terminate",
    },
    "Gateway": {
        "_rinfo",
        "exit",
        "hasreceiver",
        "info",
        "join",
        "newchannel",
        "remote_exec",
        "signal",
        "stacks",
        "status",
        "wait_ready",
    },
    "Channel": {
        "RemoteError",
        "TimeoutError",
        "close",
        "gateway",
        "id",
        "isclosed",
        "makefile",
        "receive",
        "send",
        "send_eof",
        "setcallback",
        "waitclose",
    },
    "RSync": {"_report_send_file", "add_target", "filter", "send"},
    "MultiChannel": {"make_receive_queue", "receive_each", "send_each", "waitclose"},
    "SocketGateway": {"new_remote"},
}


def test_names() -> None:
    assert set(farwire.__all__) == NAMES


def test_errors() -> None:
    assert set(farwire.errors.__all__) == ERRORS


def test_each_name_is_there() -> None:
    for name in farwire.__all__:
        assert getattr(farwire, name) is not None
        assert name in dir(farwire)


def test_unknown_names() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = farwire.no_such_name


@pytest.mark.parametrize("name", sorted(NAMES))
def test_each_name_has_a_docstring(name: str) -> None:
    thing = getattr(farwire, name)
    if inspect.isclass(thing) or inspect.isroutine(thing):
        assert inspect.getdoc(thing)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_each_public_method_is_there_and_has_a_docstring(name: str) -> None:
    thing = getattr(farwire, name)
    instance_names: set[str] = set()
    for klass in [thing, *getattr(thing, "__mro__", ())]:
        instance_names |= set(getattr(klass, "__annotations__", {})) | set(getattr(klass, "__slots__", ()))
    for method in METHODS[name]:
        if hasattr(thing, method):
            value = inspect.getattr_static(thing, method)
            routine = value.__func__ if isinstance(value, staticmethod | classmethod) else value
            assert not inspect.isroutine(routine) or inspect.getdoc(routine), f"{name}.{method} has no docstring"
        else:
            assert method in instance_names, f"{name}.{method} is missing"


def test_import_is_light() -> None:
    """`import farwire` loads nothing that a program may never need."""
    code = "import sys; before = set(sys.modules); import farwire; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    loaded = set(done.stdout.split())
    assert not loaded & {"asyncio", "concurrent.futures", "dataclasses", "inspect", "json", "logging", "ssl", "typing"}
