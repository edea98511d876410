"""/dev/vduse/control: API version, CREATE_DEV, DESTROY_DEV, with the kernel's checks in the
kernel's order. Knows no transport."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Protocol

from vduse.channel.packet import Credentials
from vduse.control.abi import (
    DevConfig,
    ExtCall,
    Ioctl,
    pack_u64,
    unpack_name,
    unpack_u32,
    unpack_u64,
)
from vduse.control.features import BlkFeature, DeviceId, Feature, NetFeature
from vduse.framework.credentials import CAP_NET_ADMIN, has_capability
from vduse.framework.domain import PAGE_SIZE
from vduse.framework.profile import Profile

Result = tuple[int, bytes, list[int]]

_MAX_COUNT = 0xFFFF


class DeviceTable(Protocol):
    """The devices that a control node creates and destroys."""

    def create(self, config: DevConfig, api_version: int) -> None:
        """DeviceExists: the name is taken."""

    def destroy(self, name: str) -> None:
        """DeviceNotFound; DeviceBusy: attached or open."""

    def open(self, name: str) -> list[int]:
        """The fds of an open device node, for the caller. OSError ENOENT, ENODEV, EBUSY."""


class ControlNode:
    """One open control node: the API version is its own."""

    def __init__(
        self, devices: DeviceTable, profile: Profile, caller: Callable[[], Credentials]
    ) -> None:
        """``caller`` says whose ioctl runs now."""
        self._devices = devices
        self._profile = profile
        self._caller = caller
        self._api_version: int | None = None

    def ioctl(self, nr: int, payload: bytes, fds: list[int]) -> Result:
        """The ioctl's result, its struct as written back, fds for the caller. OSError as the
        kernel; ValueError: ``payload`` is no such struct."""
        match nr:
            case Ioctl.GET_API_VERSION:
                if self._api_version is None and self._profile.api_version > 0:
                    self._api_version = self._profile.api_version
                return 0, pack_u64(self._version), []
            case Ioctl.SET_API_VERSION:
                self._set_api_version(unpack_u64(payload))
            case Ioctl.CREATE_DEV:
                self._create_dev(payload)
            case Ioctl.DESTROY_DEV:
                self._devices.destroy(unpack_name(payload))
            case ExtCall.OPEN:
                return 0, b"", self._devices.open(unpack_name(payload))
            case _:
                raise OSError(errno.EINVAL, f"no ioctl {nr:#x} on the control node")
        return 0, b"", []

    @property
    def _version(self) -> int:
        return self._api_version or 0

    def _set_api_version(self, version: int) -> None:
        if version > self._profile.api_version:
            raise _invalid(f"API version {version}: at most {self._profile.api_version}")
        self._api_version = version

    def _create_dev(self, payload: bytes) -> None:
        config_size = unpack_u32(payload[DevConfig.SIZE - 4 : DevConfig.SIZE])
        if config_size > PAGE_SIZE:  # before the config space is looked at; all else is EINVAL too
            raise _invalid(f"config space of {config_size} bytes: at most {PAGE_SIZE}")
        config = DevConfig.unpack(payload)
        self._check_config(config)
        _refuse_address_spaces(config)
        if config.device_id == DeviceId.NET and not has_capability(
            self._caller().pid, CAP_NET_ADMIN
        ):
            raise OSError(errno.EPERM, "a net device is created with CAP_NET_ADMIN")
        self._devices.create(config, self._version)

    def _check_config(self, config: DevConfig) -> None:
        """vduse_validate_config: all of them EINVAL."""
        if any(config.reserved):
            raise _invalid("vduse_dev_config.reserved is not zero")
        self._check_groups(config)
        self._check_align(config.vq_align)
        if config.vq_num > _MAX_COUNT:
            raise _invalid(f"{config.vq_num} virtqueues: at most {_MAX_COUNT}")
        if not config.name:
            raise _invalid("the device has no name")
        self._check_features(config)

    def _check_groups(self, config: DevConfig) -> None:
        counts = (config.ngroups, config.nas)
        if self._version == 0:
            if any(counts):
                raise _invalid("virtqueue groups and address spaces need API version 1")
        elif not all(0 < count <= _MAX_COUNT for count in counts):
            raise _invalid(f"API version 1 wants 1 to {_MAX_COUNT} groups and address spaces")

    def _check_align(self, align: int) -> None:
        if not 4 <= align <= PAGE_SIZE or align & (align - 1):
            raise _invalid(f"vq_align {align}: a power of two of 4 to {PAGE_SIZE}")

    def _check_features(self, config: DevConfig) -> None:
        if config.device_id not in self._profile.device_ids:
            allowed = ", ".join(map(str, sorted(self._profile.device_ids)))
            raise _invalid(f"virtio device id {config.device_id}: allowed are {allowed}")
        if not config.features & Feature.ACCESS_PLATFORM:
            raise _invalid("VIRTIO_F_ACCESS_PLATFORM must be offered")
        if config.device_id == DeviceId.BLOCK and config.features & BlkFeature.CONFIG_WCE:
            raise _invalid("VIRTIO_BLK_F_CONFIG_WCE must not be offered")
        if config.device_id == DeviceId.NET:
            if config.features & NetFeature.CTRL_VQ:
                raise _invalid("VIRTIO_NET_F_CTRL_VQ must not be offered")
            if not config.features & Feature.VERSION_1:
                raise _invalid("VIRTIO_F_VERSION_1 must be offered")


def _refuse_address_spaces(config: DevConfig) -> None:
    """The one place that says what API version 1 has and this framework has not."""
    if config.nas > 1:
        raise OSError(
            errno.EOPNOTSUPP,
            f"{config.nas} address spaces: the embedded framework has one; create the device "
            "with nas = 1",
        )


def _invalid(reason: str) -> OSError:
    return OSError(errno.EINVAL, reason)
