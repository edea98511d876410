"""docs/kernel-behaviour.md, "IOVA domain"."""

from __future__ import annotations

import errno
import os

import pytest

from tests.contract.device_ring import DeviceRing
from tests.contract.devices import BOUNCE, RawDevice, blk_config
from tests.contract.ports import Disk, Platform, Program
from vduse.control.abi import ACCESS_RW, IotlbEntry

PAGE = 4096
MIB = 1 << 20
LIMIT = 1024 * MIB + 128 * MIB - 1
ALL = (1 << 64) - 1


def regions(device: RawDevice) -> list[tuple[IotlbEntry, int]]:
    """The IOTLB as a program can find it out: entries, and the file each lies in."""
    found: list[tuple[IotlbEntry, int]] = []
    start = 0
    while True:
        try:
            entry, fd = device.channel.iotlb_get_fd(start, ALL)
        except OSError as error:
            assert error.errno == errno.EINVAL
            return found
        found.append((entry, os.fstat(fd).st_ino))
        os.close(fd)
        start = entry.last + 1


@pytest.mark.row("domain.bounce-entry", "domain.bounce-region")
def test_the_bounce_entry_appears_with_the_first_mapping(served: RawDevice, disk: Disk) -> None:
    """It is the whole of [0, bounce_size), at offset 0."""
    assert all(entry.start >= BOUNCE for entry, _ in regions(served))
    disk.submit([("read", 0, bytearray(PAGE))])
    assert regions(served)[0][0] == IotlbEntry(0, 0, BOUNCE - 1, ACCESS_RW)


@pytest.mark.row("domain.coherent", "domain.limit")
def test_rings_are_coherent_memory_above_the_bounce_region(served: RawDevice, disk: Disk) -> None:
    """One entry each, at the offset of its IOVA, below the domain's limit."""
    info = served.channel.vq_get_info(0)
    found = [entry for entry, _ in regions(served)]
    for area in (info.desc_addr, info.driver_addr, info.device_addr):
        (entry,) = [entry for entry in found if entry.start <= area <= entry.last]
        assert BOUNCE <= entry.start <= entry.last <= LIMIT
        assert entry.offset == entry.start
        assert entry.start % PAGE == 0


@pytest.mark.row("difference.ring-place")
def test_a_rings_areas_lie_one_by_one_from_the_bounce_region_upwards(
    served: RawDevice, disk: Disk
) -> None:
    info = served.channel.vq_get_info(0)
    starts = [entry.start for entry, _ in regions(served)]
    assert starts[:3] == [info.desc_addr, info.driver_addr, info.device_addr]
    assert starts[0] == BOUNCE


@pytest.mark.row("domain.coherent-unbounced")
def test_rings_are_not_bounced(served: RawDevice, disk: Disk) -> None:
    ring = DeviceRing(served.node)
    for expected in (1, 2):
        disk.submit([("read", 0, bytearray(PAGE))])
        assert ring.waiting == expected


@pytest.mark.row("domain.one-file")
def test_all_regions_lie_in_one_file_and_are_read_write(served: RawDevice, disk: Disk) -> None:
    disk.submit([("read", 0, bytearray(PAGE))])
    found = regions(served)
    assert len(found) >= 2
    assert len({inode for _, inode in found}) == 1
    assert {entry.perm for entry, _ in found} == {ACCESS_RW}


@pytest.mark.row("domain.granule")
@pytest.mark.parametrize("pages", [1, 2, 3, 5, 8])
def test_buffers_lie_on_pages_below_the_bounce_size_and_never_at_0(
    served: RawDevice, disk: Disk, pages: int
) -> None:
    """Below 32 granules of 4 KiB, space is given in powers of two."""
    buffer = bytearray(pages * PAGE)
    disk.submit([("read", 0, buffer), ("read", 0, bytearray(buffer))])
    ring = DeviceRing(served.node)
    size = PAGE << (pages - 1).bit_length()
    starts = []
    while ring.waiting:
        _, chain = ring.take()
        starts.append(chain[1].addr)
        assert chain[1].addr % PAGE == 0
        assert 0 < chain[1].addr <= BOUNCE - len(buffer)
    assert abs(starts[0] - starts[1]) >= size


@pytest.mark.row("domain.copies")
def test_data_is_copied_to_the_bounce_page_at_map_and_back_at_unmap(
    served: RawDevice, disk: Disk
) -> None:
    ring = DeviceRing(served.node)
    outgoing = bytearray(b"w" * PAGE)
    (writing,) = disk.submit([("write", 0, outgoing)])
    head, chain = ring.take()
    outgoing[:] = b"?" * PAGE  # too late
    assert not chain[1].writable
    assert served.node.read_region(chain[1].addr, PAGE) == b"w" * PAGE
    ring.finish(head, chain)
    incoming = bytearray(PAGE)
    (reading,) = disk.submit([("read", 0, incoming)])
    head, chain = ring.take()
    assert chain[1].writable
    served.node.write_region(chain[1].addr, b"r" * PAGE)
    assert bytes(incoming) == bytes(PAGE)  # not yet
    ring.finish(head, chain, b"r" * PAGE)
    assert sorted(disk.reap(2)) == sorted([(writing, PAGE), (reading, PAGE)])
    assert bytes(incoming) == b"r" * PAGE


@pytest.mark.row("domain.pages-allocated-at-map")
def test_bounce_pages_are_allocated_as_they_are_mapped(served: RawDevice, disk: Disk) -> None:
    ring = DeviceRing(served.node)
    disk.submit([("write", 0, b"x" * 4 * PAGE)])
    few = served.node.allocated(0)
    assert few < BOUNCE
    disk.submit([("write", 0, b"x" * 64 * PAGE)])
    assert served.node.allocated(0) >= few + 64 * PAGE
    while ring.waiting:
        ring.finish(*ring.take())
    assert len(disk.reap(2)) == 2


@pytest.mark.row("difference.unmapped-pages")
def test_a_bounce_page_that_was_never_mapped_reads_as_zeroes(served: RawDevice, disk: Disk) -> None:
    disk.submit([("write", 0, b"x" * PAGE)])
    page = BOUNCE - 8 * PAGE
    assert served.node.read_region(page, PAGE) == bytes(PAGE)
    served.node.write_region(page, b"y")


@pytest.mark.row("domain.largest-mapping")
def test_requests_larger_than_the_bounce_region_are_split(served: RawDevice, disk: Disk) -> None:
    assert disk.size == BOUNCE
    (token,) = disk.submit([("write", 0, b"z" * BOUNCE)])
    ring = DeviceRing(served.node)
    done: list[tuple[int, int]] = []
    while not done:
        if ring.waiting:
            head, chain = ring.take()
            assert sum(buffer.length for buffer in chain[1:-1]) < BOUNCE
            ring.finish(head, chain)
        done = disk.reap(0, 0)
    assert done == [(token, BOUNCE)]


# --- reclaim (RFC v2) ----------------------------------------------------------------------


@pytest.mark.row("reclaim.idle")
def test_idle_bounce_pages_are_given_back_under_pressure(
    platform: Platform, served: RawDevice, disk: Disk
) -> None:
    ring = DeviceRing(served.node)
    disk.submit([("write", 0, b"x" * 128 * PAGE)])
    done: list[tuple[int, int]] = []
    while not done:
        if ring.waiting:
            ring.finish(*ring.take())
        done = disk.reap(0, 0)
    used = served.node.allocated(0)
    freed = platform.reclaim()
    assert freed >= 128 * PAGE
    assert served.node.allocated(0) <= used - 128 * PAGE
    disk.submit([("write", 0, b"again" + bytes(PAGE - 5))])
    _, chain = ring.take()
    assert served.node.read_region(chain[1].addr, 5) == b"again"


@pytest.mark.row("reclaim.in-use")
def test_bounce_pages_in_use_are_not_reclaimed(
    platform: Platform, served: RawDevice, disk: Disk
) -> None:
    ring = DeviceRing(served.node)
    (token,) = disk.submit([("write", 0, b"k" * 16 * PAGE)])
    head, chain = ring.take()
    platform.reclaim()
    assert served.node.read_region(chain[1].addr, chain[1].length) == b"k" * chain[1].length
    ring.finish(head, chain)
    assert disk.reap(1) == [(token, 16 * PAGE)]


@pytest.mark.row("reclaim.rotation")
def test_the_shrinker_takes_one_device_at_a_time_and_rotates(
    platform: Platform, program: Program
) -> None:
    devices = [RawDevice.create(program, blk_config(name)) for name in ("vd0", "vd1")]
    for device in devices:
        platform.set_attribute(device.name, "bounce_size", BOUNCE)
        platform.dev_add(device.serve().name, "virtio_vdpa")
        disk = platform.disk(device.name)
        disk.submit([("write", 0, b"x" * 32 * PAGE)])
        ring = DeviceRing(device.node)
        ring.finish(*ring.take())
        disk.reap(1)
    sizes = [device.node.allocated(0) for device in devices]
    assert platform.reclaim() >= 32 * PAGE
    shrunk = [device.node.allocated(0) < size for device, size in zip(devices, sizes, strict=True)]
    assert sorted(shrunk) == [False, True]
    assert platform.reclaim() >= 32 * PAGE
    assert all(d.node.allocated(0) < size for d, size in zip(devices, sizes, strict=True))
    for device in devices:
        platform.dev_del(device.name)
        device.stop()
