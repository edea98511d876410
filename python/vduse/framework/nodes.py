"""Nodes without call sockets, for who brings a program's ioctls in another way."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from vduse.channel.packet import Credentials
from vduse.channel.tap import Tap
from vduse.framework.control_node import ControlNode, DeviceTable
from vduse.framework.device import VduseDevice
from vduse.framework.device_node import DeviceNode
from vduse.framework.endpoints import open_messages
from vduse.framework.profile import Profile
from vduse.framework.service import Service


class Devices(DeviceTable, Protocol):
    """What a control node creates and destroys, and who opens it looks up."""

    @property
    def devices(self) -> Mapping[str, VduseDevice]:
        """The devices there are, by name."""


@dataclass(frozen=True)
class Nodes:
    """What one framework's ``/dev/vduse`` has. Methods on its service thread only."""

    #: Runs every node's endpoints.
    service: Service
    devices: Devices
    profile: Profile
    #: Told of messages by the nodes; of calls (:func:`vduse.channel.server.told_call`) by who
    #: brings them.
    tap: Tap | None

    def open_control(self, caller: Callable[[], Credentials]) -> ControlNode:
        """A new open control node. ``caller`` says whose ioctl runs now."""
        return ControlNode(self.devices, self.profile, caller)

    def open_device(
        self, name: str, caller: Callable[[], Credentials], on_release: Callable[[], None]
    ) -> tuple[DeviceNode, socket.socket]:
        """A device's node, and the opener's end of its message socket: once every copy of that is
        closed the node is released and ``on_release`` called. OSError ENOENT, ENODEV, EBUSY."""
        device = self.devices.devices.get(name)
        if device is None:
            raise OSError(errno.ENOENT, f"no device {name}")
        return open_messages(self.service, device, caller, self.tap, on_release)
