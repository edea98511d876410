"""What a disk must hold."""

from __future__ import annotations

from vduse.bus.disk import SECTOR_SIZE


class Model:
    """The bytes of a disk, and the sectors of which nothing is known: a change that failed or was
    discarded leaves what was there, or not."""

    def __init__(self, size: int) -> None:
        self.data = bytearray(size)
        #: A byte for each sector, 0 or 1: memory that does not grow with what happens.
        self._unknown = bytearray(size // SECTOR_SIZE)

    def written(self, offset: int, data: bytes, error: int) -> None:
        """A write has ended, with -errno or not."""
        self._mark(offset, len(data), error < 0)
        if error >= 0:
            self.data[offset : offset + len(data)] = data

    def forget(self, offset: int, length: int) -> None:
        """The range was discarded."""
        self._mark(offset, length, True)

    def check(self, name: str, offset: int, data: bytes) -> None:
        """What was read is what was written. AssertionError."""
        for at in range(0, len(data), SECTOR_SIZE):
            start = offset + at
            known = not self._unknown[start // SECTOR_SIZE]
            if known and data[at : at + SECTOR_SIZE] != self.data[start : start + SECTOR_SIZE]:
                sector = start // SECTOR_SIZE
                raise AssertionError(f"{name}: sector {sector} does not read as it was written")

    def resize(self, size: int) -> None:
        """Sectors that come are zeroes; those that go take what is known of them along."""
        for area, length in ((self.data, size), (self._unknown, size // SECTOR_SIZE)):
            del area[length:]
            area.extend(bytes(length - len(area)))

    def _mark(self, offset: int, length: int, unknown: bool) -> None:
        first, sectors = offset // SECTOR_SIZE, length // SECTOR_SIZE
        self._unknown[first : first + sectors] = bytes([unknown]) * sectors
