"""`vduse demo`: real I/O on file system images, through the whole stack."""

from __future__ import annotations

from vduse.daemon.demo.scenario import run

__all__ = ["run"]
