"""The vhost-user protocol as tables: requests, features, payloads, and a decoder without I/O.

Source: the vhost-user specification (QEMU's docs/interop/vhost-user.rst). Integers are in the
machine's own byte order.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from typing import Final


class Request(IntEnum):
    """Messages from the front end (VHOST_USER_*)."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SET_BACKEND_REQ_FD = 21
    GET_CONFIG = 24
    SET_CONFIG = 25
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    RESET_DEVICE = 34
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40


class BackendRequest(IntEnum):
    """Messages to the front end, on the socket of SET_BACKEND_REQ_FD."""

    CONFIG_CHANGE = 2


class ProtocolFeature(IntFlag):
    """VHOST_USER_PROTOCOL_F_*."""

    MQ = 1 << 0
    LOG_SHMFD = 1 << 1
    REPLY_ACK = 1 << 3
    BACKEND_REQ = 1 << 5
    CONFIG = 1 << 9
    INFLIGHT_SHMFD = 1 << 12
    RESET_DEVICE = 1 << 13
    CONFIGURE_MEM_SLOTS = 1 << 15
    STATUS = 1 << 16


#: VHOST_F_LOG_ALL: bit 26 of the feature words on the socket.
F_LOG_ALL: Final = 1 << 26
#: VHOST_USER_F_PROTOCOL_FEATURES: bit 30 of the same.
F_PROTOCOL_FEATURES: Final = 1 << 30

#: Most memory regions in SET_MEM_TABLE, and so most fds that a message may carry.
MAX_FDS: Final = 8
#: Bytes of config space that a message may carry (VHOST_USER_MAX_CONFIG_SIZE).
MAX_CONFIG: Final = 256

HEADER: Final = struct.Struct("=III")
#: The longest payload here is SET_MEM_TABLE's or GET_CONFIG's.
MAX_PAYLOAD: Final = 12 + MAX_CONFIG + 4

_VERSION: Final = 1
_VERSION_MASK: Final = 3
_REPLY: Final = 1 << 2
_NEED_REPLY: Final = 1 << 3

_U64 = struct.Struct("=Q")
_VRING_STATE = struct.Struct("=II")
_VRING_ADDR = struct.Struct("=IIQQQQ")
_TABLE = struct.Struct("=I4x")
_REGION = struct.Struct("=QQQQ")
_ONE_REGION = struct.Struct("=8xQQQQ")
_CONFIG = struct.Struct("=III")
_LOG = struct.Struct("=QQ")
_INFLIGHT = struct.Struct("=QQHH4x")
#: Without the padding that C compilers add: QEMU sends 20 bytes or 24.
_INFLIGHT_BYTES: Final = 20

#: Of SET_VRING_KICK, _CALL and _ERR: the queue's index, and that no fd comes along.
_VRING_INDEX: Final = 0xFF
_VRING_NO_FD: Final = 1 << 8


class ProtocolError(Exception):
    """The other side sent what the specification does not allow."""


@dataclass(slots=True)
class Message:
    """One request. Whoever takes it owns ``fds``."""

    #: A :class:`Request`, or whatever came.
    request: int
    payload: bytes
    fds: list[int] = field(default_factory=list)
    #: The front end waits for a reply even where the request has none (REPLY_ACK).
    need_reply: bool = False

    @property
    def name(self) -> str:
        """For logs."""
        try:
            return Request(self.request).name
        except ValueError:
            return f"request {self.request}"


class Decoder:
    """Bytes and fds of a stream, turned into messages.

    Linux hands out the fds of a message with its first byte, and no bytes of a later message
    that has fds with them, so fds that arrive belong to the message being received.
    """

    def __init__(self) -> None:
        self._data = bytearray()
        self._fds: list[int] = []

    @property
    def wanted(self) -> int:
        """Bytes to receive next: never more than the message being received has."""
        if len(self._data) < HEADER.size:
            return HEADER.size - len(self._data)
        return HEADER.size + self._size() - len(self._data)

    def feed(self, data: bytes, fds: list[int]) -> Message | None:
        """At most :attr:`wanted` bytes; the message that they complete. Takes ``fds`` over.
        ProtocolError: the stream is of no more use; :meth:`close`."""
        self._data += data
        self._fds += fds
        if len(self._fds) > MAX_FDS:
            raise ProtocolError(f"{len(self._fds)} fds in one message: at most {MAX_FDS}")
        if len(self._data) < HEADER.size:
            return None
        request, flags, size = HEADER.unpack_from(self._data)
        if flags & _VERSION_MASK != _VERSION:
            raise ProtocolError(f"request {request}: version {flags & _VERSION_MASK}, expected 1")
        if flags & _REPLY:
            raise ProtocolError(f"request {request}: it is a reply")
        if size > MAX_PAYLOAD:
            raise ProtocolError(f"request {request}: {size} bytes, at most {MAX_PAYLOAD}")
        if len(self._data) < HEADER.size + size:
            return None
        message = Message(
            request, bytes(self._data[HEADER.size :]), self._fds, bool(flags & _NEED_REPLY)
        )
        self._data, self._fds = bytearray(), []
        return message

    def close(self) -> list[int]:
        """Fds that no message has taken: the caller's."""
        fds, self._fds = self._fds, []
        return fds

    def _size(self) -> int:
        size: int = HEADER.unpack_from(self._data)[2]
        return size


@dataclass(frozen=True, slots=True)
class Region:
    """Memory of the front end: ``size`` bytes at ``offset`` of a file."""

    #: Guest physical address.
    guest: int
    size: int
    #: The front end's virtual address, which ring addresses are given in.
    user: int
    offset: int

    def check(self) -> Region:
        """ProtocolError: empty, or past the end of an address space."""
        if self.size == 0 or any(
            start + self.size > 1 << 64 for start in (self.guest, self.user, self.offset)
        ):
            raise ProtocolError(f"memory region of {self.size} bytes at {self.guest:#x}")
        return self


@dataclass(frozen=True, slots=True)
class VringAddr:
    """SET_VRING_ADDR: the front end's virtual addresses of a ring's three areas."""

    index: int
    #: The device logs its writes of used entries at ``log`` (dirty logging).
    logged: bool
    descriptors: int
    used: int
    available: int
    #: Guest physical address of the used ring.
    log: int


@dataclass(frozen=True, slots=True)
class Inflight:
    """GET_INFLIGHT_FD and SET_INFLIGHT_FD."""

    #: Bytes of the record, and where it begins in its file.
    size: int
    offset: int
    queues: int
    queue_size: int


def reply(request: int, payload: bytes) -> bytes:
    """The bytes of a reply."""
    return HEADER.pack(request, _VERSION | _REPLY, len(payload)) + payload


def backend_request(request: BackendRequest) -> bytes:
    """The bytes of a message to the front end that wants no reply."""
    return HEADER.pack(request, _VERSION, 0)


def unpack_u64(message: Message) -> int:
    """ProtocolError: another size; of all functions here."""
    value: int = _unpack(_U64, message)[0]
    return value


def pack_u64(value: int) -> bytes:
    """A reply's payload."""
    return _U64.pack(value)


def unpack_vring_state(message: Message) -> tuple[int, int]:
    """``(index, number)`` of SET_VRING_NUM, _BASE, _ENABLE and GET_VRING_BASE."""
    index, number = _unpack(_VRING_STATE, message)
    return index, number


def pack_vring_state(index: int, number: int) -> bytes:
    """GET_VRING_BASE's reply."""
    return _VRING_STATE.pack(index, number)


def unpack_vring_fd(message: Message) -> tuple[int, int]:
    """``(index, fd)`` of SET_VRING_KICK, _CALL and _ERR; -1: none. The fd stays the message's.
    ProtocolError: not just the one fd, or one where none is said to be."""
    word = unpack_u64(message)
    expected = 0 if word & _VRING_NO_FD else 1
    if len(message.fds) != expected:
        raise ProtocolError(f"{message.name}: {len(message.fds)} fds, expected {expected}")
    return word & _VRING_INDEX, message.fds[0] if message.fds else -1


def unpack_vring_addr(message: Message) -> VringAddr:
    """SET_VRING_ADDR."""
    index, flags, descriptors, used, available, log = _unpack(_VRING_ADDR, message)
    return VringAddr(index, bool(flags & 1), descriptors, used, available, log)


def unpack_regions(message: Message) -> list[Region]:
    """SET_MEM_TABLE: one region an fd. ProtocolError: more or fewer fds, or a region that
    cannot be."""
    if len(message.payload) < _TABLE.size:
        raise ProtocolError(f"{message.name}: {len(message.payload)} bytes")
    (count,) = _TABLE.unpack_from(message.payload)
    if count != len(message.fds):
        raise ProtocolError(f"{message.name}: {count} regions, {len(message.fds)} fds")
    # QEMU sends as many as there are; others send all 8 of the struct.
    if len(message.payload) < _TABLE.size + count * _REGION.size:
        raise ProtocolError(f"{message.name}: {count} regions in {len(message.payload)} bytes")
    at = range(_TABLE.size, _TABLE.size + count * _REGION.size, _REGION.size)
    return [Region(*_REGION.unpack_from(message.payload, offset)).check() for offset in at]


def unpack_region(message: Message) -> Region:
    """ADD_MEM_REG and REM_MEM_REG."""
    return Region(*_unpack(_ONE_REGION, message)).check()


def unpack_config(message: Message) -> tuple[int, bytes]:
    """``(offset, data)`` of GET_CONFIG (as many bytes as it asks for) and SET_CONFIG."""
    if len(message.payload) < _CONFIG.size:
        raise ProtocolError(f"{message.name}: {len(message.payload)} bytes")
    offset, size, _ = _CONFIG.unpack_from(message.payload)
    data = message.payload[_CONFIG.size :]
    if size != len(data) or size > MAX_CONFIG:
        raise ProtocolError(f"{message.name}: {size} bytes of config space in {len(data)}")
    return offset, data


def pack_config(offset: int, data: bytes) -> bytes:
    """GET_CONFIG's reply; no data: the request was refused."""
    return _CONFIG.pack(offset, len(data), 0) + data


def unpack_log(message: Message) -> tuple[int, int]:
    """``(size, offset)`` of SET_LOG_BASE, in bytes. ProtocolError: not just one fd."""
    if len(message.fds) != 1:
        raise ProtocolError(f"{message.name}: {len(message.fds)} fds, expected 1")
    size, offset = _unpack(_LOG, message)
    return size, offset


def unpack_inflight(message: Message) -> Inflight:
    """GET_INFLIGHT_FD and SET_INFLIGHT_FD."""
    if len(message.payload) not in (_INFLIGHT_BYTES, _INFLIGHT.size):
        raise ProtocolError(f"{message.name}: {len(message.payload)} bytes")
    return Inflight(*_INFLIGHT.unpack(message.payload.ljust(_INFLIGHT.size, b"\0")))


def pack_inflight(inflight: Inflight) -> bytes:
    """GET_INFLIGHT_FD's reply."""
    return _INFLIGHT.pack(inflight.size, inflight.offset, inflight.queues, inflight.queue_size)


def _unpack(layout: struct.Struct, message: Message) -> tuple[int, ...]:
    if len(message.payload) != layout.size:
        raise ProtocolError(f"{message.name}: {len(message.payload)} bytes, expected {layout.size}")
    return layout.unpack(message.payload)
