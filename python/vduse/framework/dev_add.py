"""Attributes of `vdpa dev add` (linux/vdpa.h, VDPA_ATTR_DEV_*): what they change for the driver."""

from __future__ import annotations

import errno
import struct

from vduse.control.features import DeviceId, NetFeature
from vduse.framework.device import VduseDevice
from vduse.framework.vdpa_device import Provision

# struct virtio_net_config (virtio 1.3, section 5.1.4)
_NET_MAC = 0
_NET_MAX_VQ_PAIRS = 8
_MAC_SIZE = 6


def provision(
    device: VduseDevice, mac: bytes | None, features: int | None, vq_pairs: int | None
) -> Provision:
    """Checks the attributes against the device. OSError EOPNOTSUPP: an attribute of another kind
    of device; EINVAL: what the device does not offer."""
    if features is not None and features & ~device.device_features:
        extra = features & ~device.device_features
        raise OSError(errno.EINVAL, f"{device.name} does not offer features {extra:#x}")
    offered = device.device_features if features is None else features
    config: list[tuple[int, bytes]] = []
    if mac is not None:
        _require_net(device, "mac")
        if len(mac) != _MAC_SIZE:
            raise OSError(errno.EINVAL, f"a MAC address is {_MAC_SIZE} bytes, not {len(mac)}")
        _require_feature(device, offered, NetFeature.MAC, "VIRTIO_NET_F_MAC", "mac")
        config.append((_NET_MAC, mac))
    if vq_pairs is not None:
        _require_net(device, "vq_pairs")
        _require_feature(device, offered, NetFeature.MQ, "VIRTIO_NET_F_MQ", "vq_pairs")
        most = len(device.vqs) // 2
        if not 1 <= vq_pairs <= most:
            raise OSError(errno.EINVAL, f"{device.name} has 1 to {most} virtqueue pairs")
        config.append((_NET_MAX_VQ_PAIRS, struct.pack("<H", vq_pairs)))
    return Provision(features, tuple(config))


def _require_net(device: VduseDevice, attribute: str) -> None:
    if device.device_id != DeviceId.NET:
        raise OSError(errno.EOPNOTSUPP, f"{attribute} is for net devices; {device.name} is none")


def _require_feature(
    device: VduseDevice, offered: int, bit: int, name: str, attribute: str
) -> None:
    if not offered & bit:
        raise OSError(errno.EINVAL, f"{attribute} needs {name}, which {device.name} lacks")
