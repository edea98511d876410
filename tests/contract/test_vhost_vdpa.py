"""docs/kernel-behaviour.md, "vhost-vdpa" and "Privileges"."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator

import pytest

from tests.contract.device_ring import DeviceRing
from tests.contract.devices import (
    AGREED,
    BASE,
    LIVE,
    QUEUE_SIZE,
    STARTED,
    RawDevice,
    blk_config,
    make_live,
    ok,
    readable,
    refuse,
    refused,
)
from tests.contract.ports import Disk, Platform, Program
from vduse.bus.driver import Driver
from vduse.control.abi import ACCESS_RO, ACCESS_RW, ACCESS_WO, SetStatus, UpdateIotlb

PAGE = 4096
ALL = (1 << 64) - 1
UPDATE = UpdateIotlb(0, ALL)
#: VHOST_BACKEND_F_*
MSG_V2, BATCH, ASID, SUSPEND = 1 << 1, 1 << 2, 1 << 3, 1 << 4


@pytest.fixture
def memory() -> Iterator[int]:
    """64 KiB of the driver's shared memory."""
    fd = os.memfd_create("driver")
    os.ftruncate(fd, 16 * PAGE)
    yield fd
    os.close(fd)


@pytest.mark.row("vhost.open-busy")
def test_open_while_open_is_ebusy(platform: Platform, driver: Driver) -> None:
    with refused(errno.EBUSY):
        platform.driver("vd0")


@pytest.mark.row("vhost.open-resets")
def test_open_and_close_reset_the_device(
    platform: Platform, served: RawDevice, driver: Driver
) -> None:
    make_live(driver)
    driver.close()
    assert served.seen[-1] == SetStatus(0)
    count = len(served.seen)
    again = platform.driver("vd0")
    assert served.seen[count:] == [SetStatus(0)]
    assert again.get_status() == 0
    again.close()


@pytest.mark.row("vhost.identity")
def test_a_driver_sees_what_the_device_was_created_with(driver: Driver) -> None:
    assert driver.get_device_id() == 2
    assert driver.get_features() == BASE
    assert driver.get_config_size() == 60
    assert driver.get_config(0, 8) == (2048).to_bytes(8, "little")
    assert driver.get_vqs_count() == 1
    assert driver.get_vring_num_max() == QUEUE_SIZE
    first, last = driver.get_iova_range()
    assert first == 0
    assert last >= (1 << 48) - 1


@pytest.mark.row("vhost.indices")
def test_a_queue_that_is_not_there_is_enobufs(driver: Driver) -> None:
    for call in (
        lambda: driver.set_vring_num(1, 8),
        lambda: driver.get_vring_base(1),
        lambda: driver.set_vring_enable(0xFFFF, True),
        lambda: driver.set_vring_kick(1, -1),
    ):
        with refused(errno.ENOBUFS):
            call()


@pytest.mark.row("vhost.config-range")
def test_config_out_of_range_is_einval(driver: Driver) -> None:
    for offset, length in ((0, 0), (59, 2), (60, 1), (61, 1)):
        with refused(errno.EINVAL):
            driver.get_config(offset, length)
    with refused(errno.EINVAL):
        driver.set_config(59, b"12")


@pytest.mark.row("vhost.features-settled")
def test_features_are_settled_by_features_ok(driver: Driver) -> None:
    driver.set_status(STARTED)
    driver.set_features(BASE)
    driver.set_status(AGREED)
    with refused(errno.EBUSY):
        driver.set_features(BASE)


# --- IOTLB ---------------------------------------------------------------------------------


@pytest.mark.row("vhost.overlap")
def test_an_overlapping_update_is_efault(driver: Driver, memory: int) -> None:
    driver.iotlb_update(4 * PAGE, 4 * PAGE, memory, 0, ACCESS_RW)
    for start, pages in ((4, 4), (3, 2), (7, 1), (7, 4), (0, 16)):
        with refused(errno.EFAULT):
            driver.iotlb_update(start * PAGE, pages * PAGE, memory, 0, ACCESS_RW)
    driver.iotlb_update(3 * PAGE, PAGE, memory, 0, ACCESS_RW)
    driver.iotlb_update(8 * PAGE, PAGE, memory, 0, ACCESS_RW)


@pytest.mark.row("vhost.update-message")
def test_each_update_and_each_batch_end_sends_one_message(
    served: RawDevice, driver: Driver, memory: int
) -> None:
    seen = len(served.seen)
    driver.iotlb_update(PAGE, PAGE, memory, 0, ACCESS_RW)
    assert served.seen[seen:] == [UPDATE]
    driver.iotlb_invalidate(PAGE, PAGE)
    assert served.seen[seen:] == [UPDATE] * 2
    driver.iotlb_batch_begin()
    for number in range(4):
        driver.iotlb_update(PAGE * (number + 1), PAGE, memory, number * PAGE, ACCESS_RW)
    driver.iotlb_invalidate(PAGE, PAGE)
    assert served.seen[seen:] == [UPDATE] * 2
    driver.iotlb_batch_end()
    assert served.seen[seen:] == [UPDATE] * 3
    entry, fd = served.channel.iotlb_get_fd(0, ALL)
    assert (entry.start, entry.offset) == (2 * PAGE, PAGE)
    os.close(fd)


@pytest.mark.row("vhost.update-entry")
def test_an_entry_is_the_drivers_file_at_its_offset(
    served: RawDevice, driver: Driver, memory: int
) -> None:
    driver.iotlb_update(PAGE, 2 * PAGE, memory, 3 * PAGE, ACCESS_RO)
    driver.iotlb_update(8 * PAGE, PAGE, memory, 0, ACCESS_WO)
    entry, fd = served.channel.iotlb_get_fd(0, ALL)
    assert (entry.start, entry.last, entry.offset) == (PAGE, 3 * PAGE - 1, 3 * PAGE)
    assert entry.perm == ACCESS_RO
    assert os.fstat(fd).st_ino == os.fstat(memory).st_ino
    os.close(fd)
    entry, fd = served.channel.iotlb_get_fd(8 * PAGE, ALL)
    assert entry.perm == ACCESS_WO
    os.close(fd)


@pytest.mark.row("vhost.update-refused")
def test_an_update_that_the_device_refuses_is_efault(
    served: RawDevice, driver: Driver, memory: int
) -> None:
    """It is told once more, of what was there before."""
    served.reply = refuse
    count = len(served.seen)
    with refused(errno.EFAULT):
        driver.iotlb_update(PAGE, PAGE, memory, 0, ACCESS_RW)
    assert served.seen[count:] == [UPDATE] * 2
    with refused(errno.EINVAL):
        served.channel.iotlb_get_fd(0, ALL)
    served.reply = ok
    driver.iotlb_update(PAGE, PAGE, memory, 0, ACCESS_RW)


@pytest.mark.row("vhost.batch-refused")
def test_the_end_of_a_batch_that_the_device_refuses_raises_nothing(
    served: RawDevice, driver: Driver, memory: int
) -> None:
    driver.iotlb_batch_begin()
    driver.iotlb_update(PAGE, PAGE, memory, 0, ACCESS_RW)
    served.reply = refuse
    driver.iotlb_batch_end()
    driver.iotlb_invalidate(PAGE, PAGE)
    served.reply = ok


@pytest.mark.row("vhost.max-entries")
@pytest.mark.profile("7.2")
def test_at_most_2048_mappings(driver: Driver, memory: int) -> None:
    def map_page(number: int) -> None:
        driver.iotlb_update(2 * PAGE * (number + 1), PAGE, memory, 0, ACCESS_RW)

    driver.iotlb_batch_begin()
    for number in range(2048):
        map_page(number)
    with refused(errno.EFAULT):
        map_page(2048)
    driver.iotlb_batch_end()


@pytest.mark.row("difference.private-memory")
def test_memory_that_cannot_be_shared_is_einval(driver: Driver, memory: int) -> None:
    reader, writer = os.pipe()
    for fd, expected in ((reader, errno.EINVAL), (1 << 20, errno.EBADF)):
        with refused(expected):
            driver.iotlb_update(PAGE, PAGE, fd, 0, ACCESS_RW)
    read_only = os.open(f"/proc/self/fd/{memory}", os.O_RDONLY)
    with refused(errno.EINVAL):
        driver.iotlb_update(PAGE, PAGE, read_only, 0, ACCESS_RW)
    driver.iotlb_update(PAGE, PAGE, read_only, 0, ACCESS_RO)
    for fd in (reader, writer, read_only):
        os.close(fd)


@pytest.mark.row("vhost.update-range")
def test_an_update_of_a_range_that_makes_no_sense_is_refused(driver: Driver, memory: int) -> None:
    with refused(errno.EINVAL):
        driver.iotlb_update(0, 0, memory, 0, ACCESS_RW)
    for iova, size in ((ALL, 2), (2, ALL)):
        with refused(errno.EFAULT):
            driver.iotlb_update(iova, size, memory, 0, ACCESS_RW)
    with refused(errno.EFAULT):
        driver.iotlb_update(0, PAGE, memory, 0, ACCESS_RW, asid=1)


# --- backend features, groups --------------------------------------------------------------


@pytest.mark.row("vhost.backend-features")
def test_backend_features_are_msg_v2_batch_asid_and_no_suspend(driver: Driver) -> None:
    features = driver.get_backend_features()
    assert features & (MSG_V2 | BATCH | ASID) == MSG_V2 | BATCH | ASID
    assert not features & SUSPEND
    driver.set_backend_features(MSG_V2 | BATCH)
    with refused(errno.EOPNOTSUPP):
        driver.set_backend_features(SUSPEND)


@pytest.mark.row("vhost.groups.6.12")
@pytest.mark.profile("6.12")
def test_there_are_no_groups(driver: Driver) -> None:
    with refused(errno.EOPNOTSUPP):
        driver.get_vring_group(0)
    with refused(errno.EOPNOTSUPP):
        driver.set_group_asid(0, 0)


@pytest.mark.row("vhost.groups.7.2")
@pytest.mark.profile("7.2")
def test_set_group_asid_under_driver_ok_is_ebusy(driver: Driver) -> None:
    assert driver.get_vring_group(0) == 0
    with refused(errno.EINVAL, errno.EOPNOTSUPP):  # the device has API version 0
        driver.set_group_asid(0, 0)
    make_live(driver)
    with refused(errno.EBUSY):
        driver.set_group_asid(0, 0)


# --- virtqueues ----------------------------------------------------------------------------


@pytest.mark.row("vhost.vring-num")
def test_a_queue_longer_than_its_maximum_is_einval(driver: Driver) -> None:
    with refused(errno.EINVAL):
        driver.set_vring_num(0, 2 * QUEUE_SIZE)
    driver.set_vring_num(0, QUEUE_SIZE)


@pytest.mark.row("vhost.vring-num")
def test_a_queue_size_of_0_or_no_power_of_two_is_einval(driver: Driver) -> None:
    for size in (0, 3, 48, 0x10000):
        with refused(errno.EINVAL):
            driver.set_vring_num(0, size)


@pytest.mark.row("difference.vring-live")
def test_a_queue_may_be_set_up_under_driver_ok(served: RawDevice, driver: Driver) -> None:
    make_live(driver)
    driver.set_vring_addr(0, 0x1000, 0x2000, 0x3000)
    driver.set_vring_base(0, 1)
    assert served.channel.vq_get_info(0).desc_addr == 0x1000


@pytest.mark.row("vhost.kick")
def test_a_drivers_kick_eventfd_reaches_the_device(
    served: RawDevice, driver: Driver, eventfd: Callable[[], int]
) -> None:
    theirs, ours = eventfd(), eventfd()
    served.channel.vq_setup_kickfd(0, ours)
    driver.set_vring_kick(0, theirs)
    driver.set_vring_enable(0, True)
    for _ in range(3):
        os.eventfd_write(theirs, 1)
        assert readable(ours)
        os.eventfd_read(ours)
    driver.set_vring_kick(0, -1)
    os.eventfd_write(theirs, 1)
    assert not readable(ours, 0)


@pytest.mark.row("vhost.config-call")
def test_a_config_interrupt_signals_the_drivers_eventfd(
    served: RawDevice, driver: Driver, eventfd: Callable[[], int]
) -> None:
    call = eventfd()
    make_live(driver)
    driver.set_config_call(call)
    served.channel.dev_inject_config_irq()
    assert readable(call)
    driver.set_config_call(-1)
    os.eventfd_read(call)
    served.channel.dev_inject_config_irq()
    driver.set_status(0)  # ends what is under way
    assert not readable(call, 0)


# --- bus, privileges -----------------------------------------------------------------------


@pytest.mark.row("vhost.rebind")
def test_rebinding_resets_and_probes_anew(platform: Platform, served: RawDevice) -> None:
    platform.dev_add("vd0", "virtio_vdpa")
    probe = [SetStatus(status) for status in (0, 1, STARTED, AGREED, LIVE)]
    for _ in range(3):
        platform.bind("vd0", "vhost_vdpa")
        platform.driver("vd0").close()
        count = len(served.seen)
        platform.bind("vd0", "virtio_vdpa")
        assert served.seen[count:] == probe
    with refused(errno.ENODEV):
        platform.driver("vd0")
    platform.dev_del("vd0")


@pytest.mark.row("difference.unbind-open")
def test_a_device_that_is_open_is_not_rebound(platform: Platform, driver: Driver) -> None:
    with refused(errno.EBUSY):
        platform.bind("vd0", "virtio_vdpa")
    driver.set_status(1)
    assert driver.get_status() == 1


@pytest.mark.row("privileges.block")
def test_a_block_device_needs_no_privileges(platform: Platform, program: Program) -> None:
    """Created by root, opened and served by a user without capabilities."""
    program.control.create_dev(blk_config())
    unprivileged = platform.unprivileged_program()
    device = RawDevice.open(unprivileged)
    device.channel.vq_setup(0, QUEUE_SIZE)
    device.serve()
    platform.dev_add("vd0", "virtio_vdpa")
    disk: Disk = platform.disk("vd0")
    (token,) = disk.submit([("write", 0, b"u" * PAGE)])
    ring = DeviceRing(device.node)
    head, chain = ring.take()
    assert device.node.read_region(chain[1].addr, PAGE) == b"u" * PAGE
    ring.finish(head, chain)
    assert disk.reap(1) == [(token, PAGE)]
    platform.dev_del("vd0")
    device.stop()
