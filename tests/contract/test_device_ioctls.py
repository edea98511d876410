"""docs/kernel-behaviour.md, "Ioctls of a device node", but for those on the IOVA space."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.contract.devices import (
    AGREED,
    BASE,
    DEADLINE,
    LIVE,
    RawDevice,
    background,
    blk_config,
    make_live,
    readable,
    refused,
)
from tests.contract.ports import Platform, Program
from vduse.bus.driver import Driver
from vduse.control.abi import Ioctl, VqConfig, VqEventfd, decode_vq_state, pack_u32
from vduse.control.features import Feature

PACKED = BASE | int(Feature.RING_PACKED)


@pytest.mark.row("device.unknown")
@pytest.mark.parametrize("nr", [0, 0x8181, int(Ioctl.CREATE_DEV)])
def test_unknown_command_is_enotty(device: RawDevice, nr: int) -> None:
    with refused(errno.ENOTTY):
        device.node.ioctl(nr, b"")


# --- features and config space -------------------------------------------------------------


@pytest.mark.row("get-features")
def test_get_features_is_whatever_the_driver_wrote(served: RawDevice, driver: Driver) -> None:
    assert served.channel.dev_get_features() == 0
    driver.set_features(0xDEAD_BEEF_0000_0001)
    assert served.channel.dev_get_features() == 0xDEAD_BEEF_0000_0001


@pytest.mark.row("set-config.range")
@pytest.mark.parametrize(
    ("offset", "length"), [(0, 0), (60, 0), (60, 1), (59, 2), (0, 61), (61, 1), (0xFFFF_FFFF, 1)]
)
def test_set_config_of_nothing_or_out_of_range_is_einval(
    device: RawDevice, offset: int, length: int
) -> None:
    with refused(errno.EINVAL):
        device.channel.dev_set_config(offset, bytes(length))


@pytest.mark.row("set-config.quiet")
def test_set_config_changes_the_space_and_interrupts_nobody(
    served: RawDevice, driver: Driver, eventfd: Callable[[], int]
) -> None:
    call = eventfd()
    make_live(driver)
    driver.set_config_call(call)
    served.channel.dev_set_config(58, b"\x12\x34")
    assert driver.get_config(56, 4) == b"\0\0\x12\x34"
    served.channel.dev_inject_config_irq()
    assert readable(call)
    assert os.eventfd_read(call) == 1  # of the second call alone


@pytest.mark.row("config-irq.driver-ok")
def test_config_irq_before_driver_ok_is_einval(
    served: RawDevice, driver: Driver, eventfd: Callable[[], int]
) -> None:
    call = eventfd()
    driver.set_config_call(call)
    for status in (1, 3, AGREED):
        driver.set_status(status)
        with refused(errno.EINVAL):
            served.channel.dev_inject_config_irq()
    driver.set_status(LIVE)
    served.channel.dev_inject_config_irq()
    assert readable(call)


@pytest.mark.row("config-irq.driver-ok")
def test_config_irq_of_a_device_that_is_not_attached_is_einval(device: RawDevice) -> None:
    with refused(errno.EINVAL):
        device.channel.dev_inject_config_irq()


# --- VQ_SETUP ------------------------------------------------------------------------------


@pytest.mark.row("vq-setup.index")
def test_vq_setup_of_no_queue_is_einval(device: RawDevice) -> None:
    for index in (1, 0xFFFF, 1 << 31):
        with refused(errno.EINVAL):
            device.channel.vq_setup(index, 64)


@pytest.mark.row("vq-setup.reserved")
@pytest.mark.parametrize("at", [0, 1, 2, 21])
def test_vq_setup_with_nonzero_reserved_is_einval(device: RawDevice, at: int) -> None:
    reserved = bytearray(22)
    reserved[at] = 1
    with refused(errno.EINVAL):
        device.node.ioctl(Ioctl.VQ_SETUP, replace(VqConfig(0, 64), reserved=bytes(reserved)).pack())


@pytest.mark.row("vq-setup.v0")
def test_vq_setup_v0_has_no_groups_and_needs_no_order(
    platform: Platform, served: RawDevice, driver: Driver
) -> None:
    with refused(errno.EINVAL):
        served.channel.vq_setup(0, 64, group=1)
    make_live(driver)
    served.channel.vq_setup(0, 32)
    assert driver.get_vring_num_max() == 32


@pytest.mark.row("vq-setup.v1")
@pytest.mark.profile("7.2")
def test_vq_setup_v1_wants_a_group_there_is_and_no_driver(
    platform: Platform, program: Program
) -> None:
    program.control.set_api_version(1)
    device = RawDevice.create(program, blk_config(groups=2, spaces=1))
    with refused(errno.EINVAL):
        device.channel.vq_setup(0, 64, group=2)
    device.channel.vq_setup(0, 64, group=1)
    device.serve()
    platform.dev_add("vd0", "vhost_vdpa")
    driver = platform.driver("vd0")
    assert driver.get_vring_group(0) == 1
    make_live(driver)
    with refused(errno.EINVAL):
        device.channel.vq_setup(0, 64, group=1)
    driver.close()
    device.stop()


@pytest.mark.row("vq-setup.unset")
def test_vq_setup_with_size_0_is_no_setup(platform: Platform, device: RawDevice) -> None:
    device.channel.vq_setup(0, 0)
    with refused(errno.EINVAL):
        platform.dev_add("vd0")
    device.channel.vq_setup(0, 64)
    platform.dev_add("vd0")


# --- VQ_GET_INFO ---------------------------------------------------------------------------


@pytest.mark.row("vq-info.index")
def test_vq_get_info_of_no_queue_is_einval(device: RawDevice) -> None:
    for index in (1, 0xFFFF_FFFF):
        with refused(errno.EINVAL):
            device.channel.vq_get_info(index)


@pytest.mark.row("vq-info.state")
def test_vq_get_info_gives_split_state(served: RawDevice, driver: Driver) -> None:
    driver.set_features(BASE)
    driver.set_vring_base(0, 0xABCD)
    info = served.channel.vq_get_info(0)
    assert decode_vq_state(info.state, packed=False) == (0xABCD,)
    assert not info.ready


@pytest.mark.row("vq-info.state")
def test_vq_get_info_gives_packed_state(platform: Platform, program: Program) -> None:
    device = RawDevice.create(program, blk_config(features=PACKED)).serve()
    platform.dev_add("vd0", "vhost_vdpa")
    driver = platform.driver("vd0")
    driver.set_features(PACKED)
    driver.set_vring_base(0, 0x1234 | 1 << 15 | 0x4321 << 16)
    state = device.channel.vq_get_info(0).state
    assert decode_vq_state(state, packed=True) == (0x1234, 1, 0x4321, 0)
    driver.close()
    device.stop()


# --- VQ_SETUP_KICKFD -----------------------------------------------------------------------


@pytest.mark.row("kickfd.index")
def test_kickfd_of_no_queue_is_einval(device: RawDevice, eventfd: Callable[[], int]) -> None:
    for fd in (eventfd(), -1):
        with refused(errno.EINVAL):
            device.channel.vq_setup_kickfd(1, fd)


@pytest.mark.row("kickfd.no-eventfd")
def test_kickfd_that_is_no_eventfd_is_refused(device: RawDevice) -> None:
    reader, writer = os.pipe()
    with refused(errno.EINVAL):
        device.channel.vq_setup_kickfd(0, writer)
    os.close(reader)
    os.close(writer)


@pytest.mark.row("kickfd.deassign")
def test_kickfd_minus_1_takes_the_eventfd_away_and_other_negatives_do_nothing(
    served: RawDevice, driver: Driver, eventfd: Callable[[], int]
) -> None:
    kick = eventfd()
    driver.set_vring_enable(0, True)
    served.channel.vq_setup_kickfd(0, kick)
    for other in (-2, -(1 << 31)):
        served.node.ioctl(Ioctl.VQ_SETUP_KICKFD, VqEventfd(0, other).pack())
    driver.kick(0)
    assert readable(kick)  # a kernel may take a worker for it
    assert os.eventfd_read(kick) == 1
    served.channel.vq_setup_kickfd(0, -1)
    driver.kick(0)
    assert not readable(kick, 0)


# --- VQ_INJECT_IRQ -------------------------------------------------------------------------


@pytest.mark.row("irq.index")
def test_irq_of_no_queue_is_einval(served: RawDevice, driver: Driver) -> None:
    make_live(driver)
    for index in (1, 0xFFFF_FFFF):
        with refused(errno.EINVAL):
            served.node.ioctl(Ioctl.VQ_INJECT_IRQ, pack_u32(index))


@pytest.mark.row("irq.driver-ok")
def test_irq_before_driver_ok_is_einval(served: RawDevice, driver: Driver) -> None:
    driver.set_vring_enable(0, True)
    with refused(errno.EINVAL):
        served.channel.vq_inject_irq(0)
    make_live(driver)
    driver.set_vring_enable(0, True)
    served.channel.vq_inject_irq(0)


@pytest.mark.row("irq.eventfd")
def test_irq_signals_a_call_eventfd_as_soon_as_the_queue_is_ready(
    served: RawDevice, driver: Driver, eventfd: Callable[[], int]
) -> None:
    call = eventfd()
    driver.set_vring_call(0, call)
    with refused(errno.EINVAL):
        served.channel.vq_inject_irq(0)
    driver.set_vring_enable(0, True)
    served.channel.vq_inject_irq(0)
    assert os.eventfd_read(call) == 1


@pytest.mark.row("irq.not-ready")
def test_irq_of_a_queue_that_is_not_ready_is_none(
    served: RawDevice, driver: Driver, eventfd: Callable[[], int]
) -> None:
    call, config = eventfd(), eventfd()
    make_live(driver)
    driver.set_vring_call(0, call)
    driver.set_config_call(config)
    served.channel.vq_inject_irq(0)
    # Linux looks whether the queue is ready when the irq's work runs, and works go in their order.
    served.channel.dev_inject_config_irq()
    assert readable(config)
    driver.set_vring_enable(0, True)
    assert not readable(call, 0)
    served.channel.vq_inject_irq(0)
    assert os.eventfd_read(call) == 1


@pytest.mark.row("irq.async")
def test_irq_never_waits_for_the_driver(
    served: RawDevice, driver: Driver, eventfd: Callable[[], int]
) -> None:
    """Not even where the driver's eventfd is blocking and full."""
    full = os.eventfd(0, os.EFD_CLOEXEC)
    os.eventfd_write(full, (1 << 64) - 2)
    driver.set_vring_call(0, full)
    driver.set_vring_enable(0, True)
    background(lambda: served.channel.vq_inject_irq(0)).result(DEADLINE)
    os.close(full)
