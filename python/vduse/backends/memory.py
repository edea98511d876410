"""Backend ``memory``: a RAM disk that is gone with its process. See docs/backends/memory.md."""

from __future__ import annotations

from vduse import _native


def open_memory(size: int) -> _native.Backend:
    """A memory backend of ``size`` bytes, a multiple of 512, all zero. Pages are allocated as
    they are written. OSError ENOMEM."""
    return _native.Backend.memory(size)
