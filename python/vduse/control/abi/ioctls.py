"""Ioctl numbers."""

from __future__ import annotations

from enum import IntEnum

from vduse.control.abi.base import NAME_MAX
from vduse.control.abi.structs import (
    DevConfig,
    DevSetConfig,
    IotlbEntry,
    IotlbEntryV2,
    IovaInfo,
    IovaUmem,
    VqConfig,
    VqEventfd,
    VqInfo,
)

_BASE = 0x81
_WRITE, _READ = 1, 2


def _ioc(direction: int, nr: int, size: int) -> int:
    """_IOC of asm-generic/ioctl.h."""
    return direction << 30 | size << 16 | _BASE << 8 | nr


class Ioctl(IntEnum):
    """The ioctls of linux/vduse.h, without their VDUSE_ prefix."""

    # On the control fd.
    GET_API_VERSION = _ioc(_READ, 0x00, 8)
    SET_API_VERSION = _ioc(_WRITE, 0x01, 8)
    CREATE_DEV = _ioc(_WRITE, 0x02, DevConfig.SIZE)
    DESTROY_DEV = _ioc(_WRITE, 0x03, NAME_MAX)
    # On a device fd.
    IOTLB_GET_FD = _ioc(_READ | _WRITE, 0x10, IotlbEntry.SIZE)
    DEV_GET_FEATURES = _ioc(_READ, 0x11, 8)
    DEV_SET_CONFIG = _ioc(_WRITE, 0x12, DevSetConfig.SIZE)
    DEV_INJECT_CONFIG_IRQ = _ioc(0, 0x13, 0)
    VQ_SETUP = _ioc(_WRITE, 0x14, VqConfig.SIZE)
    VQ_GET_INFO = _ioc(_READ | _WRITE, 0x15, VqInfo.SIZE)
    VQ_SETUP_KICKFD = _ioc(_WRITE, 0x16, VqEventfd.SIZE)
    VQ_INJECT_IRQ = _ioc(_WRITE, 0x17, 4)
    IOTLB_REG_UMEM = _ioc(_WRITE, 0x18, IovaUmem.SIZE)
    IOTLB_DEREG_UMEM = _ioc(_WRITE, 0x19, IovaUmem.SIZE)
    IOTLB_GET_INFO = _ioc(_READ | _WRITE, 0x1A, IovaInfo.SIZE)
    #: API version 1.
    IOTLB_GET_FD2 = _ioc(_READ | _WRITE, 0x1B, IotlbEntryV2.SIZE)


class ExtCall(IntEnum):
    """Calls of the embedded channel that linux/vduse.h does not have (docs/channel.md)."""

    #: On the control socket: a device name (:func:`pack_name`) -> fds messages, calls.
    OPEN = 0x5600_0001
    #: u32 index -> the fd that signals an irq of that virtqueue.
    VQ_GET_CALLFD = 0x5600_0002
    #: u64 bytes -> a memory file that outlives its opener.
    GET_INFLIGHT_FD = 0x5600_0003
    #: u32 index -> the fd that the driver kicks that virtqueue with; ENOENT: it has none.
    VQ_GET_KICKFD = 0x5600_0004
    #: Nothing -> the dirty log (:class:`DirtyLog`) and the memory file it lies in; ENOENT: writes
    #: are not marked. Who has called it is sent UPDATE_LOG.
    LOG_GET_FD = 0x5600_0005
