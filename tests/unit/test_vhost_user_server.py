"""The vhost-user front door: messages become calls of the driver port, and what is wrong with one
ends its connection only. The front end here is a socket and struct."""

from __future__ import annotations

import errno
import logging
import os
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue

import pytest

from tests.held import nothing_left
from tests.unit.vhost_user_front_end import (
    GUEST,
    USER,
    Device,
    FrontEnd,
    RecordedDriver,
    eventfd,
    guest_memory,
    region,
    state,
    u64,
)
from vduse.control.features import Feature, Status
from vduse.control.vhost_user import F_PROTOCOL_FEATURES, ProtocolFeature, Request
from vduse.exports.listen import UnixListener
from vduse.exports.vhost_user import VhostUserServer, front_ends

AGREED = u64(Feature.VERSION_1 | F_PROTOCOL_FEATURES)


@pytest.fixture
def device() -> Device:
    return Device()


@pytest.fixture
def server(device: Device, tmp_path: Path) -> Iterator[VhostUserServer]:
    with VhostUserServer(device, tmp_path / "socket") as server:
        yield server


@pytest.fixture
def front_end(server: VhostUserServer) -> Iterator[FrontEnd]:
    front_end = FrontEnd(server.path)
    yield front_end
    front_end.close()


@pytest.fixture
def driver(device: Device, front_end: FrontEnd) -> RecordedDriver:
    front_end.get(Request.GET_QUEUE_NUM)
    return device.driver


# --- features and status --------------------------------------------------------------------


def test_access_platform_is_no_affair_of_the_front_end(
    driver: RecordedDriver, front_end: FrontEnd
) -> None:
    offered = int.from_bytes(front_end.get(Request.GET_FEATURES), "little")
    assert offered == Feature.VERSION_1 | Feature.RING_PACKED | F_PROTOCOL_FEATURES
    assert front_end.set(Request.SET_FEATURES, AGREED) == 0
    assert driver.named("set_features") == [(Feature.VERSION_1 | Feature.ACCESS_PLATFORM,)]
    assert driver.statuses == [0, 1, 3, 11]


def test_features_that_the_device_refuses(
    driver: RecordedDriver, front_end: FrontEnd, caplog: pytest.LogCaptureFixture
) -> None:
    driver.refuse = True
    assert front_end.set(Request.SET_FEATURES, AGREED) == 1
    assert "the device refuses features" in caplog.text
    # Without an acknowledgement there is no other way to say it.
    front_end.send(Request.SET_FEATURES, AGREED)
    assert front_end.gone()


def test_driver_ok_comes_with_the_first_ring_that_is_ready(
    driver: RecordedDriver, front_end: FrontEnd
) -> None:
    front_end.set(Request.SET_FEATURES, AGREED)
    front_end.add_memory()
    front_end.ring(1)
    with eventfd() as kick:
        front_end.set(Request.SET_VRING_KICK, u64(1), kick)
        assert not driver.status & Status.DRIVER_OK, "not enabled yet"
        front_end.set(Request.SET_VRING_ENABLE, state(1, 1))
    assert driver.status == 0xF
    assert driver.named("set_vring_enable") == [(1, True)]
    assert driver.named("kick") == []
    # VDUSE says nothing of a queue that is enabled late.
    front_end.start(0)
    assert (driver.named("set_vring_enable"), driver.named("kick")) == (
        [(1, True), (0, True)],
        [(0,)],
    )


def test_without_protocol_features_rings_are_enabled(
    driver: RecordedDriver, front_end: FrontEnd
) -> None:
    front_end.set(Request.SET_FEATURES, u64(Feature.VERSION_1))
    front_end.add_memory()
    front_end.ring(0)
    with eventfd() as kick:
        front_end.set(Request.SET_VRING_KICK, u64(0), kick)
    assert driver.status == 0xF


def test_with_protocol_status_the_front_end_says_driver_ok(
    driver: RecordedDriver, front_end: FrontEnd
) -> None:
    front_end.set(Request.SET_PROTOCOL_FEATURES, u64(ProtocolFeature.STATUS))
    front_end.set(Request.SET_FEATURES, AGREED)
    # As QEMU does: bit by bit, with what was there.
    front_end.set(Request.SET_STATUS, u64(Status.FEATURES_OK))
    assert front_end.get(Request.GET_STATUS) == u64(Status.FEATURES_OK)
    front_end.add_memory()
    front_end.start(0)
    assert not driver.status & Status.DRIVER_OK
    front_end.set(Request.SET_STATUS, u64(0xF))
    assert driver.status == 0xF
    front_end.set(Request.SET_STATUS, u64(0))
    assert driver.status == 0
    # QEMU 7.2 asks afterwards.
    assert front_end.get(Request.GET_VRING_BASE, state(0, 0)) == state(0, 100)


def test_a_reset_takes_the_rings_back_first(driver: RecordedDriver, front_end: FrontEnd) -> None:
    front_end.set(Request.SET_FEATURES, AGREED)
    front_end.add_memory()
    front_end.start(2)
    driver.calls.clear()
    front_end.set(Request.RESET_DEVICE, b"")
    assert driver.calls[0] == ("get_vring_base", 2)
    assert driver.statuses[-1] == 0


# --- rings ----------------------------------------------------------------------------------


def test_ring_addresses_are_the_front_ends_virtual_ones(
    driver: RecordedDriver, front_end: FrontEnd
) -> None:
    front_end.set(Request.SET_FEATURES, AGREED)
    front_end.add_memory()
    front_end.start(0)
    assert driver.named("set_vring_addr") == [(0, GUEST, GUEST + 0x100, GUEST + 0x200)]
    outside = struct.pack("=IIQQQQ", 1, 0, 0x1234, USER, USER, 0)
    assert front_end.set(Request.SET_VRING_ADDR, outside) == 1


def test_get_vring_base_stops_the_ring_and_the_last_one_the_device(
    driver: RecordedDriver, front_end: FrontEnd
) -> None:
    front_end.set(Request.SET_FEATURES, AGREED)
    front_end.add_memory()
    front_end.start(0)
    front_end.start(1)
    assert front_end.get(Request.GET_VRING_BASE, state(0, 0)) == state(0, 100)
    assert driver.named("set_vring_enable")[-1] == (0, False)
    assert driver.status == 0xF
    assert front_end.get(Request.GET_VRING_BASE, state(1, 0)) == state(1, 101)
    assert driver.status == 0
    # And all again.
    front_end.set(Request.SET_FEATURES, AGREED)
    front_end.start(0)
    assert driver.status == 0xF


@pytest.mark.parametrize(
    ("packed", "flags", "base"),
    [(False, 0, 0), (True, 0, 0x80008000), (True, 0x80, 0x80008000), (True, 0x8080, 0)],
    ids=["split", "fresh", "fresh, one available", "second lap"],
)
def test_base_0_of_a_packed_ring_is_a_fresh_one_unless_it_was_used(
    driver: RecordedDriver, front_end: FrontEnd, packed: bool, flags: int, base: int
) -> None:
    features = F_PROTOCOL_FEATURES | (Feature.RING_PACKED if packed else 0)
    front_end.set(Request.SET_FEATURES, u64(features))
    with guest_memory() as fd:
        os.pwrite(fd, struct.pack("<QIHH", 0, 0, 0, flags), 0x1000)
        front_end.set(Request.ADD_MEM_REG, region(), fd)
    front_end.start(3)
    assert driver.named("set_vring_base") == [(3, base)]


def test_a_running_ring_is_not_changed(driver: RecordedDriver, front_end: FrontEnd) -> None:
    front_end.set(Request.SET_FEATURES, AGREED)
    front_end.add_memory()
    front_end.start(0)
    assert front_end.set(Request.SET_VRING_NUM, state(0, 16)) == 1
    assert front_end.set(Request.SET_VRING_BASE, state(0, 1)) == 1
    assert front_end.set(Request.SET_FEATURES, u64(0)) == 1
    with eventfd() as call:
        assert front_end.set(Request.SET_VRING_CALL, u64(0), call) == 0
    assert len(driver.named("set_vring_call")) == 2


# --- in-flight records ----------------------------------------------------------------------

INFLIGHT = struct.Struct("=QQHH4x")


def test_the_front_end_keeps_the_records(driver: RecordedDriver, front_end: FrontEnd) -> None:
    front_end.set(Request.SET_FEATURES, AGREED)
    reply, fd = front_end.get_fd(Request.GET_INFLIGHT_FD, INFLIGHT.pack(0, 0, 4, 8))
    try:
        assert INFLIGHT.unpack(reply) == (640, 0, 4, 8)
        assert front_end.set(Request.SET_INFLIGHT_FD, reply, fd) == 0
    finally:
        os.close(fd)
    front_end.add_memory()
    front_end.start(0)
    names = [name for name, *_ in driver.calls]
    assert names.index("set_inflight") < names.index("set_vring_num")
    [(_, size)] = driver.named("set_inflight")
    assert size == 640


@pytest.mark.parametrize(
    "payload", [b"", bytes(19), INFLIGHT.pack(640, 4096, 4, 8)], ids=["none", "short", "offset"]
)
def test_records_that_cannot_be_ours(
    driver: RecordedDriver, front_end: FrontEnd, payload: bytes
) -> None:
    with guest_memory() as fd:
        assert front_end.set(Request.SET_INFLIGHT_FD, payload, fd) == 1
    assert front_end.set(Request.SET_INFLIGHT_FD, INFLIGHT.pack(640, 0, 4, 8)) == 1


# --- memory, config space -------------------------------------------------------------------


def test_memory_becomes_iotlb_entries_of_whole_pages(
    driver: RecordedDriver, front_end: FrontEnd
) -> None:
    assert front_end.add_memory(size=100) == 0
    ((iova, size, _, offset, perm),) = driver.named("iotlb_update")
    assert (iova, size, offset, perm) == (GUEST, 0x1000, 0x1000, 3)
    assert front_end.set(Request.REM_MEM_REG, region(size=100)) == 0
    assert driver.named("iotlb_invalidate") == [(GUEST, 0x1000)]
    assert front_end.set(Request.REM_MEM_REG, region(size=100)) == 1


def table(*guests: int) -> bytes:
    """SET_MEM_TABLE's payload: a page at each of these addresses."""
    regions = (struct.pack("=QQQQ", guest, 0x1000, USER + guest, 0) for guest in guests)
    return struct.pack("=I4x", len(guests)) + b"".join(regions)


def test_a_memory_table_replaces_the_one_before(
    driver: RecordedDriver, front_end: FrontEnd
) -> None:
    with guest_memory() as fd:
        assert front_end.set(Request.SET_MEM_TABLE, table(0x20000), fd) == 0
    with nothing_left(), guest_memory() as fd:
        assert front_end.set(Request.SET_MEM_TABLE, table(0, 0x10000), fd, fd) == 0
        assert front_end.set(Request.SET_MEM_TABLE, table(0x20000), fd) == 0
    names = [name for name, *_ in driver.calls if name.startswith("iotlb")][4:]
    once = ["iotlb_batch_begin", "iotlb_invalidate"]
    end = ["iotlb_batch_end"]
    assert names == [*once, *["iotlb_update"] * 2, *end, *once, "iotlb_update", *end]


@pytest.mark.parametrize("refused", ["iotlb_batch_begin", "iotlb_update", "iotlb_batch_end"])
def test_a_memory_table_that_is_refused_leaves_no_memory(
    driver: RecordedDriver, front_end: FrontEnd, refused: str
) -> None:
    with nothing_left(), guest_memory() as fd:
        assert front_end.set(Request.SET_MEM_TABLE, table(0x10000), fd) == 0
        driver.failing[refused] = OSError(errno.EFAULT, "refused")
        assert front_end.set(Request.SET_MEM_TABLE, table(0, 0x10000), fd, fd) == 1
    assert driver.calls[-1] == ("iotlb_invalidate", 0, (1 << 64) - 1)
    areas = struct.pack("=IIQQQQ", 0, 0, *[USER + 0x10000] * 3, 0)
    assert front_end.set(Request.SET_VRING_ADDR, areas) == 1


def test_config_past_its_end_reads_as_zero(driver: RecordedDriver, front_end: FrontEnd) -> None:
    header = struct.pack("=III", 8, 4, 0)
    assert front_end.get(Request.GET_CONFIG, header + bytes(4)) == header + b"\x08\x09\0\0"
    # All of it past the end is refused, by an empty answer.
    refused = struct.pack("=III", 10, 4, 0) + bytes(4)
    assert front_end.get(Request.GET_CONFIG, refused) == struct.pack("=III", 10, 0, 0)


def test_a_config_change_reaches_a_front_end_that_wants_to_know(
    driver: RecordedDriver, front_end: FrontEnd
) -> None:
    wanted = ProtocolFeature.BACKEND_REQ | ProtocolFeature.CONFIG
    front_end.set(Request.SET_PROTOCOL_FEATURES, u64(wanted))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        front_end.set(Request.SET_BACKEND_REQ_FD, b"", theirs.fileno())
        os.eventfd_write(driver.config_call, 1)
        ours.settimeout(60)
        assert ours.recv(100) == struct.pack("=III", 2, 1, 0)


@pytest.mark.parametrize("blocking", [False, True], ids=["as given", "made blocking since"])
def test_a_front_end_whose_pipe_is_full_is_not_waited_for(
    driver: RecordedDriver, front_end: FrontEnd, caplog: pytest.LogCaptureFixture, blocking: bool
) -> None:
    wanted = ProtocolFeature.BACKEND_REQ | ProtocolFeature.CONFIG
    front_end.set(Request.SET_PROTOCOL_FEATURES, u64(wanted))
    reader, writer = os.pipe()
    try:
        front_end.set(Request.SET_BACKEND_REQ_FD, b"", writer)
        with pytest.raises(BlockingIOError):
            while True:
                os.write(writer, bytes(4096))
        os.set_blocking(writer, blocking)
        os.eventfd_write(driver.config_call, 1)
        front_end.get(Request.GET_QUEUE_NUM)
        assert front_end.get(Request.GET_QUEUE_NUM) == u64(4)
        assert "not told of a config change" in caplog.text
    finally:
        os.close(reader)  # who waits all the same has EPIPE
        os.close(writer)


def test_the_back_ends_requests_go_to_a_socket_or_a_pipe(
    front_end: FrontEnd, driver: RecordedDriver, tmp_path: Path
) -> None:
    with (tmp_path / "file").open("wb") as file:
        assert front_end.set(Request.SET_BACKEND_REQ_FD, b"", file.fileno()) == 1


def test_a_connection_that_cannot_be_accepted_costs_no_loop(
    server: VhostUserServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pause = 0.2
    tries: SimpleQueue[float] = SimpleQueue()

    def accept() -> None:
        tries.put(time.monotonic())
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(front_ends, "_ACCEPT_AGAIN", pause)
    with monkeypatch.context() as patch:
        patch.setattr(UnixListener, "accept", lambda _: accept())
        front_end = FrontEnd(server.path)
        first, second = (tries.get(timeout=60) for _ in range(2))
        assert second - first >= pause
    assert "no connection accepted: [Errno 24] Too many open files" in caplog.text
    assert front_end.get(Request.GET_QUEUE_NUM) == u64(4)
    front_end.close()


# --- what is wrong --------------------------------------------------------------------------


def header(request: int, flags: int = 1, size: int = 0) -> bytes:
    return struct.pack("=III", request, flags, size)


BAD = {
    "version": header(Request.SET_OWNER, flags=2),
    "too long": header(Request.SET_OWNER, size=1 << 30),
    "unknown": header(99),
    "no request": header(0),
    "short u64": header(Request.SET_FEATURES, size=3) + b"abc",
    "long u64": header(Request.SET_FEATURES, size=16) + bytes(16),
    "features with nothing": header(Request.SET_FEATURES),
    "protocol features not offered": header(Request.SET_PROTOCOL_FEATURES, size=8) + u64(1 << 60),
    "status of 9 bits": header(Request.SET_STATUS, size=8) + u64(0x100),
    "region without fd": header(Request.ADD_MEM_REG, size=40) + region(),
    "region that wraps": header(Request.ADD_MEM_REG, size=40) + region((1 << 64) - 1, 0x1000),
    "empty region": header(Request.ADD_MEM_REG, size=40) + region(size=0),
    "table of lies": header(Request.SET_MEM_TABLE, size=8) + struct.pack("=I4x", 8),
    "empty table": header(Request.SET_MEM_TABLE),
    "ring out of range": header(Request.SET_VRING_NUM, size=8) + state(4, 8),
    "ring far out of range": header(Request.GET_VRING_BASE, size=8) + state(0xFFFFFFFF, 8),
    "ring address nowhere": header(Request.SET_VRING_ADDR, size=40)
    + struct.pack("=IIQQQQ", 0, 0, 1, 2, 3, 4),
    "kick without fd": header(Request.SET_VRING_KICK, size=8) + u64(0),
    "kick by polling": header(Request.SET_VRING_KICK, size=8) + u64(0x100),
    "call of another ring": header(Request.SET_VRING_CALL, size=8) + u64(0x1FF),
    "config of lies": header(Request.GET_CONFIG, size=12) + struct.pack("=III", 0, 200, 0),
    "backend fd without fd": header(Request.SET_BACKEND_REQ_FD),
}


@pytest.mark.parametrize("message", BAD.values(), ids=BAD.keys())
def test_a_bad_message_ends_its_connection_only(
    server: VhostUserServer,
    front_end: FrontEnd,
    driver: RecordedDriver,
    message: bytes,
    caplog: pytest.LogCaptureFixture,
) -> None:
    front_end.socket.sendall(message)
    assert front_end.gone()
    assert driver.closed.wait(60)
    assert "connection closed: " in caplog.text
    assert "Traceback" not in caplog.text
    again = FrontEnd(server.path)
    assert again.get(Request.GET_QUEUE_NUM) == u64(4)
    again.close()


@pytest.mark.parametrize("size", [1, 11, 12, 15])
def test_a_front_end_that_goes_within_a_message(
    server: VhostUserServer, front_end: FrontEnd, driver: RecordedDriver, size: int
) -> None:
    front_end.socket.sendall((header(Request.SET_FEATURES, size=8) + AGREED)[:size])
    front_end.close()
    assert driver.closed.wait(60)
    assert driver.named("set_features") == []


def test_a_message_in_single_bytes(driver: RecordedDriver, front_end: FrontEnd) -> None:
    for byte in header(Request.SET_FEATURES, flags=9, size=8) + AGREED:
        front_end.socket.sendall(bytes([byte]))
    assert front_end.reply(Request.SET_FEATURES) == u64(0)


def test_two_messages_at_once(driver: RecordedDriver, front_end: FrontEnd) -> None:
    front_end.socket.sendall(header(Request.GET_QUEUE_NUM) * 2)
    assert [front_end.reply(Request.GET_QUEUE_NUM) for _ in range(2)] == [u64(4), u64(4)]


@pytest.mark.parametrize(
    "request_", [Request.GET_QUEUE_NUM, Request.SET_OWNER, Request.SET_VRING_ENABLE, 99]
)
def test_fds_that_nobody_asked_for_are_closed(
    server: VhostUserServer, front_end: FrontEnd, driver: RecordedDriver, request_: int
) -> None:
    with nothing_left(), eventfd() as fd:
        front_end.send(request_, state(0, 0) if request_ == Request.SET_VRING_ENABLE else b"", fd)
        if request_ == 99:
            assert front_end.gone()
        else:
            front_end.get(Request.GET_QUEUE_NUM)


def test_more_fds_than_a_message_may_carry(
    front_end: FrontEnd, driver: RecordedDriver, caplog: pytest.LogCaptureFixture
) -> None:
    with nothing_left(), eventfd() as fd:
        front_end.send(Request.SET_OWNER, b"", *[fd] * 40)
        assert front_end.gone()
    assert "fds" in caplog.text


def test_fds_behind_the_header_count_too(front_end: FrontEnd, driver: RecordedDriver) -> None:
    with eventfd() as fd:
        front_end.socket.sendall(header(Request.SET_VRING_CALL, flags=9, size=8))
        socket.send_fds(front_end.socket, [u64(0)], [fd])
        assert front_end.reply(Request.SET_VRING_CALL) == u64(0)


def test_a_front_end_that_does_not_read_its_replies(
    front_end: FrontEnd, driver: RecordedDriver, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        while True:
            front_end.socket.sendall(header(Request.GET_QUEUE_NUM) * 100)
    assert driver.closed.wait(60)
    assert "does not read its replies" in caplog.text


def test_what_the_device_does_not_do_ends_the_connection(
    server: VhostUserServer,
    front_end: FrontEnd,
    driver: RecordedDriver,
    caplog: pytest.LogCaptureFixture,
) -> None:
    driver.failing["iotlb_update"] = OSError(17, "overlaps")
    assert front_end.add_memory() == 1
    front_end.send(Request.REM_MEM_REG, region())
    assert front_end.gone()
    assert "overlaps" in caplog.text


# --- ends -----------------------------------------------------------------------------------


def test_a_front_end_that_goes_leaves_finished_requests_and_no_fds(
    server: VhostUserServer, device: Device
) -> None:
    with nothing_left():
        front_end = FrontEnd(server.path)
        front_end.set(Request.SET_FEATURES, AGREED)
        front_end.add_memory()
        front_end.start(0)
        front_end.close()
        assert device.driver.closed.wait(60)
    assert device.driver.named("get_vring_base") == [(0,)]


def test_close_ends_connection_thread_and_socket(
    server: VhostUserServer, front_end: FrontEnd, driver: RecordedDriver
) -> None:
    assert server.connected
    server.close()
    assert front_end.gone()
    assert driver.closed.is_set()
    assert not os.path.exists(server.path)
    server.close()


def test_one_front_end_at_a_time(
    server: VhostUserServer, front_end: FrontEnd, driver: RecordedDriver, device: Device
) -> None:
    second = FrontEnd(server.path)
    second.send(Request.GET_QUEUE_NUM)
    assert len(device.drivers) == 1
    front_end.close()
    assert second.reply(Request.GET_QUEUE_NUM) == u64(4)
    assert len(device.drivers) == 2
    second.close()


def test_a_device_that_cannot_be_opened_is_said_in_the_log(
    server: VhostUserServer,
    device: Device,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def busy() -> None:
        raise OSError(16, "open already")

    caplog.set_level(logging.INFO)
    monkeypatch.setattr(device, "open", busy)
    front_end = FrontEnd(server.path)
    assert front_end.gone()
    assert "open already" in caplog.text
    front_end.close()
