"""The bounce pages move to other memory."""

from __future__ import annotations

import errno
import threading
from time import monotonic

from vduse import _native
from vduse.run.faults.kind import VIRTIO, Kind, Values
from vduse.run.faults.target import NotNow, Target

#: Seconds between two looks at what is in flight: the driver's own threads take completions.
_LOOK = 0.001


class Move:
    """The driver lets its requests come to their end, moves the bounce pages to another memory
    file (the next time, back), tells of it by UPDATE_IOTLB, and goes on. A device that kept its
    mapping reads and writes where nobody looks any more."""

    def __init__(self, _values: Values) -> None:
        """No state."""

    def strike(self, target: Target, stop: threading.Event) -> str:
        target.check_live()
        blk = target.blk
        blk.hold(submissions=True, completions=False)
        try:
            _drain(blk, target.device.msg_timeout, stop)
            if not target.vdpa.domain.bounce_mapped:
                raise NotNow(f"{target.name} has no bounce pages yet")
            target.vdpa.move_bounce()
        finally:
            blk.hold(submissions=False, completions=False)
        return "bounce pages " + ("moved away" if target.vdpa.elsewhere else "moved back")


def _drain(blk: _native.BlkDriver, timeout: float, stop: threading.Event) -> None:
    """Waits until the device has no request, ``timeout`` seconds at most (0: for ever)."""
    deadline = monotonic() + timeout if timeout else float("inf")
    while in_flight := blk.in_flight():
        if monotonic() > deadline:
            raise OSError(errno.ETIMEDOUT, f"{in_flight} requests not answered in {timeout:g} s")
        if stop.wait(_LOOK):
            raise OSError(errno.EINTR, f"the end, with {in_flight} requests in flight")


KIND = Kind(
    name="move",
    summary="the bounce pages move to other memory between requests (UPDATE_IOTLB)",
    clients="a pause; wrong data, where the daemon ignores UPDATE_IOTLB",
    make=Move,
    drivers=VIRTIO,
)
