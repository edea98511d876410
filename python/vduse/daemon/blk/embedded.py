"""A disk at a socket: framework, virtio_vdpa driver and NBD server, in this process."""

from __future__ import annotations

import os
from contextlib import ExitStack

from vduse.bus.disk import Disk
from vduse.channel.embedded import EmbeddedControl
from vduse.control.statistics import Statistics, collect
from vduse.daemon.blk.attachment import Reach
from vduse.daemon.errors import UserError
from vduse.device.device import DRAIN_TIMEOUT, DeviceError
from vduse.device.within import within
from vduse.devices.blk import BlkDevice
from vduse.exports.errors import ExportError
from vduse.exports.nbd import NbdServer
from vduse.exports.nbd.server import CLOSE_TIMEOUT
from vduse.framework import Framework


class EmbeddedAttachment:
    """An :class:`~vduse.daemon.blk.attachment.Attachment`."""

    def __init__(self, path: str, *, mode: int, description: str) -> None:
        """``path``, ``mode``: of NBD's socket; ``description``: of the export, for its clients."""
        self._path = path
        self._mode = mode
        self._description = description
        self._framework = Framework()
        self._control = EmbeddedControl(self._framework.control())
        self._device: BlkDevice | None = None
        self._disk: Disk | None = None
        self._server: NbdServer | None = None

    @property
    def control(self) -> EmbeddedControl:
        """The framework's."""
        return self._control

    def attach(self, device: BlkDevice) -> Reach:
        """Serves NBD."""
        self._framework.dev_add(device.name)
        self._device = device
        self._disk = self._framework.disk(device.name)
        try:
            self._server = NbdServer(
                self._disk,
                self._path,
                mode=self._mode,
                description=self._description,
                pool=device.pool,
                first_worker=device.first_worker,
            )
        except ExportError as error:
            raise UserError(str(error)) from None
        return Reach(
            driver="virtio_vdpa", socket=os.path.abspath(self._server.path), uri=self._server.uri
        )

    def users(self) -> tuple[str, ...]:
        """NBD's clients are used to a server that ends."""
        return ()

    def left(self) -> str:
        """All of it is this process's."""
        return ""

    def statistics(self, device: BlkDevice) -> Statistics:
        """Of the device, its disk and its server."""
        disks = [self._disk] if self._disk is not None else []
        exports = {self._server.path: self._server} if self._server is not None else {}
        return collect(devices=[device], disks=disks, exports=exports)

    def detach(self, *, answering: bool) -> str | None:
        """Answers what was taken, closes the socket, flushes."""
        # Who stands still answers nothing more.
        patience = CLOSE_TIMEOUT if answering else 0.0
        answered = self._server is None or self._server.close(patience)
        failure = None
        try:
            with ExitStack() as last:
                last.callback(self._leave_bus)
                # It would wait for ever behind requests that are not answered.
                if self._server is not None and self._disk is not None and answered and answering:
                    within(DRAIN_TIMEOUT, self._disk.flush, "the last flush")
        except (OSError, DeviceError) as error:
            failure = f"what was written may not be on stable storage: {error}"
        return failure if answered else f"requests were not answered within {patience:g} s"

    def close(self) -> str | None:
        """Ends the framework."""
        self._control.close()
        self._framework.close()
        return None

    def _leave_bus(self) -> None:
        # Nobody would answer the reset of a device that has ended; the framework's own end waits
        # for nobody.
        if self._device is not None and self._device.ended is None:
            self._framework.dev_del(self._device.name)
