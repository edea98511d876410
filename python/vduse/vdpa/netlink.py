"""vDPA management: what `vdpa mgmtdev show`, `vdpa dev` and `vdpa dev config show` do."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Self

from pyroute2.netlink import NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.generic import GenericNetlinkSocket

from vduse.vdpa.messages import (
    FAMILY,
    Attributes,
    Command,
    DeviceConfig,
    ManagementDevice,
    VdpaDevice,
    VdpaMessage,
    attributes_of,
    request,
    vendor_statistics,
)

#: VDUSE's management device.
VDUSE = "vduse"


class VdpaManagement:
    """A netlink socket, for the thread that makes it; close it, or use it as a context manager.

    Everything is OSError with the kernel's errno. Reading is open to every user; adding and
    deleting are EPERM without CAP_NET_ADMIN. The kernel answers while the device's program
    answers its messages, and holds the lock of all vDPA management meanwhile: a program that does
    not answer delays everybody for its device's msg_timeout (30 seconds).
    """

    def __init__(self) -> None:
        """OSError ENOENT: no vDPA here: modprobe vduse."""
        self._socket = GenericNetlinkSocket()
        try:
            self._socket.bind(FAMILY, VdpaMessage)
        except NetlinkError as error:
            self._socket.close()
            text = f'netlink family "{FAMILY}": {os.strerror(error.code)}: modprobe vduse'
            raise OSError(error.code, text) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the socket."""
        self._socket.close()

    def management_devices(self) -> list[ManagementDevice]:
        """`vdpa mgmtdev show`."""
        return [ManagementDevice.of(answer) for answer in self._dump(Command.MGMTDEV_GET)]

    def add(
        self,
        name: str,
        management: str = VDUSE,
        *,
        features: int | None = None,
        mac: str | None = None,
        mtu: int | None = None,
        max_vq_pairs: int | None = None,
    ) -> None:
        """`vdpa dev add`: puts device ``name`` on the bus, where a driver probes it before this
        returns. What is not None is for the management device to set (VDUSE's sets nothing, and
        refuses: EOPNOTSUPP); ``mtu``: bytes. OSError EINVAL: no such device, or a virtqueue that
        is not set up; EEXIST: it is there; EPERM; ENODEV: no such management device."""
        bus, _, device = management.rpartition("/")
        attributes: dict[str, object] = {"MGMTDEV_BUS_NAME": bus} if bus else {}
        attributes |= {"MGMTDEV_DEV_NAME": device, "DEV_NAME": name}
        chosen = {
            "DEV_FEATURES": features,
            "DEV_NET_CFG_MACADDR": mac,
            "DEV_NET_CFG_MTU": mtu,
            "DEV_NET_CFG_MAX_VQP": max_vq_pairs,
        }
        attributes |= {key: value for key, value in chosen.items() if value is not None}
        self._ask(Command.DEV_NEW, attributes)

    def delete(self, name: str) -> None:
        """`vdpa dev del`. OSError ENODEV: not there; EINVAL: not one that can be deleted;
        EPERM."""
        self._ask(Command.DEV_DEL, {"DEV_NAME": name})

    def devices(self) -> list[VdpaDevice]:
        """`vdpa dev show`."""
        return [VdpaDevice.of(answer) for answer in self._dump(Command.DEV_GET)]

    def device(self, name: str) -> VdpaDevice:
        """`vdpa dev show NAME`. OSError ENODEV."""
        return VdpaDevice.of(self._one(Command.DEV_GET, {"DEV_NAME": name}))

    def config(self, name: str) -> DeviceConfig:
        """`vdpa dev config show NAME`. OSError ENODEV; EAGAIN: the driver is just about to choose
        its features."""
        return DeviceConfig.of(self._one(Command.DEV_CONFIG_GET, {"DEV_NAME": name}))

    def statistics(self, name: str, queue: int) -> dict[str, int]:
        """`vdpa dev vstats show NAME qidx QUEUE`. OSError EOPNOTSUPP: the device's vendor counts
        nothing (so with VDUSE); ENODEV; EPERM."""
        attributes = {"DEV_NAME": name, "DEV_QUEUE_INDEX": queue}
        return vendor_statistics(self._one(Command.DEV_VSTATS_GET, attributes))

    def _dump(self, command: Command) -> list[Attributes]:
        return self._transact(command, {}, NLM_F_REQUEST | NLM_F_DUMP)

    def _one(self, command: Command, attributes: dict[str, object]) -> Attributes:
        [answer] = self._transact(command, attributes, NLM_F_REQUEST)
        return answer

    def _ask(self, command: Command, attributes: dict[str, object]) -> None:
        self._transact(command, attributes, NLM_F_REQUEST | NLM_F_ACK)

    def _transact(
        self, command: Command, attributes: dict[str, object], flags: int
    ) -> list[Attributes]:
        try:
            answers = self._socket.nlm_request(
                request(command, attributes), msg_type=self._socket.prid, msg_flags=flags
            )
            return [attributes_of(a) for a in answers if isinstance(a, VdpaMessage)]
        except NetlinkError as error:
            raise OSError(error.code, os.strerror(error.code)) from None
