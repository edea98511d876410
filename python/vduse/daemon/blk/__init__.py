"""`vduse blk`: a disk, served until a signal."""

from __future__ import annotations

from vduse.daemon.blk.serve import serve

__all__ = ["serve"]
