"""vhost-user front ends whose messages are right and whose deeds are not: rings that cannot start,
memory that goes, fds of other kinds, streams without sense. Nobody else notices."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.system.scarce import fd_limit
from tests.system.stage import open_fds
from tests.system.vhost_user_cases import (
    PAGE,
    SIZE,
    areas,
    eventfd,
    inflight,
    memory,
    pipe_writer,
    region,
    unix_socket,
)
from tests.system.vhost_user_driver import USER, user
from tests.system.vhost_user_stage import (
    CLOSED,
    NEIGHBOUR,
    QUEUE_SIZE,
    QUEUES,
    VICTIM,
    VhostUserStage,
    check_answers,
    check_served,
    closing,
)
from tests.unit.vhost_user_front_end import FrontEnd, state, u64
from vduse.control.abi import ACCESS_RW
from vduse.control.vhost_user import Request
from vduse.testing.rawdriver import BASE, RawDriver

both_formats = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])


@pytest.fixture(scope="module")
def stage() -> Iterator[VhostUserStage]:
    """One for all cases: what one of them leaves behind is found by the next."""
    with VhostUserStage() as stage:
        yield stage


def front_of(raw: RawDriver) -> FrontEnd:
    front: FrontEnd = raw.driver.front  # type: ignore[attr-defined]
    return front


def share_memory(raw: RawDriver) -> None:
    raw.driver.iotlb_update(raw.memory.iova, raw.memory.size, raw.memory.fd, 0, ACCESS_RW)


# --- rings that cannot start ----------------------------------------------------------------

#: What is wrong: the ring's length, its areas, its base.
RINGS = {
    "num 0": (0, areas(), 0),
    "num 3": (3, areas(), 0),
    "num 32, offered 16": (32, areas(), 0),
    "num 2^16": (1 << 16, areas(), 0),
    "num 2^32-1": (0xFFFFFFFF, areas(), 0),
    "descriptors unaligned": (16, areas(desc=USER + 8), 0),
    "avail unaligned": (16, areas(avail=USER + 0x401), 0),
    "used unaligned": (16, areas(used=USER + 0x802), 0),
    "descriptors past the region": (16, areas(desc=USER + SIZE - 16), 0),
    "avail past the region": (16, areas(avail=USER + SIZE - 8), 0),
    "used past the region": (16, areas(used=USER + SIZE - 8), 0),
    "base of 17 bits": (16, areas(), 1 << 16),
}


def set_up(raw: RawDriver, num: int, addr: bytes, base: int, *, kick: bool = True) -> None:
    """All but SET_VRING_ENABLE."""
    front = front_of(raw)
    assert front.set(Request.SET_VRING_NUM, state(0, num)) == 0
    assert front.set(Request.SET_VRING_ADDR, addr) == 0
    assert front.set(Request.SET_VRING_BASE, state(0, base)) == 0
    if kick:
        with closing(*eventfd()) as fds:
            assert front.set(Request.SET_VRING_KICK, u64(0), *fds) == 0


@pytest.mark.parametrize(("num", "addr", "base"), RINGS.values(), ids=RINGS.keys())
def test_a_ring_that_cannot_be_is_refused_and_another_one_served(
    stage: VhostUserStage, num: int, addr: bytes, base: int
) -> None:
    with stage.nobody_hurt(), stage.guest() as raw:
        share_memory(raw)
        set_up(raw, num, addr, base)
        front = front_of(raw)
        assert front.set(Request.SET_VRING_ENABLE, state(0, 1)) == 1
        assert front.get(Request.GET_VRING_BASE, state(0, 0)) == state(0, base)
        raw.driver.iotlb_invalidate(raw.memory.iova, raw.memory.size)
        assert raw.start()
        check_served(raw)
    assert f"vhost-user {VICTIM}: SET_VRING_ENABLE refused" in "\n".join(stage.lines)


@pytest.mark.parametrize(("num", "addr", "base"), RINGS.values(), ids=RINGS.keys())
def test_a_ring_that_cannot_be_ends_a_connection_that_does_not_ask(
    stage: VhostUserStage, num: int, addr: bytes, base: int
) -> None:
    with stage.nobody_hurt(), stage.guest() as raw:
        share_memory(raw)
        set_up(raw, num, addr, base)
        front_of(raw).send(Request.SET_VRING_ENABLE, state(0, 1))
        assert front_of(raw).gone()
        stage.log.wait_for(CLOSED)


def test_a_ring_across_two_regions(stage: VhostUserStage) -> None:
    """Side by side for the front end, apart for the guest."""
    with stage.nobody_hurt(), stage.guest() as raw, closing(*memory()) as fds:
        front = front_of(raw)
        for number, guest in enumerate([BASE, BASE + SIZE]):
            part = region(guest, PAGE, at=USER + number * PAGE, offset=number * PAGE)
            assert front.set(Request.ADD_MEM_REG, part, *fds) == 0
        set_up(raw, QUEUE_SIZE, areas(desc=USER + PAGE - 16), 0)
        assert front.set(Request.SET_VRING_ENABLE, state(0, 1)) == 1


def test_a_kick_and_enable_before_everything_else(stage: VhostUserStage) -> None:
    """What a ring lacks may come later (the specification orders nothing but the features)."""
    with stage.nobody_hurt(), stage.guest() as raw:
        front = front_of(raw)
        with closing(*eventfd()) as fds:
            assert front.set(Request.SET_VRING_KICK, u64(0), *fds) == 0
        assert front.set(Request.SET_VRING_ENABLE, state(0, 1)) == 0
        assert raw.start()
        check_served(raw)


def test_a_ring_is_enabled_before_the_features(stage: VhostUserStage) -> None:
    with stage.nobody_hurt(), stage.front_end() as front, closing(*memory(), *eventfd()) as fds:
        assert front.set(Request.ADD_MEM_REG, region(BASE, SIZE, at=USER), fds[0]) == 0
        assert front.set(Request.SET_VRING_NUM, state(0, QUEUE_SIZE)) == 0
        assert front.set(Request.SET_VRING_ADDR, areas()) == 0
        assert front.set(Request.SET_VRING_KICK, u64(0), fds[1]) == 1
        assert front.set(Request.SET_VRING_ENABLE, state(0, 1)) == 1
    assert any("the device refuses features 0x0" in line for line in stage.lines)


# --- memory that goes -----------------------------------------------------------------------


def _shrink(raw: RawDriver) -> None:
    os.ftruncate(raw.memory.fd, 0)


def _remove(raw: RawDriver) -> None:
    raw.driver.iotlb_invalidate(raw.memory.iova, raw.memory.size)


def _replace(raw: RawDriver) -> None:
    with closing(*memory()) as fds:
        table = struct.pack("=I4xQQQQ", 1, BASE + SIZE, SIZE, user(BASE + SIZE), 0)
        assert front_of(raw).set(Request.SET_MEM_TABLE, table, *fds) == 0


@both_formats
@pytest.mark.parametrize("take", [_shrink, _remove, _replace], ids=lambda take: take.__name__[1:])
def test_memory_goes_from_under_a_running_ring(
    stage: VhostUserStage, take: object, packed: bool
) -> None:
    """The device stops with a word, and is reset for the same front end or for the next."""
    with stage.nobody_hurt(), stage.guest(packed=packed) as raw:
        assert raw.start()
        check_served(raw)
        take(raw)  # type: ignore[operator]
        raw.driver.kick(0)
        stage.log.wait_for(f"{VICTIM}: stopped until the driver resets it: virtqueue 0: ")
        assert front_of(raw).set(Request.RESET_DEVICE, b"") == 0
        check_answers(front_of(raw))


def test_regions_without_end(stage: VhostUserStage) -> None:
    """GET_MAX_MEM_SLOTS says how many; no fd stays of those that are refused."""
    with stage.nobody_hurt(), stage.front_end() as front, closing(*memory()) as fds:
        slots = int.from_bytes(front.get(Request.GET_MAX_MEM_SLOTS), "little")
        for number in range(slots):
            part = region(BASE + 2 * number * PAGE, at=USER + 2 * number * PAGE)
            assert front.set(Request.ADD_MEM_REG, part, *fds) == 0
        before = len(open_fds())
        for _ in range(20):
            assert front.set(Request.ADD_MEM_REG, region(0, at=0), *fds) == 1
        assert len(open_fds()) == before


# --- fds of other kinds ---------------------------------------------------------------------


def full_eventfd() -> list[int]:
    fd = os.eventfd(0)
    os.eventfd_write(fd, (1 << 64) - 2)
    return [fd]


def full_pipe() -> list[int]:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, bytes(4096))
    os.set_blocking(writer, True)
    return [writer, reader]


def full_socket() -> list[int]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            ours.send(bytes(4096))
    ours.setblocking(True)
    return [ours.detach(), theirs.detach()]


CALLS = {
    "a full blocking eventfd": full_eventfd,
    "a full blocking pipe": full_pipe,
    "a pipe without reader": pipe_writer,
    "a full blocking socket": full_socket,
    "a socket without peer": unix_socket,
}


@pytest.mark.parametrize("make", CALLS.values(), ids=CALLS.keys())
def test_a_call_fd_that_takes_nothing(stage: VhostUserStage, make: object) -> None:
    """The request completes all the same, and no worker waits."""
    with stage.nobody_hurt(), stage.guest() as raw:
        assert raw.start()
        with closing(*make()) as fds:  # type: ignore[operator]
            assert front_of(raw).set(Request.SET_VRING_CALL, u64(0), fds[0]) == 0
            raw.memory.write(0x10000, struct.pack("<IIQ", 4, 0, 0) + b"\xff")
            raw.submit([(raw.at(0x10000), 16, 0), (raw.at(0x10010), 1, 2)])
            raw.kick()
            # Drained, so finished, before the answer.
            raw.driver.get_vring_base(0)
        assert raw.memory.read(0x10010, 1) == b"\0"


def test_a_kick_fd_that_is_full_and_one_that_is_the_call_fd(stage: VhostUserStage) -> None:
    with stage.nobody_hurt(), stage.guest() as raw, closing(*full_eventfd()) as fds:
        assert raw.start()
        front = front_of(raw)
        assert front.set(Request.SET_VRING_KICK, u64(0), *fds) == 0
        assert front.set(Request.SET_VRING_CALL, u64(0), *fds) == 0
        check_answers(front)
        front.get(Request.GET_VRING_BASE, state(0, 0))


# --- in-flight records ----------------------------------------------------------------------


@both_formats
@pytest.mark.parametrize("make", ["too short", "too long", "may shrink", "garbage", "a pipe"])
def test_in_flight_records_that_are_none(stage: VhostUserStage, make: str, packed: bool) -> None:
    """They are refused when the ring starts, or taken for what can be true of them."""
    with stage.nobody_hurt(), stage.guest(packed=packed) as raw:
        front = front_of(raw)
        reply, fd = front.get_fd(Request.GET_INFLIGHT_FD, inflight(0))
        with closing(fd, *memory(), *pipe_writer()) as (records, plain, pipe):
            size, _, queues, queue_size = struct.unpack("=QQHH4x", reply)
            assert (queues, queue_size) == (QUEUES, QUEUE_SIZE)
            if make == "garbage":
                os.pwrite(records, os.urandom(size), 0)
            said = {"too short": size - 64, "too long": size + PAGE}.get(make, size)
            file = {"may shrink": plain, "a pipe": pipe}.get(make, records)
            assert front.set(Request.SET_INFLIGHT_FD, inflight(said), file) == 0
        if make == "garbage":
            with suppress(OSError):
                raw.start()
            check_answers(front)
            return
        with pytest.raises(OSError, match="SET_VRING_ENABLE was refused"):
            raw.start()
        check_answers(front)


# --- streams --------------------------------------------------------------------------------


def test_every_message_in_single_bytes(stage: VhostUserStage) -> None:
    with stage.nobody_hurt(), stage.front_end() as front:
        message = struct.pack("=III", Request.SET_VRING_BASE, 9, 8) + state(0, 5)
        for byte in message * 3:
            front.socket.sendall(bytes([byte]))
        assert [front.reply(Request.SET_VRING_BASE) for _ in range(3)] == [u64(0)] * 3


def test_a_thousand_messages_without_waiting(stage: VhostUserStage) -> None:
    with stage.nobody_hurt(), stage.front_end() as front:
        message = struct.pack("=III", Request.SET_VRING_BASE, 1, 8) + state(0, 5)
        front.socket.sendall(message * 1000)
        check_answers(front)


def test_replies_that_nobody_reads(stage: VhostUserStage) -> None:
    with stage.nobody_hurt(), stage.front_end() as front:
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            while True:
                front.socket.sendall(struct.pack("=III", Request.GET_FEATURES, 1, 0) * 100)
        line = stage.log.wait_for(CLOSED)
    assert line == CLOSED + "the front end does not read its replies"


@pytest.mark.parametrize("size", [1, 11, 12, 51])
def test_a_front_end_goes_within_a_message_that_has_fds(stage: VhostUserStage, size: int) -> None:
    with stage.nobody_hurt(), stage.guest() as raw, closing(*memory()) as fds:
        message = struct.pack("=III", Request.ADD_MEM_REG, 1, 40) + region()
        socket.send_fds(front_of(raw).socket, [message[:size]], fds)
    assert stage.lines == []


def test_fds_one_by_one_in_one_message(stage: VhostUserStage) -> None:
    """Each byte of a message may bring some; together they are too many."""
    with stage.nobody_hurt(), stage.front_end() as front, closing(*eventfd()) as fds:
        message = struct.pack("=III", Request.SET_MEM_TABLE, 1, 200) + bytes(200)
        with suppress(BrokenPipeError, ConnectionResetError):
            for byte in message:
                socket.send_fds(front.socket, [bytes([byte])], fds * 8)
        assert front.gone()
        line = stage.log.wait_for(CLOSED)
    assert "fds in one message: at most 8" in line


def test_out_of_band_bytes(stage: VhostUserStage) -> None:
    """They are of the stream like others, and cost no loop."""
    with stage.nobody_hurt(), stage.front_end() as front:
        check_answers(front)
        front.socket.send(b"x", socket.MSG_OOB)
        front.socket.sendall(bytes(11))
        assert front.gone()
        line = stage.log.wait_for(CLOSED)
    assert "version 0" in line


def test_a_second_connection_waits(stage: VhostUserStage) -> None:
    with stage.nobody_hurt(), stage.front_end() as first, stage.front_end() as second:
        second.send(Request.GET_QUEUE_NUM)
        check_answers(first)
        first.close()
        assert second.reply(Request.GET_QUEUE_NUM) == u64(QUEUES)


def test_resets_in_the_middle(stage: VhostUserStage) -> None:
    """With requests on their way."""
    with stage.nobody_hurt(), stage.guest() as raw:
        for _ in range(10):
            assert raw.start()
            raw.memory.write(0x10000, struct.pack("<IIQ", 0, 0, 0))
            for _ in range(4):
                raw.submit([(raw.at(0x10000), 16, 0), (raw.at(0x11000), 4097, 2)])
            raw.kick()
            raw.reset()
            raw.ring.__init__(raw.memory, 0, QUEUE_SIZE)  # type: ignore[misc]
            raw.memory.write(0, bytes(PAGE))
            raw._free = list(range(QUEUE_SIZE))
            front_of(raw).set(Request.SET_FEATURES, u64(raw.features))
        assert raw.start()
        check_served(raw)


# --- fds without end ------------------------------------------------------------------------


@pytest.mark.parametrize("more", range(24))
def test_no_fds_are_left(stage: VhostUserStage, more: int) -> None:
    """Wherever it runs out of them: the next front end is served, and who is there already."""
    with (
        stage.nothing_left(),
        stage.guest(NEIGHBOUR) as neighbour,
        closing(*memory(), *eventfd()) as fds,
        socket.socket(socket.AF_UNIX) as unconnected,
    ):
        assert neighbour.start()
        with fd_limit(more), suppress(OSError, AssertionError):
            check_served(neighbour)
            unconnected.connect(stage.path)
            front = FrontEnd(unconnected)
            front.socket.settimeout(2)  # it may wait in vain for the server's next look
            features = front.get(Request.GET_FEATURES)
            front.set(Request.SET_FEATURES, features)
            front.set(Request.ADD_MEM_REG, region(BASE, SIZE, at=USER), fds[0])
            front.set(Request.SET_VRING_NUM, state(0, QUEUE_SIZE))
            front.set(Request.SET_VRING_ADDR, areas())
            for _ in range(3):
                front.set(Request.SET_VRING_CALL, u64(0), fds[1])
                front.set(Request.SET_VRING_KICK, u64(0), fds[1])
                front.set(Request.SET_VRING_ENABLE, state(0, 1))
