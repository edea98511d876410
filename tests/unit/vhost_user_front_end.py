"""A vhost-user front end of a socket and struct, and a driver port that keeps its calls."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vduse.control.features import Feature, Status
from vduse.control.vhost_user import Request

OFFERED = Feature.VERSION_1 | Feature.RING_PACKED | Feature.ACCESS_PLATFORM

#: Where :meth:`FrontEnd.add_memory` puts its region.
GUEST, USER = 0x10000, 0x7F0000000000


class RecordedDriver:
    """What it answers is fixed; :attr:`refuse` features, or fail :attr:`failing` calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.status = 0
        self.refuse = False
        self.failing: dict[str, OSError] = {}
        self.config_call = -1
        self.closed = threading.Event()

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any) -> None:
            self.calls.append((name, *args))
            if name in self.failing:
                raise self.failing[name]

        return call

    def get_features(self) -> int:
        return OFFERED

    def get_vqs_count(self) -> int:
        return 4

    def get_vring_num_max(self) -> int:
        return 256

    def get_config_size(self) -> int:
        return 10

    def get_config(self, offset: int, length: int) -> bytes:
        return bytes(range(offset, offset + length))

    def get_status(self) -> int:
        return self.status

    def set_status(self, status: int) -> None:
        self.calls.append(("set_status", status))
        self.status = status & ~(Status.FEATURES_OK if self.refuse else 0)

    def set_config_call(self, fd: int) -> None:
        self.config_call = fd

    def get_vring_base(self, index: int) -> int:
        self.calls.append(("get_vring_base", index))
        return 100 + index

    def new_inflight(self, features: int) -> int:
        fd = os.memfd_create("records")
        os.ftruncate(fd, 640)
        return fd

    def close(self) -> None:
        self.closed.set()

    def named(self, name: str) -> list[tuple[Any, ...]]:
        return [call[1:] for call in self.calls if call[0] == name]

    @property
    def statuses(self) -> list[int]:
        return [status for (status,) in self.named("set_status")]


class Device:
    """What a server opens: one driver after the other."""

    def __init__(self) -> None:
        self.drivers = [RecordedDriver()]
        self._opened = 0

    @property
    def driver(self) -> RecordedDriver:
        """The newest one."""
        return self.drivers[-1]

    def open(self) -> Any:
        if self._opened:
            self.drivers.append(RecordedDriver())
        self._opened += 1
        return self.driver


class FrontEnd:
    def __init__(self, where: str | socket.socket) -> None:
        """Connects to a path; or has been connected to."""
        if isinstance(where, str):
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.socket.connect(where)
        else:
            self.socket = where
        self.socket.settimeout(60)

    def send(self, request: int, payload: bytes = b"", *fds: int, flags: int = 1) -> None:
        data = struct.pack("=III", request, flags, len(payload)) + payload
        socket.send_fds(self.socket, [data], fds)

    def reply(self, request: int) -> bytes:
        header = self.socket.recv(12, socket.MSG_WAITALL)
        assert len(header) == 12, "the connection was closed"
        answered, flags, size = struct.unpack("=III", header)
        assert (answered, flags) == (request, 5)
        return self.socket.recv(size, socket.MSG_WAITALL) if size else b""

    def get_fd(self, request: int, payload: bytes) -> tuple[bytes, int]:
        """A reply that comes with an fd, which is the caller's."""
        self.send(request, payload)
        data, fds, _, _ = socket.recv_fds(self.socket, 4096, 8)
        assert len(fds) == 1
        return data[12:], fds[0]

    def get(self, request: int, payload: bytes = b"") -> bytes:
        self.send(request, payload)
        return self.reply(request)

    def set(self, request: int, payload: bytes, *fds: int) -> int:
        """The acknowledgement: 0 is good."""
        self.send(request, payload, *fds, flags=9)
        return int.from_bytes(self.reply(request), "little")

    def add_memory(self, guest: int = GUEST, size: int = 0x1000) -> int:
        with guest_memory() as fd:
            return self.set(Request.ADD_MEM_REG, region(guest, size), fd)

    def ring(self, index: int, *, base: int = 0) -> None:
        """All of a ring but its kick fd, in the memory of :meth:`add_memory`."""
        assert self.set(Request.SET_VRING_NUM, state(index, 8)) == 0
        assert self.set(Request.SET_VRING_BASE, state(index, base)) == 0
        areas = struct.pack("=IIQQQQ", index, 0, USER, USER + 0x200, USER + 0x100, 0)
        assert self.set(Request.SET_VRING_ADDR, areas) == 0

    def start(self, index: int) -> None:
        """:meth:`ring`, its kick fd, enabled."""
        self.ring(index)
        with eventfd() as kick:
            assert self.set(Request.SET_VRING_KICK, u64(index), kick) == 0
        assert self.set(Request.SET_VRING_ENABLE, state(index, 1)) == 0

    def gone(self) -> bool:
        """Whether the other side ends the connection now; waits."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def close(self) -> None:
        self.socket.close()


def u64(value: int) -> bytes:
    return struct.pack("=Q", value)


def state(index: int, number: int) -> bytes:
    return struct.pack("=II", index, number)


def region(guest: int = GUEST, size: int = 0x1000, offset: int = 0x1000) -> bytes:
    return struct.pack("=8xQQQQ", guest, size, USER, offset)


@contextmanager
def guest_memory() -> Iterator[int]:
    fd = os.memfd_create("guest")
    os.ftruncate(fd, 0x4000)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def eventfd() -> Iterator[int]:
    fd = os.eventfd(0)
    try:
        yield fd
    finally:
        os.close(fd)
