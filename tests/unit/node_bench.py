"""An open device node and what is behind it, for the tests of its ioctls."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from tests.unit.raw_device import blk_config
from vduse.channel.packet import Credentials
from vduse.control.abi import DevRequest, DevResponse, Ioctl, VqConfig
from vduse.control.features import Status
from vduse.framework.device import VduseDevice
from vduse.framework.device_node import DeviceNode
from vduse.framework.irq import WorkQueue
from vduse.framework.profile import PROFILES
from vduse.framework.vdpa_device import Provision, VdpaDevice

BOUNCE = 1 << 20
LIVE = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK | Status.DRIVER_OK


class Bench:
    """An open node, its device, and its place on the bus (once attached)."""

    def __init__(self, work: WorkQueue, profile: str = "6.12", version: int = 0) -> None:
        config = blk_config(queues=2, ngroups=2 * version, nas=version)
        self.device = VduseDevice(
            config, PROFILES[profile], version, work, bounce_size=BOUNCE, msg_timeout=0
        )
        self.node = self.open()

    def open(self) -> DeviceNode:
        return DeviceNode(self.device, lambda: Credentials(os.getpid(), 0, 0))

    def attach(self) -> VdpaDevice:
        for index in range(2):
            self.ok(Ioctl.VQ_SETUP, VqConfig(index, 64).pack())
        return VdpaDevice(self.device, Provision())

    def ok(self, nr: int, payload: bytes = b"", fds: list[int] | None = None) -> bytes:
        result, answer, got = self.node.ioctl(nr, payload, fds or [])
        assert result == 0
        for fd in got:
            os.close(fd)
        return answer

    def fails(self, nr: int, payload: bytes = b"", fds: list[int] | None = None) -> int:
        with pytest.raises(OSError) as caught:
            self.node.ioctl(nr, payload, fds or [])
        assert caught.value.errno is not None
        return caught.value.errno

    def fd(self, nr: int, payload: bytes) -> tuple[bytes, int]:
        _, answer, [fd] = self.node.ioctl(nr, payload, [])
        return answer, fd

    def answering(self, reply: Callable[[DevRequest], DevResponse]) -> list[DevRequest]:
        """Answers at once, from inside the send."""
        seen: list[DevRequest] = []

        def answer() -> None:
            for data in self.node.read_messages():
                request = DevRequest.unpack(data)
                seen.append(request)
                self.node.write_response(reply(request).pack())

        self.device.messages.on_queued = answer
        return seen

    def agreeing(self) -> list[DevRequest]:
        return self.answering(lambda request: DevResponse(request.request_id))
