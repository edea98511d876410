"""What a fault strikes: a device on the bus, and the program behind it."""

from __future__ import annotations

import threading

from vduse import _native
from vduse.bus.virtio_blk import VirtioBlk
from vduse.control.features import Status
from vduse.framework.device import VduseDevice
from vduse.run.faults.vdpa import FaultyVdpa
from vduse.run.hooks import Run


class NotNow(Exception):
    """The device is not in a state to be struck; it may be later."""


class Target:
    """A device that faults strike, one at a time."""

    def __init__(self, run: Run, vdpa: FaultyVdpa) -> None:
        self.run = run
        #: The device's place on the bus.
        self.vdpa = vdpa
        #: Held through a strike at the device.
        self.turn = threading.Lock()

    @property
    def name(self) -> str:
        """The device's."""
        return self.vdpa.name

    @property
    def device(self) -> VduseDevice:
        """The device itself. DeviceNotFound."""
        return self.run.framework.device(self.name)

    @property
    def driver(self) -> str | None:
        """Its bus driver; None: it has none, or has left the bus."""
        return self.run.framework.bus.devices.get(self.name)

    @property
    def blk(self) -> _native.BlkDriver:
        """The virtio-blk driver, of a device bound to virtio_vdpa. DeviceNotFound, NoDriver."""
        return self.run.framework.bus.driver(self.name, VirtioBlk).disk.driver

    def check_live(self) -> None:
        """NotNow: its driver has not said DRIVER_OK."""
        if not self.device.status & Status.DRIVER_OK:
            raise NotNow(f"{self.name} has no live driver")
