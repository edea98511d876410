"""Memory full of canaries: every byte that the device may not write just now is known, and looked
at."""

from __future__ import annotations

from typing import NamedTuple

from vduse.testing.rings import Memory

#: Bytes of the file before and behind what is mapped: a device that takes a mapping for larger,
#: or begins at the wrong place of the file, writes there.
GUARD = 0x10000
_SHOWN = 16


class Trespass(NamedTuple):
    """A byte that was written and may not be."""

    #: What lies there.
    where: str
    #: It is device-readable: the driver's areas, or a buffer that is not to be written.
    readable: bool
    #: IOVA, what was there and what is there now, for a person.
    text: str


class _Named(NamedTuple):
    start: int
    end: int
    what: str


class Canvas(Memory):
    """A memory file with ``size`` bytes to be mapped at IOVA ``iova``, and guards around them.
    Offsets are those of the file; what is mapped begins at :data:`GUARD`."""

    def __init__(self, size: int, iova: int) -> None:
        super().__init__(size + 2 * GUARD, iova - GUARD)
        canaries = bytes(1 + at * 7 % 251 for at in range(251))
        everything = (canaries * (self.size // 251 + 1))[: self.size]
        Memory.write(self, 0, everything)
        self._shadow = bytearray(everything)
        #: Bytes that are mapped.
        self.mapped = size
        self._granted: dict[int, int] = {}
        self._named: list[_Named] = []

    def write(self, offset: int, data: bytes) -> None:
        """The driver's own writes."""
        super().write(offset, data)
        self._shadow[offset : offset + len(data)] = data

    def name(self, offset: int, length: int, what: str) -> None:
        """What lies there, and is device-readable, from now on."""
        end = offset + length
        self._named = [n for n in self._named if n.end <= offset or end <= n.start]
        self._named.append(_Named(offset, end, what))

    def grant(self, offset: int, length: int) -> None:
        """The device may write there."""
        self._granted[offset] = length

    def withdraw(self, offset: int) -> None:
        """It may not any more: what is there now stays."""
        length = self._granted.pop(offset)
        self._shadow[offset : offset + length] = self.read(offset, length)

    def withdraw_all(self) -> None:
        """It may write nothing any more."""
        for offset in list(self._granted):
            self.withdraw(offset)

    def trespass(self) -> Trespass | None:
        """The first byte that was written and may not be; it is taken for what is right from now
        on."""
        found = self.read(0, self.size)
        expected = bytearray(self._shadow)
        for offset, length in self._granted.items():
            expected[offset : offset + length] = found[offset : offset + length]
        if found == expected:
            return None
        at = _first_difference(found, expected)
        self._shadow[:] = found
        named = next((n for n in self._named if n.start <= at < n.end), None)
        where = named.what if named is not None else self._unnamed(at)
        text = (
            f"{where}: at IOVA {self.iova + at:#x} {bytes(expected[at : at + _SHOWN]).hex(' ')} "
            f"became {found[at : at + _SHOWN].hex(' ')}"
        )
        return Trespass(where, named is not None, text)

    def _unnamed(self, at: int) -> str:
        if GUARD <= at < GUARD + self.mapped:
            return "between the buffers"
        return "a page of the file that is not mapped"


def _first_difference(one: bytes, other: bytearray) -> int:
    """Where two that differ do so first."""
    low, high = 0, len(one)
    while high - low > 1:
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low
