"""Virtio feature bits, device ids and status bits, under their names in virtio 1.3."""

from __future__ import annotations

from enum import IntEnum, IntFlag


class DeviceId(IntEnum):
    """Virtio device ids (virtio 1.3, section 5)."""

    NET = 1
    BLOCK = 2
    CONSOLE = 3
    RNG = 4
    FS = 26


class Status(IntFlag):
    """Device status bits (virtio 1.3, section 2.1)."""

    ACKNOWLEDGE = 1
    DRIVER = 2
    DRIVER_OK = 4
    FEATURES_OK = 8
    DEVICE_NEEDS_RESET = 64
    FAILED = 128


class Feature(IntFlag):
    """Feature bits of every device type (virtio 1.3, section 6), without VIRTIO_F_."""

    NOTIFY_ON_EMPTY = 1 << 24
    ANY_LAYOUT = 1 << 27
    #: VIRTIO_F_INDIRECT_DESC, in Linux VIRTIO_RING_F_INDIRECT_DESC.
    INDIRECT_DESC = 1 << 28
    #: VIRTIO_F_EVENT_IDX, in Linux VIRTIO_RING_F_EVENT_IDX.
    EVENT_IDX = 1 << 29
    VERSION_1 = 1 << 32
    ACCESS_PLATFORM = 1 << 33
    RING_PACKED = 1 << 34
    IN_ORDER = 1 << 35
    ORDER_PLATFORM = 1 << 36
    SR_IOV = 1 << 37
    NOTIFICATION_DATA = 1 << 38
    NOTIF_CONFIG_DATA = 1 << 39
    RING_RESET = 1 << 40


class BlkFeature(IntFlag):
    """Feature bits of a block device (virtio 1.3, section 5.2.3), without VIRTIO_BLK_F_."""

    SIZE_MAX = 1 << 1
    SEG_MAX = 1 << 2
    GEOMETRY = 1 << 4
    RO = 1 << 5
    BLK_SIZE = 1 << 6
    FLUSH = 1 << 9
    TOPOLOGY = 1 << 10
    CONFIG_WCE = 1 << 11
    MQ = 1 << 12
    DISCARD = 1 << 13
    WRITE_ZEROES = 1 << 14
    LIFETIME = 1 << 15
    SECURE_ERASE = 1 << 16
    ZONED = 1 << 17


class NetFeature(IntFlag):
    """Feature bits of a network device (virtio 1.3, section 5.1.3) that VDUSE_CREATE_DEV and
    `vdpa dev add` look at, without VIRTIO_NET_F_."""

    MAC = 1 << 5
    CTRL_VQ = 1 << 17
    MQ = 1 << 22


def feature_names(features: int, device_id: int) -> list[str]:
    """Names of the bits set, lowest first; unknown ones as ``bit N``."""
    names: dict[int, str] = {flag.value: flag.name or "" for flag in Feature}
    if device_id == DeviceId.BLOCK:
        names |= {flag.value: flag.name or "" for flag in BlkFeature}
    elif device_id == DeviceId.NET:
        names |= {flag.value: flag.name or "" for flag in NetFeature}
    bits = [bit for bit in range(features.bit_length()) if features >> bit & 1]
    return [names.get(1 << bit, f"bit {bit}") for bit in bits]
