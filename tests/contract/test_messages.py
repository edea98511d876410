"""docs/kernel-behaviour.md, "Messages"."""

from __future__ import annotations

import errno
import os
from dataclasses import replace

import pytest

from tests.contract.devices import (
    AGREED,
    BASE,
    DEADLINE,
    LIVE,
    STARTED,
    RawDevice,
    background,
    blk_config,
    make_live,
    refuse,
    refused,
)
from tests.contract.ports import Disk, Platform, Program
from vduse.bus.driver import Driver
from vduse.control.abi import (
    ACCESS_RW,
    DevRequest,
    DevResponse,
    GetVqState,
    SetStatus,
    SetVqGroupAsid,
    UpdateIotlb,
    decode_vq_state,
)
from vduse.control.features import Feature

PAGE = 4096
ALL = (1 << 64) - 1
#: Seconds, as msg_timeout: a message that will not be answered, but is read before its time is
#: over, on a busy machine too.
TIME_TO_READ = 3


@pytest.mark.row("message.read-again")
def test_read_without_a_message_gives_none(device: RawDevice) -> None:
    assert device.channel.receive() is None
    assert not device.node.wait(0)


@pytest.mark.row("difference.read-whole")
def test_a_message_is_one_packet_of_152_bytes(platform: Platform, device: RawDevice) -> None:
    assert DevRequest.SIZE == 152
    platform.dev_add("vd0", "vhost_vdpa")
    opening = background(lambda: platform.driver("vd0"))
    request = device.receive()
    assert DevRequest.unpack(request.pack()) == request
    device.answer(request)
    device.serve()
    opening.result(DEADLINE).close()
    device.stop()


@pytest.mark.row("message.write-invalid", "message.write-unknown", "difference.write-errno")
def test_a_bad_answer_is_none_and_the_message_waits_on(
    platform: Platform, device: RawDevice
) -> None:
    """Short: EINVAL; nonzero reserved: EINVAL; unknown request id: ENOENT."""
    platform.dev_add("vd0", "vhost_vdpa")
    opening = background(lambda: platform.driver("vd0"))
    request = device.receive()
    good = DevResponse(request.request_id)
    for bad, expected in (
        (good.pack()[:-1], errno.EINVAL),
        (good.pack()[:8], errno.EINVAL),
        (replace(good, reserved=b"\1" + bytes(15)).pack(), errno.EINVAL),
        (replace(good, reserved=bytes(15) + b"\1").pack(), errno.EINVAL),
        (replace(good, request_id=request.request_id + 1).pack(), errno.ENOENT),
    ):
        if platform.refuses_responses:
            with refused(expected):
                device.node.write(bad)
        else:
            device.node.write(bad)
    assert not opening.done()
    device.channel.respond(good)
    device.serve()
    opening.result(DEADLINE).close()
    device.stop()


@pytest.mark.row("message.failed")
def test_any_nonzero_result_is_eio_to_whoever_asked(platform: Platform, device: RawDevice) -> None:
    platform.dev_add("vd0", "vhost_vdpa")
    for result in (1, 2, 0xFFFF_FFFF):
        opening = background(lambda: platform.driver("vd0"))
        device.answer(device.receive(), result)
        with refused(errno.EIO):
            opening.result(DEADLINE)


@pytest.mark.row("message.poll")
def test_poll_in_while_messages_are_unread(platform: Platform, device: RawDevice) -> None:
    platform.dev_add("vd0", "vhost_vdpa")
    opening = background(lambda: platform.driver("vd0"))
    assert device.node.wait(DEADLINE)
    request = device.receive()
    assert not device.node.wait(0)
    device.answer(request)
    device.serve()
    opening.result(DEADLINE).close()
    device.stop()


@pytest.mark.row("message.poll-broken", "difference.poll")
def test_poll_tells_of_a_broken_device(platform: Platform, device: RawDevice) -> None:
    platform.set_attribute("vd0", "msg_timeout", TIME_TO_READ)
    platform.dev_add("vd0", "vhost_vdpa")
    opening = background(lambda: platform.driver("vd0"))
    device.receive()
    with refused(errno.EIO):
        opening.result(DEADLINE)
    assert device.node.wait(DEADLINE)
    with pytest.raises(OSError):
        device.receive()


@pytest.mark.row("message.synchronous")
def test_a_sender_waits_for_the_answer(platform: Platform, device: RawDevice) -> None:
    platform.dev_add("vd0", "vhost_vdpa")
    opening = background(lambda: platform.driver("vd0"))
    request = device.receive()
    assert not opening.done()
    device.answer(request)
    device.serve()
    opening.result(DEADLINE).close()
    device.stop()


@pytest.mark.row("message.no-opener")
def test_a_message_is_sent_whether_or_not_a_daemon_is_there(
    platform: Platform, device: RawDevice
) -> None:
    platform.dev_add("vd0", "vhost_vdpa")
    device.program.end()
    opening = background(lambda: platform.driver("vd0"))
    successor = RawDevice.open(platform.program())
    request = successor.receive()
    assert request.message == SetStatus(0)
    successor.answer(request)
    successor.serve()
    opening.result(DEADLINE).close()
    successor.stop()


@pytest.mark.row("message.killed-waiter")
def test_a_killed_waiter_takes_back_its_own_message_only(
    platform: Platform, device: RawDevice
) -> None:
    """One of two waiters is killed, after its message was read."""
    other = RawDevice.create(device.program, blk_config("vd1"))
    for name in ("vd0", "vd1"):
        platform.dev_add(name, "vhost_vdpa")
    second = background(lambda: platform.driver("vd1"))
    read: list[DevRequest] = []
    platform.kill_opener("vd0", lambda: read.append(device.receive()))
    if not platform.refuses_responses:
        device.answer(read[0])  # nobody waits for it any more
    device.serve()
    other.serve()
    platform.driver("vd0").close()
    second.result(DEADLINE).close()
    device.stop()
    other.stop()


@pytest.mark.row("message.timeout")
@pytest.mark.parametrize("read", [True, False])
def test_a_timeout_fails_the_message_and_breaks_the_device(
    platform: Platform, device: RawDevice, read: bool
) -> None:
    """Whether it was read or not; later ones fail at once."""
    platform.set_attribute("vd0", "msg_timeout", TIME_TO_READ if read else platform.short_timeout)
    platform.dev_add("vd0", "vhost_vdpa")
    opening = background(lambda: platform.driver("vd0"))
    if read:
        device.receive()
    with refused(errno.EIO):
        opening.result(DEADLINE)
    platform.set_attribute("vd0", "msg_timeout", 0)  # for ever
    with refused(errno.EIO):
        background(lambda: platform.driver("vd0")).result(DEADLINE)


@pytest.mark.row("message.types")
def test_messages_of_version_0(platform: Platform, served: RawDevice, driver: Driver) -> None:
    make_live(driver)
    fd = os.memfd_create("driver")
    os.ftruncate(fd, PAGE)
    driver.iotlb_update(PAGE, PAGE, fd, 0, ACCESS_RW)
    driver.get_vring_base(0)
    os.close(fd)
    assert served.seen == [
        SetStatus(0),  # the open
        SetStatus(0),
        SetStatus(1),
        SetStatus(STARTED),
        SetStatus(AGREED),
        SetStatus(LIVE),
        UpdateIotlb(0, ALL),
        GetVqState(0),
    ]


@pytest.mark.row("message.types.v1")
@pytest.mark.profile("7.2")
def test_messages_of_version_1(platform: Platform, program: Program) -> None:
    program.control.set_api_version(1)
    device = RawDevice.create(program, blk_config(groups=1, spaces=1)).serve()
    platform.dev_add("vd0", "vhost_vdpa")
    driver = platform.driver("vd0")
    driver.set_group_asid(0, 0)
    fd = os.memfd_create("driver")
    os.ftruncate(fd, PAGE)
    driver.iotlb_update(PAGE, PAGE, fd, 0, ACCESS_RW, asid=0)
    os.close(fd)
    assert device.seen == [SetStatus(0), SetVqGroupAsid(0, 0), UpdateIotlb(0, ALL, asid=0)]
    driver.close()
    device.stop()


@pytest.mark.row("message.packed-mask")
def test_packed_state_answers_are_masked(platform: Platform, program: Program) -> None:
    packed = BASE | int(Feature.RING_PACKED)
    device = RawDevice.create(program, blk_config(features=packed)).serve()
    platform.dev_add("vd0", "vhost_vdpa")
    driver = platform.driver("vd0")
    driver.set_features(packed)
    device.stop()
    asking = background(lambda: driver.get_vring_base(0))
    # avail index, avail wrap, used index, used wrap
    device.answer_position(device.receive(), 0, 0x8123, 3, 0xFFFF, 2)
    base = asking.result(DEADLINE)
    assert (base & 0x7FFF, base >> 15 & 1) == (0x123, 1)
    assert (base >> 16 & 0x7FFF, base >> 31) == (0x7FFF, 0)
    device.serve()
    driver.close()
    device.stop()


@pytest.mark.row("message.split-state")
def test_split_state_answers_are_an_avail_index(
    platform: Platform, served: RawDevice, driver: Driver
) -> None:
    served.stop()
    asking = background(lambda: driver.get_vring_base(0))
    served.answer_position(served.receive(), 0, 0xFFFE)
    assert asking.result(DEADLINE) == 0xFFFE
    served.serve()


@pytest.mark.row("message.kept")
def test_what_is_kept_sends_no_message(served: RawDevice, driver: Driver) -> None:
    before = list(served.seen)
    driver.set_features(BASE)
    driver.set_vring_num(0, 32)
    driver.set_vring_addr(0, 0x1000, 0x2000, 0x3000)
    driver.set_vring_base(0, 7)
    driver.set_vring_enable(0, True)
    assert served.seen == before
    info = served.channel.vq_get_info(0)
    assert served.channel.dev_get_features() == BASE
    assert (info.num, info.desc_addr, info.driver_addr, info.device_addr, info.ready) == (
        32,
        0x1000,
        0x2000,
        0x3000,
        True,
    )
    assert decode_vq_state(info.state, packed=False) == (7,)
    driver.set_vring_enable(0, False)
    assert not served.channel.vq_get_info(0).ready


@pytest.mark.row("message.config-write")
def test_a_drivers_config_write_is_dropped(served: RawDevice, driver: Driver) -> None:
    before, seen = driver.get_config(0, 60), list(served.seen)
    driver.set_config(0, b"\xff" * 60)
    assert driver.get_config(0, 60) == before
    assert served.seen == seen


@pytest.mark.row("message.config-read")
def test_config_reads_come_from_the_kept_copy_zero_filled_past_its_end(
    platform: Platform, program: Program
) -> None:
    """A driver that asks for fields behind a short config space finds zeroes."""
    device = RawDevice.create(program, blk_config(config=(2048).to_bytes(8, "little"))).serve()
    platform.dev_add("vd0", "virtio_vdpa")
    disk: Disk = platform.disk("vd0")
    assert disk.size == 2048 * 512
    assert all(isinstance(message, SetStatus) for message in device.seen)
    platform.dev_del("vd0")
    device.stop()


@pytest.mark.row("message.refused-reset")
def test_refusal_of_every_message_is_survived(platform: Platform, device: RawDevice) -> None:
    device.serve()
    platform.dev_add("vd0", "vhost_vdpa")
    driver = platform.driver("vd0")
    device.reply = refuse
    with refused(errno.EIO):
        driver.get_vring_base(0)
    driver.close()
    device.stop()
