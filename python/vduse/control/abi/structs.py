"""Structs of the ioctls."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar, Self

from vduse.control.abi.base import (
    VQ_STATE_SIZE,
    Struct,
    exactly,
    name_bytes,
    name_str,
)


@dataclass(frozen=True, slots=True)
class DevConfig(Struct):
    """struct vduse_dev_config, of VDUSE_CREATE_DEV. ``pack`` appends the config space."""

    name: str
    vendor_id: int
    #: Virtio device id (virtio 1.3, section 5).
    device_id: int
    features: int
    vq_num: int
    #: Alignment of virtqueue areas, bytes.
    vq_align: int
    #: The config space as it is at creation; its length is ``config_size``.
    config: bytes = b""
    #: API version 1: virtqueue groups and address spaces.
    ngroups: int = 0
    nas: int = 0
    reserved: bytes = bytes(44)

    _LAYOUT: ClassVar[struct.Struct] = struct.Struct("=256sIIQIIII44sI")
    SIZE: ClassVar[int] = _LAYOUT.size

    def pack(self) -> bytes:
        fixed = self._LAYOUT.pack(
            name_bytes(self.name),
            self.vendor_id,
            self.device_id,
            self.features,
            self.vq_num,
            self.vq_align,
            self.ngroups,
            self.nas,
            self.reserved,
            len(self.config),
        )
        return fixed + self.config

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """ValueError where ``config_size`` is not the length of what follows the struct."""
        if len(data) < cls.SIZE:
            raise ValueError(f"vduse_dev_config: {len(data)} bytes, expected {cls.SIZE} or more")
        name, *numbers, reserved, config_size = cls._LAYOUT.unpack_from(data)
        vendor_id, device_id, features, vq_num, vq_align, ngroups, nas = numbers
        config = exactly(data[cls.SIZE :], config_size, "vduse_dev_config.config")
        return cls(
            name=name_str(name),
            vendor_id=vendor_id,
            device_id=device_id,
            features=features,
            vq_num=vq_num,
            vq_align=vq_align,
            config=config,
            ngroups=ngroups,
            nas=nas,
            reserved=reserved,
        )


@dataclass(frozen=True, slots=True)
class IotlbEntry(Struct):
    """struct vduse_iotlb_entry, of VDUSE_IOTLB_GET_FD: IOVAs [start, last] lie at ``offset``
    of the returned fd. The caller sets start and last."""

    offset: int = 0
    start: int = 0
    last: int = 0
    #: ACCESS_RO, ACCESS_WO or ACCESS_RW.
    perm: int = 0

    _LAYOUT: ClassVar[struct.Struct] = struct.Struct("=QQQB7x")
    SIZE: ClassVar[int] = _LAYOUT.size

    def pack(self) -> bytes:
        return self._LAYOUT.pack(self.offset, self.start, self.last, self.perm)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        return cls(*cls._LAYOUT.unpack(exactly(data, cls.SIZE, "vduse_iotlb_entry")))


@dataclass(frozen=True, slots=True)
class IotlbEntryV2(Struct):
    """struct vduse_iotlb_entry_v2, of VDUSE_IOTLB_GET_FD2 (API version 1)."""

    v1: IotlbEntry
    asid: int = 0
    reserved: bytes = bytes(44)

    _LAYOUT: ClassVar[struct.Struct] = struct.Struct("=32sI44s")
    SIZE: ClassVar[int] = _LAYOUT.size

    def pack(self) -> bytes:
        return self._LAYOUT.pack(self.v1.pack(), self.asid, self.reserved)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        v1, asid, reserved = cls._LAYOUT.unpack(exactly(data, cls.SIZE, "vduse_iotlb_entry_v2"))
        return cls(IotlbEntry.unpack(v1), asid, reserved)


@dataclass(frozen=True, slots=True)
class DevSetConfig(Struct):
    """struct vduse_config_data, of VDUSE_DEV_SET_CONFIG. ``pack`` appends the data."""

    #: Bytes from the start of the config space.
    offset: int
    data: bytes

    _LAYOUT: ClassVar[struct.Struct] = struct.Struct("=II")
    SIZE: ClassVar[int] = _LAYOUT.size

    def pack(self) -> bytes:
        return self._LAYOUT.pack(self.offset, len(self.data)) + self.data

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """ValueError where ``length`` is not the length of what follows the struct."""
        if len(data) < cls.SIZE:
            raise ValueError(f"vduse_config_data: {len(data)} bytes, expected {cls.SIZE} or more")
        offset, length = cls._LAYOUT.unpack_from(data)
        return cls(offset, exactly(data[cls.SIZE :], length, "vduse_config_data.buffer"))


@dataclass(frozen=True, slots=True)
class VqConfig(Struct):
    """struct vduse_vq_config, of VDUSE_VQ_SETUP."""

    index: int
    #: Descriptors; 0 means not set up.
    max_size: int
    #: API version 1: virtqueue group.
    group: int = 0
    reserved: bytes = bytes(22)

    _LAYOUT: ClassVar[struct.Struct] = struct.Struct("=IH2sI20s")
    SIZE: ClassVar[int] = _LAYOUT.size

    def pack(self) -> bytes:
        head, tail = self.reserved[:2], self.reserved[2:]
        return self._LAYOUT.pack(self.index, self.max_size, head, self.group, tail)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        index, max_size, head, group, tail = cls._LAYOUT.unpack(
            exactly(data, cls.SIZE, "vduse_vq_config")
        )
        return cls(index, max_size, group, head + tail)


@dataclass(frozen=True, slots=True)
class VqInfo(Struct):
    """struct vduse_vq_info, of VDUSE_VQ_GET_INFO. The caller sets index."""

    index: int
    #: Descriptors.
    num: int = 0
    #: IOVAs of the three areas (virtio 1.3, section 2.7 and 2.8).
    desc_addr: int = 0
    driver_addr: int = 0
    device_addr: int = 0
    #: Where the queue stands; see :func:`decode_vq_state`.
    state: bytes = bytes(VQ_STATE_SIZE)
    ready: bool = False

    _LAYOUT: ClassVar[struct.Struct] = struct.Struct("=IIQQQ8s?7x")
    SIZE: ClassVar[int] = _LAYOUT.size

    def pack(self) -> bytes:
        return self._LAYOUT.pack(
            self.index,
            self.num,
            self.desc_addr,
            self.driver_addr,
            self.device_addr,
            self.state,
            self.ready,
        )

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        return cls(*cls._LAYOUT.unpack(exactly(data, cls.SIZE, "vduse_vq_info")))


@dataclass(frozen=True, slots=True)
class VqEventfd(Struct):
    """struct vduse_vq_eventfd, of VDUSE_VQ_SETUP_KICKFD. On the embedded channel the eventfd
    travels beside it, and ``fd`` only says whether there is one."""

    index: int
    fd: int

    _LAYOUT: ClassVar[struct.Struct] = struct.Struct("=Ii")
    SIZE: ClassVar[int] = _LAYOUT.size

    def pack(self) -> bytes:
        return self._LAYOUT.pack(self.index, self.fd)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        return cls(*cls._LAYOUT.unpack(exactly(data, cls.SIZE, "vduse_vq_eventfd")))


@dataclass(frozen=True, slots=True)
class IovaUmem(Struct):
    """struct vduse_iova_umem, of VDUSE_IOTLB_REG_UMEM and VDUSE_IOTLB_DEREG_UMEM."""

    #: Page-aligned address in the caller's own process.
    uaddr: int
    iova: int
    #: Bytes.
    size: int
    #: API version 1.
    asid: int = 0
    reserved: bytes = bytes(20)

    _LAYOUT: ClassVar[struct.Struct] = struct.Struct("=QQQI20s")
    SIZE: ClassVar[int] = _LAYOUT.size

    def pack(self) -> bytes:
        return self._LAYOUT.pack(self.uaddr, self.iova, self.size, self.asid, self.reserved)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        return cls(*cls._LAYOUT.unpack(exactly(data, cls.SIZE, "vduse_iova_umem")))


@dataclass(frozen=True, slots=True)
class IovaInfo(Struct):
    """struct vduse_iova_info, of VDUSE_IOTLB_GET_INFO. The caller sets start and last."""

    start: int
    last: int
    #: IOVA_CAP_UMEM.
    capability: int = 0
    #: API version 1.
    asid: int = 0
    reserved: bytes = bytes(20)

    _LAYOUT: ClassVar[struct.Struct] = struct.Struct("=QQQI20s")
    SIZE: ClassVar[int] = _LAYOUT.size

    def pack(self) -> bytes:
        return self._LAYOUT.pack(self.start, self.last, self.capability, self.asid, self.reserved)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        return cls(*cls._LAYOUT.unpack(exactly(data, cls.SIZE, "vduse_iova_info")))


@dataclass(frozen=True, slots=True)
class DirtyLog(Struct):
    """Extension, of LOG_GET_FD: bit N of byte N / 8 of ``size`` bytes at ``offset`` of a memory
    file is page N of 4 KiB, by IOVA. ``pack`` appends ``used``."""

    offset: int
    size: int
    #: The virtqueues whose device areas (packed: descriptors, too) are marked: index, and the
    #: address at which the device area counts.
    used: tuple[tuple[int, int], ...] = ()

    _LAYOUT: ClassVar[struct.Struct] = struct.Struct("=QQ")
    _USED: ClassVar[struct.Struct] = struct.Struct("=I4xQ")
    SIZE: ClassVar[int] = _LAYOUT.size

    def pack(self) -> bytes:
        used = b"".join(self._USED.pack(*each) for each in self.used)
        return self._LAYOUT.pack(self.offset, self.size) + used

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """ValueError where what follows the struct is no row of virtqueues."""
        if len(data) < cls.SIZE or (len(data) - cls.SIZE) % cls._USED.size:
            raise ValueError(f"dirty log: {len(data)} bytes")
        offset, size = cls._LAYOUT.unpack_from(data)
        used = tuple((index, at) for index, at in cls._USED.iter_unpack(data[cls.SIZE :]))
        return cls(offset, size, used)
