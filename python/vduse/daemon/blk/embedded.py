"""A disk at a socket: framework, virtio_vdpa driver and NBD server, in this process."""

from __future__ import annotations

import os
import threading
from contextlib import suppress

from vduse.bus.disk import Disk
from vduse.bus.errors import DeviceNotFound
from vduse.channel.embedded import EmbeddedControl
from vduse.control.statistics import Statistics, collect
from vduse.daemon.blk.attachment import Reach
from vduse.daemon.dev.embedded import EmbeddedFace
from vduse.daemon.dev.qmp import commands
from vduse.daemon.errors import UserError
from vduse.daemon.qmp.server import QmpServer
from vduse.device.device import DRAIN_TIMEOUT, DeviceError
from vduse.device.within import within
from vduse.devices.blk import BlkDevice
from vduse.exports.errors import ExportError
from vduse.exports.listen import UnixListener
from vduse.exports.nbd import NbdServer
from vduse.exports.nbd.server import CLOSE_TIMEOUT
from vduse.framework import Framework

#: Who may write the socket may take the disk away.
_QMP_MODE = 0o600


class EmbeddedAttachment:
    """An :class:`~vduse.daemon.blk.attachment.Attachment`, and what its bus asks of it: an
    :class:`~vduse.daemon.dev.embedded.Export`."""

    def __init__(self, path: str, *, mode: int, description: str, qmp: str | None) -> None:
        """``path``, ``mode``: of NBD's socket; ``description``: of the export, for its clients;
        ``qmp``: a socket for `vduse dev --qmp`."""
        self._path = path
        self._mode = mode
        self._description = description
        self._qmp_path = qmp
        self._framework = Framework()
        self._control = EmbeddedControl(self._framework.control())
        #: Guards what follows against QMP's commands.
        self._lock = threading.RLock()
        self._device: BlkDevice | None = None
        self._disk: Disk | None = None
        self._server: NbdServer | None = None
        self._qmp: QmpServer | None = None

    @property
    def control(self) -> EmbeddedControl:
        """The framework's."""
        return self._control

    def attach(self, device: BlkDevice) -> Reach:
        """Serves NBD, and QMP."""
        self._framework.dev_add(device.name)
        self._device = device
        self.offer(device.name)
        if self._qmp_path is not None:
            self._serve_qmp(self._qmp_path)
        return Reach(
            driver="virtio_vdpa", socket=os.path.abspath(self._path), uri=self.place(device.name)
        )

    def users(self) -> tuple[str, ...]:
        """Nobody who is waited for: NBD's clients know servers that end."""
        return ()

    def left(self) -> str:
        """All of it is this process's."""
        return ""

    def statistics(self, device: BlkDevice) -> Statistics:
        """Of the device, its disk and its server."""
        with self._lock:
            disks = [self._disk] if self._disk is not None else []
            exports = {self._server.path: self._server} if self._server is not None else {}
            return collect(devices=[device], disks=disks, exports=exports)

    def clients(self, name: str) -> int:
        """NBD's."""
        with self._lock:
            return self._server.connections if self._server is not None else 0

    def place(self, name: str) -> str | None:
        """NBD's URI."""
        with self._lock:
            return self._server.uri if self._server is not None else None

    def offer(self, name: str) -> None:
        """Serves NBD, where virtio_vdpa has the device."""
        with self._lock:
            device = self._device
            driver = self._framework.bus.devices.get(name)
            if self._server is not None or device is None or driver != "virtio_vdpa":
                return
            disk = self._framework.disk(name)
            try:
                self._server = NbdServer(
                    disk,
                    self._path,
                    mode=self._mode,
                    description=self._description,
                    pool=device.pool,
                    first_worker=device.first_worker,
                )
            except ExportError as error:
                raise UserError(str(error)) from None
            self._disk = disk

    def withdraw(self, name: str) -> None:
        """Answers what was taken, closes the socket, flushes. UserError: not in order."""
        if (failure := self._withdraw(answering=True)) is not None:
            raise UserError(f"{name}: {failure}")

    def detach(self, *, answering: bool) -> str | None:
        """The same, and takes it off the bus."""
        if self._qmp is not None:
            self._qmp.close()
        failure = self._withdraw(answering=answering)
        device = self._device
        # Nobody would answer the reset of a device that has ended; the framework's own end waits
        # for nobody.
        if device is not None and device.ended is None:
            with suppress(DeviceNotFound):
                self._framework.dev_del(device.name)
        return failure

    def close(self) -> str | None:
        """Ends the framework."""
        self._control.close()
        self._framework.close()
        return None

    def _withdraw(self, *, answering: bool) -> str | None:
        with self._lock:
            server, disk = self._server, self._disk
            self._server = self._disk = None
        if server is None or disk is None:
            return None
        # Who stands still answers nothing more.
        patience = CLOSE_TIMEOUT if answering else 0.0
        if not server.close(patience):
            # A flush would wait for ever behind requests that are not answered.
            return f"requests were not answered within {patience:g} s"
        try:
            if answering:
                within(DRAIN_TIMEOUT, disk.flush, "the last flush")
        except (OSError, DeviceError) as error:
            return f"what was written may not be on stable storage: {error}"
        return None

    def _serve_qmp(self, path: str) -> None:
        try:
            listener = UnixListener(path, _QMP_MODE)
        except ExportError as error:
            raise UserError(str(error)) from None
        self._qmp = QmpServer(commands(EmbeddedFace(self._framework, self)))
        self._qmp.listen(listener)
