"""Why a gateway did not start: what is known of it -> a typed error with a hint."""

from __future__ import annotations

import re

from .bootstrap.stage0 import TOO_OLD
from .errors import (
    AuthenticationError,
    DirectoryError,
    HostNotFound,
    NotAPython,
    PythonNotFound,
    PythonTooOld,
    StartError,
    StartErrors,
    StartTimeout,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# (pattern in stderr, error, message, hint); the first that matches decides. The texts are those of OpenSSH, of sh, and ours.
RULES: tuple[tuple[str, type[StartError], str, str], ...] = (
    # with the version: a program that is no Python may quote the whole of stage 0
    (re.escape(TOO_OLD) + r"\d", PythonTooOld, "the interpreter is too old", "name a newer one with python="),
    (
        r"farwire: chdir: (?P<what>.*)",
        DirectoryError,
        "cannot use the working directory: {what}",
        "check chdir= in the spec",
    ),
    (
        r"farwire: no python",
        PythonNotFound,
        "no Python was found on the host",
        "name the interpreter with python=, as an absolute path if it is not in the PATH of a non-interactive login",
    ),
    (
        r"Can't open user config file .*|.*terminating, \d+ bad configuration options|"
        r".*: Bad configuration option: .*|command-line:? line \d+: .*",
        StartError,
        "ssh does not accept its configuration: {0}",
        "check ssh_config= and the options before the host",
    ),
    (
        r"Could not resolve hostname",
        HostNotFound,
        "the host name does not resolve",
        "check the name; the ssh configuration in use is yours (ssh_config= names another)",
    ),
    (
        r"(Connection refused|Connection timed out|No route to host|Network is unreachable|Connection closed by|"
        r"kex_exchange_identification|Operation timed out)",
        HostNotFound,
        "the host cannot be reached: {0}",
        "is an ssh server running there, on that port?",
    ),
    (
        r"Host key verification failed|REMOTE HOST IDENTIFICATION HAS CHANGED",
        AuthenticationError,
        "the host's key is not known or has changed",
        "log in once with ssh to accept the key, or correct known_hosts",
    ),
    (
        r"Permission denied(?= \(|,)|Too many authentication failures|no such identity|Bad permissions|UNPROTECTED PRIVATE KEY",
        AuthenticationError,
        "the host refused to let us in",
        "farwire runs ssh with BatchMode=yes, which asks no questions: use a key or an agent. To be asked for a "
        'password, put "-o BatchMode=no" before the host: ssh=-o BatchMode=no host',
    ),
    (
        r"(?:farwire: exec:|farwire-serve: error [a-z-]+) (?P<what>.*)",
        PythonNotFound,
        "the interpreter could not be run: {what}",
        "check python= in the spec",
    ),
    (
        r"(command not found|not found|No such file or directory|[Pp]ermission denied)",
        PythonNotFound,
        "the interpreter could not be run: {0}",
        "check python= in the spec",
    ),
)


def start_error(what: dict[str, Any], echoed: bool) -> StartError:
    """Classify a start that ended before the worker's hello.

    Args:
        what: gateway_id, command, status, stderr, noise as ``StartError`` takes them.
        echoed: what we sent came back.
    """
    if echoed:
        return NotAPython(
            "the program repeats what it is sent instead of running it",
            hint="the command must run a Python interpreter",
            **{**what, "noise": ""},
        )
    stderr = what["stderr"]
    for pattern, error, message, hint in RULES:
        match = re.search(pattern, stderr)
        if match:
            return error(message.format(match.group(0), **match.groupdict()), hint=hint, **what)
    return NotAPython(
        "the program ended without becoming a worker",
        hint="the command must run a Python interpreter that takes -c PROGRAM and keeps stdin and stdout for it",
        **what,
    )


def timeout_error(what: dict[str, Any], echoed: bool, seconds: float) -> StartError:
    """No hello within ``seconds``."""
    if echoed:
        return start_error(what, echoed)
    hint = "a slow host needs makegateway(spec, timeout=...)"
    if what["noise"]:
        hint = "the program wrote something, but not a worker's hello: is it a Python? " + hint
    return StartTimeout(f"no answer within {seconds:g} seconds", hint=hint, **what)


def protocol_error(what: dict[str, Any], error: BaseException) -> StartError:
    """What seemed to be a worker's hello was none, or what came after it made no sense."""
    text = str(error).partition(": ")[2]  # without the gateway
    return StartError(
        f"the program does not speak our protocol: {text}",
        hint="does it write to its stdout before, or beside, the worker's own bytes?",
        **{**what, "status": ""},
    )


def way_error(lost: BaseException, gateway_id: str, via: str) -> StartError:
    """The gateway ``via``, through which it was to start, is gone or has not started either: then for the same reason."""
    if isinstance(lost, StartError) and not isinstance(lost, StartErrors):
        error: StartError = OSError.__new__(lost.__class__)  # that of EOFError, found first, refuses
        error.__dict__.update(lost.__dict__)
        error.gateway_id = gateway_id
        error.args = (str(lost).replace(f"gateway {lost.gateway_id}: ", f"gateway {gateway_id}: ", 1),)
        return error
    return StartError(f"the gateway {via}, through which it was to be reached, is gone: {lost}", gateway_id=gateway_id)


def echoes(noise: bytes, nonce: str) -> bool:
    """Whether what we sent came back. The nonce is in it, and a worker writes it only backwards, in its marker."""
    return nonce.encode() in noise


def readable(data: bytes) -> str:
    """Bytes for a message: as text, with escapes for what cannot be shown."""
    text = data.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() or c in "\n\t" else "" if c == "\r" else ascii(c)[1:-1] for c in text)
