"""A driver that looks at nothing for a while."""

from __future__ import annotations

import threading

from vduse.run.faults.kind import VIRTIO, Kind, Option, Values, seconds
from vduse.run.faults.target import Target


class Silent:
    """The driver goes on making requests available and takes none back: used entries and irqs
    stay where they are, until the rings are full."""

    def __init__(self, values: Values) -> None:
        self._seconds = values["for"]

    def strike(self, target: Target, stop: threading.Event) -> str:
        target.check_live()
        blk = target.blk
        blk.hold(submissions=False, completions=True)
        try:
            stop.wait(self._seconds)
            waiting = blk.in_flight()
        finally:
            blk.hold(submissions=False, completions=False)
        return f"took nothing back for {self._seconds:g} s, {waiting} requests in the rings"


KIND = Kind(
    name="silent",
    summary="the driver takes no used entries and no irqs for some time: full rings",
    clients="a pause of that time",
    make=Silent,
    options={"for": Option(seconds, 1.0, "TIME that it lasts (1s)")},
    drivers=VIRTIO,
)
