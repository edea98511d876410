"""A virtio-blk driver over the :class:`~vduse.bus.driver.Driver` port that knows no mistakes: it
sets a queue up, then writes whatever it is told into its ring, legal or not.

    with RawDriver(driver, size=16) as raw:
        raw.start()
        raw.ring.descriptor(0, addr=raw.at(0x9000), length=16, flags=NEXT, next=0)  # a loop
        raw.ring.offer(0)
        raw.kick()

    chain = [(raw.at(HEADER), 16, 0), (raw.at(STATUS), 1, WRITE)]
    raw.submit(chain)                      # the legal way, in either format
    raw.wait_used(1)
"""

from __future__ import annotations

import os
import select
import struct
from collections.abc import Sequence
from time import monotonic
from typing import Final

from vduse.bus.driver import PACKED_START, Driver
from vduse.control.abi import ACCESS_RW
from vduse.control.features import Feature, Status
from vduse.testing.closing import Closing
from vduse.testing.rings import (
    DESCRIPTOR_SIZE,
    INDIRECT,
    NEXT,
    WRITE,
    Memory,
    PackedRing,
    SplitRing,
    Used,
)

#: A descriptor of a legal chain: IOVA, bytes, flags (WRITE or 0).
Part = tuple[int, int, int]

#: VIRTIO_BLK_T_ and VIRTIO_BLK_S_ (virtio 1.3, section 5.2.6).
T_IN: Final = 0
T_OUT: Final = 1
T_FLUSH: Final = 4
T_GET_ID: Final = 8
T_DISCARD: Final = 11
T_WRITE_ZEROES: Final = 13
S_OK: Final = 0
S_IOERR: Final = 1
S_UNSUPP: Final = 2

#: IOVA of a :class:`RawDriver`'s memory, if nobody says another.
BASE: Final = 0x10_0000
#: Where :class:`RawDriver` keeps its indirect tables, as an offset of its memory; rings of up to
#: 1024 descriptors lie before. What lies from :data:`FREE` on is the user's.
TABLES: Final = 0x8000
FREE: Final = 0x10000
#: Most descriptors of an indirect table of :meth:`RawDriver.submit`.
TABLE_LENGTH: Final = 32

_STARTED = Status.ACKNOWLEDGE | Status.DRIVER
_AGREED = _STARTED | Status.FEATURES_OK
_MOST_TABLES = (FREE - TABLES) // (TABLE_LENGTH * DESCRIPTOR_SIZE)


def header(kind: int, sector: int = 0) -> bytes:
    """struct virtio_blk_req up to the data; ``sector`` of 512 bytes."""
    return struct.pack("<IIQ", kind, 0, sector & (1 << 64) - 1)


def range_entry(sector: int, sectors: int, flags: int = 0) -> bytes:
    """struct virtio_blk_discard_write_zeroes; flag 1: unmap."""
    return struct.pack("<QII", sector, sectors, flags)


class RawDriver(Closing):
    """One virtqueue of a device and the memory it lies in. A context manager that resets the
    device in the end. ``driver`` stays the caller's."""

    def __init__(
        self,
        driver: Driver,
        *,
        size: int = 16,
        packed: bool = False,
        without: int = 0,
        memory: int = 1 << 20,
        iova: int = BASE,
    ) -> None:
        """Resets the device and negotiates all it offers but the features ``without``. ``size``:
        descriptors, at most 1024. ``memory``: bytes, mapped at ``iova`` by :meth:`start`.
        OSError: the device refuses."""
        self.driver = driver
        without |= 0 if packed else Feature.RING_PACKED
        driver.set_status(0)
        driver.set_status(Status.ACKNOWLEDGE)
        driver.set_status(_STARTED)
        #: Negotiated feature bits.
        self.features = driver.get_features() & ~without
        driver.set_features(self.features)
        driver.set_status(_AGREED)
        self.memory = Memory(memory, iova)
        self.packed = packed
        self.ring: SplitRing | PackedRing
        self.ring = PackedRing(self.memory, 0, size) if packed else SplitRing(self.memory, 0, size)
        self._calls = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._free = list(range(size))
        self._taken: dict[int, list[int]] = {}
        self._tables = list(range(min(size, _MOST_TABLES)))
        self._table_of: dict[int, int] = {}
        self._closed = False

    @property
    def split(self) -> SplitRing:
        """The ring, of a driver that is not packed."""
        assert isinstance(self.ring, SplitRing)
        return self.ring

    @property
    def packed_ring(self) -> PackedRing:
        """The ring of a packed driver."""
        assert isinstance(self.ring, PackedRing)
        return self.ring

    @property
    def event_idx(self) -> bool:
        """VIRTIO_F_EVENT_IDX was negotiated."""
        return bool(self.features & Feature.EVENT_IDX)

    def at(self, offset: int) -> int:
        """IOVA of a byte of the memory."""
        return self.memory.iova + offset

    def start(
        self,
        *,
        num: int | None = None,
        areas: tuple[int, int, int] | None = None,
        base: int | None = None,
    ) -> bool:
        """Maps the memory, sets the queue up and says DRIVER_OK; whether the device took it.
        ``num``, ``areas``, ``base`` (:meth:`Driver.set_vring_base`): in place of what is true.
        OSError: the framework refuses."""
        self.driver.iotlb_update(self.memory.iova, self.memory.size, self.memory.fd, 0, ACCESS_RW)
        self.driver.set_vring_num(0, self.ring.size if num is None else num)
        self.driver.set_vring_addr(0, *(areas or self.ring.areas))
        fresh = PACKED_START if self.packed else 0
        self.driver.set_vring_base(0, fresh if base is None else base)
        self.driver.set_vring_call(0, self._calls)
        self.driver.set_vring_enable(0, True)
        self.driver.set_status(_AGREED | Status.DRIVER_OK)
        return bool(self.driver.get_status() & Status.DRIVER_OK)

    # --- the legal way ----------------------------------------------------------------------

    @property
    def room(self) -> int:
        """Descriptors of the ring that no chain holds."""
        return len(self._free)

    def submit(self, chain: Sequence[Part], *, indirect: bool = False) -> int:
        """Makes a chain available, device-readable parts first; its id in :class:`Used`. With
        ``indirect`` it takes one descriptor. ValueError: no room."""
        table = self._tables.pop() if indirect and self._tables else None
        if table is not None:
            chain = [self._write_table(table, chain)]
        slots = len(chain)
        if slots > len(self._free):
            raise ValueError(f"{slots} descriptors, {len(self._free)} are free")
        taken = [self._free.pop() for _ in chain]
        id = taken[0]
        self._taken[id] = taken
        if table is not None:
            self._table_of[id] = table
        if isinstance(self.ring, PackedRing):
            self.ring.offer(id, *chain)
            return id
        for place, (addr, length, flags) in enumerate(chain):
            last = place + 1 == slots
            following = 0 if last else taken[place + 1]
            self.ring.descriptor(
                taken[place], addr, length, flags | (0 if last else NEXT), following
            )
        self.ring.offer(id)
        return id

    def kick(self) -> None:
        """Kicks, wanted or not."""
        self.driver.kick(0)

    def take_used(self) -> list[Used]:
        """The used elements since the last call; their descriptors are free again."""
        taken: list[Used] = []
        if isinstance(self.ring, SplitRing):
            taken = self.ring.take_used()
        else:
            while (used := self.ring.take_used_of(self._slots)) is not None:
                taken.append(used)
        for used in taken:
            self._free += self._taken.pop(used.id)
            if used.id in self._table_of:
                self._tables.append(self._table_of.pop(used.id))
        return taken

    def wait_used(self, count: int, timeout: float = 30.0) -> list[Used]:
        """Waits for ``count`` used elements, by irq. TimeoutError."""
        deadline = monotonic() + timeout
        taken: list[Used] = []
        while True:
            taken += self.take_used()
            if len(taken) >= count:
                return taken
            self._want_irq()
            more = self.take_used()
            if more:
                taken += more
            elif not self.wait_irq(max(0.0, deadline - monotonic())):
                raise TimeoutError(f"{len(taken)} of {count} requests were used in {timeout:g} s")

    def wait_irq(self, timeout: float) -> bool:
        """Waits for an irq and takes it; false after ``timeout`` seconds."""
        poll = select.poll()
        poll.register(self._calls, select.POLLIN)
        if not poll.poll(timeout * 1000):
            return False
        os.eventfd_read(self._calls)
        return True

    def request(
        self, kind: int, sector: int = 0, data: bytes = b"", room: int = 0
    ) -> tuple[int, bytes, int]:
        """One request, waited for: ``data`` to the device, ``room`` bytes from it. Its status,
        what came, and the used length. Uses the memory from :data:`FREE` on."""
        message = header(kind, sector) + data
        reply = FREE + len(message)
        self.memory.write(FREE, message)
        self.memory.write(reply, bytes(room) + b"\xff")
        self.submit([(self.at(FREE), len(message), 0), (self.at(reply), room + 1, WRITE)])
        self.kick()
        (used,) = self.wait_used(1)
        answer = self.memory.read(reply, room + 1)
        return answer[-1], answer[:-1], used.length

    # --- live migration and its like --------------------------------------------------------

    def remap(self) -> None:
        """Maps the same memory anew, under a live device: one IOTLB update."""
        self._swap(self.memory)

    def migrate(self) -> None:
        """Stops the queue where it stands, moves ring and data to another file at the same
        IOVAs, and goes on. What is in flight completes before."""
        base = self.driver.get_vring_base(0)
        old = self.memory
        new = Memory(old.size, old.iova)
        new.write(0, old.read(0, old.size))
        self._swap(new)
        self.memory = self.ring.memory = new
        old.close()
        self.driver.set_vring_base(0, base)
        self.driver.set_vring_enable(0, True)
        self.kick()

    # --- the end ----------------------------------------------------------------------------

    def reset(self) -> None:
        """Resets the device and takes the memory away from it."""
        self.driver.set_status(0)
        self.driver.iotlb_invalidate(self.memory.iova, self.memory.size)

    def close(self) -> None:
        """Resets the device and frees everything. Idempotent."""
        if not self._closed:
            self._closed = True
            self.reset()
            self.memory.close()
            os.close(self._calls)

    # --- inside -----------------------------------------------------------------------------

    def _write_table(self, table: int, chain: Sequence[Part]) -> Part:
        if len(chain) > TABLE_LENGTH:
            raise ValueError(f"{len(chain)} descriptors, a table has {TABLE_LENGTH}")
        offset = TABLES + table * TABLE_LENGTH * DESCRIPTOR_SIZE
        for place, (addr, length, flags) in enumerate(chain):
            if isinstance(self.ring, PackedRing):
                self.ring.indirect(offset, place, addr, length, flags)
            else:
                last = place + 1 == len(chain)
                flags |= 0 if last else NEXT
                self.ring.indirect(offset, place, addr, length, flags, 0 if last else place + 1)
        return self.at(offset), len(chain) * DESCRIPTOR_SIZE, INDIRECT

    def _swap(self, memory: Memory) -> None:
        self.driver.iotlb_batch_begin()
        self.driver.iotlb_invalidate(memory.iova, memory.size)
        self.driver.iotlb_update(memory.iova, memory.size, memory.fd, 0, ACCESS_RW)
        self.driver.iotlb_batch_end()

    def _slots(self, id: int) -> int:
        return len(self._taken[id])

    def _want_irq(self) -> None:
        """With event indices: an irq for the next used element (section 2.7.7.1)."""
        if isinstance(self.ring, SplitRing) and self.event_idx:
            self.ring.set_used_event(self.ring.seen_used)
