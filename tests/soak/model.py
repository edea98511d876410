"""What a disk must hold."""

from __future__ import annotations

from vduse.bus.disk import SECTOR_SIZE


class Model:
    """The bytes of a disk, and the sectors of which nothing is known: a change that failed or was
    discarded leaves what was there, or not."""

    def __init__(self, size: int) -> None:
        self.data = bytearray(size)
        self._unknown: set[int] = set()

    def written(self, offset: int, data: bytes, error: int) -> None:
        """A write has ended, with -errno or not."""
        sectors = range(offset // SECTOR_SIZE, (offset + len(data)) // SECTOR_SIZE)
        if error < 0:
            self._unknown.update(sectors)
            return
        self.data[offset : offset + len(data)] = data
        self._unknown.difference_update(sectors)

    def forget(self, offset: int, length: int) -> None:
        """The range was discarded."""
        end = (offset + length) // SECTOR_SIZE
        self._unknown.update(range(offset // SECTOR_SIZE, end))

    def check(self, name: str, offset: int, data: bytes) -> None:
        """What was read is what was written. AssertionError."""
        for at in range(0, len(data), SECTOR_SIZE):
            sector = (offset + at) // SECTOR_SIZE
            if sector in self._unknown:
                continue
            start = sector * SECTOR_SIZE
            if data[at : at + SECTOR_SIZE] != self.data[start : start + SECTOR_SIZE]:
                raise AssertionError(f"{name}: sector {sector} does not read as it was written")

    def resize(self, size: int) -> None:
        """Sectors that come are zeroes; those that go take what is known of them along."""
        del self.data[size:]
        self.data.extend(bytes(size - len(self.data)))
        self._unknown = {at for at in self._unknown if at < size // SECTOR_SIZE}
