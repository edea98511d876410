"""What the structs share: their interface, names, integers, virtqueue positions."""

from __future__ import annotations

import os
import struct
from abc import ABC, abstractmethod
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


def exactly(data: bytes, size: int, what: str) -> bytes:
    """``data``, if it has that size; ValueError otherwise."""
    if len(data) != size:
        raise ValueError(f"{what}: {len(data)} bytes, expected {size}")
    return data


def name_bytes(name: str) -> bytes:
    """A device name without its NUL. ValueError: too long, or with a NUL in it."""
    raw = os.fsencode(name)
    if len(raw) >= NAME_MAX or b"\0" in raw:
        raise ValueError(f"device name {name!r}: at most {NAME_MAX - 1} bytes, no NUL")
    return raw


def name_str(raw: bytes) -> str:
    """The name in a ``char[VDUSE_NAME_MAX]``."""
    # As the kernel: the last byte is taken for a NUL.
    return os.fsdecode(raw[: NAME_MAX - 1].split(b"\0", 1)[0])


def pack_name(name: str) -> bytes:
    """A device name as ``char[VDUSE_NAME_MAX]`` (VDUSE_DESTROY_DEV, OPEN).

    ValueError: longer than 255 bytes, or with a NUL in it."""
    return name_bytes(name).ljust(NAME_MAX, b"\0")


def unpack_name(data: bytes) -> str:
    """The name up to its NUL. Short data is taken: libvduse passes a short heap string."""
    return name_str(data)


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
    exactly(data, VQ_STATE_SIZE, "vq state")
    if not packed:
        return (_SPLIT.unpack(data)[0],)
    avail_wrap, avail_index, used_wrap, used_index = _PACKED.unpack(data)
    return (avail_index & 0x7FFF, avail_wrap & 1, used_index & 0x7FFF, used_wrap & 1)


# --- integers ------------------------------------------------------------------------------

U32 = struct.Struct("=I")


def pack_u32(value: int) -> bytes:
    """A ``__u32`` (VDUSE_VQ_INJECT_IRQ, VQ_GET_CALLFD)."""
    return U32.pack(value)


def unpack_u32(data: bytes) -> int:
    """ValueError for anything but four bytes."""
    return int(U32.unpack(exactly(data, 4, "u32"))[0])


_U64 = struct.Struct("=Q")


def pack_u64(value: int) -> bytes:
    """A ``__u64`` (VDUSE_GET_API_VERSION, VDUSE_DEV_GET_FEATURES, GET_INFLIGHT_FD)."""
    return _U64.pack(value)


def unpack_u64(data: bytes) -> int:
    """ValueError for anything but eight bytes."""
    return int(_U64.unpack(exactly(data, 8, "u64"))[0])
