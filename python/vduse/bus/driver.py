"""The driver side's port: the vocabulary of vhost-vdpa (linux/vhost.h, drivers/vhost/vdpa.c).

Implementations: the embedded vhost_vdpa bus driver, and /dev/vhost-vdpa-N. Errors are
OSError with the errno the kernel gives.
"""

from __future__ import annotations

from typing import Final, Protocol, runtime_checkable

from vduse.control.abi import DirtyLog

#: :meth:`Driver.set_vring_base` of a fresh packed ring: both wrap counters 1.
PACKED_START: Final = 1 << 15 | 1 << 31


class Driver(Protocol):
    """An open vhost-vdpa device."""

    def get_device_id(self) -> int: ...
    def get_status(self) -> int: ...
    def set_status(self, status: int) -> None:
        """VHOST_VDPA_SET_STATUS; 0 resets. OSError EINVAL (bits may only be added), EIO."""

    def get_features(self) -> int:
        """What the device offers."""

    def set_features(self, features: int) -> None: ...
    def get_backend_features(self) -> int: ...
    def set_backend_features(self, features: int) -> None: ...
    def get_config_size(self) -> int: ...
    def get_config(self, offset: int, length: int) -> bytes: ...
    def set_config(self, offset: int, data: bytes) -> None: ...
    def set_config_call(self, fd: int) -> None:
        """An eventfd for config interrupts; -1 deassigns."""

    def get_vqs_count(self) -> int: ...
    def get_vring_num_max(self) -> int: ...
    def get_iova_range(self) -> tuple[int, int]: ...
    def get_vring_group(self, index: int) -> int: ...
    def set_group_asid(self, group: int, asid: int) -> None:
        """VHOST_VDPA_SET_GROUP_ASID. OSError EBUSY (under DRIVER_OK), EINVAL, EIO."""

    def set_vring_num(self, index: int, num: int) -> None: ...
    def set_vring_addr(self, index: int, desc: int, driver: int, device: int) -> None: ...
    def set_vring_base(self, index: int, base: int) -> None:
        """Split: avail index. Packed: avail index and wrap in bits 0-15, used in 16-31."""

    def get_vring_base(self, index: int) -> int: ...
    def set_vring_enable(self, index: int, enable: bool) -> None: ...
    def set_vring_kick(self, index: int, fd: int) -> None:
        """An eventfd of the caller's, watched for kicks; -1 stops watching."""

    def set_vring_call(self, index: int, fd: int) -> None: ...
    def kick(self, index: int) -> None:
        """Kicks without an eventfd of one's own."""

    def iotlb_update(
        self, iova: int, size: int, fd: int, offset: int, perm: int, asid: int = 0
    ) -> None:
        """Maps ``size`` bytes at ``offset`` of a shared memory fd. OSError EINVAL, EFAULT."""

    def iotlb_invalidate(self, iova: int, size: int, asid: int = 0) -> None: ...
    def iotlb_batch_begin(self) -> None: ...
    def iotlb_batch_end(self) -> None: ...
    def close(self) -> None: ...


@runtime_checkable
class InflightDriver(Protocol):
    """What VDUSE has no word for, and the embedded framework's driver can do beside: the record of
    the requests in flight is the user's, and outlives framework and device."""

    def new_inflight(self, features: int) -> int:
        """A memory file for the records of all virtqueues with these features (the caller's)."""

    def set_inflight(self, fd: int, size: int) -> None:
        """Before DRIVER_OK: the device goes on from the ``size`` bytes of records there, which are
        zeroes where nothing was in flight. Until the next reset. OSError."""


@runtime_checkable
class LogDriver(Protocol):
    """The same of live migration: what the device writes into the user's memory is marked."""

    def can_log(self) -> bool:
        """Whether the device's program can."""

    def set_log(self, log: DirtyLog | None, fd: int = -1) -> None:
        """Once this returns all writes are marked in ``log`` in the memory file ``fd``, those of
        requests in flight when they complete; None: no more. Until the next reset. OSError
        EOPNOTSUPP; EIO: the device cannot use this log."""
