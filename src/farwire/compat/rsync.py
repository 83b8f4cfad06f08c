"""``RSync``, which is farwire's own."""

from __future__ import annotations

from ..rsync import RSync

__all__ = ["RSync"]
