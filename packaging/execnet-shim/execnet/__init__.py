"""``farwire.compat`` under the name of execnet."""

from __future__ import annotations

import sys

from farwire.compat import install

TYPE_CHECKING = False
if TYPE_CHECKING:
    from farwire.compat import *  # noqa: F403

# What imports this module finds in its place what install() puts there.
del sys.modules[__name__]
install()
