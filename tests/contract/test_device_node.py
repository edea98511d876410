"""docs/kernel-behaviour.md, "Device node": open, release, kicks, and a broken device."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from functools import partial

import pytest

from tests.contract.device_ring import finish_all
from tests.contract.devices import (
    DEADLINE,
    LIVE,
    STARTED,
    RawDevice,
    background,
    go_live,
    readable,
    refused,
)
from tests.contract.ports import Platform, Program
from vduse.bus.driver import Driver
from vduse.control.abi import IovaUmem, SetStatus

PAGE = 4096


@pytest.mark.row("node.open-missing")
def test_open_of_no_device_fails(device: RawDevice) -> None:
    with refused(errno.ENOENT, errno.ENODEV):
        device.program.open("vd1")
    device.close()
    device.program.control.destroy_dev("vd0")
    with refused(errno.ENOENT, errno.ENODEV):
        device.program.open("vd0")


@pytest.mark.row("node.open-busy")
def test_open_while_open_is_ebusy(platform: Platform, device: RawDevice) -> None:
    for program in (device.program, platform.program()):
        with refused(errno.EBUSY):
            program.open("vd0")


@pytest.mark.row("node.mode")
def test_nodes_are_their_owners_only(platform: Platform) -> None:
    assert platform.control_mode() == 0o600


# --- release -------------------------------------------------------------------------------


@pytest.mark.row("release.connected")
@pytest.mark.parametrize("times", range(3))
def test_a_closed_node_opens_again_at_once(
    platform: Platform, device: RawDevice, times: int
) -> None:
    device.close()
    RawDevice.open(device.program).close()
    device.program.end()
    RawDevice.open(platform.program())


@pytest.mark.row("release.umem")
def test_release_deregisters_user_memory(platform: Platform, device: RawDevice) -> None:
    platform.set_attribute("vd0", "bounce_size", 1 << 20)
    device.serve()
    platform.dev_add("vd0", "virtio_vdpa")
    disk = platform.disk("vd0")
    (token,) = disk.submit([("write", 0, bytes(PAGE))])
    umem = IovaUmem(device.program.memory(1 << 20).address, 0, 1 << 20)
    device.channel.iotlb_reg_umem(umem)
    device.stop()
    device.program.end()
    successor = RawDevice.open(platform.program())
    with refused(errno.ENOENT):
        successor.channel.iotlb_dereg_umem(umem)
    successor.serve()
    finish_all(successor.node)
    assert disk.reap(1, DEADLINE) == [(token, PAGE)]
    platform.unbind("vd0")
    successor.stop()


@pytest.mark.row("release.replay")
def test_release_puts_unanswered_messages_before_the_unread_ones(
    platform: Platform, device: RawDevice
) -> None:
    """In their order, to be read by the next opener."""
    platform.dev_add("vd0", "vhost_vdpa")
    reset = background(lambda: platform.driver("vd0"))
    first = device.receive()
    assert first.message == SetStatus(0)
    device.program.end()
    successor = RawDevice.open(platform.program())
    again = successor.receive()
    assert again == first
    successor.answer(again)
    driver = reset.result(DEADLINE)
    successor.serve()
    driver.close()
    successor.stop()


@pytest.mark.row("release.no-reset")
def test_release_does_not_reset_the_device(
    platform: Platform, served: RawDevice, driver: Driver
) -> None:
    driver.set_vring_num(0, 16)
    driver.set_vring_addr(0, 0x1000, 0x2000, 0x3000)
    driver.set_vring_enable(0, True)
    go_live(driver)
    features = served.channel.dev_get_features()
    served.stop()
    served.program.end()
    assert driver.get_status() == LIVE
    successor = RawDevice.open(platform.program())
    assert successor.nothing_to_read()
    assert successor.channel.dev_get_features() == features
    info = successor.channel.vq_get_info(0)
    assert (info.num, info.desc_addr, info.driver_addr, info.device_addr) == (
        16,
        0x1000,
        0x2000,
        0x3000,
    )
    assert info.ready
    successor.serve()
    driver.close()
    successor.stop()


# --- kicks ---------------------------------------------------------------------------------


@pytest.mark.row("kick.dead-daemon")
def test_kicks_go_into_a_dead_daemons_eventfd_and_are_lost(
    platform: Platform, served: RawDevice, driver: Driver, eventfd: Callable[[], int]
) -> None:
    old, new = eventfd(), eventfd()
    driver.set_vring_enable(0, True)
    served.channel.vq_setup_kickfd(0, old)
    served.stop()
    served.program.end()
    driver.kick(0)
    assert readable(old)
    successor = RawDevice.open(platform.program())
    successor.channel.vq_setup_kickfd(0, new)
    assert not readable(new, 0)
    driver.kick(0)
    assert readable(new)
    successor.serve()
    driver.close()
    successor.stop()


@pytest.mark.row("kick.remembered")
def test_a_kick_without_an_eventfd_is_remembered(
    served: RawDevice, driver: Driver, eventfd: Callable[[], int]
) -> None:
    kick = eventfd()
    driver.set_vring_enable(0, True)
    driver.kick(0)
    served.channel.vq_setup_kickfd(0, kick)
    assert os.eventfd_read(kick) == 1
    served.channel.vq_setup_kickfd(0, kick)
    assert not readable(kick, 0)


@pytest.mark.row("kick.not-ready")
def test_a_kick_of_a_queue_that_is_not_ready_is_none(
    served: RawDevice, driver: Driver, eventfd: Callable[[], int]
) -> None:
    kick = eventfd()
    driver.kick(0)
    served.channel.vq_setup_kickfd(0, kick)
    driver.kick(0)
    driver.set_vring_enable(0, True)
    served.channel.vq_setup_kickfd(0, kick)
    assert not readable(kick, 0)


# --- broken --------------------------------------------------------------------------------


@pytest.mark.row("broken.eperm")
def test_every_ioctl_of_a_broken_device_is_eperm(
    platform: Platform, program: Program, device: RawDevice
) -> None:
    platform.dev_add("vd0", "vhost_vdpa")
    platform.set_attribute("vd0", "msg_timeout", platform.short_timeout)
    with refused(errno.EIO):
        platform.driver("vd0")
    for node in (device, None):
        if node is None:
            device.close()
        opened = node or RawDevice.open(program)
        for call in (
            partial(opened.channel.vq_get_info, 0),
            partial(opened.channel.vq_get_info, 9),
            opened.channel.dev_get_features,
            partial(opened.channel.iotlb_get_fd, 1, 0),
            partial(opened.node.ioctl, 0x8100, b""),
        ):
            with refused(errno.EPERM):
                call()


@pytest.mark.row("broken.for-good")
def test_only_destroy_and_create_mend_a_broken_device(
    platform: Platform, program: Program, device: RawDevice
) -> None:
    platform.dev_add("vd0", "vhost_vdpa")
    platform.set_attribute("vd0", "msg_timeout", platform.short_timeout)
    with refused(errno.EIO):
        platform.driver("vd0")
    platform.set_attribute("vd0", "msg_timeout", 30)
    device.close()
    again = RawDevice.open(program)
    with refused(errno.EIO):  # at once
        platform.driver("vd0")
    again.close()
    platform.dev_del("vd0")
    program.control.destroy_dev("vd0")
    whole = RawDevice.create(program).serve()
    platform.dev_add("vd0", "vhost_vdpa")
    driver = platform.driver("vd0")
    driver.set_status(STARTED)
    assert driver.get_status() == STARTED
    driver.close()
    whole.stop()
