"""The structs, ioctl numbers and enums of linux/vduse.h, API versions 0 and 1.

Every struct is a frozen dataclass with ``pack() -> bytes``, ``unpack(data)`` and ``SIZE`` (bytes
of the fixed part). Integers are in native byte order. ``unpack`` raises ValueError for data of
the wrong length; it judges no values: that is for whoever plays the kernel's part.

Fields that API version 1 (Linux 7.2) added lie in what version 0 calls ``reserved``; they are
zero there. The extensions of docs/channel.md are named as such.
"""

from __future__ import annotations

from vduse.control.abi.base import (
    ACCESS_RO,
    ACCESS_RW,
    ACCESS_WO,
    EVENTFD_DEASSIGN,
    IOVA_CAP_UMEM,
    NAME_MAX,
    VQ_STATE_SIZE,
    Struct,
    decode_vq_state,
    encode_vq_state,
    pack_name,
    pack_u32,
    pack_u64,
    unpack_name,
    unpack_u32,
    unpack_u64,
)
from vduse.control.abi.ioctls import (
    ExtCall,
    Ioctl,
)
from vduse.control.abi.messages import (
    DevRequest,
    DevResponse,
    GetVqState,
    Message,
    RequestResult,
    RequestType,
    SetStatus,
    SetVqGroupAsid,
    UnknownMessage,
    UpdateCallfd,
    UpdateIotlb,
    UpdateKickfd,
    UpdateLog,
)
from vduse.control.abi.structs import (
    DevConfig,
    DevSetConfig,
    DirtyLog,
    IotlbEntry,
    IotlbEntryV2,
    IovaInfo,
    IovaUmem,
    VqConfig,
    VqEventfd,
    VqInfo,
)

__all__ = [
    "ACCESS_RO",
    "ACCESS_RW",
    "ACCESS_WO",
    "EVENTFD_DEASSIGN",
    "IOVA_CAP_UMEM",
    "NAME_MAX",
    "VQ_STATE_SIZE",
    "DevConfig",
    "DevRequest",
    "DevResponse",
    "DevSetConfig",
    "DirtyLog",
    "ExtCall",
    "GetVqState",
    "Ioctl",
    "IotlbEntry",
    "IotlbEntryV2",
    "IovaInfo",
    "IovaUmem",
    "Message",
    "RequestResult",
    "RequestType",
    "SetStatus",
    "SetVqGroupAsid",
    "Struct",
    "UnknownMessage",
    "UpdateCallfd",
    "UpdateIotlb",
    "UpdateKickfd",
    "UpdateLog",
    "VqConfig",
    "VqEventfd",
    "VqInfo",
    "decode_vq_state",
    "encode_vq_state",
    "pack_name",
    "pack_u32",
    "pack_u64",
    "unpack_name",
    "unpack_u32",
    "unpack_u64",
]
