"""docs/kernel-behaviour.md, "Requests": a real virtio-blk device, in this process or in a child."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.contract.devices import (
    AGREED,
    BASE,
    DEADLINE,
    LIVE,
    STARTED,
    background,
    refused,
)
from tests.contract.hand_driver import BLOCK, DEPTH, IN, OUT, PENDING, SIZE, hand_driver
from tests.contract.ports import BlockProgram, Platform
from vduse.bus.driver import Driver
from vduse.control.abi import ACCESS_RW
from vduse.control.features import Feature
from vduse.testing.arena import ArenaBlk

# The profiles differ in nothing that requests see.
pytestmark = pytest.mark.profile("6.12")

PAGE = 4096
KIB = 1 << 10
MIB = 1 << 20


@pytest.fixture(params=[False, True], ids=["split", "packed"])
def packed(request: pytest.FixtureRequest) -> bool:
    """The virtqueues' format."""
    return bool(request.param)


@pytest.fixture
def image(tmp_path: Path) -> str:
    """An image of 16 MiB that outlives device programs."""
    path = tmp_path / "image"
    path.write_bytes(b"")
    os.truncate(path, 16 * MIB)
    return str(path)


@pytest.fixture
def block(platform: Platform, image: str, packed: bool) -> BlockProgram:
    """A block device ``vd0`` on that image, not attached."""
    return platform.block_program("vd0", image, packed=packed)


@pytest.fixture
def vhost(platform: Platform, block: BlockProgram) -> Iterator[Driver]:
    """The same under vhost_vdpa."""
    platform.dev_add("vd0", "vhost_vdpa")
    driver = platform.driver("vd0")
    yield driver
    driver.close()


def pattern(number: int, size: int) -> bytes:
    """Bytes that no other number has."""
    return number.to_bytes(8, "little") * (size // 8)


# --- both bus drivers ----------------------------------------------------------------------


def round_trip(platform: Platform, bus_driver: str, number: int) -> None:
    """Writes, reads what was written and what the one before wrote, by way of ``bus_driver``."""
    platform.bind("vd0", bus_driver)
    if bus_driver == "virtio_vdpa":
        disk = platform.disk("vd0")
        check(disk.pwrite, disk.pread, number)
        return
    driver = platform.driver("vd0")
    with ArenaBlk(driver, 1) as arena:
        native = arena.native

        def pread(length: int, offset: int) -> bytes:
            buffer = bytearray(length)
            native.preadinto(offset, buffer)
            return bytes(buffer)

        check(lambda data, offset: native.pwrite(offset, data), pread, number)
    driver.close()


def check(
    pwrite: Callable[[bytes, int], int], pread: Callable[[int, int], bytes], number: int
) -> None:
    """Block ``number`` is written, its predecessor still there."""
    size = 64 * KIB
    if number:
        assert pread(size, (number - 1) * size) == pattern(number - 1, size)
    pwrite(pattern(number, size), number * size)
    assert pread(size, number * size) == pattern(number, size)


@pytest.mark.row("io.rebind")
def test_rebinding_ten_times_loses_nothing(platform: Platform, block: BlockProgram) -> None:
    platform.dev_add("vd0")
    for number in range(10):
        round_trip(platform, ("virtio_vdpa", "vhost_vdpa")[number % 2], number)


# --- negotiation ---------------------------------------------------------------------------


@pytest.mark.row("io.features-refused")
def test_features_that_were_not_offered_are_refused_at_features_ok(vhost: Driver) -> None:
    for features in (
        BASE & ~Feature.VERSION_1,
        BASE & ~Feature.ACCESS_PLATFORM,
        BASE | Feature.IN_ORDER,
    ):
        vhost.set_status(0)
        vhost.set_status(STARTED)
        vhost.set_features(features)
        vhost.set_status(AGREED)
        assert vhost.get_status() == STARTED
    vhost.set_status(0)
    vhost.set_status(STARTED)
    vhost.set_features(BASE)
    vhost.set_status(AGREED)
    assert vhost.get_status() == AGREED


# --- one device, its life long -------------------------------------------------------------


@pytest.mark.row("attach.late-enable", "io.late-enable")
def test_a_queue_enabled_after_driver_ok_is_served(platform: Platform, packed: bool) -> None:
    platform.block_program("vd1", queues=2, packed=packed)
    platform.dev_add("vd1", "vhost_vdpa")
    driver = platform.driver("vd1")
    with hand_driver(driver, packed=packed, queues=2) as hand:
        hand.start(0)
        hand.offer(1, 0, IN, 0)
        hand.driver.set_vring_enable(1, True)
        hand.kick(1)
        assert hand.reap(1, 1) == [0]
        hand.offer(0, 0, IN, 0)
        hand.kick(0)
        assert hand.reap(0, 1) == [0]
        assert (hand.status(0, 0), hand.status(1, 0)) == (0, 0)
    driver.close()


@pytest.mark.row("io.drain")
def test_get_vq_state_drains_and_the_queue_goes_on_from_there(vhost: Driver, packed: bool) -> None:
    """What it returns is where both used ring and requests stand."""
    with hand_driver(vhost, packed=packed) as hand:
        hand.start(0)
        total = 0
        for _ in range(5):
            for slot in range(DEPTH):
                hand.offer(0, slot, OUT, slot * 8)
            hand.kick()
            base = vhost.get_vring_base(0)
            done = hand.used(0)
            assert all(hand.status(0, slot) == 0 for slot in done)
            assert all(hand.status(0, slot) == PENDING for slot in range(DEPTH) if slot not in done)
            if packed:
                assert base >> 16 == base & 0xFFFF  # nothing is between avail and used
            else:
                total += len(done)
                assert base == total
            # The driver starts it again where it stands; what was not taken is found there.
            hand.start(0, base=base)
            hand.kick()
            left = DEPTH - len(done)
            assert len(hand.reap(0, left)) == left
            total += left


@pytest.mark.row("io.reset-any-time")
def test_reset_with_requests_in_flight_leaves_memory_alone_from_then_on(
    vhost: Driver, packed: bool
) -> None:
    with hand_driver(vhost, packed=packed) as hand:
        for number in range(10):
            hand.memory.write(0, bytes(hand.data_offset(0, 0)))
            hand.rings[:] = [type(hand.rings[0])(hand.memory, 0, hand.rings[0].size)]
            hand.start(0)
            for slot in range(DEPTH):
                hand.offer(0, slot, IN, slot * 8)
            hand.kick()
            if number % 2:
                hand.reap(0, 1)
            vhost.set_status(0)
            guard = b"\xa5" * SIZE
            hand.memory.write(0, guard)
            vhost.set_status(1)  # the device has been on its way since
            assert hand.memory.read(0, SIZE) == guard


@pytest.mark.row("io.update-iotlb")
def test_update_iotlb_with_requests_in_flight(vhost: Driver, packed: bool) -> None:
    fd = os.memfd_create("more")
    os.ftruncate(fd, MIB)
    with hand_driver(vhost, packed=packed) as hand:
        hand.start(0)
        for number in range(20):
            for slot in range(DEPTH):
                hand.memory.write(hand.data_offset(0, slot), pattern(number * 64 + slot, BLOCK))
                hand.offer(0, slot, OUT, slot * 8)
            hand.kick()
            vhost.iotlb_update(MIB, MIB, fd, 0, ACCESS_RW)
            vhost.iotlb_invalidate(MIB, MIB)
            hand.reap(0, DEPTH)
            assert {hand.status(0, slot) for slot in range(DEPTH)} == {0}
        for slot in range(DEPTH):
            hand.offer(0, slot, IN, slot * 8)
            hand.memory.write(hand.data_offset(0, slot), bytes(BLOCK))
        hand.kick()
        hand.reap(0, DEPTH)
        for slot in range(DEPTH):
            expected = pattern(19 * 64 + slot, BLOCK)
            assert hand.memory.read(hand.data_offset(0, slot), BLOCK) == expected
    os.close(fd)


def position_unless_broken(driver: Driver) -> int | None:
    """Where queue 0 has stopped; None: its device had stopped before, until a reset."""
    try:
        return driver.get_vring_base(0)
    except OSError as error:
        assert error.errno == errno.EIO
        return None


@pytest.mark.row("io.sigbus")
def test_memory_that_goes_away_stops_its_device_only(platform: Platform, packed: bool) -> None:
    """SIGBUS is survived; after a reset the device is whole again."""
    platform.block_program("vd1", packed=packed)
    platform.dev_add("vd1", "vhost_vdpa")
    driver = platform.driver("vd1")
    with hand_driver(driver, packed=packed) as hand:
        hand.start(0)
        hand.offer(0, 0, IN, 0)
        hand.kick()
        hand.reap(0, 1)
        os.ftruncate(hand.memory.fd, hand.data_offset(0, 0))  # ring and frames stay
        hand.offer(0, 1, OUT, 0)
        hand.kick()
        while (position := position_unless_broken(driver)) is not None:
            if hand.status(0, 1) != PENDING:
                assert hand.status(0, 1) != 0
                break
            # The queue stopped before it took the request: it is started again.
            hand.start(0, base=position)
            hand.kick()
        driver.set_status(0)
        os.ftruncate(hand.memory.fd, SIZE)
    round_trip_again(driver, packed)
    driver.close()


@pytest.mark.row("io.sigbus")
def test_memory_that_goes_away_under_a_files_request_fails_that_request(
    vhost: Driver, packed: bool
) -> None:
    """There the kernel finds it missing (EFAULT), or we do (SIGBUS): the driver sees no OK."""
    with hand_driver(vhost, packed=packed) as hand:
        hand.start(0)
        os.ftruncate(hand.memory.fd, hand.data_offset(0, 0))
        hand.offer(0, 0, OUT, 0)
        hand.kick()
        with contextlib.suppress(OSError):
            vhost.get_vring_base(0)
        assert hand.status(0, 0) != 0
        vhost.set_status(0)
        os.ftruncate(hand.memory.fd, SIZE)
    round_trip_again(vhost, packed)


def round_trip_again(driver: Driver, packed: bool) -> None:
    """A fresh start serves requests."""
    with hand_driver(driver, packed=packed) as hand:
        hand.start(0)
        hand.offer(0, 0, IN, 0)
        hand.kick()
        assert hand.reap(0, 1) == [0]
        assert hand.status(0, 0) == 0


# --- the program dies ----------------------------------------------------------------------


class Queue(Protocol):
    """Where requests go: a disk, or a driver on memory of its own."""

    def submit(self, batch: Sequence[tuple[str, int, Any]]) -> list[int]: ...
    def reap(self, minimum: int = 1, timeout: float | None = None) -> list[tuple[int, int]]: ...


class Flow:
    """Numbered blocks written through a disk or an arena, each to a place of its own."""

    def __init__(self, port: Queue, size: int = 64 * KIB) -> None:
        self._port = port
        self._size = size
        self._places: dict[int, int] = {}
        self._next = 0

    def submit(self, count: int) -> None:
        batch = []
        for number in range(self._next, self._next + count):
            batch.append(("write", number * self._size, pattern(number, self._size)))
        for token in self._port.submit(batch):
            self._places[token] = self._next
            self._next += 1

    def reap(self, minimum: int) -> int:
        """Completed requests: each must have been outstanding, once."""
        done = self._port.reap(minimum, DEADLINE)
        assert len(done) >= minimum, f"{len(done)} of {minimum} requests came back"
        for token, result in done:
            assert result == self._size
            del self._places[token]
        return len(done)

    def reap_all(self) -> None:
        while self._places:
            self.reap(1)

    def verify(self, image: str) -> None:
        data = Path(image).read_bytes()
        for number in range(self._next):
            at = number * self._size
            assert data[at : at + self._size] == pattern(number, self._size), number


@pytest.mark.row("takeover.in-flight", "takeover.mid-request")
@pytest.mark.where("child")
@pytest.mark.parametrize("bus_driver", ["virtio_vdpa", "vhost_vdpa"])
@pytest.mark.parametrize("moment", ["before", "amid"])
def test_requests_survive_a_killed_program(
    platform: Platform, image: str, packed: bool, bus_driver: str, moment: str
) -> None:
    """SIGKILL before it saw the kick, or amid its work; the successor completes each once."""
    block = platform.block_program("vd0", image, packed=packed)
    platform.dev_add("vd0", bus_driver)
    driver = platform.driver("vd0") if bus_driver == "vhost_vdpa" else None
    arena = ArenaBlk(driver, 1) if driver else None
    flow = Flow(arena.native if arena else platform.disk("vd0"))
    for _ in range(3):
        if moment == "before":
            block.pause()
        flow.submit(48)
        if moment == "amid":
            flow.reap(1)
        block.kill()
        block = platform.block_program("vd0", image, packed=packed)
        flow.reap_all()
    if arena and driver:
        arena.close()
        driver.close()
    else:
        platform.unbind("vd0")
    block.close()
    flow.verify(image)


@pytest.mark.row("takeover.in-order")
@pytest.mark.parametrize("bus_driver", ["virtio_vdpa", "vhost_vdpa"])
def test_requests_survive_an_orderly_upgrade(
    platform: Platform, image: str, packed: bool, bus_driver: str
) -> None:
    """The program ends in order while requests flow; the next one goes on."""
    block = platform.block_program("vd0", image, packed=packed)
    platform.dev_add("vd0", bus_driver)
    driver = platform.driver("vd0") if bus_driver == "vhost_vdpa" else None
    arena = ArenaBlk(driver, 1) if driver else None
    flow = Flow(arena.native if arena else platform.disk("vd0"))
    for _ in range(3):
        flow.submit(48)
        block.close()
        flow.submit(8)
        block = platform.block_program("vd0", image, packed=packed)
        flow.reap_all()
    if arena and driver:
        arena.close()
        driver.close()
    else:
        platform.unbind("vd0")
    block.close()
    flow.verify(image)


@pytest.mark.row("takeover.message")
@pytest.mark.where("child")
def test_a_message_that_a_killed_program_did_not_answer_goes_to_its_successor(
    platform: Platform, image: str, packed: bool
) -> None:
    block = platform.block_program("vd0", image, packed=packed)
    platform.dev_add("vd0", "vhost_vdpa")
    block.pause()
    opening = background(lambda: platform.driver("vd0"))
    block.kill()
    platform.block_program("vd0", image, packed=packed)
    driver = opening.result(DEADLINE)
    round_trip_again(driver, packed)
    driver.close()


@pytest.mark.row("io.timeout")
@pytest.mark.where("child")
def test_a_program_that_answers_too_late_has_a_broken_device(
    platform: Platform, image: str, packed: bool
) -> None:
    block = platform.block_program("vd0", image, packed=packed)
    platform.dev_add("vd0", "vhost_vdpa")
    driver = platform.driver("vd0")
    driver.set_status(STARTED)
    platform.set_attribute("vd0", "msg_timeout", platform.short_timeout)
    block.pause()
    driver.set_status(AGREED)
    assert driver.get_status() == STARTED
    block.resume()
    platform.set_attribute("vd0", "msg_timeout", 30)
    with refused(errno.EIO):
        driver.set_status(0)
    driver.close()
    block.close()
    platform.dev_del("vd0")
    platform.program().control.destroy_dev("vd0")
    platform.block_program("vd0", image, packed=packed)
    platform.dev_add("vd0", "vhost_vdpa")
    again = platform.driver("vd0")
    round_trip_again(again, packed)
    assert again.get_status() in (0, LIVE)
    again.close()
