"""Dirty logging at the vhost-user front door (specification, "Migration"): messages become the
driver's one log, also under a live device, and what is wrong with them is refused."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.held import nothing_left
from tests.unit.vhost_user_front_end import (
    GUEST,
    USER,
    Device,
    FrontEnd,
    RecordedDriver,
    eventfd,
    state,
    u64,
)
from vduse.control.abi import DirtyLog
from vduse.control.features import Feature, Status
from vduse.control.vhost_user import F_LOG_ALL, F_PROTOCOL_FEATURES, ProtocolFeature, Request
from vduse.exports.vhost_user import VhostUserServer

AGREED = Feature.VERSION_1 | F_PROTOCOL_FEATURES
LOGGED = AGREED | F_LOG_ALL
PROTOCOL = ProtocolFeature.LOG_SHMFD | ProtocolFeature.REPLY_ACK | ProtocolFeature.MQ
#: Bytes of the file of :func:`log_file`; a bit for each page of 128 MiB.
BYTES = 4096


class LoggingDriver(RecordedDriver):
    """Can log, if the test lets it."""

    def __init__(self, *, can: bool = True) -> None:
        super().__init__()
        self.can = can

    def can_log(self) -> bool:
        return self.can

    def set_log(self, log: DirtyLog | None, fd: int = -1) -> None:
        self.calls.append(("set_log", log))
        assert log is None or os.fstat(fd).st_size == BYTES
        if "set_log" in self.failing:
            raise self.failing["set_log"]


@pytest.fixture
def driver() -> LoggingDriver:
    return LoggingDriver()


@pytest.fixture
def front_end(driver: LoggingDriver, tmp_path: Path) -> Iterator[FrontEnd]:
    device = Device()
    device.drivers = [driver]
    with VhostUserServer(device, tmp_path / "socket") as server:
        front_end = FrontEnd(server.path)
        yield front_end
        front_end.close()


@pytest.fixture
def log_file() -> Iterator[int]:
    fd = os.memfd_create("log")
    os.ftruncate(fd, BYTES)
    yield fd
    os.close(fd)


def base(size: int = BYTES, offset: int = 0) -> bytes:
    return struct.pack("=QQ", size, offset)


def addr(index: int, log: int | None = None, *, used: int = USER + 0x200) -> bytes:
    """As :meth:`FrontEnd.ring` says it, with the used ring logged at ``log``."""
    flags = int(log is not None)
    return struct.pack("=IIQQQQ", index, flags, USER, used, USER + 0x100, log or 0)


def agree(front_end: FrontEnd, features: int = AGREED) -> None:
    front_end.set(Request.SET_PROTOCOL_FEATURES, u64(PROTOCOL))
    assert front_end.set(Request.SET_FEATURES, u64(features)) == 0
    assert front_end.add_memory() == 0


def set_base(front_end: FrontEnd, payload: bytes, *fds: int) -> bool:
    return front_end.set(Request.SET_LOG_BASE, payload, *fds) == 0


def test_offered_where_the_device_can(front_end: FrontEnd, driver: LoggingDriver) -> None:
    offered = int.from_bytes(front_end.get(Request.GET_FEATURES), "little")
    protocol = int.from_bytes(front_end.get(Request.GET_PROTOCOL_FEATURES), "little")
    assert offered & F_LOG_ALL
    assert protocol & ProtocolFeature.LOG_SHMFD
    driver.can = False
    offered = int.from_bytes(front_end.get(Request.GET_FEATURES), "little")
    protocol = int.from_bytes(front_end.get(Request.GET_PROTOCOL_FEATURES), "little")
    assert not offered & F_LOG_ALL
    assert not protocol & ProtocolFeature.LOG_SHMFD
    assert front_end.set(Request.SET_FEATURES, u64(LOGGED)) == 1


def test_a_migration_begins_and_ends_under_a_live_device(
    front_end: FrontEnd, driver: LoggingDriver, log_file: int
) -> None:
    agree(front_end)
    front_end.start(0)
    front_end.start(1)
    assert set_base(front_end, base(), log_file)
    assert driver.named("set_log") == [], "nothing is to be marked yet"
    # As QEMU says it: features, then every ring again.
    assert front_end.set(Request.SET_FEATURES, u64(LOGGED)) == 0
    for index in range(2):
        assert front_end.set(Request.SET_VRING_ADDR, addr(index, GUEST + 0x200)) == 0
    assert front_end.set(Request.SET_FEATURES, u64(AGREED)) == 0
    for index in range(2):
        assert front_end.set(Request.SET_VRING_ADDR, addr(index)) == 0
    both = ((0, GUEST + 0x200), (1, GUEST + 0x200))
    assert driver.named("set_log") == [
        (DirtyLog(0, BYTES),),
        (DirtyLog(0, BYTES, both[:1]),),
        (DirtyLog(0, BYTES, both),),
        (None,),
    ]
    assert driver.statuses[-1] == 0xF, "the device was live all the time"
    assert driver.named("set_features") == [(Feature.VERSION_1 | Feature.ACCESS_PLATFORM,)]
    # And once more: the base comes anew, in another file.
    assert set_base(front_end, base(), log_file)
    assert front_end.set(Request.SET_FEATURES, u64(LOGGED)) == 0
    assert driver.named("set_log")[4:] == [(DirtyLog(0, BYTES),)]


def test_a_larger_log_replaces_the_one_in_use(
    front_end: FrontEnd, driver: LoggingDriver, log_file: int
) -> None:
    agree(front_end, LOGGED)
    front_end.start(0)
    assert driver.named("set_log") == [], "there is nowhere to mark yet"
    for size in (1024, BYTES, BYTES):
        assert set_base(front_end, base(size), log_file)
    assert driver.named("set_log") == [(DirtyLog(0, size),) for size in (1024, BYTES, BYTES)], (
        "another file may be as long"
    )


def test_a_ring_that_starts_under_a_log_is_logged_from_its_first_kick(
    front_end: FrontEnd, driver: LoggingDriver, log_file: int
) -> None:
    agree(front_end, LOGGED)
    assert set_base(front_end, base(2048, 2048), log_file)
    for index in range(2):
        front_end.ring(index)
        assert front_end.set(Request.SET_VRING_ADDR, addr(index, GUEST)) == 0
        with eventfd() as kick:
            assert front_end.set(Request.SET_VRING_KICK, u64(index), kick) == 0
        assert front_end.set(Request.SET_VRING_ENABLE, state(index, 1)) == 0
    names = [call[0] for call in driver.calls]
    first_log = names.index("set_log")
    assert first_log < driver.calls.index(("set_status", 0xF))
    # The second is known before the device may see the ring.
    assert first_log < names.index("set_log", first_log + 1) < driver.calls.index(("kick", 1))
    assert driver.named("set_log")[-1] == (DirtyLog(2048, 2048, ((0, GUEST), (1, GUEST))),)


def test_a_reset_device_is_told_again(
    front_end: FrontEnd, driver: LoggingDriver, log_file: int
) -> None:
    agree(front_end, LOGGED)
    assert set_base(front_end, base(), log_file)
    front_end.start(0)
    front_end.get(Request.GET_VRING_BASE, state(0, 0))
    assert driver.statuses[-1] == 0
    front_end.start(0)
    assert driver.named("set_log") == [(DirtyLog(0, BYTES),)] * 2


@pytest.mark.parametrize(
    ("payload", "fds"),
    [
        (base(), 0),
        (base(), 2),
        (u64(0), 1),
        (base(0), 1),
        (base(BYTES + 1), 1),
        (base(BYTES, 1), 1),
        (base(2**64 - 1, 2**64 - 1), 1),
        (base(1, 2**64 - 1), 1),
    ],
    ids=["no fd", "two fds", "no offset", "empty", "long", "behind", "absurd", "far"],
)
def test_a_base_that_cannot_be(
    front_end: FrontEnd, driver: LoggingDriver, log_file: int, payload: bytes, fds: int
) -> None:
    agree(front_end, LOGGED)
    front_end.start(0)
    assert not set_base(front_end, payload, *[log_file] * fds)
    assert driver.named("set_log") == []
    assert set_base(front_end, base(), log_file)


def test_a_base_needs_log_shmfd(front_end: FrontEnd, log_file: int) -> None:
    assert not set_base(front_end, base(), log_file)
    front_end.send(Request.SET_LOG_BASE, base(), log_file)
    assert front_end.gone()


def test_a_log_that_ends_before_the_memory(
    front_end: FrontEnd, driver: LoggingDriver, log_file: int, caplog: pytest.LogCaptureFixture
) -> None:
    agree(front_end, LOGGED)
    front_end.start(0)
    assert not set_base(front_end, base(2), log_file)
    assert "a log of 2 bytes ends before the guest's memory" in caplog.text
    assert driver.named("set_log") == []


@pytest.mark.parametrize("by", ["size", "device"])
def test_a_base_that_is_refused_leaves_the_former_one(
    front_end: FrontEnd, driver: LoggingDriver, log_file: int, by: str
) -> None:
    agree(front_end, LOGGED)
    front_end.start(0)
    assert set_base(front_end, base(), log_file)
    if by == "device":
        driver.failing["set_log"] = OSError(5, "refused")
    with nothing_left():
        assert not set_base(front_end, base(2 if by == "size" else BYTES), log_file)
    driver.failing.clear()
    assert front_end.set(Request.SET_VRING_ADDR, addr(0, GUEST + 0x200)) == 0
    assert driver.named("set_log")[-1] == (DirtyLog(0, BYTES, ((0, GUEST + 0x200),)),)


def test_the_last_byte_of_a_used_ring_has_a_bit(
    front_end: FrontEnd, driver: LoggingDriver, log_file: int
) -> None:
    agree(front_end, LOGGED)
    front_end.start(0)
    assert set_base(front_end, base(), log_file)
    end = BYTES * 8 * 4096
    used = 6 + 8 * 8
    # It need not be where there is memory.
    assert front_end.set(Request.SET_VRING_ADDR, addr(0, end - used)) == 0
    assert front_end.set(Request.SET_VRING_ADDR, addr(0, end - used + 1)) == 1
    assert front_end.set(Request.SET_VRING_ADDR, addr(0, 2**64 - 1)) == 1
    assert driver.named("set_log")[1:] == [(DirtyLog(0, BYTES, ((0, end - used),)),)]


def test_nothing_else_changes_under_a_live_device(front_end: FrontEnd) -> None:
    agree(front_end)
    front_end.start(0)
    assert front_end.set(Request.SET_FEATURES, u64(LOGGED | Feature.RING_PACKED)) == 1
    assert front_end.set(Request.SET_VRING_ADDR, addr(0, GUEST, used=USER + 0x204)) == 1


def test_what_the_device_refuses(front_end: FrontEnd, driver: LoggingDriver, log_file: int) -> None:
    agree(front_end)
    front_end.start(0)
    assert set_base(front_end, base(), log_file)
    driver.failing["set_log"] = OSError(5, "refused")
    assert front_end.set(Request.SET_FEATURES, u64(LOGGED)) == 1
    assert driver.status & Status.DRIVER_OK


def test_a_log_fd_is_taken_and_not_used(front_end: FrontEnd) -> None:
    front_end.get(Request.GET_QUEUE_NUM)
    with nothing_left(), eventfd() as fd:
        assert front_end.set(Request.SET_LOG_FD, b"", fd) == 0
    assert front_end.set(Request.SET_LOG_FD, b"") == 1


def test_no_fd_is_left(front_end: FrontEnd, driver: LoggingDriver, log_file: int) -> None:
    agree(front_end, LOGGED)
    assert set_base(front_end, base(), log_file)
    with nothing_left():
        for _ in range(3):
            assert set_base(front_end, base(), log_file)
    front_end.close()
    assert driver.closed.wait(30)
