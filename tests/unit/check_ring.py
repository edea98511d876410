"""A virtqueue as a device sees it (virtio 1.3, 2.7 and 2.8), plainly written: for devices that do
right but for one thing. Each step is a method, so that a test can do it wrong."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Protocol

from vduse.control.abi import VqInfo, decode_vq_state
from vduse.control.features import Feature
from vduse.testing.rings import AVAIL, DESCRIPTOR_SIZE, INDIRECT, NEXT, USED, WRITE

_DESC = struct.Struct("<QIHH")
_U64_MAX = (1 << 64) - 1


class BadChain(Exception):
    """The driver's mistake: the virtqueue stops."""


class Access(Protocol):
    """The driver's memory. BadChain: not mapped, or not so."""

    def read(self, iova: int, length: int) -> bytes: ...
    def write(self, iova: int, data: bytes) -> None: ...


@dataclass
class Chain:
    """One that the driver made available."""

    id: int
    #: Descriptors of the ring that it takes.
    slots: int
    #: IOVA and bytes.
    readable: list[tuple[int, int]]
    writable: list[tuple[int, int]]


class DeviceQueue:
    """Virtqueue ``info.index``, from the position that the framework gave."""

    def __init__(self, memory: Access, info: VqInfo, features: int) -> None:
        self.memory = memory
        self.info = info
        self.packed = bool(features & Feature.RING_PACKED)
        self.event_idx = bool(features & Feature.EVENT_IDX)
        self.broken = False
        position = decode_vq_state(info.state, self.packed)
        if self.packed:
            self.avail, self.avail_wrap, self.used, self.used_wrap = position
        else:
            self.avail = self.used = position[0]
            self.avail_wrap = self.used_wrap = 0
        for area in (info.desc_addr, info.driver_addr, info.device_addr):
            memory.read(area, 4)

    @property
    def index(self) -> int:
        return self.info.index

    @property
    def position(self) -> tuple[int, ...]:
        """For GET_VQ_STATE, and where a successor goes on."""
        if self.packed:
            return self.avail, self.avail_wrap, self.used, self.used_wrap
        return (self.avail,)

    @property
    def waiting(self) -> int:
        """Chains of a split ring that were not taken."""
        return (self._u16(self.info.driver_addr + 2) - self.avail) & 0xFFFF

    # --- available --------------------------------------------------------------------------

    def take(self) -> Chain | None:
        """The next chain. BadChain."""
        return self._take_packed() if self.packed else self._take_split()

    def want_kick(self) -> None:
        """Asks for a kick; the ring is to be looked at once more afterwards."""
        if self.event_idx and not self.packed:
            at = self.info.device_addr + 4 + 8 * self.info.num
            self.memory.write(at, self.avail.to_bytes(2, "little"))

    def _take_split(self) -> Chain | None:
        offered = self._u16(self.info.driver_addr + 2)
        if offered == self.avail:
            return None
        if (offered - self.avail) & 0xFFFF > self.info.num:
            raise BadChain("the available index jumps")
        head = self._u16(self.info.driver_addr + 4 + 2 * (self.avail % self.info.num))
        chain = Chain(head, 1, [], [])
        self._follow(chain, self.info.desc_addr, self.info.num, head)
        self.avail = (self.avail + 1) & 0xFFFF
        return chain

    def _follow(self, chain: Chain, table: int, size: int, index: int) -> None:
        for _ in range(size):
            if index >= size:
                raise BadChain("a descriptor outside the table")
            addr, length, flags, following = self._desc(table, index)
            if flags & INDIRECT:
                self._check_table(table, length, flags)
                self._follow(chain, addr, length // DESCRIPTOR_SIZE, 0)
                return
            self._add(chain, addr, length, flags)
            if not flags & NEXT:
                return
            index = following
        raise BadChain("descriptors in a loop")

    def _take_packed(self) -> Chain | None:
        first, wrap = self.avail, self.avail_wrap
        chain = Chain(0, 0, [], [])
        while True:
            addr, length, id, flags = self._desc(self.info.desc_addr, self.avail)
            if bool(flags & AVAIL) != bool(self.avail_wrap) or bool(flags & USED) == bool(
                self.avail_wrap
            ):
                if chain.slots:
                    self.avail, self.avail_wrap = first, wrap
                return None
            chain.id = id
            chain.slots += 1
            if chain.slots > self.info.num:
                raise BadChain("a chain without an end")
            if flags & INDIRECT:
                self._check_table(self.info.desc_addr, length, flags)
                for place in range(length // DESCRIPTOR_SIZE):
                    inner = self._desc(addr, place)
                    if inner[3] & INDIRECT:
                        raise BadChain("a table in a table")
                    self._add(chain, inner[0], inner[1], inner[3])
            else:
                self._add(chain, addr, length, flags)
            self.avail += 1
            if self.avail == self.info.num:
                self.avail, self.avail_wrap = 0, 1 - self.avail_wrap
            if not flags & NEXT:
                return chain

    def _check_table(self, table: int, length: int, flags: int) -> None:
        if not length or length % DESCRIPTOR_SIZE or flags & NEXT:
            raise BadChain(f"an indirect table of {length} bytes")
        if not self.packed and table != self.info.desc_addr:
            raise BadChain("a table in a table")

    def _add(self, chain: Chain, addr: int, length: int, flags: int) -> None:
        if length == 0 or addr + length > _U64_MAX:
            raise BadChain(f"{length} bytes at {addr:#x}")
        (chain.writable if flags & WRITE else chain.readable).append((addr, length))

    # --- used -------------------------------------------------------------------------------

    def put(self, chain: Chain, written: int) -> bool:
        """Hands a chain back; whether the driver wants an interrupt."""
        if self.packed:
            return self._put_packed(chain, written)
        old = self.used
        at = self.info.device_addr + 4 + 8 * (self.used % self.info.num)
        self.memory.write(at, struct.pack("<II", chain.id, written))
        self.used = (self.used + 1) & 0xFFFF
        self.memory.write(self.info.device_addr + 2, self.used.to_bytes(2, "little"))
        if not self.event_idx:
            return not self._u16(self.info.driver_addr) & 1
        event = self._u16(self.info.driver_addr + 4 + 2 * self.info.num)
        return (self.used - event - 1) & 0xFFFF < (self.used - old) & 0xFFFF

    def _put_packed(self, chain: Chain, written: int) -> bool:
        at = self.info.desc_addr + DESCRIPTOR_SIZE * self.used
        flags = (AVAIL | USED) if self.used_wrap else 0
        self.memory.write(at + 8, struct.pack("<IH", written, chain.id))
        self.memory.write(at + 14, (flags | (WRITE if written else 0)).to_bytes(2, "little"))
        self.used += chain.slots
        if self.used >= self.info.num:
            self.used, self.used_wrap = self.used - self.info.num, 1 - self.used_wrap
        return self._u16(self.info.driver_addr + 2) != 1

    # --- inside -----------------------------------------------------------------------------

    def _desc(self, table: int, index: int) -> tuple[int, int, int, int]:
        raw = self.memory.read(table + DESCRIPTOR_SIZE * index, DESCRIPTOR_SIZE)
        addr, length, third, fourth = _DESC.unpack(raw)
        # Split: flags, next. Packed: id, flags.
        return addr, length, third, fourth

    def _u16(self, iova: int) -> int:
        return int.from_bytes(self.memory.read(iova, 2), "little")
