"""Virtqueues written by hand, byte by byte, legal or not: for tests of a device through the
:class:`~vduse.bus.driver.Driver` port.

A :class:`SplitRing` or :class:`PackedRing` lies at some offset of shared memory that the device
sees at an IOVA, and writes only what it is told to: nothing is checked. Layouts: virtio 1.3, 2.7
(split) and 2.8 (packed); all fields little-endian.

    memory = Memory(1 << 20, iova=0x10000)
    driver.iotlb_update(memory.iova, memory.size, memory.fd, 0, ACCESS_RW)
    ring = SplitRing(memory, offset=0, size=8)
    driver.set_vring_addr(0, *ring.areas)
    ring.descriptor(0, addr=0xDEAD000, length=16, flags=NEXT, next=0)  # a loop
    ring.offer(0)
    driver.kick(0)
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Callable
from typing import Final, NamedTuple

from vduse.testing.closing import Closing

#: Descriptor flags (virtio 1.3, 2.7.5 and 2.8.1).
NEXT: Final = 1
WRITE: Final = 2
INDIRECT: Final = 4
#: Packed ring only.
AVAIL: Final = 1 << 7
USED: Final = 1 << 15

#: Bytes of a descriptor, in either format.
DESCRIPTOR_SIZE: Final = 16

_SPLIT = struct.Struct("<QIHH")
_PACKED = struct.Struct("<QIHH")
_U16 = struct.Struct("<H")
_USED = struct.Struct("<II")


class Memory(Closing):
    """A memory file, mapped here, to be mapped by a device at ``iova``."""

    def __init__(self, size: int, iova: int = 0) -> None:
        #: Owned by this object.
        self.fd = os.memfd_create("vduse-rings", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, size)
        self.size = size
        #: IOVA of the first byte.
        self.iova = iova
        self._map = mmap.mmap(self.fd, size)

    def read(self, offset: int, length: int) -> bytes:
        return self._map[offset : offset + length]

    def write(self, offset: int, data: bytes) -> None:
        self._map[offset : offset + len(data)] = data

    def close(self) -> None:
        """The device keeps what it has mapped."""
        self._map.close()
        os.close(self.fd)


class Used(NamedTuple):
    """A used element as the device wrote it."""

    id: int
    #: Bytes the device says it wrote.
    length: int


def _align(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment


class SplitRing:
    """Descriptor table, avail ring and used ring, one after the other."""

    def __init__(self, memory: Memory, offset: int, size: int) -> None:
        self.memory = memory
        self.size = size
        self._desc = offset
        self._avail = offset + DESCRIPTOR_SIZE * size
        self._used = _align(self._avail + 6 + 2 * size, 4)
        #: Offset in the memory of the first byte behind the ring, a multiple of 16.
        self.end = _align(self._used + 6 + 8 * size, 16)
        #: The next avail index to be written by :meth:`offer`.
        self.avail_index = 0
        self._used_index = 0

    def start_at(self, index: int) -> None:
        """The ring is empty, and both its indices stand at ``index``."""
        self.avail_index = self._used_index = index
        self.set_avail_index(index)
        self.memory.write(self._used + 2, _U16.pack(index))

    @property
    def areas(self) -> tuple[int, int, int]:
        """IOVAs of the descriptor, driver (avail) and device (used) areas."""
        base = self.memory.iova
        return base + self._desc, base + self._avail, base + self._used

    def descriptor(self, index: int, addr: int, length: int, flags: int = 0, next: int = 0) -> None:
        """Writes one entry of the table."""
        self.memory.write(
            self._desc + DESCRIPTOR_SIZE * index, _SPLIT.pack(addr, length, flags, next)
        )

    def indirect(
        self, offset: int, index: int, addr: int, length: int, flags: int = 0, next: int = 0
    ) -> None:
        """Writes one entry of an indirect table that lies at ``offset`` of the memory."""
        self.memory.write(offset + DESCRIPTOR_SIZE * index, _SPLIT.pack(addr, length, flags, next))

    def offer(self, *heads: int) -> None:
        """Puts heads into the avail ring and moves its index on."""
        for head in heads:
            slot = self.avail_index % self.size
            self.memory.write(self._avail + 4 + 2 * slot, _U16.pack(head & 0xFFFF))
            self.avail_index = (self.avail_index + 1) & 0xFFFF
        self.set_avail_index(self.avail_index)

    def set_avail_index(self, index: int) -> None:
        """avail.idx, whatever was offered."""
        self.memory.write(self._avail + 2, _U16.pack(index))

    def set_avail_flags(self, flags: int) -> None:
        """1: VIRTQ_AVAIL_F_NO_INTERRUPT."""
        self.memory.write(self._avail, _U16.pack(flags))

    def set_used_event(self, index: int) -> None:
        """With VIRTIO_F_EVENT_IDX: the used index after which an irq is wanted."""
        self.memory.write(self._avail + 4 + 2 * self.size, _U16.pack(index))

    @property
    def used_index(self) -> int:
        """used.idx as the device wrote it."""
        return self._u16(self._used + 2)

    @property
    def avail_event(self) -> int:
        """With VIRTIO_F_EVENT_IDX: the avail index after which the device wants a kick."""
        return self._u16(self._used + 4 + 8 * self.size)

    @property
    def used_flags(self) -> int:
        """1: VIRTQ_USED_F_NO_NOTIFY, the device wants no kicks."""
        return self._u16(self._used)

    def _u16(self, offset: int) -> int:
        return int.from_bytes(self.memory.read(offset, 2), "little")

    @property
    def seen_used(self) -> int:
        """The used index up to which :meth:`take_used` has taken."""
        return self._used_index

    def take_used(self) -> list[Used]:
        """The used elements since the last call."""
        taken: list[Used] = []
        while (used := self.take_one()) is not None:
            taken.append(used)
        return taken

    def take_one(self) -> Used | None:
        """The next used element, None if there is none."""
        if self._used_index == self.used_index:
            return None
        at = self._used + 4 + 8 * (self._used_index % self.size)
        self._used_index = (self._used_index + 1) & 0xFFFF
        return Used(*_USED.unpack(self.memory.read(at, 8)))


class PackedRing:
    """Descriptor ring, driver and device event suppression areas, one after the other."""

    def __init__(self, memory: Memory, offset: int, size: int) -> None:
        self.memory = memory
        self.size = size
        self._desc = offset
        self._driver = offset + DESCRIPTOR_SIZE * size
        self._device = self._driver + 4
        #: Offset in the memory of the first byte behind the ring, a multiple of 16.
        self.end = _align(self._device + 4, 16)
        #: Where :meth:`offer` goes on.
        self.next_avail = 0
        self.avail_wrap = True
        self._next_used = 0
        self._used_wrap = True

    def start_at(self, index: int, wrap: bool) -> None:
        """The ring is empty, and driver and device stand at ``index``, both wrap counters at
        ``wrap``. Flags that say otherwise are the caller's to clear."""
        self.next_avail = self._next_used = index
        self.avail_wrap = self._used_wrap = wrap

    @property
    def seen_used(self) -> tuple[int, bool]:
        """Where :meth:`take_used` looks next: the descriptor, and the wrap counter."""
        return self._next_used, self._used_wrap

    @property
    def areas(self) -> tuple[int, int, int]:
        """IOVAs of the descriptor, driver and device areas."""
        base = self.memory.iova
        return base + self._desc, base + self._driver, base + self._device

    def descriptor(self, index: int, addr: int, length: int, id: int, flags: int = 0) -> None:
        """Writes one entry of the ring, its flags (AVAIL and USED included) last."""
        at = self._desc + DESCRIPTOR_SIZE * index
        data = _PACKED.pack(addr, length, id, flags)
        self.memory.write(at, data[:14])
        self.memory.write(at + 14, data[14:])

    def indirect(self, offset: int, index: int, addr: int, length: int, flags: int = 0) -> None:
        """Writes one entry of an indirect table that lies at ``offset`` of the memory."""
        self.memory.write(offset + DESCRIPTOR_SIZE * index, _PACKED.pack(addr, length, 0, flags))

    def offer(self, id: int, *chain: tuple[int, int, int]) -> None:
        """Makes a chain of ``(addr, length, flags)`` available, its head last. NEXT is set on
        all but the last entry, AVAIL and USED as the wrap counter says."""
        entries = []
        for place, (addr, length, flags) in enumerate(chain):
            flags |= NEXT if place + 1 < len(chain) else 0
            flags |= AVAIL if self.avail_wrap else USED
            entries.append((self.next_avail, addr, length, flags))
            self.next_avail += 1
            if self.next_avail == self.size:
                self.next_avail = 0
                self.avail_wrap = not self.avail_wrap
        for index, addr, length, flags in reversed(entries):
            self.descriptor(index, addr, length, id, flags)

    def set_driver_event(self, flags: int, offset: int = 0, wrap: bool = False) -> None:
        """The driver's wish for irqs: flags 0 enable, 1 disable, 2 at one descriptor."""
        self.memory.write(self._driver, struct.pack("<HH", offset | wrap << 15, flags))

    @property
    def device_event(self) -> tuple[int, int]:
        """The device's wish for kicks: its flags, and offset with wrap counter in bit 15."""
        offset, flags = struct.unpack("<HH", self.memory.read(self._device, 4))
        return flags, offset

    def take_used(self, descriptors: int) -> Used | None:
        """The next used element, None if there is none; its chain was ``descriptors`` long."""
        return self.take_used_of(lambda _: descriptors)

    def take_used_of(self, descriptors: Callable[[int], int]) -> Used | None:
        """The next used element, None if there is none; ``descriptors`` knows how many the
        chain of a buffer id had."""
        at = self._desc + DESCRIPTOR_SIZE * self._next_used
        (flags,) = _U16.unpack(self.memory.read(at + 14, 2))
        if bool(flags & AVAIL) != self._used_wrap or bool(flags & USED) != self._used_wrap:
            return None
        # Only now: what the flags make visible.
        _, length, id, _ = _PACKED.unpack(self.memory.read(at, DESCRIPTOR_SIZE))
        self._next_used += descriptors(id)
        if self._next_used >= self.size:
            self._next_used -= self.size
            self._used_wrap = not self._used_wrap
        return Used(id, length)
