"""A vhost-user socket in front of any :class:`~vduse.bus.driver.Driver`, for testing with front
ends nobody here wrote.

It speaks what libblkio's transport (crate ``virtio-driver``) asks for: REPLY_ACK, MQ, CONFIG and
CONFIGURE_MEM_SLOTS, no STATUS. The front end's memory regions become IOTLB entries at their
guest addresses; nothing of the data path passes here. Source: the vhost-user specification.
"""

from __future__ import annotations

import os
import selectors
import shutil
import socket
import struct
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from vduse.bus.driver import Driver
from vduse.control.abi import ACCESS_RW
from vduse.control.features import Feature, Status
from vduse.testing.closing import Closing

GET_FEATURES: Final = 1
SET_FEATURES: Final = 2
SET_OWNER: Final = 3
SET_VRING_NUM: Final = 8
SET_VRING_ADDR: Final = 9
SET_VRING_BASE: Final = 10
SET_VRING_KICK: Final = 12
SET_VRING_CALL: Final = 13
GET_PROTOCOL_FEATURES: Final = 15
SET_PROTOCOL_FEATURES: Final = 16
GET_QUEUE_NUM: Final = 17
SET_VRING_ENABLE: Final = 18
GET_CONFIG: Final = 24
GET_MAX_MEM_SLOTS: Final = 36
ADD_MEM_REG: Final = 37
REM_MEM_REG: Final = 38

#: VHOST_USER_F_PROTOCOL_FEATURES, bit 30 of the feature words on the socket.
F_PROTOCOL_FEATURES: Final = 1 << 30
#: :meth:`Driver.set_vring_base` of a fresh packed ring: both wrap counters 1.
PACKED_START: Final = 1 << 15 | 1 << 31
#: VHOST_USER_PROTOCOL_F_: MQ, REPLY_ACK, CONFIG, CONFIGURE_MEM_SLOTS.
PROTOCOL_FEATURES: Final = 1 << 0 | 1 << 3 | 1 << 9 | 1 << 15

_HEADER = struct.Struct("=III")
_VERSION = 1
_REPLY = 1 << 2
_NEED_REPLY = 1 << 3
_MAX_PAYLOAD = 4096
_NO_FD = 1 << 8

_U64 = struct.Struct("=Q")
_STATE = struct.Struct("=II")
_ADDR = struct.Struct("=IIQQQQ")
_REGION = struct.Struct("=8xQQQQ")
_CONFIG = struct.Struct("=III")

_PAGE = os.sysconf("SC_PAGE_SIZE")
_STARTED = Status.ACKNOWLEDGE | Status.DRIVER
_AGREED = _STARTED | Status.FEATURES_OK


class ProtocolError(Exception):
    """The front end sent what the specification does not allow, or what is not served here."""


@dataclass(frozen=True)
class _Region:
    guest: int
    size: int
    user: int


class _Session:
    """One front end's connection: its messages, turned into calls of the driver port."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.packed = False
        self.regions: list[_Region] = []
        self.fds: list[int] = []
        #: Kick eventfds, until one was kicked.
        self.unkicked: list[int] = []
        driver.set_status(0)
        driver.set_status(Status.ACKNOWLEDGE)
        driver.set_status(_STARTED)

    def handle(self, request: int, payload: bytes, fds: list[int]) -> bytes | None:
        """The reply's payload, None where only an acknowledgement is due. Owns ``fds``."""
        self.fds += fds
        handler = self._HANDLERS.get(request)
        if handler is None:
            raise ProtocolError(f"request {request} is not served here")
        try:
            return handler(self, payload, fds)
        except struct.error:
            raise ProtocolError(f"request {request}: {len(payload)} bytes of payload") from None

    def first_kick(self) -> None:
        """The front end has no word for DRIVER_OK: its first kick says it."""
        self.unkicked = []
        self.driver.set_status(_AGREED | Status.DRIVER_OK)

    def close(self) -> None:
        """The front end is gone: reset the device, take its memory away."""
        try:
            self.driver.set_status(0)
            for region in self.regions:
                self.driver.iotlb_invalidate(region.guest, region.size)
        finally:
            for fd in self.fds:
                os.close(fd)

    def _get_features(self, payload: bytes, fds: list[int]) -> bytes:
        # A vDPA driver must accept ACCESS_PLATFORM, a vhost-user front end knows nothing of it.
        offered = self.driver.get_features() & ~Feature.ACCESS_PLATFORM
        return _U64.pack(offered | F_PROTOCOL_FEATURES)

    def _set_features(self, payload: bytes, fds: list[int]) -> None:
        (features,) = _U64.unpack(payload)
        self.driver.set_features(features & ~F_PROTOCOL_FEATURES | Feature.ACCESS_PLATFORM)
        self.driver.set_status(_AGREED)
        if not self.driver.get_status() & Status.FEATURES_OK:
            raise ProtocolError(f"the device refuses features {features:#x}")
        self.packed = bool(features & Feature.RING_PACKED)

    def _set_nothing(self, payload: bytes, fds: list[int]) -> None:
        pass

    def _get_protocol_features(self, payload: bytes, fds: list[int]) -> bytes:
        return _U64.pack(PROTOCOL_FEATURES)

    def _get_queue_num(self, payload: bytes, fds: list[int]) -> bytes:
        return _U64.pack(self.driver.get_vqs_count())

    def _get_max_mem_slots(self, payload: bytes, fds: list[int]) -> bytes:
        return _U64.pack(32)

    def _get_config(self, payload: bytes, fds: list[int]) -> bytes:
        offset, size, _ = _CONFIG.unpack_from(payload)
        if len(payload) != _CONFIG.size + size:
            raise ProtocolError(f"GET_CONFIG of {size} bytes in {len(payload)}")
        there = max(0, min(size, self.driver.get_config_size() - offset))
        config = self.driver.get_config(offset, there) if there else b""
        return payload[: _CONFIG.size] + config.ljust(size, b"\0")

    def _add_mem_reg(self, payload: bytes, fds: list[int]) -> None:
        guest, size, user, offset = _REGION.unpack(payload)
        if len(fds) != 1:
            raise ProtocolError(f"ADD_MEM_REG with {len(fds)} fds")
        # A front end may name the bytes it uses; what it mapped is whole pages.
        region = _Region(guest, -(-size // _PAGE) * _PAGE, user)
        self.driver.iotlb_update(guest, region.size, fds[0], offset, ACCESS_RW)
        self.regions.append(region)

    def _rem_mem_reg(self, payload: bytes, fds: list[int]) -> None:
        guest = _REGION.unpack(payload)[0]
        for region in self.regions:
            if region.guest == guest:
                self.driver.iotlb_invalidate(guest, region.size)
                self.regions.remove(region)
                return
        raise ProtocolError(f"no memory region at {guest:#x}")

    def _set_vring_num(self, payload: bytes, fds: list[int]) -> None:
        self.driver.set_vring_num(*_STATE.unpack(payload))

    def _set_vring_base(self, payload: bytes, fds: list[int]) -> None:
        index, base = _STATE.unpack(payload)
        # libblkio says 0 for a packed ring too, and means a fresh one.
        self.driver.set_vring_base(index, PACKED_START if self.packed and not base else base)

    def _set_vring_addr(self, payload: bytes, fds: list[int]) -> None:
        index, _, desc, used, avail, _ = _ADDR.unpack(payload)
        self.driver.set_vring_addr(index, *map(self._guest, (desc, avail, used)))

    def _guest(self, user: int) -> int:
        """Ring addresses are the front end's virtual ones."""
        for region in self.regions:
            if 0 <= user - region.user < region.size:
                return region.guest + user - region.user
        raise ProtocolError(f"no memory region holds address {user:#x}")

    def _set_vring_kick(self, payload: bytes, fds: list[int]) -> None:
        index, fd = self._vring_fd(payload, fds)
        self.driver.set_vring_kick(index, fd)
        if fd >= 0:
            self.unkicked.append(fd)

    def _set_vring_call(self, payload: bytes, fds: list[int]) -> None:
        self.driver.set_vring_call(*self._vring_fd(payload, fds))

    def _vring_fd(self, payload: bytes, fds: list[int]) -> tuple[int, int]:
        (word,) = _U64.unpack(payload)
        if word & _NO_FD:
            return word & 0xFF, -1
        if len(fds) != 1:
            raise ProtocolError(f"a vring fd message with {len(fds)} fds")
        return word & 0xFF, fds[0]

    def _set_vring_enable(self, payload: bytes, fds: list[int]) -> None:
        index, enable = _STATE.unpack(payload)
        self.driver.set_vring_enable(index, bool(enable))

    _HANDLERS: Final[dict[int, Callable[[_Session, bytes, list[int]], bytes | None]]] = {
        GET_FEATURES: _get_features,
        SET_FEATURES: _set_features,
        SET_OWNER: _set_nothing,
        SET_VRING_NUM: _set_vring_num,
        SET_VRING_ADDR: _set_vring_addr,
        SET_VRING_BASE: _set_vring_base,
        SET_VRING_KICK: _set_vring_kick,
        SET_VRING_CALL: _set_vring_call,
        GET_PROTOCOL_FEATURES: _get_protocol_features,
        SET_PROTOCOL_FEATURES: _set_nothing,
        GET_QUEUE_NUM: _get_queue_num,
        SET_VRING_ENABLE: _set_vring_enable,
        GET_CONFIG: _get_config,
        GET_MAX_MEM_SLOTS: _get_max_mem_slots,
        ADD_MEM_REG: _add_mem_reg,
        REM_MEM_REG: _rem_mem_reg,
    }


class VhostUserBridge(Closing):
    """Serves one front end after the other on :attr:`path` until closed, in a thread.

    The device is reset when a front end comes and when it goes; the driver stays the caller's.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._directory = tempfile.mkdtemp(prefix="vduse-")
        #: The socket to connect to.
        self.path = os.path.join(self._directory, "vhost-user.sock")
        #: What ended the last connection other than its front end.
        self.error: Exception | None = None
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.path)
        self._listener.listen(1)
        self._stop, self._stopped = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, name="vhost-user", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends a connection that is open, and the thread."""
        self._stop.close()
        self._thread.join()
        self._listener.close()
        self._stopped.close()
        shutil.rmtree(self._directory)

    def _serve(self) -> None:
        while self._readable(self._listener, []):
            connection, _ = self._listener.accept()
            self.error = None
            with connection:
                try:
                    self._connection(connection)
                except (OSError, ProtocolError) as error:
                    self.error = error

    def _readable(self, sock: socket.socket, kicks: list[int]) -> list[int]:
        """Waits; the fds of ``sock`` and ``kicks`` that are readable, none to stop."""
        with selectors.DefaultSelector() as selector:
            for fd in [self._stopped.fileno(), sock.fileno(), *kicks]:
                selector.register(fd, selectors.EVENT_READ)
            ready = [key.fd for key, _ in selector.select()]
        return [] if self._stopped.fileno() in ready else ready

    def _connection(self, connection: socket.socket) -> None:
        session = _Session(self._driver)
        try:
            while ready := self._readable(connection, session.unkicked):
                if any(fd in session.unkicked for fd in ready):
                    session.first_kick()
                if connection.fileno() in ready and not self._message(connection, session):
                    return
        finally:
            session.close()

    def _message(self, connection: socket.socket, session: _Session) -> bool:
        """One message and its reply; false if the front end is gone."""
        data, fds, _, _ = socket.recv_fds(connection, _HEADER.size, 8)
        if not data:
            return False
        data += _receive(connection, _HEADER.size - len(data))
        request, flags, size = _HEADER.unpack(data)
        if flags & 3 != _VERSION or size > _MAX_PAYLOAD:
            raise ProtocolError(f"a header of request {request}, flags {flags:#x}, {size} bytes")
        reply: bytes | None
        try:
            reply = session.handle(request, _receive(connection, size), fds)
            status = 0
        except (OSError, ProtocolError) as error:
            if not flags & _NEED_REPLY:
                raise
            self.error = error
            reply, status = None, 1
        if reply is None and flags & _NEED_REPLY:
            reply = _U64.pack(status)
        if reply is not None:
            connection.sendall(_HEADER.pack(request, _VERSION | _REPLY, len(reply)) + reply)
        return True


def _receive(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = connection.recv(size - len(data))
        if not more:
            raise ProtocolError("the connection ended within a message")
        data += more
    return data
