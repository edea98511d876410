"""Layers: a backend around a backend. Any number stack. See docs/layers.md.

A layer takes the backend beneath for itself: closing the layer closes that, and other uses of it
are refused meanwhile (OSError EBUSY).
"""

from __future__ import annotations

from typing import TypeAlias

from vduse import _native

#: Seconds, or least and most seconds of an evenly distributed pause.
Pause: TypeAlias = float | tuple[float, float]


def read_only(backend: _native.Backend) -> _native.Backend:
    """A read-only disk: changes are refused with EROFS."""
    return _native.layer_read_only(backend)


def delay(
    backend: _native.Backend,
    *,
    read: Pause = 0,
    write: Pause = 0,
    flush: Pause = 0,
    discard: Pause = 0,
    write_zeroes: Pause = 0,
    seed: int = 0,
) -> _native.Backend:
    """Operations wait before they go to the backend. Those that wait equally long go on in the
    order they came. Random pauses come in the same sequence for the same ``seed`` (of 64 bits).
    ValueError: not between 0 and 1,000,000 seconds, or the longer one first."""
    pauses = {
        "read": read,
        "write": write,
        "flush": flush,
        "discard": discard,
        "write_zeroes": write_zeroes,
    }
    ranges = {op: p if isinstance(p, tuple) else (p, p) for op, p in pauses.items()}
    return _native.layer_delay(backend, ranges, seed)
