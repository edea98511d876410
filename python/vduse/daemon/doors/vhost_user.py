"""A device of vhost_vdpa for virtual machines."""

from __future__ import annotations

from dataclasses import dataclass

from vduse.bus.disk import Disk
from vduse.devices.blk import BlkDevice
from vduse.exports.vhost_user import Connecting, Listening, VhostUserServer
from vduse.exports.vhost_user.server import CLOSE_TIMEOUT
from vduse.framework import Framework


@dataclass(frozen=True)
class VhostUserDoor:
    """A :class:`~vduse.daemon.doors.door.Door`."""

    path: str
    #: We connect; then the socket is not ours, and has the front end's mode, owner and group.
    connect: bool = False
    mode: int = 0o600
    #: Ids; None: this process's.
    owner: int | None = None
    group: int | None = None
    driver: str = "vhost_vdpa"

    def open(self, framework: Framework, name: str, device: BlkDevice | None) -> OpenVhostUser:
        """A vhost-user server."""
        vhost = framework.bus.vhost(name)
        return OpenVhostUser(VhostUserServer(vhost, self._front_ends(), name=name))

    def _front_ends(self) -> Listening | Connecting:
        if self.connect:
            return Connecting(self.path)
        return Listening(self.path, mode=self.mode, owner=self.owner, group=self.group)


class OpenVhostUser:
    """An :class:`~vduse.daemon.doors.door.OpenDoor`. What is written is flushed at the device's
    end."""

    uri = None
    disks: tuple[Disk, ...] = ()

    def __init__(self, server: VhostUserServer) -> None:
        self.export = server

    def clients(self) -> int:
        """The front end, where there is one."""
        return int(self.export.connected)

    def close(self, *, answering: bool) -> str | None:
        """Takes the rings back, resets the device, closes the socket."""
        # Who stands still answers nothing more: the framework's end ends that.
        patience = CLOSE_TIMEOUT if answering else 0.0
        if not self.export.close(patience):
            return f"requests were not finished within {patience:g} s"
        return None
