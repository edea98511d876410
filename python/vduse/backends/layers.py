"""Layers: a backend around a backend. Any number stack. See docs/layers.md.

A layer takes the backend beneath for itself: closing the layer closes that, and other uses of it
are refused meanwhile (OSError EBUSY).
"""

from __future__ import annotations

import errno as _errno
from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

from vduse import _native

#: An operation on the disk. A request with several ranges (discard, write zeroes) is as many
#: operations; a write through (FUA) is a write and a flush.
Op = Literal["read", "write", "flush", "discard", "write_zeroes"]
#: All of them.
OPS: tuple[Op, ...] = get_args(Op)
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


class Faults:
    """Rules by which operations fail: for one :func:`error` layer or several, changed at any time
    from any thread. An operation is held to the rules in the order they came; the first that
    fails it counts it, later ones do not see it. What fails does not reach the backend."""

    def __init__(self, *, seed: int = 0) -> None:
        """No rules. ``seed`` (of 64 bits): random rates draw the same numbers in every run."""
        self.native = _native.Faults(seed)

    def add(
        self,
        errno: int = _errno.EIO,
        *,
        ops: Sequence[Op] = OPS,
        offset: int = 0,
        length: int | None = None,
        rate: float = 1.0,
        after: int = 0,
        count: int | None = None,
    ) -> int:
        """A rule for the operations ``ops`` that touch a byte of the ``length`` at ``offset``
        (None: to the end): after the first ``after`` of them each fails with probability
        ``rate``, at most ``count`` (None: no limit). Where an offset or a length is given, no
        flush is meant. Its number, for :meth:`hits`.

        The driver sees VIRTIO_BLK_S_UNSUPP for EOPNOTSUPP and ENOSYS, VIRTIO_BLK_S_IOERR for
        the rest (virtio 1.3, section 5.2.6). ValueError: an unknown operation, an empty range,
        a number out of range."""
        span = None
        if offset or length is not None:
            span = (offset, (1 << 64) - 1 - offset if length is None else length)
        return self.native.add(list(ops), span, errno, rate, after, count)

    def clear(self) -> None:
        """Nothing fails any more; hits stay counted."""
        self.native.clear()

    def hits(self, rule: int | None = None) -> int:
        """How many operations ``rule``, or all rules together, have failed. IndexError."""
        hits = self.native.hits()
        return sum(hits) if rule is None else hits[rule]


def error(backend: _native.Backend, faults: Faults) -> _native.Backend:
    """Operations fail by the rules of ``faults``."""
    return _native.layer_error(backend, faults.native)
