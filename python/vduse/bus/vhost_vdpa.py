"""The vhost_vdpa bus driver (drivers/vhost/vdpa.c): a device for a user with memory of its own,
shared by fd. No copy."""

from __future__ import annotations

import threading

from vduse import _native
from vduse.bus.errors import DeviceBusy, NoDriver
from vduse.bus.vdpa import VdpaDevice, reset_quietly
from vduse.bus.vhost_file import VhostVdpaFile


class VhostVdpa:
    """A device bound to vhost_vdpa: one user at a time may open it."""

    def __init__(self, vdpa: VdpaDevice, kicks: _native.KickRelay) -> None:
        self._vdpa = vdpa
        self._kicks = kicks
        self._lock = threading.Lock()
        self._open: VhostVdpaFile | None = None
        self._removed = False

    @property
    def busy(self) -> bool:
        return self._open is not None

    def open(self) -> VhostVdpaFile:
        """Opens the device and resets it (open(2) of /dev/vhost-vdpa-N); a
        :class:`vduse.bus.driver.Driver`. Waits. DeviceBusy; NoDriver: unbound;
        DeviceRefused; DeviceTimedOut."""
        with self._lock:
            if self._removed:
                raise NoDriver(f"{self._vdpa.name} was unbound from vhost_vdpa: bind it again")
            if self._open is not None:
                raise DeviceBusy(f"{self._vdpa.name} is open already: one user at a time")
            self._vdpa.reset()
            self._open = VhostVdpaFile(self._vdpa, self._kicks, self._closed)
            return self._open

    def remove(self) -> None:
        """Closes it for whoever has it open."""
        with self._lock:
            self._removed = True
            opened = self._open
        if opened is not None:
            opened.close()

    def _closed(self) -> None:
        try:
            reset_quietly(self._vdpa)
        finally:  # interrupted or not, its user has let go of it
            self._vdpa.clear_map()
            self._open = None
