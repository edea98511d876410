"""A virtual machine as a back end sees it, without a VMM: memory, one virtqueue written by hand,
the record of its requests in flight. It outlives its back ends, as a VM does."""

from __future__ import annotations

import os
import select
import struct
from pathlib import Path

from tests.unit.vhost_user_front_end import FrontEnd, state, u64
from vduse.control.features import BlkFeature, Feature
from vduse.control.vhost_user import F_PROTOCOL_FEATURES, ProtocolFeature, Request
from vduse.testing.closing import Closing
from vduse.testing.rings import NEXT, WRITE, Memory, PackedRing, SplitRing

T_IN, T_OUT, T_FLUSH = 0, 1, 4
SECTOR = 512

_BASE = 0x100000
_SIZE = 64
#: Of the memory: headers and data of the requests, by number; the rings lie before.
_HEADERS, _BUFFERS = 0x8000, 0x10000
_STATUS = 16  # behind a header
_STRIDE = 64
#: A status that no device writes.
_NONE = 0x5A

_PROTOCOL = (
    ProtocolFeature.REPLY_ACK
    | ProtocolFeature.CONFIG
    | ProtocolFeature.BACKEND_REQ
    | ProtocolFeature.INFLIGHT_SHMFD
    | ProtocolFeature.CONFIGURE_MEM_SLOTS
)


class RawVm(Closing):
    """Requests have numbers, from 0; each is one sector."""

    def __init__(self, *, packed: bool) -> None:
        self._packed = packed
        self._memory = Memory(1 << 20, iova=_BASE)
        self._ring = (PackedRing if packed else SplitRing)(self._memory, 0, _SIZE)
        self._kick, self._call = os.eventfd(0), os.eventfd(0, os.EFD_NONBLOCK)
        self._inflight: tuple[bytes, int] | None = None
        self.front_end: FrontEnd | None = None

    def connect(self, path: Path) -> FrontEnd:
        """To a back end, with what is in flight; as QEMU, in this order."""
        front_end = self.front_end = FrontEnd(str(path))
        features = Feature.VERSION_1 | F_PROTOCOL_FEATURES | BlkFeature.FLUSH
        features |= Feature.RING_PACKED if self._packed else 0
        offered = int.from_bytes(front_end.get(Request.GET_FEATURES), "little")
        assert offered & features == features
        assert front_end.set(Request.SET_PROTOCOL_FEATURES, u64(_PROTOCOL)) == 0
        assert front_end.set(Request.SET_FEATURES, u64(features)) == 0
        if self._inflight is None:
            wanted = struct.pack("=QQHH4x", 0, 0, 1, _SIZE)
            self._inflight = front_end.get_fd(Request.GET_INFLIGHT_FD, wanted)
        assert front_end.set(Request.SET_INFLIGHT_FD, *self._inflight) == 0
        region = struct.pack("=8xQQQQ", _BASE, self._memory.size, _BASE, 0)
        assert front_end.set(Request.ADD_MEM_REG, region, self._memory.fd) == 0
        descriptors, available, used = self._ring.areas
        areas = struct.pack("=IIQQQQ", 0, 0, descriptors, used, available, 0)
        assert front_end.set(Request.SET_VRING_NUM, state(0, _SIZE)) == 0
        assert front_end.set(Request.SET_VRING_BASE, state(0, self._base)) == 0
        assert front_end.set(Request.SET_VRING_ADDR, areas) == 0
        assert front_end.set(Request.SET_VRING_CALL, u64(0), self._call) == 0
        assert front_end.set(Request.SET_VRING_KICK, u64(0), self._kick) == 0
        assert front_end.set(Request.SET_VRING_ENABLE, state(0, 1)) == 0
        return front_end

    def submit(self, number: int, kind: int, sector: int, data: bytes = bytes(SECTOR)) -> None:
        """Makes it available, and kicks."""
        header, buffer = _HEADERS + number * _STRIDE, _BUFFERS + number * SECTOR
        self._memory.write(header, struct.pack("<IIQB", kind, 0, sector, _NONE))
        self._memory.write(buffer, data)
        chain = [(_BASE + header, _STATUS, 0)]
        if kind != T_FLUSH:
            chain.append((_BASE + buffer, SECTOR, WRITE if kind == T_IN else 0))
        chain.append((_BASE + header + _STATUS, 1, WRITE))
        if isinstance(self._ring, PackedRing):
            self._ring.offer(number, *chain)
        else:
            head = 3 * number
            for place, (addr, length, flags) in enumerate(chain, head):
                is_last = place + 1 == head + len(chain)
                flags |= 0 if is_last else NEXT
                self._ring.descriptor(place, addr, length, flags, 0 if is_last else place + 1)
            self._ring.offer(head)
        os.eventfd_write(self._kick, 1)

    def offer_nonsense(self) -> None:
        """A descriptor that there is not, in a split ring."""
        assert isinstance(self._ring, SplitRing)
        self._ring.offer(999)
        os.eventfd_write(self._kick, 1)

    def used(self, count: int) -> list[int]:
        """Numbers of the next ``count`` requests that are used, in order; waits for them. All of
        them succeeded."""
        numbers: list[int] = []
        while True:
            numbers += self.used_now()
            if len(numbers) >= count:
                return numbers
            assert select.select([self._call], [], [], 60)[0], f"used: {numbers}"
            os.eventfd_read(self._call)

    def used_now(self) -> list[int]:
        """Those that are used since the last look."""
        numbers: list[int] = []
        if isinstance(self._ring, PackedRing):
            while (used := self._ring.take_used_of(self._descriptors)) is not None:
                numbers.append(used.id)
        else:
            numbers = [used.id // 3 for used in self._ring.take_used()]
        for number in numbers:
            status = self._memory.read(_HEADERS + number * _STRIDE + _STATUS, 1)
            assert status == b"\0", f"request {number}: {status!r}"
        return numbers

    def data(self, number: int) -> bytes:
        """A request's sector."""
        return self._memory.read(_BUFFERS + number * SECTOR, SECTOR)

    def disconnect(self) -> None:
        if self.front_end is not None:
            self.front_end.close()
            self.front_end = None

    def close(self) -> None:
        self.disconnect()
        if self._inflight is not None:
            os.close(self._inflight[1])
        os.close(self._kick)
        os.close(self._call)
        self._memory.close()

    @property
    def _base(self) -> int:
        """What QEMU knows after a back end was killed: of a split ring the used index; of a packed
        one nothing."""
        return self._ring.used_index if isinstance(self._ring, SplitRing) else 0

    def _descriptors(self, number: int) -> int:
        kind = int.from_bytes(self._memory.read(_HEADERS + number * _STRIDE, 4), "little")
        return 2 if kind == T_FLUSH else 3
