"""The vhost-user bridge: messages of the vhost-user specification become calls of the driver
port. The front end here is a socket and struct."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from vduse.control.features import Feature, Status
from vduse.testing import vhost_user as vu

OFFERED = Feature.VERSION_1 | Feature.RING_PACKED | Feature.ACCESS_PLATFORM


class RecordedDriver:
    """A driver port that keeps its calls; what it answers is fixed."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.status = 0
        self.ready = threading.Event()
        self.gone = threading.Event()
        self.refuse = False

    def __getattr__(self, name: str) -> Any:
        return lambda *args: self.calls.append((name, *args))

    def get_features(self) -> int:
        return OFFERED

    def get_vqs_count(self) -> int:
        return 4

    def get_config_size(self) -> int:
        return 10

    def get_config(self, offset: int, length: int) -> bytes:
        return bytes(range(offset, offset + length))

    def get_status(self) -> int:
        return self.status

    def set_status(self, status: int) -> None:
        self.calls.append(("set_status", status))
        self.status = status & ~(Status.FEATURES_OK if self.refuse else 0)
        if status & Status.DRIVER_OK:
            self.ready.set()

    def iotlb_invalidate(self, iova: int, size: int) -> None:
        self.calls.append(("iotlb_invalidate", iova, size))
        self.gone.set()

    def named(self, name: str) -> list[tuple[Any, ...]]:
        return [call[1:] for call in self.calls if call[0] == name]


class FrontEnd:
    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(30)
        self.socket.connect(path)

    def send(self, request: int, payload: bytes = b"", *fds: int, flags: int = 1) -> None:
        data = struct.pack("=III", request, flags, len(payload)) + payload
        socket.send_fds(self.socket, [data], fds)

    def reply(self, request: int) -> bytes:
        header = self.socket.recv(12)
        assert len(header) == 12, "the connection was closed"
        answered, flags, size = struct.unpack("=III", header)
        assert (answered, flags) == (request, 5)
        return self.socket.recv(size)

    def get(self, request: int, payload: bytes = b"") -> bytes:
        self.send(request, payload)
        return self.reply(request)

    def set(self, request: int, payload: bytes, *fds: int) -> int:
        """The acknowledgement: 0 is good."""
        self.send(request, payload, *fds, flags=9)
        return int.from_bytes(self.reply(request), "little")


@pytest.fixture
def driver() -> RecordedDriver:
    return RecordedDriver()


@pytest.fixture
def bridge(driver: RecordedDriver) -> Iterator[vu.VhostUserBridge]:
    with vu.VhostUserBridge(driver) as bridge:
        yield bridge


@pytest.fixture
def front_end(bridge: vu.VhostUserBridge) -> Iterator[FrontEnd]:
    front_end = FrontEnd(bridge.path)
    yield front_end
    front_end.socket.close()


def u64(value: int) -> bytes:
    return struct.pack("=Q", value)


def add_memory(front_end: FrontEnd, guest: int = 0x10000, size: int = 100) -> int:
    fd = os.memfd_create("guest")
    os.ftruncate(fd, 0x2000)
    region = struct.pack("=8xQQQQ", guest, size, 0x7F0000000000, 0x1000)
    try:
        return front_end.set(vu.ADD_MEM_REG, region, fd)
    finally:
        os.close(fd)


def test_features_leave_access_platform_to_the_bridge(
    driver: RecordedDriver, front_end: FrontEnd
) -> None:
    offered = int.from_bytes(front_end.get(vu.GET_FEATURES), "little")
    assert offered == Feature.VERSION_1 | Feature.RING_PACKED | vu.F_PROTOCOL_FEATURES
    accepted = Feature.VERSION_1 | vu.F_PROTOCOL_FEATURES
    assert front_end.set(vu.SET_FEATURES, u64(accepted)) == 0
    assert driver.named("set_features") == [(Feature.VERSION_1 | Feature.ACCESS_PLATFORM,)]
    assert [status for (status,) in driver.named("set_status")] == [0, 1, 3, 11]


def test_features_the_device_refuses_are_not_acknowledged(
    driver: RecordedDriver, bridge: vu.VhostUserBridge, front_end: FrontEnd
) -> None:
    driver.refuse = True
    assert front_end.set(vu.SET_FEATURES, u64(Feature.VERSION_1)) == 1
    assert "refuses features" in str(bridge.error)


def test_config_past_its_end_reads_as_zero(front_end: FrontEnd) -> None:
    header = struct.pack("=III", 8, 4, 0)
    assert front_end.get(vu.GET_CONFIG, header + bytes(4)) == header + b"\x08\x09\0\0"


def test_memory_becomes_iotlb_entries_of_whole_pages(
    driver: RecordedDriver, front_end: FrontEnd
) -> None:
    assert add_memory(front_end) == 0
    ((iova, size, _, offset, perm),) = driver.named("iotlb_update")
    assert (iova, size, offset, perm) == (0x10000, 0x1000, 0x1000, 3)
    front_end.socket.close()
    assert driver.gone.wait(30)
    assert driver.named("iotlb_invalidate") == [(0x10000, 0x1000)]


def test_ring_addresses_are_the_front_ends_virtual_ones(
    driver: RecordedDriver, front_end: FrontEnd
) -> None:
    add_memory(front_end)
    desc, used, avail = (0x7F0000000000 + offset for offset in (0, 0x20, 0x40))
    message = struct.pack("=IIQQQQ", 1, 0, desc, used, avail, 0)
    assert front_end.set(vu.SET_VRING_ADDR, message) == 0
    assert driver.named("set_vring_addr") == [(1, 0x10000, 0x10040, 0x10020)]
    message = struct.pack("=IIQQQQ", 1, 0, 0x1234, used, avail, 0)
    assert front_end.set(vu.SET_VRING_ADDR, message) == 1


@pytest.mark.parametrize("packed", [False, True])
def test_base_0_is_a_fresh_ring(driver: RecordedDriver, front_end: FrontEnd, packed: bool) -> None:
    front_end.set(vu.SET_FEATURES, u64(Feature.RING_PACKED if packed else 0))
    front_end.set(vu.SET_VRING_BASE, struct.pack("=II", 2, 0))
    assert driver.named("set_vring_base") == [(2, 0x80008000 if packed else 0)]


def test_the_first_kick_says_driver_ok(driver: RecordedDriver, front_end: FrontEnd) -> None:
    front_end.set(vu.SET_FEATURES, u64(Feature.VERSION_1))
    kick = os.eventfd(0)
    try:
        assert front_end.set(vu.SET_VRING_KICK, u64(0), kick) == 0
        assert front_end.set(vu.SET_VRING_ENABLE, struct.pack("=II", 0, 1)) == 0
        assert not driver.ready.is_set()
        os.eventfd_write(kick, 1)
        assert driver.ready.wait(30)
        assert os.eventfd_read(kick) == 1, "the kick is the device's to take"
    finally:
        os.close(kick)


@pytest.mark.parametrize(
    "message",
    [
        struct.pack("=III", vu.SET_OWNER, 2, 0),
        struct.pack("=III", vu.SET_OWNER, 1, 1 << 30),
        struct.pack("=III", 99, 1, 0),
        struct.pack("=III", vu.SET_FEATURES, 1, 3) + b"abc",
        struct.pack("=III", vu.ADD_MEM_REG, 1, 40) + bytes(40),
    ],
    ids=["version", "too long", "unknown", "too short", "no fd"],
)
def test_a_bad_message_ends_the_connection_only(
    driver: RecordedDriver, bridge: vu.VhostUserBridge, front_end: FrontEnd, message: bytes
) -> None:
    front_end.socket.sendall(message)
    assert front_end.socket.recv(1) == b""
    assert isinstance(bridge.error, vu.ProtocolError)
    again = FrontEnd(bridge.path)
    assert again.get(vu.GET_QUEUE_NUM) == u64(4)
    again.socket.close()
