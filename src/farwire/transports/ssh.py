"""``ssh=``: a host reached by the OpenSSH client, with the user's own configuration.

The remote command is the same for every spec: a shell that reads one line from stdin and runs it. That line, which no process list
shows, enters the directory, sets the environment, finds the interpreter and becomes it, so nothing costs a round trip.
"""

from __future__ import annotations

import shlex

from ..bootstrap.stage0 import SOURCE
from ..errors import SpecError
from .base import Boot, Command, CommandTransport, python_argv, split_command

REMOTE = "exec sh -c 'IFS= read -r s && eval \"$s\"'"
DEFAULT_DIRECTORY = "pyexecnet-cache"
# What a host may call its Python, best first; the last is RHEL's, which is in no PATH.
CANDIDATES = (
    "python3 python3.15 python3.14 python3.13 python3.12 python3.11 python3.10 python3.9 python3.8 python3.7 python3.6 "
    "/usr/local/bin/python3 /opt/homebrew/bin/python3 pypy3 /usr/libexec/platform-python python"
)
# Options of ssh that may stand before the host: what they do is to say how to reach it.
WITH_VALUE = "-b -B -c -D -E -e -F -I -i -J -L -l -m -O -o -p -Q -R -S -W -w"
ALLOWED_WITH_VALUE = ("-b", "-c", "-F", "-i", "-J", "-l", "-m", "-o", "-p", "-S")
ALLOWED = ("-4", "-6", "-A", "-a", "-C", "-K", "-k", "-q", "-v", "-vv", "-vvv")


class Ssh(CommandTransport):
    """Runs ``ssh [options] host``."""

    # ssh's own keep-alive notices a cut link also while the worker holds its interpreter lock; ours tells the worker.
    heartbeat = 5.0

    def command(self, boot: Boot, local: bool) -> Command:
        """See ``CommandTransport``."""
        spec = boot.spec
        assert spec.ssh is not None
        options, host = split_host(spec.ssh)
        argv = ["ssh"]
        if spec.ssh_config:
            argv += ["-F", spec.ssh_config]
        argv += options
        # The first value of an option wins, so these do not override what the spec says.
        argv += ["-o", "BatchMode=yes"]
        if boot.heartbeat:
            argv += ["-o", f"ServerAliveInterval={max(1, round(boot.heartbeat))}", "-o", "ServerAliveCountMax=3"]
        argv += ["-T", "--", host, REMOTE]
        late = {name: value for name, value in spec.env.items() if "\n" in value}
        return Command(
            argv,
            first=shell_line(
                spec.chdir or DEFAULT_DIRECTORY,
                {name: value for name, value in spec.env.items() if name not in late},
                spec.nice,
                spec.python,
            ).encode(),
            late_env=late,
            # ssh asks its questions on the terminal, which only the session of the terminal may use
            own_session=not any("batchmode=no" in option.lower().replace(" ", "") for option in options),
            address=spec.ssh,
        )


def split_host(value: str) -> tuple[list[str], str]:
    """``[options] [user@]host`` -> options, host.

    Raises:
        SpecError: an option that is not about reaching the host, or a host that ssh would take for an option.
    """
    words = split_command(value, "ssh")
    host = words.pop()
    if host.startswith("-") or not host or any(c.isspace() or not c.isprintable() for c in host):
        raise SpecError(f"ssh={value}: the host must come last, and be one word that does not begin with '-'")
    left = list(words)
    while left:
        word = left.pop(0)
        if word in ALLOWED_WITH_VALUE:
            if not left:
                raise SpecError(f"ssh={value}: {word} needs a value")
            left.pop(0)
        elif word not in ALLOWED and not (word[:2] in ALLOWED_WITH_VALUE and len(word) > 2):
            raise SpecError(
                f"ssh={value}: {word!r} is not an option that can be given here; "
                f"allowed are {' '.join(ALLOWED_WITH_VALUE + ALLOWED)}"
            )
    return words, host


def shell_line(chdir: str, env: dict[str, str], nice: int | None, python: str | None) -> str:
    """The line that turns the remote shell into the worker's interpreter.

    Args:
        chdir: directory to make and enter; ``~/`` is the home.
        env: variables to export; no value may contain a line break.
        nice: added to the niceness.
        python: the spec's value, None to look for one.
    """
    quote = shlex.quote
    if chdir == "~" or chdir.startswith("~/"):
        directory = '"$HOME"' + quote(chdir[1:])
    else:
        directory = quote(chdir)
    parts = [
        f'd={directory}; [ -d "$d" ] || e=$(mkdir -p -- "$d" 2>&1) && e=$(cd -- "$d" 2>&1) && cd -- "$d" || '
        '{ printf "farwire: chdir: %s\\n" "${e:-$d}" >&2; exit 4; }'
    ]
    for name, value in env.items():
        if not name.replace("_", "a").isalnum() or name[0].isdigit():
            raise SpecError(f"env:{name}: not a name that a shell can export")
        parts.append(f"export {name}={quote(value)}")
    run = "exec " if nice is None else f"exec nice -n {nice} "
    if python is not None:
        command = shlex.join(python_argv(python))
    else:
        parts.append(
            f"p=; for c in {CANDIDATES}; do command -v $c >/dev/null 2>&1 && p=$c && break; done; "
            '[ "$p" ] || { echo "farwire: no python" >&2; exit 127; }'
        )
        command = '"$p"'
    parts.append(f"{run}{command} -c {quote(SOURCE)}")
    return "; ".join(parts) + "\n"
