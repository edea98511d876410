"""A disk of virtio_vdpa for NBD clients."""

from __future__ import annotations

from dataclasses import dataclass

from vduse.bus.disk import Disk
from vduse.device.device import DRAIN_TIMEOUT, DeviceError
from vduse.device.within import within
from vduse.devices.blk import BlkDevice
from vduse.exports.nbd import NbdServer
from vduse.exports.nbd.served import CLOSE_TIMEOUT
from vduse.framework import Framework


@dataclass(frozen=True)
class NbdDoor:
    """A :class:`~vduse.daemon.doors.door.Door`."""

    path: str
    mode: int
    #: Of the export, for its clients.
    description: str
    driver: str = "virtio_vdpa"

    def open(self, framework: Framework, name: str, device: BlkDevice | None) -> OpenNbd:
        """An NBD server."""
        disk = framework.disk(name)
        server = NbdServer(
            disk,
            self.path,
            mode=self.mode,
            description=self.description,
            pool=device.pool if device is not None else None,
            first_worker=device.first_worker if device is not None else 0,
            data_path=device.data_path if device is not None else None,
        )
        return OpenNbd(disk, server)


class OpenNbd:
    """An :class:`~vduse.daemon.doors.door.OpenDoor`."""

    def __init__(self, disk: Disk, server: NbdServer) -> None:
        self._disk = disk
        self.uri: str | None = server.uri
        self.disks = (disk,)
        self.export = server

    def clients(self) -> int:
        """NBD's."""
        return self.export.connections

    def close(self, *, answering: bool) -> str | None:
        """Answers what was taken, closes the socket, flushes."""
        # Who stands still answers nothing more.
        patience = CLOSE_TIMEOUT if answering else 0.0
        if not self.export.close(patience):
            # A flush would wait for ever behind requests that are not answered.
            return f"requests were not answered within {patience:g} s"
        try:
            if answering and not self._disk.read_only:
                within(DRAIN_TIMEOUT, self._disk.flush, "the last flush")
        except (OSError, DeviceError) as error:
            return f"what was written may not be on stable storage: {error}"
        return None
