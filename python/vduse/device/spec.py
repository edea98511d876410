"""What a device is, before it is attached anywhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vduse.control.abi import DevConfig


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
