"""The structs, ioctl numbers and enums of linux/vduse.h, API versions 0 and 1.

Every struct is a frozen dataclass with ``pack() -> bytes``, ``unpack(data)`` and ``SIZE`` (bytes
of the fixed part). Integers are in native byte order. ``unpack`` raises ValueError for data of
the wrong length; it judges no values: that is for whoever plays the kernel's part.

Fields that API version 1 (Linux 7.2) added lie in what version 0 calls ``reserved``; they are
zero there. The extensions of docs/channel.md are named as such.
"""

from __future__ import annotations

import os
import struct
from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar, Self

#: Bytes of a device name with its NUL.
NAME_MAX = 256

ACCESS_RO = 0x1
ACCESS_WO = 0x2
ACCESS_RW = 0x3

#: :attr:`VqEventfd.fd` that takes the eventfd away.
EVENTFD_DEASSIGN = -1

#: :attr:`IovaInfo.capability`: the region takes user memory.
IOVA_CAP_UMEM = 1 << 0


def _exactly(data: bytes, size: int, what: str) -> bytes:
    if len(data) != size:
        raise ValueError(f"{what}: {len(data)} bytes, expected {size}")
    return data


def _name_bytes(name: str) -> bytes:
    raw = os.fsencode(name)
    if len(raw) >= NAME_MAX or b"\0" in raw:
        raise ValueError(f"device name {name!r}: at most {NAME_MAX - 1} bytes, no NUL")
    return raw


def _name_str(raw: bytes) -> str:
    # As the kernel: the last byte is taken for a NUL.
    return os.fsdecode(raw[: NAME_MAX - 1].split(b"\0", 1)[0])


def pack_name(name: str) -> bytes:
    """A device name as ``char[VDUSE_NAME_MAX]`` (VDUSE_DESTROY_DEV, OPEN).

    ValueError: longer than 255 bytes, or with a NUL in it."""
    return _name_bytes(name).ljust(NAME_MAX, b"\0")


def unpack_name(data: bytes) -> str:
    """The name up to its NUL. Short data is taken: libvduse passes a short heap string."""
    return _name_str(data)


class Struct(ABC):
    """What every struct here can do."""

    __slots__ = ()

    #: Bytes, without a variable part.
    SIZE: ClassVar[int]

    @abstractmethod
    def pack(self) -> bytes:
        """The struct's bytes. struct.error: a value does not fit its field."""

    @classmethod
    @abstractmethod
    def unpack(cls, data: bytes) -> Self:
        """The struct that lies in ``data``. ValueError: wrong length."""


# --- virtqueue positions ------------------------------------------------------------------

_SPLIT = struct.Struct("=H6x")
_PACKED = struct.Struct("=4H")

#: Bytes of the union of vduse_vq_state_split and vduse_vq_state_packed.
VQ_STATE_SIZE = 8


def encode_vq_state(position: tuple[int, ...]) -> bytes:
    """The union's bytes of where a queue stands: ``(avail_index,)`` for a split ring,
    ``(avail_index, avail_wrap, used_index, used_wrap)`` for a packed one."""
    if len(position) == 1:
        return _SPLIT.pack(position[0])
    avail_index, avail_wrap, used_index, used_wrap = position
    return _PACKED.pack(avail_wrap, avail_index, used_wrap, used_index)


def decode_vq_state(data: bytes, packed: bool) -> tuple[int, ...]:
    """The reverse of :func:`encode_vq_state`. Packed counters and indices are masked as the
    kernel does (one bit, 15 bits)."""
    _exactly(data, VQ_STATE_SIZE, "vq state")
    if not packed:
        return (_SPLIT.unpack(data)[0],)
    avail_wrap, avail_index, used_wrap, used_index = _PACKED.unpack(data)
    return (avail_index & 0x7FFF, avail_wrap & 1, used_index & 0x7FFF, used_wrap & 1)


# --- control fd ---------------------------------------------------------------------------


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
            _name_bytes(self.name),
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
        config = _exactly(data[cls.SIZE :], config_size, "vduse_dev_config.config")
        return cls(
            name=_name_str(name),
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


# --- device fd ----------------------------------------------------------------------------


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
        return cls(*cls._LAYOUT.unpack(_exactly(data, cls.SIZE, "vduse_iotlb_entry")))


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
        v1, asid, reserved = cls._LAYOUT.unpack(_exactly(data, cls.SIZE, "vduse_iotlb_entry_v2"))
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
        return cls(offset, _exactly(data[cls.SIZE :], length, "vduse_config_data.buffer"))


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
            _exactly(data, cls.SIZE, "vduse_vq_config")
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
        return cls(*cls._LAYOUT.unpack(_exactly(data, cls.SIZE, "vduse_vq_info")))


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
        return cls(*cls._LAYOUT.unpack(_exactly(data, cls.SIZE, "vduse_vq_eventfd")))


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
        return cls(*cls._LAYOUT.unpack(_exactly(data, cls.SIZE, "vduse_iova_umem")))


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
        return cls(*cls._LAYOUT.unpack(_exactly(data, cls.SIZE, "vduse_iova_info")))


# --- messages (read and write) --------------------------------------------------------------


class RequestType(IntEnum):
    """enum vduse_req_type, and the extension's (docs/channel.md)."""

    GET_VQ_STATE = 0
    SET_STATUS = 1
    UPDATE_IOTLB = 2
    #: API version 1.
    SET_VQ_GROUP_ASID = 3
    #: Extension: the call fd of a virtqueue has changed; fetch it again.
    UPDATE_CALLFD = 0x8000_0001


class RequestResult(IntEnum):
    """VDUSE_REQ_RESULT_*."""

    OK = 0
    FAILED = 1


_U32 = struct.Struct("=I")
_U8 = struct.Struct("=B")
_RANGE = struct.Struct("=QQI4x")
_PAIR = struct.Struct("=II")


class _Body(ABC):
    """A message: what lies in the union of vduse_dev_request."""

    __slots__ = ()

    @abstractmethod
    def pack(self) -> bytes:
        """The union's first bytes."""


@dataclass(frozen=True, slots=True)
class GetVqState(_Body):
    """Stop at virtqueue ``index`` and say where it stands."""

    index: int
    TYPE: ClassVar[int] = RequestType.GET_VQ_STATE

    def pack(self) -> bytes:
        return _U32.pack(self.index)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        return cls(*_U32.unpack_from(data))


@dataclass(frozen=True, slots=True)
class SetStatus(_Body):
    """The driver sets the device status; 0 resets."""

    status: int
    TYPE: ClassVar[int] = RequestType.SET_STATUS

    def pack(self) -> bytes:
        return _U8.pack(self.status)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        return cls(*_U8.unpack_from(data))


@dataclass(frozen=True, slots=True)
class UpdateIotlb(_Body):
    """Mappings of IOVAs [start, last] are not valid any more."""

    start: int
    last: int
    #: API version 1.
    asid: int = 0
    TYPE: ClassVar[int] = RequestType.UPDATE_IOTLB

    def pack(self) -> bytes:
        return _RANGE.pack(self.start, self.last, self.asid)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        return cls(*_RANGE.unpack_from(data))


@dataclass(frozen=True, slots=True)
class SetVqGroupAsid(_Body):
    """A virtqueue group changes its address space (API version 1)."""

    group: int
    asid: int
    TYPE: ClassVar[int] = RequestType.SET_VQ_GROUP_ASID

    def pack(self) -> bytes:
        return _PAIR.pack(self.group, self.asid)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        return cls(*_PAIR.unpack_from(data))


@dataclass(frozen=True, slots=True)
class UpdateCallfd(_Body):
    """Extension: fetch the call fd of virtqueue ``index`` again."""

    index: int
    TYPE: ClassVar[int] = RequestType.UPDATE_CALLFD

    def pack(self) -> bytes:
        return _U32.pack(self.index)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        return cls(*_U32.unpack_from(data))


@dataclass(frozen=True, slots=True)
class UnknownMessage(_Body):
    """A request of a type that this program does not know: answer it FAILED."""

    type: int
    body: bytes

    def pack(self) -> bytes:
        return self.body


Message = GetVqState | SetStatus | UpdateIotlb | SetVqGroupAsid | UpdateCallfd | UnknownMessage

_MESSAGES: dict[
    int,
    type[GetVqState | SetStatus | UpdateIotlb | SetVqGroupAsid | UpdateCallfd],
] = {
    message.TYPE: message
    for message in (GetVqState, SetStatus, UpdateIotlb, SetVqGroupAsid, UpdateCallfd)
}


@dataclass(frozen=True, slots=True)
class DevRequest(Struct):
    """struct vduse_dev_request: one message to the device."""

    request_id: int
    message: Message

    _LAYOUT: ClassVar[struct.Struct] = struct.Struct("=II16x128s")
    SIZE: ClassVar[int] = _LAYOUT.size

    @property
    def type(self) -> int:
        """A :class:`RequestType`, or a number that none has."""
        message = self.message
        return message.type if isinstance(message, UnknownMessage) else message.TYPE

    def pack(self) -> bytes:
        return self._LAYOUT.pack(self.type, self.request_id, self.message.pack())

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        kind, request_id, body = cls._LAYOUT.unpack(_exactly(data, cls.SIZE, "vduse_dev_request"))
        known = _MESSAGES.get(kind)
        return cls(request_id, UnknownMessage(kind, body) if known is None else known.unpack(body))


@dataclass(frozen=True, slots=True)
class DevResponse(Struct):
    """struct vduse_dev_response: the device's answer to one message."""

    request_id: int
    #: A :class:`RequestResult`; whatever is not 0 has failed.
    result: int = RequestResult.OK
    #: Answer to GET_VQ_STATE: the queue, and where it stands (:func:`encode_vq_state`).
    vq_index: int = 0
    vq_state: bytes = bytes(VQ_STATE_SIZE)
    reserved: bytes = bytes(16)

    _LAYOUT: ClassVar[struct.Struct] = struct.Struct("=II16sI8s116x")
    SIZE: ClassVar[int] = _LAYOUT.size

    def pack(self) -> bytes:
        return self._LAYOUT.pack(
            self.request_id, self.result, self.reserved, self.vq_index, self.vq_state
        )

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        request_id, result, reserved, vq_index, vq_state = cls._LAYOUT.unpack(
            _exactly(data, cls.SIZE, "vduse_dev_response")
        )
        return cls(request_id, result, vq_index, vq_state, reserved)


# --- ioctl numbers --------------------------------------------------------------------------

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


def pack_u32(value: int) -> bytes:
    """A ``__u32`` (VDUSE_VQ_INJECT_IRQ, VQ_GET_CALLFD)."""
    return _U32.pack(value)


def unpack_u32(data: bytes) -> int:
    """ValueError for anything but four bytes."""
    return int(_U32.unpack(_exactly(data, 4, "u32"))[0])


_U64 = struct.Struct("=Q")


def pack_u64(value: int) -> bytes:
    """A ``__u64`` (VDUSE_GET_API_VERSION, VDUSE_DEV_GET_FEATURES, GET_INFLIGHT_FD)."""
    return _U64.pack(value)


def unpack_u64(data: bytes) -> int:
    """ValueError for anything but eight bytes."""
    return int(_U64.unpack(_exactly(data, 8, "u64"))[0])
