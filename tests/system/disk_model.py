"""What a disk may hold, sector by sector, while requests are under way; and requests as chains of
any cut."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from vduse.testing.rawdriver import (
    FREE,
    S_OK,
    T_DISCARD,
    T_FLUSH,
    T_GET_ID,
    T_IN,
    T_OUT,
    T_WRITE_ZEROES,
    Part,
    RawDriver,
    header,
    range_entry,
)
from vduse.testing.rings import WRITE, Memory, Used

SECTOR = 512
SERIAL = b"model-serial".ljust(20, b"\0")
_STAMP = struct.Struct("<QQ")
#: Kinds of requests that change what is read.
CHANGES = (T_OUT, T_DISCARD, T_WRITE_ZEROES)


def sector_data(stamp: int, sector: int) -> bytes:
    """The bytes of one sector written under a stamp; stamp 0: zeroes."""
    return _STAMP.pack(stamp, sector) * (SECTOR // _STAMP.size) if stamp else bytes(SECTOR)


class DiskModel:
    """The stamps that each sector may hold."""

    def __init__(self, sectors: int) -> None:
        self.may_hold: list[set[int]] = [{0} for _ in range(sectors)]
        self._stamp = 0

    def stamp(self) -> int:
        """A new one."""
        self._stamp += 1
        return self._stamp

    def changed(self, kind: int, sector: int, count: int, stamp: int, *, surely: bool) -> None:
        """A request that changes sectors was acknowledged (``surely``), or lost by a reset. What
        discarded sectors hold is not said (section 5.2.6.1): here, what they held or zeroes."""
        for at in range(sector, sector + count):
            old = self.may_hold[at]
            keeps_old = not surely or kind == T_DISCARD
            self.may_hold[at] = {stamp} | (old if keeps_old else set())

    def check_read(self, sector: int, data: bytes) -> None:
        """What was read is what may be there, and is there from now on."""
        for at in range(len(data) // SECTOR):
            got = data[at * SECTOR : (at + 1) * SECTOR]
            stamp = _STAMP.unpack_from(got)[0]
            held = self.may_hold[sector + at]
            assert stamp in held, f"sector {sector + at} holds {stamp}, may hold {held}"
            assert got == sector_data(stamp, sector + at), f"sector {sector + at} is torn"
            self.may_hold[sector + at] = {stamp}


@dataclass
class Request:
    """A request, where its bytes lie, and how it must end."""

    kind: int
    sector: int = 0
    count: int = 0
    stamp: int = 0
    #: Device-writable parts: the memory and offset of each, and its bytes.
    places: list[tuple[Memory, int, int]] = field(default_factory=list)

    @property
    def message(self) -> bytes:
        """All device-readable bytes."""
        sectors = range(self.sector, self.sector + self.count)
        match self.kind:
            case 1:
                data = b"".join(sector_data(self.stamp, sector) for sector in sectors)
                return header(T_OUT, self.sector) + data
            case 11 | 13:
                return header(self.kind) + range_entry(self.sector, self.count)
        return header(self.kind, self.sector)

    @property
    def room(self) -> int:
        """All device-writable bytes, status included."""
        return {T_IN: self.count * SECTOR, T_GET_ID: len(SERIAL)}.get(self.kind, 0) + 1

    def moved(self, old: Memory, new: Memory) -> None:
        """What lay in one memory lies in the other now."""
        self.places = [(new if at[0] is old else at[0], *at[1:]) for at in self.places]

    def touches(self, other: Request) -> bool:
        """Whether the two must not be in flight together for their outcome to be known."""
        changes = self.kind in CHANGES or other.kind in CHANGES
        apart = (
            self.sector + self.count <= other.sector or other.sector + other.count <= self.sector
        )
        return changes and not apart

    def check(self, used: Used, model: DiskModel) -> None:
        """The device has used it: status, length and data are right."""
        reply = b"".join(memory.read(offset, length) for memory, offset, length in self.places)
        assert reply[-1] == S_OK, (self.kind, reply[-1])
        assert used.length == self.room
        if self.kind == T_IN:
            model.check_read(self.sector, reply[:-1])
        elif self.kind == T_GET_ID:
            assert reply[:-1] == SERIAL
        elif self.kind != T_FLUSH:
            self.settle(model, surely=True)

    def settle(self, model: DiskModel, *, surely: bool) -> None:
        """What it has changed."""
        if self.kind in CHANGES:
            model.changed(self.kind, self.sector, self.count, self.stamp, surely=surely)


class Placer:
    """Cuts requests into parts and lays them out in a driver's memory or in a window beside it,
    whose IOVA and file change."""

    _GAP = 3

    def __init__(self, window_iova: int) -> None:
        self.window = Memory(1 << 18, window_iova)
        self._next = FREE
        self._next_in_window = 0

    def clear(self) -> None:
        """Nothing is in flight: all memory is free."""
        self._next, self._next_in_window = FREE, 0

    def has_room(self, raw: RawDriver, request: Request) -> bool:
        """Whether it fits wherever its parts are laid."""
        need = len(request.message) + request.room + 16 * self._GAP
        return (
            max(self._next + need - raw.memory.size, self._next_in_window + need - self.window.size)
            <= 0
        )

    def place(
        self,
        raw: RawDriver,
        request: Request,
        cuts: Sequence[int],
        reply_cuts: Sequence[int],
        in_window: Sequence[bool],
    ) -> list[Part]:
        """The chain: ``cuts`` of the message and of the reply, in bytes modulo their lengths;
        parts take turns in lying in the window or not."""
        chain: list[Part] = []
        message = request.message
        turn = 0
        for start, end in _pieces(len(message), cuts):
            memory, offset = self._take(raw, end - start, in_window[turn % len(in_window)])
            memory.write(offset, message[start:end])
            chain.append((memory.iova + offset, end - start, 0))
            turn += 1
        for start, end in _pieces(request.room, reply_cuts):
            memory, offset = self._take(raw, end - start, in_window[turn % len(in_window)])
            memory.write(offset, b"\xee" * (end - start))
            request.places.append((memory, offset, end - start))
            chain.append((memory.iova + offset, end - start, WRITE))
            turn += 1
        return chain

    def _take(self, raw: RawDriver, length: int, in_window: bool) -> tuple[Memory, int]:
        if in_window:
            offset, self._next_in_window = (
                self._next_in_window,
                self._next_in_window + length + self._GAP,
            )
            return self.window, offset
        offset, self._next = self._next, self._next + length + self._GAP
        return raw.memory, offset


def _pieces(length: int, cuts: Iterable[int]) -> list[tuple[int, int]]:
    ends = [*sorted({cut % length for cut in cuts} - {0}), length]
    return list(zip([0, *ends], ends, strict=False))
