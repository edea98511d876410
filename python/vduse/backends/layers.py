"""Layers: a backend around a backend. Any number stack. See docs/layers.md.

A layer takes the backend beneath for itself: closing the layer closes that, and other uses of it
are refused meanwhile (OSError EBUSY).
"""

from __future__ import annotations

import errno as _errno
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal, TypeAlias, get_args

from vduse import _native
from vduse.backends.python import PythonBackend

#: What a layer goes on.
AnyBackend: TypeAlias = _native.Backend | PythonBackend
#: An operation on the disk. A request with several ranges (discard, write zeroes) is as many
#: operations; a write through (FUA) is a write and a flush.
Op = Literal["read", "write", "flush", "discard", "write_zeroes"]
#: All of them.
OPS: tuple[Op, ...] = get_args(Op)
#: Seconds, or least and most seconds of an evenly distributed pause.
Pause: TypeAlias = float | tuple[float, float]


def _native_of(backend: AnyBackend) -> _native.Backend:
    return backend.native if isinstance(backend, PythonBackend) else backend


def read_only(backend: AnyBackend) -> _native.Backend:
    """A read-only disk: changes are refused with EROFS."""
    return _native.layer_read_only(_native_of(backend))


def delay(
    backend: AnyBackend,
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
    return _native.layer_delay(_native_of(backend), ranges, seed)


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


def error(backend: AnyBackend, faults: Faults) -> _native.Backend:
    """Operations fail by the rules of ``faults``."""
    return _native.layer_error(_native_of(backend), faults.native)


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What a :class:`Throttle` lets through: operations (iops) and bytes (bps) a second, of
    reads and writes together (total) or of one alone; QEMU's names. None: no limit.

    ``_max``: how much may pass at once after a pause (QEMU's burst of one second), not below
    the rate; None: a tenth of a second's. ``iops_size``: a request of more bytes counts as
    several operations, by its size. Discards and write zeroes are writes of no bytes."""

    iops_total: float | None = None
    iops_read: float | None = None
    iops_write: float | None = None
    bps_total: float | None = None
    bps_read: float | None = None
    bps_write: float | None = None
    iops_total_max: float | None = None
    iops_read_max: float | None = None
    iops_write_max: float | None = None
    bps_total_max: float | None = None
    bps_read_max: float | None = None
    bps_write_max: float | None = None
    iops_size: int | None = None

    def given(self) -> dict[str, float]:
        """Those that are limits, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


class Throttle:
    """Limits that :func:`throttle` holds a disk to, or several disks together: all their
    virtqueues take turns."""

    def __init__(self, limits: Limits) -> None:
        """ValueError: a limit is not above 0, a ``_max`` is below its rate or has none,
        ``iops_size`` is below 1."""
        self.native = _native.Throttle(limits.given())
        self._limits = limits

    @property
    def limits(self) -> Limits:
        """The limits now. New ones hold at once, also for what waits already. ValueError, as
        for the first."""
        return self._limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        self.native.set_limits(limits.given())
        self._limits = limits


def throttle(backend: AnyBackend, throttle: Throttle, *, shared: bool = False) -> _native.Backend:
    """Operations wait for their turn under the limits of ``throttle``, in the order of their
    virtqueue. Flushes do not wait, and pass those that do. Stopping a device waits for what
    waits here; a reset cancels it. ``shared``: others may use ``backend``, too, and closing the
    layer leaves it open."""
    return _native.layer_throttle(_native_of(backend), throttle.native, shared=shared)


def overlay(backend: AnyBackend) -> _native.Backend:
    """Copy on write: changes are kept in memory, by sectors of 512 bytes, and are gone when it is
    closed; ``backend`` is read and never written. ``overlay_allocated`` of the result says how
    many bytes they take: whole pages of 4 KiB, none where zeroed. Discarded sectors read as zeroes;
    a flush has nothing to do."""
    return _native.layer_overlay(_native_of(backend))
