"""What read(2) and write(2) of a device fd carry."""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from dataclasses import astuple, dataclass
from enum import IntEnum
from typing import ClassVar, Self

from vduse.control.abi.base import U32, VQ_STATE_SIZE, Struct, exactly


class RequestType(IntEnum):
    """enum vduse_req_type, and the extension's (docs/channel.md)."""

    GET_VQ_STATE = 0
    SET_STATUS = 1
    UPDATE_IOTLB = 2
    #: API version 1.
    SET_VQ_GROUP_ASID = 3
    #: Extension: the call fd of a virtqueue has changed; fetch it again.
    UPDATE_CALLFD = 0x8000_0001
    #: Extension: the driver kicks a virtqueue another way; ask again.
    UPDATE_KICKFD = 0x8000_0002
    #: Extension: the dirty log has changed; fetch it again.
    UPDATE_LOG = 0x8000_0003


class RequestResult(IntEnum):
    """VDUSE_REQ_RESULT_*."""

    OK = 0
    FAILED = 1


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
class _Fields(_Body):
    """A message whose fields follow each other as ``LAYOUT`` says."""

    LAYOUT: ClassVar[struct.Struct]

    def pack(self) -> bytes:
        return self.LAYOUT.pack(*astuple(self))

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """From the union's first bytes."""
        return cls(*cls.LAYOUT.unpack_from(data))


@dataclass(frozen=True, slots=True)
class GetVqState(_Fields):
    """Stop at virtqueue ``index`` and say where it stands."""

    index: int
    TYPE: ClassVar[int] = RequestType.GET_VQ_STATE
    LAYOUT: ClassVar[struct.Struct] = U32


@dataclass(frozen=True, slots=True)
class SetStatus(_Fields):
    """The driver sets the device status; 0 resets."""

    status: int
    TYPE: ClassVar[int] = RequestType.SET_STATUS
    LAYOUT: ClassVar[struct.Struct] = _U8


@dataclass(frozen=True, slots=True)
class UpdateIotlb(_Fields):
    """Mappings of IOVAs [start, last] are not valid any more."""

    start: int
    last: int
    #: API version 1.
    asid: int = 0
    TYPE: ClassVar[int] = RequestType.UPDATE_IOTLB
    LAYOUT: ClassVar[struct.Struct] = _RANGE


@dataclass(frozen=True, slots=True)
class SetVqGroupAsid(_Fields):
    """A virtqueue group changes its address space (API version 1)."""

    group: int
    asid: int
    TYPE: ClassVar[int] = RequestType.SET_VQ_GROUP_ASID
    LAYOUT: ClassVar[struct.Struct] = _PAIR


@dataclass(frozen=True, slots=True)
class UpdateCallfd(_Fields):
    """Extension: fetch the call fd of virtqueue ``index`` again."""

    index: int
    TYPE: ClassVar[int] = RequestType.UPDATE_CALLFD
    LAYOUT: ClassVar[struct.Struct] = U32


@dataclass(frozen=True, slots=True)
class UpdateKickfd(_Fields):
    """Extension: ask for the kick fd of virtqueue ``index`` again."""

    index: int
    TYPE: ClassVar[int] = RequestType.UPDATE_KICKFD
    LAYOUT: ClassVar[struct.Struct] = U32


@dataclass(frozen=True, slots=True)
class UpdateLog(_Fields):
    """Extension: fetch the dirty log again; answered once all writes are marked there."""

    TYPE: ClassVar[int] = RequestType.UPDATE_LOG
    LAYOUT: ClassVar[struct.Struct] = struct.Struct("")


@dataclass(frozen=True, slots=True)
class UnknownMessage(_Body):
    """A request of a type that this program does not know: answer it FAILED."""

    type: int
    body: bytes

    def pack(self) -> bytes:
        return self.body


_Known = (
    GetVqState | SetStatus | UpdateIotlb | SetVqGroupAsid | UpdateCallfd | UpdateKickfd | UpdateLog
)
Message = _Known | UnknownMessage

_MESSAGES: dict[int, type[_Known]] = {
    message.TYPE: message
    for message in (
        GetVqState,
        SetStatus,
        UpdateIotlb,
        SetVqGroupAsid,
        UpdateCallfd,
        UpdateKickfd,
        UpdateLog,
    )
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
        kind, request_id, body = cls._LAYOUT.unpack(exactly(data, cls.SIZE, "vduse_dev_request"))
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
            exactly(data, cls.SIZE, "vduse_dev_response")
        )
        return cls(request_id, result, vq_index, vq_state, reserved)
