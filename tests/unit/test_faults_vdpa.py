"""What faults change between a bus driver and its device."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from tests.unit.raw_device import Caller, RawDevice, blk_config, ok
from vduse import _native
from vduse.bus.iotlb import Mapping, SharedFile
from vduse.control.abi import (
    ACCESS_RW,
    DevRequest,
    DevResponse,
    Ioctl,
    IotlbEntry,
    SetStatus,
    UpdateIotlb,
)
from vduse.framework import Framework
from vduse.framework.device import VduseDevice
from vduse.framework.vdpa_device import Provision
from vduse.run.faults.cut import cut
from vduse.run.faults.vdpa import FaultyVdpa, Late

PAGE = 4096
EVERYTHING = UpdateIotlb(0, (1 << 64) - 1)


@pytest.fixture
def framework() -> Iterator[Framework]:
    with Framework(bounce_size=1 << 20) as made:
        yield made


@pytest.fixture
def device(framework: Framework) -> Iterator[RawDevice]:
    control = Caller(framework.control())
    made = RawDevice(control, blk_config(queues=2))
    made.set_up_queues()
    yield made
    made.close()
    control.close()


def add(framework: Framework, late: Late | None = None, driver: str = "vhost_vdpa") -> FaultyVdpa:
    made: list[FaultyVdpa] = []

    def make(device: VduseDevice, provision: Provision) -> FaultyVdpa:
        made.append(FaultyVdpa(device, provision, late))
        return made[-1]

    framework.dev_add("vd0", driver=driver, vdpa_type=make)
    return made[0]


def entry(device: RawDevice, start: int, last: int) -> IotlbEntry:
    """What IOTLB_GET_FD finds there."""
    wanted = IotlbEntry(start=start, last=last)
    answer, fds = device.calls.call(Ioctl.IOTLB_GET_FD, wanted.pack())
    for fd in fds:
        os.close(fd)
    return IotlbEntry.unpack(answer)


# --- late virtqueues -------------------------------------------------------------------------


def test_a_late_virtqueue_is_ready_some_time_after_driver_ok(
    framework: Framework, device: RawDevice
) -> None:
    happened = threading.Event()
    vdpa = add(framework, Late(0.01, 1, lambda _text: happened.set()))
    vdpa.set_vq_ready(0, True)
    vdpa.set_vq_ready(1, True)
    assert (vdpa.get_vq_ready(0), vdpa.get_vq_ready(1)) == (True, False)
    vdpa.set_status(0xF)
    assert happened.wait(30)
    assert vdpa.get_vq_ready(1)
    # The driver's first kick of a queue that takes them.
    assert vdpa.vq_line(1).kicked


def test_the_last_virtqueue_is_the_late_one_where_none_is_named(
    framework: Framework, device: RawDevice
) -> None:
    vdpa = add(framework, Late(3600, None, print))
    vdpa.set_vq_ready(0, True)
    vdpa.set_vq_ready(1, True)
    assert (vdpa.get_vq_ready(0), vdpa.get_vq_ready(1)) == (True, False)


def test_a_virtqueue_that_its_driver_enables_late_itself_is_not_held_back(
    framework: Framework, device: RawDevice
) -> None:
    vdpa = add(framework, Late(3600, 1, print))
    vdpa.set_status(0xF)
    vdpa.set_vq_ready(1, True)
    assert vdpa.get_vq_ready(1)
    vdpa.reset()


def test_a_reset_forgets_a_virtqueue_that_is_late(framework: Framework, device: RawDevice) -> None:
    vdpa = add(framework, Late(3600, 1, print))
    vdpa.set_vq_ready(1, True)
    vdpa.set_status(0xF)
    timers = [each for each in threading.enumerate() if isinstance(each, threading.Timer)]
    assert timers
    vdpa.reset()
    for timer in timers:
        timer.join()
    assert not vdpa.get_vq_ready(1)


# --- the IOTLB -------------------------------------------------------------------------------


def memory(start: int, size: int, offset: int = 0) -> Mapping:
    arena = _native.Arena((offset + size + PAGE - 1) & -PAGE, 0)
    return Mapping(start, start + size - 1, SharedFile(arena.fd), offset, ACCESS_RW)


def test_an_entry_is_cut_at_a_page_and_covers_the_same_bytes() -> None:
    whole = memory(0x10000, 5 * PAGE, offset=PAGE)
    low, high = cut(whole, [])
    assert (low.start, low.last, low.offset) == (0x10000, 0x10000 + 2 * PAGE - 1, PAGE)
    assert (high.start, high.last, high.offset) == (low.last + 1, whole.last, 3 * PAGE)
    assert low.file is high.file is whole.file


@pytest.mark.parametrize("size", [1, PAGE, 2 * PAGE - 1])
def test_an_entry_without_a_page_in_its_middle_stays_whole(size: int) -> None:
    assert len(cut(memory(0, size), [])) == 1


def test_an_entry_is_not_cut_where_a_ring_may_lie() -> None:
    whole = memory(0, 8 << 20)
    assert len(cut(whole, [(4 << 20) - PAGE])) == 1
    assert len(cut(whole, [4 << 20])) == 2
    assert len(cut(whole, [0])) == 2


def test_cutting_tells_the_device_twice_and_leaves_the_iotlb_as_it_was(
    framework: Framework, device: RawDevice
) -> None:
    vdpa = add(framework)
    mapping = memory(0x100000, 1 << 20)
    vdpa.set_map([mapping])
    before = len(device.seen)
    found: list[IotlbEntry] = []

    def look(request: DevRequest) -> DevResponse:
        found.append(entry(device, 0x100000, 0x1FFFFF))
        return ok(request)

    device.reply = look
    assert vdpa.cut_iotlb() == 1
    device.reply = ok
    assert device.seen[before:] == [EVERYTHING, EVERYTHING]
    assert [each.last for each in found] == [0x17FFFF, 0x1FFFFF]


def test_bounce_pages_that_moved_come_back_at_a_reset(
    framework: Framework, device: RawDevice
) -> None:
    vdpa = add(framework, driver="virtio_vdpa")
    # A request maps the first page; the device answers none of them.
    framework.disk("vd0").submit([("read", 0, bytearray(512))])
    vdpa.move_bounce()
    assert vdpa.elsewhere
    assert device.seen[-1] == EVERYTHING
    assert entry(device, 0, 0).last == (1 << 20) - 1
    vdpa.reset()
    assert not vdpa.elsewhere


def test_the_status_is_sent_again_to_a_live_device_only(
    framework: Framework, device: RawDevice
) -> None:
    vdpa = add(framework)
    assert not vdpa.send_status_again()
    vdpa.set_status(0xF)
    assert vdpa.send_status_again()
    assert device.seen[-2:] == [SetStatus(0xF), SetStatus(0xF)]
