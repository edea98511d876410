"""The kernel's part of VDUSE, in userspace: see :class:`vduse.framework.framework.Framework`."""

from __future__ import annotations

from vduse.framework.framework import Framework

__all__ = ["Framework"]
