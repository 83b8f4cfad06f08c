"""``RSync``: a stand-in until ``farwire.rsync`` is there."""

from __future__ import annotations

import os

RECEIVE = """
import os
dest, delete = channel.receive()
os.makedirs(dest, exist_ok=True)
for path, kind, data in channel:
    path = os.path.join(dest, path)
    if kind == "d":
        os.makedirs(path, exist_ok=True)
    else:
        with open(path, "wb") as f:
            f.write(data)
"""


class RSync:
    def __init__(self, sourcedir, callback=None, verbose=True):
        self._sourcedir = str(sourcedir)
        self._verbose = verbose
        self._targets = []

    def filter(self, path):
        return True

    def add_target(self, gateway, destdir, finishedcallback=None, delete=False):
        self._targets.append((gateway, destdir, finishedcallback, delete))

    def _report_send_file(self, gateway, modified_rel_path):
        pass

    def send(self, raises=True):
        for gateway, destdir, finished, delete in self._targets:
            channel = gateway.remote_exec(RECEIVE)
            channel.send((str(destdir), delete))
            for base, dirs, files in os.walk(self._sourcedir):
                dirs[:] = [d for d in dirs if self.filter(os.path.join(base, d))]
                rel = os.path.relpath(base, self._sourcedir)
                for d in dirs:
                    channel.send((os.path.join(rel, d), "d", b""))
                for f in files:
                    p = os.path.join(base, f)
                    if self.filter(p):
                        r = os.path.normpath(os.path.join(rel, f))
                        channel.send((r, "f", open(p, "rb").read()))
                        self._report_send_file(gateway, r)
            channel.send_eof()
            channel.waitclose()
            if finished:
                finished()
        self._targets = []
