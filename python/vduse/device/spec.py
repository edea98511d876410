"""What a device is, before it is attached anywhere."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from vduse.control.abi import DevConfig

#: VDUSE_NAME_MAX with its NUL.
_LONGEST_NAME = 255


def check_name(name: str) -> None:
    """ValueError: no device node can be called so."""
    if not 1 <= len(os.fsencode(name)) <= _LONGEST_NAME:
        raise ValueError(f"name: {name!r} is not 1 to {_LONGEST_NAME} bytes long")
    if name in (".", "..") or "/" in name or "\0" in name:
        raise ValueError(f"name: {name!r} cannot be a file's name below /dev/vduse")


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """Everything that VDUSE_CREATE_DEV and VDUSE_VQ_SETUP are told."""

    name: str
    #: Virtio device id (virtio 1.3, section 5).
    device_id: int
    #: Feature bits offered.
    features: int
    #: Most descriptors of each virtqueue.
    queue_sizes: tuple[int, ...]
    #: The config space at creation.
    config: bytes
    #: Judges what the driver chose from ``features``: None, or why it cannot be.
    check_features: Callable[[int], str | None]
    vendor_id: int = 0
    #: Alignment of virtqueue areas, bytes.
    vq_align: int = 4096
    #: 0, or 1: then the device has one virtqueue group and one address space.
    api_version: int = 0

    def __post_init__(self) -> None:
        """ValueError: a name that no device node can have, an API version that is not."""
        check_name(self.name)
        if self.api_version not in (0, 1):
            raise ValueError(f"api_version: {self.api_version} is neither 0 nor 1")

    def dev_config(self) -> DevConfig:
        """For VDUSE_CREATE_DEV."""
        return DevConfig(
            name=self.name,
            vendor_id=self.vendor_id,
            device_id=self.device_id,
            features=self.features,
            vq_num=len(self.queue_sizes),
            vq_align=self.vq_align,
            config=self.config,
            ngroups=self.api_version,
            nas=self.api_version,
        )
