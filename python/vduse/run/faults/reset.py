"""A reset with requests in flight."""

from __future__ import annotations

import threading

from vduse.run.faults.kind import VIRTIO, Kind, Values
from vduse.run.faults.target import Target


class Reset:
    """The driver resets the device, sets it up again, and asks again for what was not answered
    (:meth:`vduse.bus.virtio_vdpa.VirtioVdpa.restart`)."""

    def __init__(self, _values: Values) -> None:
        """No state."""

    def strike(self, target: Target, _stop: threading.Event) -> str:
        target.check_live()
        in_flight = target.blk.in_flight()
        target.run.framework.bus.restart(target.name)
        return f"reset with {in_flight} requests in flight, set up again"


KIND = Kind(
    name="reset",
    summary="the driver resets the device with requests in flight and sets it up again",
    clients="a pause; EIO, where the device does not come back",
    make=Reset,
    drivers=VIRTIO,
)
