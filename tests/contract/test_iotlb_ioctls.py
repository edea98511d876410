"""docs/kernel-behaviour.md, "Ioctls of a device node": those on the IOVA space."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.contract.device_ring import DeviceRing
from tests.contract.devices import BOUNCE, RawDevice, blk_config, refused
from tests.contract.ports import Disk, Platform, Program
from vduse.bus.driver import Driver
from vduse.control.abi import (
    ACCESS_RO,
    ACCESS_RW,
    IOVA_CAP_UMEM,
    Ioctl,
    IotlbEntry,
    IotlbEntryV2,
    IovaInfo,
    IovaUmem,
)

PAGE = 4096
IOVA = 0x10_0000


@pytest.fixture
def memory() -> Iterator[int]:
    """64 KiB of a driver's shared memory."""
    fd = os.memfd_create("driver")
    os.ftruncate(fd, 16 * PAGE)
    yield fd
    os.close(fd)


@pytest.fixture
def device_v1(platform: Platform, program: Program) -> Iterator[RawDevice]:
    """An attached device of API version 1."""
    program.control.set_api_version(1)
    device = RawDevice.create(program, blk_config(groups=1, spaces=1)).serve()
    platform.dev_add("vd0", "vhost_vdpa")
    yield device
    platform.dev_del("vd0")
    device.stop()


# --- IOTLB_GET_FD --------------------------------------------------------------------------


@pytest.mark.row("get-fd.v2-on-v0")
def test_get_fd2_on_version_0_is_enotty(served: RawDevice, driver: Driver, memory: int) -> None:
    driver.iotlb_update(IOVA, PAGE, memory, 0, ACCESS_RW)
    entry = IotlbEntryV2(IotlbEntry(start=IOVA, last=IOVA))
    with refused(errno.ENOTTY):
        served.node.ioctl(Ioctl.IOTLB_GET_FD2, entry.pack())


@pytest.mark.row("get-fd.v2")
@pytest.mark.profile("7.2")
def test_get_fd2_checks_and_translates(
    platform: Platform, device_v1: RawDevice, memory: int
) -> None:
    driver = platform.driver("vd0")
    driver.iotlb_update(IOVA, 2 * PAGE, memory, PAGE, ACCESS_RW)
    good = IotlbEntryV2(IotlbEntry(start=IOVA, last=IOVA))
    reserved = bytearray(44)
    reserved[43] = 1
    for bad in (
        replace(good, reserved=bytes(reserved)),
        replace(good, asid=1),
        replace(good, v1=IotlbEntry(start=IOVA, last=IOVA - 1)),
        replace(good, v1=IotlbEntry(start=0, last=1)),
    ):
        with refused(errno.EINVAL):
            device_v1.node.ioctl(Ioctl.IOTLB_GET_FD2, bad.pack())
    answer = IotlbEntryV2.unpack(device_v1.node.ioctl(Ioctl.IOTLB_GET_FD2, good.pack()))
    assert answer.v1 == IotlbEntry(PAGE, IOVA, IOVA + 2 * PAGE - 1, ACCESS_RW)
    driver.close()


@pytest.mark.row("get-fd.range")
def test_get_fd_of_an_inverted_range_is_einval(served: RawDevice, driver: Driver) -> None:
    with refused(errno.EINVAL):
        served.channel.iotlb_get_fd(1, 0)


@pytest.mark.row("get-fd.no-domain")
def test_get_fd_before_dev_add_is_einval(device: RawDevice) -> None:
    with refused(errno.EINVAL):
        device.channel.iotlb_get_fd(0, (1 << 64) - 1)


@pytest.mark.row("get-fd.no-overlap")
def test_get_fd_where_nothing_is_mapped_is_einval(
    served: RawDevice, driver: Driver, memory: int
) -> None:
    driver.iotlb_update(IOVA, PAGE, memory, 0, ACCESS_RW)
    for start, last in ((0, IOVA - 1), (IOVA + PAGE, (1 << 64) - 1)):
        with refused(errno.EINVAL):
            served.channel.iotlb_get_fd(start, last)


@pytest.mark.row("get-fd.first")
def test_get_fd_gives_the_first_overlapping_region_and_rewrites_the_entry(
    served: RawDevice, driver: Driver, memory: int
) -> None:
    driver.iotlb_update(IOVA + 8 * PAGE, PAGE, memory, 0, ACCESS_RO)
    driver.iotlb_update(IOVA, 4 * PAGE, memory, 2 * PAGE, ACCESS_RW)
    os.pwrite(memory, b"here", 2 * PAGE)
    for start, last in ((0, (1 << 64) - 1), (IOVA + 3 * PAGE, IOVA + 9 * PAGE), (IOVA, IOVA)):
        entry, fd = served.channel.iotlb_get_fd(start, last)
        assert entry == IotlbEntry(2 * PAGE, IOVA, IOVA + 4 * PAGE - 1, ACCESS_RW)
        assert os.pread(fd, 4, entry.offset) == b"here"
        os.close(fd)
    entry, fd = served.channel.iotlb_get_fd(IOVA + 4 * PAGE, (1 << 64) - 1)
    assert (entry.start, entry.perm) == (IOVA + 8 * PAGE, ACCESS_RO)
    os.close(fd)


@pytest.mark.row("difference.close-on-exec")
@pytest.mark.where("process")
def test_fds_of_the_channel_are_close_on_exec(
    served: RawDevice, driver: Driver, memory: int
) -> None:
    driver.iotlb_update(IOVA, PAGE, memory, 0, ACCESS_RW)
    _, fd = served.channel.iotlb_get_fd(IOVA, IOVA)
    assert not os.get_inheritable(fd)
    os.close(fd)


# --- IOTLB_GET_INFO ------------------------------------------------------------------------


@pytest.mark.row("get-info.range")
def test_get_info_checks_as_get_fd(device: RawDevice, platform: Platform) -> None:
    with refused(errno.EINVAL):  # no domain
        device.channel.iotlb_get_info(0, 1)
    platform.dev_add("vd0")
    for start, last in ((1, 0), (0, (1 << 64) - 1)):
        with refused(errno.EINVAL):
            device.channel.iotlb_get_info(start, last)


@pytest.mark.row("get-info.reserved")
@pytest.mark.profile("6.12")
def test_get_info_with_nonzero_reserved_is_einval(served: RawDevice, disk: Disk) -> None:
    disk.submit([("write", 0, bytes(PAGE))])
    for info in (IovaInfo(0, 0, asid=1), IovaInfo(0, 0, reserved=bytes(19) + b"\1")):
        with refused(errno.EINVAL):
            served.node.ioctl(Ioctl.IOTLB_GET_INFO, info.pack())


@pytest.mark.row("get-info.reserved.7.2")
@pytest.mark.profile("7.2")
def test_get_info_with_nonzero_reserved_or_a_bad_asid_is_efault(device_v1: RawDevice) -> None:
    for info in (IovaInfo(0, 0, asid=1), IovaInfo(0, 0, reserved=bytes(19) + b"\1")):
        with refused(errno.EFAULT):  # and nothing is mapped
            device_v1.node.ioctl(Ioctl.IOTLB_GET_INFO, info.pack())


@pytest.mark.row("get-info.capability")
def test_get_info_says_cap_umem_of_the_bounce_region_only(served: RawDevice, disk: Disk) -> None:
    disk.submit([("write", 0, bytes(PAGE))])
    bounce = served.channel.iotlb_get_info(0, (1 << 64) - 1)
    assert (bounce.start, bounce.last, bounce.capability) == (0, BOUNCE - 1, IOVA_CAP_UMEM)
    ring = served.channel.vq_get_info(0).desc_addr
    assert served.channel.iotlb_get_info(ring, ring).capability == 0


# --- user memory ---------------------------------------------------------------------------


@pytest.mark.row("umem.no-domain")
def test_reg_umem_before_dev_add_is_einval(device: RawDevice) -> None:
    pages = device.program.memory(BOUNCE)
    with refused(errno.EINVAL):
        device.channel.iotlb_reg_umem(IovaUmem(pages.address, 0, BOUNCE))


@pytest.mark.row("umem.no-bounce")
def test_reg_umem_before_the_first_mapping_is_einval(served: RawDevice, disk: Disk) -> None:
    pages = served.program.memory(BOUNCE)
    with refused(errno.EINVAL):
        served.channel.iotlb_reg_umem(IovaUmem(pages.address, 0, BOUNCE))


@pytest.mark.row("umem.range")
def test_reg_umem_of_anything_but_the_bounce_region_is_einval(
    served: RawDevice, disk: Disk
) -> None:
    disk.submit([("write", 0, bytes(PAGE))])
    good = IovaUmem(served.program.memory(BOUNCE + PAGE).address, 0, BOUNCE)
    for bad in (
        replace(good, size=BOUNCE - PAGE),
        replace(good, size=BOUNCE + PAGE),
        replace(good, iova=PAGE),
        replace(good, uaddr=good.uaddr + 1),
        replace(good, asid=1),
        replace(good, reserved=b"\1" + bytes(19)),
    ):
        with refused(errno.EINVAL):
            served.channel.iotlb_reg_umem(bad)
    served.channel.iotlb_reg_umem(good)
    served.channel.iotlb_dereg_umem(good)


@pytest.mark.row("umem.exists")
def test_reg_umem_twice_is_eexist(served: RawDevice, disk: Disk) -> None:
    disk.submit([("write", 0, bytes(PAGE))])
    umem = IovaUmem(served.program.memory(BOUNCE).address, 0, BOUNCE)
    served.channel.iotlb_reg_umem(umem)
    with refused(errno.EEXIST):
        served.channel.iotlb_reg_umem(umem)
    with refused(errno.EINVAL):  # that check comes first
        served.channel.iotlb_reg_umem(replace(umem, iova=PAGE))
    served.channel.iotlb_dereg_umem(umem)


@pytest.mark.row("umem.locked-memory")
def test_reg_umem_past_rlimit_memlock_is_enomem(served: RawDevice, disk: Disk) -> None:
    disk.submit([("write", 0, bytes(PAGE))])
    umem = IovaUmem(served.program.memory(BOUNCE).address, 0, BOUNCE)
    served.program.limit_locked_memory(BOUNCE - PAGE)
    with refused(errno.ENOMEM):
        served.channel.iotlb_reg_umem(umem)
    served.program.limit_locked_memory(BOUNCE)
    served.channel.iotlb_reg_umem(umem)
    served.channel.iotlb_dereg_umem(umem)


@pytest.mark.row("umem.dereg")
def test_dereg_umem_of_nothing_is_enoent_and_of_another_range_einval(
    served: RawDevice, disk: Disk
) -> None:
    disk.submit([("write", 0, bytes(PAGE))])
    umem = IovaUmem(served.program.memory(BOUNCE).address, 0, BOUNCE)
    with refused(errno.ENOENT):
        served.channel.iotlb_dereg_umem(umem)
    with refused(errno.EINVAL):  # reserved comes first
        served.channel.iotlb_dereg_umem(replace(umem, asid=1))
    served.channel.iotlb_reg_umem(umem)
    for bad in (replace(umem, iova=PAGE), replace(umem, size=PAGE)):
        with refused(errno.EINVAL):
            served.channel.iotlb_dereg_umem(bad)
    served.channel.iotlb_dereg_umem(umem)
    with refused(errno.ENOENT):
        served.channel.iotlb_dereg_umem(umem)


@pytest.mark.row("umem.data")
def test_live_data_is_copied_when_user_memory_comes_and_goes(served: RawDevice, disk: Disk) -> None:
    (token,) = disk.submit([("write", 0, b"A" * PAGE)])
    ring = DeviceRing(served.node)
    head, chain = ring.take()
    data = chain[1].addr
    pages = served.program.memory(BOUNCE)
    umem = IovaUmem(pages.address, 0, BOUNCE)
    served.channel.iotlb_reg_umem(umem)
    assert pages.read(data, PAGE) == b"A" * PAGE
    (second,) = disk.submit([("read", 4 * PAGE, into := bytearray(PAGE))])
    other, reading = ring.take()
    pages.write(reading[1].addr, b"B" * PAGE)
    served.channel.iotlb_dereg_umem(umem)
    assert served.node.read_region(data, PAGE) == b"A" * PAGE
    assert served.node.read_region(reading[1].addr, PAGE) == b"B" * PAGE
    ring.finish(head, chain)
    ring.finish(other, reading, b"B" * PAGE)
    assert sorted(disk.reap(2)) == sorted([(token, PAGE), (second, PAGE)])
    assert into == b"B" * PAGE


@pytest.mark.row("umem.io")
def test_requests_pass_through_user_memory(served: RawDevice, disk: Disk) -> None:
    disk.submit([("write", 0, bytes(PAGE))])
    ring = DeviceRing(served.node)
    ring.finish(*ring.take())
    disk.reap(1)
    pages = served.program.memory(BOUNCE)
    served.channel.iotlb_reg_umem(IovaUmem(pages.address, 0, BOUNCE))
    disk.submit([("write", 0, b"C" * PAGE)])
    head, chain = ring.take()
    assert pages.read(chain[1].addr, PAGE) == b"C" * PAGE
    (status,) = chain[2:]
    if status.addr < BOUNCE:
        pages.write(status.addr, b"\0")
    else:
        served.node.write_region(status.addr, b"\0")
    ring.put(head, 1)
    assert [length for _, length in disk.reap(1)] == [PAGE]
