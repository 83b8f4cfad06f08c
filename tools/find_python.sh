#!/bin/sh
# Prints the path of a Python that can run the controller and make a virtual environment.
# usage: find_python.sh [VERSION]   for instance 3.12; without it, the newest of 3.10 and later that is found
#
# Each candidate is run, because a file called python3.12 may be a pyenv shim with no Python behind it, and Debian's
# python3 cannot make a virtual environment before python3-venv is installed.

want=${1:-}
check='
import sys, ensurepip, venv
want = sys.argv[1]
ok = sys.version_info >= (3, 10) and want in ("", "%d.%d" % sys.version_info[:2])
print(sys.executable) if ok else sys.exit(1)
'

for version in ${want:-3.13 3.12 3.11 3.10}; do
    for candidate in "python$version" "$HOME/.pyenv/versions/$version".*/bin/python "/usr/bin/python$version"; do
        command -v "$candidate" >/dev/null 2>&1 && "$candidate" -c "$check" "$want" 2>/dev/null && exit 0
    done
done
command -v python3 >/dev/null 2>&1 && python3 -c "$check" "$want" 2>/dev/null && exit 0

if [ -n "$want" ]; then
    echo "no Python $want with the venv module was found" >&2
else
    echo "farwire needs a Python >= 3.10 with the venv module (on Debian: apt install python3 python3-venv)" >&2
fi
exit 1
