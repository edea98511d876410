"""Backend ``null``: reads leave the buffer as it is, writes are forgotten. See
docs/backends/null.md."""

from __future__ import annotations

from vduse import _native


def open_null(size: int) -> _native.Backend:
    """A null backend of ``size`` bytes, a multiple of 512."""
    return _native.Backend.null(size)
