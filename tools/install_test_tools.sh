#!/bin/sh
# Installs what the tests use from the system: OpenSSH's server, a system Python for an ordinary user.
# Does nothing unless run as root on a machine with apt; the tests that miss something skip and say so.
# No daemon is started: the tests run their own sshd from a temporary folder.
set -eu

missing=
[ -x /usr/sbin/sshd ] || missing="$missing openssh-server"
command -v ssh >/dev/null 2>&1 || missing="$missing openssh-client"
[ -x /usr/bin/python3 ] || missing="$missing python3"
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "note: not installed here, tests that need it will be skipped:$missing" >&2
    exit 0
fi

# Debian's packages start their service unless this file forbids it; one that is there already is left alone.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod +x $policy
    trap 'rm -f $policy' EXIT
fi
echo "installing$missing" >&2
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
if ! { apt-get update -qq && apt-get install -qq -y --no-install-recommends $missing; } </dev/null >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    echo "note: could not install$missing; tests that need it will be skipped" >&2
fi
rm -f "$log"
