"""A driver's memory on the kernel's channel: what a driver names need not be there."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import resource
import struct
from dataclasses import replace
from typing import Any

import pytest

from tests.kernel.guest.bed import MIB, errno_of, on_the_bus, read_direct, write_direct
from tests.waiting import eventually
from vduse import _native
from vduse.channel.base import Channel
from vduse.channel.kernel import KernelControl
from vduse.control.abi import IOVA_CAP_UMEM, IovaUmem
from vduse.devices.blk import BlkDevice

pytestmark = pytest.mark.usefixtures("modules")

#: virtio 1.3, section 2.7.5: descriptor flags.
NEXT, WRITE = 1, 2
#: An IOVA in the bounce region (64 MiB) whose page nobody has used.
NEVER_MAPPED = 60 * MIB


class Seen(KernelControl):
    """A control port that keeps the channel it opens and the eventfds that go through it."""

    def open(self, name: str) -> Any:
        self.channel = SeenChannel(super().open(name))
        return self.channel


class SeenChannel:
    """Passes everything on."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.kickfds: dict[int, int] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)

    def vq_setup_kickfd(self, index: int, fd: int) -> None:
        self.kickfds[index] = fd
        self._channel.vq_setup_kickfd(index, fd)


def offer_a_request_in(address: int, control: Seen) -> None:
    """Writes a request of three descriptors into the driver's own ring, as a hostile driver
    would: its header, data and status are at ``address``."""
    info = control.channel.vq_get_info(0)
    entry, fd = control.channel.iotlb_get_fd(info.desc_addr, info.desc_addr)
    length = (entry.last - entry.start + 4096) & ~4095
    with mmap.mmap(fd, length, offset=entry.offset) as ring:
        os.close(fd)
        table, available = info.desc_addr - entry.start, info.driver_addr - entry.start
        chain = [(16, NEXT), (512, NEXT | WRITE), (1, WRITE)]
        first = info.num - len(chain)
        for place, (size, flags) in enumerate(chain, first):
            at = address + (place - first) * 4096
            struct.pack_into("<QIHH", ring, table + 16 * place, at, size, flags, place + 1)
        [index] = struct.unpack_from("<H", ring, available + 2)
        struct.pack_into("<H", ring, available + 4 + 2 * (index % info.num), first)
        struct.pack_into("<H", ring, available + 2, (index + 1) & 0xFFFF)
    os.eventfd_write(control.channel.kickfds[0], 1)


def test_umem_takes_the_place_of_the_bounce_pages_and_gives_it_back() -> None:
    """As calls: no request is served between the two."""
    control = Seen()
    backend = _native.Backend.memory(16 * MIB)
    with on_the_bus(BlkDevice("disk0", backend), control) as path:
        write_direct(path, 0, b"u" * MIB)
        channel = control.channel
        info = channel.iotlb_get_info(0, 0)
        assert (info.start, info.capability) == (0, IOVA_CAP_UMEM)
        size = info.last + 1
        pages = mmap.mmap(-1, size)
        address = ctypes.c_char.from_buffer(pages)
        umem = IovaUmem(uaddr=ctypes.addressof(address), iova=0, size=size)
        assert errno_of(channel.iotlb_dereg_umem, umem) == errno.ENOENT
        assert errno_of(channel.iotlb_reg_umem, replace(umem, size=MIB)) == errno.EINVAL
        _, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (MIB, hard))
        assert errno_of(channel.iotlb_reg_umem, umem) == errno.ENOMEM  # root's, too
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY,) * 2)
        channel.iotlb_reg_umem(umem)
        assert errno_of(channel.iotlb_reg_umem, umem) == errno.EEXIST
        assert errno_of(channel.iotlb_dereg_umem, replace(umem, size=MIB)) == errno.EINVAL
        channel.iotlb_dereg_umem(umem)
        del address
        pages.close()
    control.close()
    backend.close()


def test_bounce_page_never_mapped_ends_one_device() -> None:
    control = Seen()
    other_control = KernelControl()
    backend, other_backend = _native.Backend.memory(16 * MIB), _native.Backend.memory(16 * MIB)
    neighbour = BlkDevice("disk1", other_backend)
    victim = BlkDevice("disk0", backend)
    with on_the_bus(neighbour, other_control) as near:
        with on_the_bus(victim, control) as path:
            write_direct(path, 0, b"x" * MIB)
            offer_a_request_in(NEVER_MAPPED, control)
            fault = eventually(lambda: victim.fault, "fault")
            assert "virtqueue 0" in fault
            write_direct(near, 0, b"n" * MIB)
            assert read_direct(near, 0, MIB) == b"n" * MIB
            assert (victim.ended, neighbour.fault) == (None, None)
        # Off the bus is a reset; destroyed in order.
        assert victim.ended == "closed"
    for port in (control, other_control):
        port.close()
    backend.close()
    other_backend.close()
