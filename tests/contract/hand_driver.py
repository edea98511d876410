"""A virtio-blk driver by hand on the `Driver` port: rings and requests byte by byte."""

from __future__ import annotations

import os
import select
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from tests.contract.devices import AGREED, BASE, DEADLINE, LIVE, STARTED
from vduse.bus.driver import PACKED_START, Driver
from vduse.control.abi import ACCESS_RW
from vduse.control.features import Feature
from vduse.testing.rings import NEXT, WRITE, Memory, PackedRing, SplitRing

IOVA = 1 << 32
SIZE = 1 << 20
QUEUE_SIZE = 64
BLOCK = 4096
#: Bytes of each queue's ring, and of a request's header and status.
_RING = 8192
_FRAME = 64
#: avail and used wrap counters of a packed ring, as VHOST_SET_VRING_BASE has them.
IN, OUT = 0, 1
PENDING = 0xFF


class HandDriver:
    """A started driver. Request ``slot`` of a queue has its frame and a data block at fixed
    places of the memory."""

    def __init__(self, driver: Driver, memory: Memory, *, queues: int = 1, packed: bool) -> None:
        self.driver = driver
        self.memory = memory
        self.packed = packed
        self.calls = [os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(queues)]
        kind = PackedRing if packed else SplitRing
        self.rings = [kind(memory, index * _RING, QUEUE_SIZE) for index in range(queues)]
        self._frames = queues * _RING
        self._data = self._frames + queues * QUEUE_SIZE * _FRAME

    def start(self, *enabled: int, base: int | None = None) -> None:
        """From the reset through DRIVER_OK, with these queues enabled; each goes on from
        ``base``, as VHOST_GET_VRING_BASE gave it."""
        if base is None:
            base = PACKED_START if self.packed else 0
        driver = self.driver
        driver.set_status(0)
        driver.set_status(STARTED)
        driver.set_features(BASE | (Feature.RING_PACKED if self.packed else 0))
        driver.set_status(AGREED)
        for index, ring in enumerate(self.rings):
            driver.set_vring_num(index, QUEUE_SIZE)
            driver.set_vring_addr(index, *ring.areas)
            driver.set_vring_base(index, base)
            driver.set_vring_call(index, self.calls[index])
        for index in enabled:
            driver.set_vring_enable(index, True)
        driver.set_status(LIVE)

    def data_offset(self, queue: int, slot: int) -> int:
        """Where a request's data block lies in the memory."""
        return self._data + (queue * QUEUE_SIZE + slot) * BLOCK

    def offer(self, queue: int, slot: int, kind: int, sector: int) -> None:
        """Makes a request for one block available; its status is PENDING."""
        frame = self._frames + (queue * QUEUE_SIZE + slot) * _FRAME
        self.memory.write(frame, struct.pack("<IIQ", kind, 0, sector))
        self.memory.write(frame + 16, bytes([PENDING]))
        base = self.memory.iova
        chain = (
            (base + frame, 16, 0),
            (base + self.data_offset(queue, slot), BLOCK, WRITE if kind == IN else 0),
            (base + frame + 16, 1, WRITE),
        )
        ring = self.rings[queue]
        if isinstance(ring, PackedRing):
            ring.offer(slot, *chain)
            return
        first = 3 * slot
        for place, (addr, length, flags) in enumerate(chain):
            more = NEXT if place < 2 else 0
            ring.descriptor(first + place, addr, length, flags | more, first + place + 1)
        ring.offer(first)

    def kick(self, queue: int = 0) -> None:
        self.driver.kick(queue)

    def status(self, queue: int, slot: int) -> int:
        """A request's status byte."""
        frame = self._frames + (queue * QUEUE_SIZE + slot) * _FRAME
        return self.memory.read(frame + 16, 1)[0]

    def used(self, queue: int) -> list[int]:
        """Slots that came back since the last call."""
        ring = self.rings[queue]
        if isinstance(ring, SplitRing):
            return [element.id // 3 for element in ring.take_used()]
        found = []
        while (element := ring.take_used(3)) is not None:
            found.append(element.id)
        return found

    def reap(self, queue: int, count: int) -> list[int]:
        """Waits for ``count`` requests; their slots."""
        found: list[int] = []
        while len(found) < count:
            found += self.used(queue)
            if len(found) < count:
                ready, _, _ = select.select([self.calls[queue]], [], [], DEADLINE)
                assert ready, f"{len(found)} of {count} requests came back"
                os.eventfd_read(self.calls[queue])
        return found

    def close(self) -> None:
        for fd in self.calls:
            os.close(fd)


#: Requests of one queue at a time.
DEPTH = QUEUE_SIZE // 3


@contextmanager
def hand_driver(driver: Driver, *, packed: bool, queues: int = 1) -> Iterator[HandDriver]:
    """With its memory, mapped at IOVA; the device is reset in the end."""
    with Memory(SIZE, IOVA) as memory:
        made = HandDriver(driver, memory, queues=queues, packed=packed)
        driver.iotlb_update(IOVA, SIZE, memory.fd, 0, ACCESS_RW)
        try:
            yield made
        finally:
            driver.set_status(0)
            driver.iotlb_invalidate(IOVA, SIZE)
            made.close()
