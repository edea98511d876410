"""The :class:`~vduse.bus.driver.Driver` port on a vhost-user socket, so that a
:class:`~vduse.testing.rawdriver.RawDriver` is a front end that knows no mistakes."""

from __future__ import annotations

import errno
import os
import struct

from tests.unit.vhost_user_front_end import FrontEnd, state, u64
from vduse.control.features import Status
from vduse.control.vhost_user import Request
from vduse.testing.rawdriver import BASE

#: The front end's own address of the guest's :data:`~vduse.testing.rawdriver.BASE`.
USER = 0x7F00_0000_0000

_AREAS = struct.Struct("=IIQQQQ")
_REGION = struct.Struct("=8xQQQQ")


def user(iova: int) -> int:
    """The front end's own address of a guest physical one."""
    return USER + iova - BASE


class VhostUserDriver:
    """One front end's connection; every message wants an acknowledgement, and one that is refused
    is OSError EPROTO. After :meth:`hang_up` calls do nothing, as the device is reset."""

    def __init__(self, path: str) -> None:
        self.front = FrontEnd(path)
        #: Virtqueue 0's.
        self.kick_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._status = 0
        self._gone = False

    def get_features(self) -> int:
        return int.from_bytes(self.front.get(Request.GET_FEATURES), "little")

    def set_features(self, features: int) -> None:
        self._set(Request.SET_FEATURES, u64(features))

    def get_status(self) -> int:
        return self._status

    def set_status(self, status: int) -> None:
        """Known here only, as without protocol STATUS; 0: RESET_DEVICE."""
        if status == 0 and self._status & Status.DRIVER_OK:
            self._set(Request.RESET_DEVICE, b"")
        self._status = status

    def set_vring_num(self, index: int, num: int) -> None:
        self._set(Request.SET_VRING_NUM, state(index, num))

    def set_vring_addr(self, index: int, desc: int, driver: int, device: int) -> None:
        areas = _AREAS.pack(index, 0, user(desc), user(device), user(driver), 0)
        self._set(Request.SET_VRING_ADDR, areas)

    def set_vring_base(self, index: int, base: int) -> None:
        self._set(Request.SET_VRING_BASE, state(index, base))

    def get_vring_base(self, index: int) -> int:
        reply = self.front.get(Request.GET_VRING_BASE, state(index, 0))
        return int.from_bytes(reply[4:], "little")

    def set_vring_call(self, index: int, fd: int) -> None:
        self._set(Request.SET_VRING_CALL, u64(index), fd)

    def set_vring_enable(self, index: int, enable: bool) -> None:
        if enable:
            self._set(Request.SET_VRING_KICK, u64(index), self.kick_fd)
        self._set(Request.SET_VRING_ENABLE, state(index, int(enable)))

    def kick(self, index: int) -> None:
        os.eventfd_write(self.kick_fd, 1)

    def iotlb_update(self, iova: int, size: int, fd: int, offset: int, perm: int) -> None:
        self._set(Request.ADD_MEM_REG, _REGION.pack(iova, size, user(iova), offset), fd)

    def iotlb_invalidate(self, iova: int, size: int) -> None:
        self._set(Request.REM_MEM_REG, _REGION.pack(iova, size, user(iova), 0))

    def iotlb_batch_begin(self) -> None: ...
    def iotlb_batch_end(self) -> None: ...

    def hang_up(self) -> None:
        """Closes the connection, as the other side may have done. Idempotent."""
        if not self._gone:
            self._gone = True
            self.front.close()
            os.close(self.kick_fd)

    def _set(self, request: int, payload: bytes, *fds: int) -> None:
        if not self._gone and self.front.set(request, payload, *fds):
            raise OSError(errno.EPROTO, f"{Request(request).name} was refused")
