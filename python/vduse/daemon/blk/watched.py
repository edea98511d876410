"""The disk, as those see it who watch it."""

from __future__ import annotations

from vduse.daemon.blk.attachment import Reach
from vduse.daemon.watch.collect import Opened, Served
from vduse.devices.blk import BlkDevice


class WatchedDisk:
    """A :class:`~vduse.daemon.watch.collect.Watched`: an export, and the node beneath it, both of
    the device's name."""

    def __init__(self, device: BlkDevice, reach: Reach) -> None:
        self._device = device
        self._type = "nbd" if reach.uri else "vhost-user-blk" if reach.socket else "vduse-blk"

    def served(self) -> list[Served]:
        """One."""
        name = self._device.name
        return [Served(name, self._type, name, self._device)]

    def opened(self) -> list[Opened]:
        """One, by what serves its backend."""
        backend = self._device.backend
        return [Opened(self._device.name, backend.engine, backend)]
