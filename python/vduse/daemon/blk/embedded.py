"""A disk at a socket: the framework and what shows the disk outside, in this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from vduse.bus.errors import DeviceBusy, DeviceNotFound
from vduse.channel.embedded import EmbeddedControl
from vduse.control.statistics import Statistics, collect
from vduse.daemon.blk.attachment import Reach
from vduse.daemon.blk.watched import WatchedDisk
from vduse.daemon.dev.embedded import EmbeddedFace
from vduse.daemon.dev.qmp import commands
from vduse.daemon.doors.door import Door
from vduse.daemon.doors.doorway import Doorway
from vduse.daemon.errors import UserError
from vduse.daemon.qmp.server import QmpServer
from vduse.daemon.watch.collect import state_command
from vduse.devices.blk import BlkDevice
from vduse.exports.errors import ExportError
from vduse.exports.listen import UnixListener
from vduse.framework import Framework

#: Who may write the socket may take the disk away.
_QMP_MODE = 0o600


class EmbeddedAttachment:
    """An :class:`~vduse.daemon.blk.attachment.Attachment`, and what its bus asks of it: an
    :class:`~vduse.daemon.dev.embedded.Export`."""

    def __init__(self, door: Door, framework: Framework, *, qmp: str | None) -> None:
        """Takes over the framework. ``qmp``: a socket for `vduse dev --qmp`."""
        self._door = door
        self._qmp_path = qmp
        self._framework = framework
        self._control = EmbeddedControl(self._framework.control())
        self._device: BlkDevice | None = None
        self._doorway: Doorway | None = None
        self._qmp: QmpServer | None = None

    @property
    def control(self) -> EmbeddedControl:
        """The framework's."""
        return self._control

    def attach(self, device: BlkDevice) -> Reach:
        """Opens the door, and serves QMP."""
        self._framework.dev_add(device.name, driver=self._door.driver)
        self._doorway = Doorway(self._framework, device.name, self._door, device)
        self._device = device
        self.offer(device.name)
        reach = Reach(driver=self._door.driver, socket=self._doorway.socket, uri=self._doorway.uri)
        if self._qmp_path is not None:
            self._serve_qmp(self._qmp_path, WatchedDisk(device, reach))
        return reach

    def users(self) -> tuple[str, ...]:
        """Nobody who is waited for: clients and VMMs know servers that end."""
        return ()

    def left(self) -> str:
        """All of it is this process's."""
        return ""

    def statistics(self, device: BlkDevice) -> Statistics:
        """Of the device, its disk and its server."""
        disks = self._doorway.disks if self._doorway is not None else ()
        exports = self._doorway.exports if self._doorway is not None else {}
        return collect(devices=[device], disks=disks, exports=exports, pools=[device.pool])

    def clients(self, name: str) -> int:
        """Of the socket."""
        return self._doorway.clients() if self._doorway is not None else 0

    def place(self, name: str) -> str | None:
        """The URI, or the socket's path where there are none."""
        return self._doorway.place if self._doorway is not None else None

    def offer(self, name: str) -> None:
        """Opens the door, where its driver has the device. UserError: the socket cannot be."""
        if self._doorway is not None:
            with _told():
                self._doorway.offer()

    def withdraw(self, name: str) -> None:
        """Closes the door. UserError: not in order."""
        if (failure := self._withdraw(answering=True)) is not None:
            raise UserError(f"{name}: {failure}")

    def detach(self, *, answering: bool) -> str | None:
        """The same, and takes it off the bus."""
        if self._qmp is not None:
            self._qmp.close()
        failure = self._withdraw(answering=answering)
        device = self._device
        # Nobody would answer the reset of a device that has ended; the framework's own end waits
        # for nobody. Busy: the door was not closed in order.
        if device is not None and device.ended is None:
            with suppress(DeviceNotFound, DeviceBusy):
                self._framework.dev_del(device.name)
        return failure

    def close(self) -> str | None:
        """Destroys the device, as on the kernel, and ends the framework."""
        if self._device is not None:
            with suppress(OSError):  # it has not ended in order: it goes with the framework
                self._control.destroy_dev(self._device.name)
        self._control.close()
        self._framework.close()
        return None

    def _withdraw(self, *, answering: bool) -> str | None:
        return self._doorway.withdraw(answering=answering) if self._doorway is not None else None

    def _serve_qmp(self, path: str, watched: WatchedDisk) -> None:
        with _told():
            listener = UnixListener(path, _QMP_MODE)
        bus = commands(EmbeddedFace(self._framework, self))
        self._qmp = QmpServer((*bus, state_command(lambda: watched)))
        self._qmp.listen(listener)


@contextmanager
def _told() -> Iterator[None]:
    """What is wrong with a socket is a person's affair."""
    try:
        yield
    except ExportError as error:
        raise UserError(str(error)) from None
