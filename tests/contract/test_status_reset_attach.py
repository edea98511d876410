"""docs/kernel-behaviour.md, "Status, reset, attach"."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest

from tests.contract.device_ring import DeviceRing, finish_all
from tests.contract.devices import (
    AGREED,
    BASE,
    DEADLINE,
    LIVE,
    STARTED,
    RawDevice,
    background,
    blk_config,
    go_live,
    make_live,
    ok,
    readable,
    refuse,
    refused,
)
from tests.contract.ports import Disk, Platform, Program
from vduse.bus.driver import Driver
from vduse.control.abi import DevRequest, DevResponse, SetStatus, decode_vq_state

PAGE = 4096


# --- status --------------------------------------------------------------------------------


@pytest.mark.row("status.stored-after-ok")
def test_a_status_is_stored_after_the_answer_only(
    served: RawDevice, driver: Driver, eventfd: Callable[[], int]
) -> None:
    """An irq before DRIVER_OK is answered is EINVAL."""
    driver.set_vring_enable(0, True)
    driver.set_status(AGREED)
    served.stop()
    setting = background(lambda: driver.set_status(LIVE))
    request = served.receive()
    assert request.message == SetStatus(LIVE)
    with refused(errno.EINVAL):
        served.channel.vq_inject_irq(0)
    with refused(errno.EINVAL):
        served.channel.dev_inject_config_irq()
    served.answer(request)
    setting.result(DEADLINE)
    assert driver.get_status() == LIVE
    served.channel.vq_inject_irq(0)
    served.channel.dev_inject_config_irq()
    served.serve()


@pytest.mark.row("status.refused")
def test_a_refused_status_is_not_stored(served: RawDevice, driver: Driver) -> None:
    driver.set_status(STARTED)
    served.reply = refuse
    driver.set_status(AGREED)
    assert driver.get_status() == STARTED
    served.reply = ok


@pytest.mark.row("status.features-refused")
def test_a_device_that_refuses_features_ok_is_given_up(
    platform: Platform, served: RawDevice
) -> None:
    def picky(request: DevRequest) -> DevResponse:
        return refuse(request) if request.message == SetStatus(AGREED) else ok(request)

    served.reply = picky
    with refused(errno.EIO, errno.ENODEV):
        platform.dev_add("vd0", "virtio_vdpa")
    assert served.seen[-1] == SetStatus(STARTED | 0x80)


@pytest.mark.row("status.no-removal")
def test_status_bits_are_only_added(served: RawDevice, driver: Driver) -> None:
    driver.set_status(STARTED)
    with refused(errno.EINVAL):
        driver.set_status(1)
    assert driver.get_status() == STARTED


# --- reset ---------------------------------------------------------------------------------


@pytest.mark.row("reset.all")
def test_reset_clears_status_features_and_queues(
    served: RawDevice, driver: Driver, eventfd: Callable[[], int]
) -> None:
    kick = eventfd()
    driver.set_vring_num(0, 16)
    driver.set_vring_addr(0, 0x1000, 0x2000, 0x3000)
    driver.set_vring_base(0, 9)
    driver.set_vring_enable(0, True)
    go_live(driver)
    served.channel.vq_setup_kickfd(0, kick)
    driver.set_status(0)
    assert served.seen[-1] == SetStatus(0)
    assert driver.get_status() == 0
    assert served.channel.dev_get_features() == 0
    info = served.channel.vq_get_info(0)
    assert (info.num, info.desc_addr, info.driver_addr, info.device_addr) == (0, 0, 0, 0)
    assert decode_vq_state(info.state, packed=False) == (0,)
    assert not info.ready
    driver.set_vring_enable(0, True)
    driver.kick(0)
    assert not readable(kick, 0)  # it was released


@pytest.mark.row("reset.failed")
def test_reset_happens_even_where_the_device_refuses_it(served: RawDevice, driver: Driver) -> None:
    make_live(driver)
    driver.set_vring_enable(0, True)
    served.reply = refuse
    with refused(errno.EIO):
        driver.set_status(0)
    assert driver.get_status() == 0
    assert served.channel.dev_get_features() == 0
    assert not served.channel.vq_get_info(0).ready
    served.reply = ok


@pytest.mark.row("reset.bounce-entry")
def test_reset_drops_the_bounce_entry(platform: Platform, served: RawDevice, disk: Disk) -> None:
    disk.submit([("write", 0, bytes(PAGE))])
    _, fd = served.channel.iotlb_get_fd(0, PAGE)
    os.close(fd)
    found: list[bool] = []

    def look(request: DevRequest) -> DevResponse:
        if request.message == SetStatus(1):  # after the reset
            with refused(errno.EINVAL):
                served.channel.iotlb_get_fd(0, PAGE)
            found.append(True)
        return ok(request)

    finish_all(served.node)
    served.reply = look
    platform.bind("vd0", "virtio_vdpa")
    assert found == [True, True]  # of the old driver's end, of the new one's start


@pytest.mark.row("reset.irq-work")
def test_reset_ends_the_interrupts(
    served: RawDevice, driver: Driver, eventfd: Callable[[], int]
) -> None:
    config, call = eventfd(), eventfd()
    make_live(driver)
    driver.set_config_call(config)
    driver.set_vring_call(0, call)
    driver.set_vring_enable(0, True)
    driver.set_status(0)
    make_live(driver)
    served.channel.dev_inject_config_irq()
    served.channel.vq_inject_irq(0)
    driver.set_status(0)
    assert not readable(call, 0)
    assert not readable(config, 0)


# --- attach --------------------------------------------------------------------------------


@pytest.mark.row("attach.probe")
def test_virtio_vdpa_sends_statuses_0_1_3_b_f(served: RawDevice, disk: Disk) -> None:
    assert served.seen == [SetStatus(status) for status in (0, 1, STARTED, AGREED, LIVE)]


@pytest.mark.row("attach.remove")
def test_unbinding_virtio_vdpa_sends_statuses_0_1(platform: Platform, served: RawDevice) -> None:
    platform.dev_add("vd0", "virtio_vdpa")
    count = len(served.seen)
    platform.unbind("vd0")
    assert served.seen[count:] == [SetStatus(0), SetStatus(1)]
    platform.dev_del("vd0")
    assert len(served.seen) == count + 2


@pytest.mark.row("attach.probe-failure")
def test_a_failed_probe_adds_failed(platform: Platform, served: RawDevice) -> None:
    def fail(request: DevRequest) -> DevResponse:
        return refuse(request) if request.message == SetStatus(AGREED) else ok(request)

    served.reply = fail
    with refused(errno.EIO, errno.ENODEV):
        platform.dev_add("vd0", "virtio_vdpa")
    assert served.seen[-1] == SetStatus(STARTED | 0x80)


@pytest.mark.row("attach.refused-status")
@pytest.mark.parametrize(
    ("at", "statuses"),
    [
        (0, (0, 1, 3, 0xB, 0xF)),
        (1, (0, 1, 2, 0xA, 0xE)),
        (3, (0, 1, 3, 9, 0xD)),
        (0xF, (0, 1, 3, 0xB, 0xF, 0xF)),
    ],
)
def test_a_probe_goes_on_after_a_refused_status(
    platform: Platform, served: RawDevice, at: int, statuses: tuple[int, ...]
) -> None:
    """It is not stored: what follows lacks its bit; DRIVER_OK is sent again."""
    left = [SetStatus(at)]

    def refuse_once(request: DevRequest) -> DevResponse:
        if request.message in left:
            left.clear()
            return refuse(request)
        return ok(request)

    served.reply = refuse_once
    platform.dev_add("vd0", "virtio_vdpa")
    assert served.seen == [SetStatus(status) for status in statuses]
    platform.dev_del("vd0")


@pytest.mark.row("difference.driver-ok")
def test_driver_ok_refused_twice_fails_the_probe(platform: Platform, served: RawDevice) -> None:
    def fail(request: DevRequest) -> DevResponse:
        return refuse(request) if request.message == SetStatus(LIVE) else ok(request)

    served.reply = fail
    with refused(errno.EIO):
        platform.dev_add("vd0", "virtio_vdpa")
    assert served.seen[-3:] == [SetStatus(LIVE), SetStatus(LIVE), SetStatus(AGREED | 0x80)]


@pytest.mark.row("difference.outstanding")
def test_unbinding_ends_what_is_outstanding(
    platform: Platform, served: RawDevice, disk: Disk
) -> None:
    (token,) = disk.submit([("write", 0, bytes(PAGE))])
    platform.unbind("vd0")
    assert disk.reap(1) == [(token, -errno.ENODEV)]


@pytest.mark.row("attach.dev-add")
def test_dev_add_errors(platform: Platform, device: RawDevice) -> None:
    with refused(errno.EINVAL):
        platform.dev_add("vd1")
    device.channel.vq_setup(0, 0)
    with refused(errno.EINVAL):
        platform.dev_add("vd0")
    device.channel.vq_setup(0, 64)
    platform.dev_add("vd0")
    with refused(errno.EEXIST):
        platform.dev_add("vd0")


@pytest.mark.row("attach.no-opener")
def test_a_device_can_be_attached_while_no_program_has_it_open(
    platform: Platform, device: RawDevice
) -> None:
    device.program.end()
    platform.dev_add("vd0")


@pytest.mark.row("difference.locks")
def test_a_silent_device_blocks_nobody_else(platform: Platform, device: RawDevice) -> None:
    other = RawDevice.create(device.program, blk_config("vd1")).serve()
    adding = background(lambda: platform.dev_add("vd0", "virtio_vdpa"))
    request = device.receive()
    platform.dev_add("vd1", "virtio_vdpa")
    platform.dev_del("vd1")
    assert not adding.done()
    device.answer(request)
    device.serve()
    adding.result(DEADLINE)
    platform.dev_del("vd0")
    device.stop()
    other.stop()


@pytest.mark.row("attach.late-enable")
def test_enabling_a_queue_after_driver_ok_sends_no_message(
    served: RawDevice, driver: Driver, eventfd: Callable[[], int]
) -> None:
    """A kick is all that a device hears of it."""
    kick = eventfd()
    make_live(driver)
    served.channel.vq_setup_kickfd(0, kick)
    seen = list(served.seen)
    driver.set_vring_enable(0, True)
    driver.kick(0)
    assert readable(kick)
    assert served.channel.vq_get_info(0).ready
    assert served.seen == seen


# --- a dead program ------------------------------------------------------------------------


@pytest.mark.row("takeover.device-stays", "takeover.hangs")
def test_the_device_of_a_dead_program_stays_and_its_requests_hang(
    platform: Platform, served: RawDevice, disk: Disk
) -> None:
    """The successor gets EEXIST, opens, and finds addresses and ready, but avail index 0."""
    (token,) = disk.submit([("write", 0, b"x" * PAGE)])
    ring = DeviceRing(served.node)
    assert ring.waiting == 1
    before = served.channel.vq_get_info(0)
    served.stop()
    served.program.end()
    assert disk.reap(0, 0) == []
    successor = platform.program()
    with refused(errno.EEXIST):
        successor.control.create_dev(blk_config())
    again = RawDevice.open(successor).serve()
    info = again.channel.vq_get_info(0)
    assert info == before
    assert info.ready
    assert decode_vq_state(info.state, packed=False) == (0,)
    assert again.channel.dev_get_features() & BASE == BASE
    ring = DeviceRing(again.node)
    ring.finish(*ring.take())
    assert disk.reap(1) == [(token, PAGE)]
    platform.unbind("vd0")
    again.stop()


@pytest.mark.row("takeover.gone-for-good")
def test_a_device_whose_program_is_gone_for_good_can_be_removed(
    platform: Platform, program: Program, device: RawDevice
) -> None:
    """`vdpa dev del` returns after msg_timeout; then DESTROY works."""
    device.serve()
    platform.dev_add("vd0", "virtio_vdpa")
    device.stop()
    device.program.end()
    platform.set_attribute("vd0", "msg_timeout", platform.short_timeout)
    platform.dev_del("vd0")
    platform.program().control.destroy_dev("vd0")
