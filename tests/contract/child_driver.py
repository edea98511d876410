"""The :class:`vduse.bus.driver.Driver` of a child: vhost_opener.py."""

from __future__ import annotations

from typing import Any

from tests.contract.child_program import Child, Fd


class ChildDriver:
    """An open vhost-vdpa device, in a process of its own."""

    def __init__(self) -> None:
        #: The process.
        self.child = Child("vhost")

    def open(self, path: str) -> None:
        """OSError."""
        self.child.call("open", path)

    def get_device_id(self) -> int:
        return int(self._call("get_device_id"))

    def get_status(self) -> int:
        return int(self._call("get_status"))

    def set_status(self, status: int) -> None:
        self._call("set_status", status)

    def get_features(self) -> int:
        return int(self._call("get_features"))

    def set_features(self, features: int) -> None:
        self._call("set_features", features)

    def get_backend_features(self) -> int:
        return int(self._call("get_backend_features"))

    def set_backend_features(self, features: int) -> None:
        self._call("set_backend_features", features)

    def get_config_size(self) -> int:
        return int(self._call("get_config_size"))

    def get_config(self, offset: int, length: int) -> bytes:
        return bytes(self._call("get_config", offset, length))

    def set_config(self, offset: int, data: bytes) -> None:
        self._call("set_config", offset, data)

    def set_config_call(self, fd: int) -> None:
        self._call("set_config_call", _passed(fd))

    def get_vqs_count(self) -> int:
        return int(self._call("get_vqs_count"))

    def get_vring_num_max(self) -> int:
        return int(self._call("get_vring_num_max"))

    def get_iova_range(self) -> tuple[int, int]:
        first, last = self._call("get_iova_range")
        return first, last

    def get_vring_group(self, index: int) -> int:
        return int(self._call("get_vring_group", index))

    def set_group_asid(self, group: int, asid: int) -> None:
        self._call("set_group_asid", group, asid)

    def set_vring_num(self, index: int, num: int) -> None:
        self._call("set_vring_num", index, num)

    def set_vring_addr(self, index: int, desc: int, driver: int, device: int) -> None:
        self._call("set_vring_addr", index, desc, driver, device)

    def set_vring_base(self, index: int, base: int) -> None:
        self._call("set_vring_base", index, base)

    def get_vring_base(self, index: int) -> int:
        return int(self._call("get_vring_base", index))

    def set_vring_enable(self, index: int, enable: bool) -> None:
        self._call("set_vring_enable", index, enable)

    def set_vring_kick(self, index: int, fd: int) -> None:
        self._call("set_vring_kick", index, _passed(fd))

    def set_vring_call(self, index: int, fd: int) -> None:
        self._call("set_vring_call", index, _passed(fd))

    def kick(self, index: int) -> None:
        self._call("kick", index)

    def iotlb_update(
        self, iova: int, size: int, fd: int, offset: int, perm: int, asid: int = 0
    ) -> None:
        self._call("iotlb_update", iova, size, _passed(fd), offset, perm, asid)

    def iotlb_invalidate(self, iova: int, size: int, asid: int = 0) -> None:
        self._call("iotlb_invalidate", iova, size, asid)

    def iotlb_batch_begin(self) -> None:
        self._call("iotlb_batch_begin")

    def iotlb_batch_end(self) -> None:
        self._call("iotlb_batch_end")

    def close(self) -> None:
        if not self.child.ended:
            self._call("close")
            self.child.end()

    def _call(self, method: str, *arguments: Any) -> Any:
        return self.child.call(f"driver.{method}", *arguments)


def _passed(fd: int) -> Fd | int:
    return Fd(fd) if fd >= 0 else fd
