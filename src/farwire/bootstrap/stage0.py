"""The program given to `python -c`: reads the loader from fd 0 and runs it.

It is part of the command line, so it is short, one line, free of single quotes and of anything secret. `sys.path[0]`, the current
directory that `-c` puts there, goes before anything is imported, so that a `zlib.py` lying about is not run.
It must compile on Python 2 too, to tell that Python that it is too old.
"""

from __future__ import annotations

TOO_OLD = "farwire: Python 3.6 or newer is needed, this is "

_HEAD = (
    'import sys;p=sys.path;p[:1]==[""]and p.pop(0);'
    'sys.version_info<(3,6)and sys.exit("' + TOO_OLD + '"+sys.version);'
    'import os;r=lambda n,b=b"":b if len(b)>=n else r(n,b+(os.read(0,n-len(b))or sys.exit(3)));'
)
# The loader as compressed source: for any Python.
SOURCE = _HEAD + "import zlib;exec(zlib.decompress(r(int(r(6)))))"
# The loader as code: for the same Python, which need not compile it.
CODE = _HEAD + "import marshal;exec(marshal.loads(r(int(r(6)))))"
