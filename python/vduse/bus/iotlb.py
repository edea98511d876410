"""IOTLB of shared files: which part of which file lies at an IOVA (drivers/vhost/iotlb.c)."""

from __future__ import annotations

import errno
import os
from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass


class SharedFile:
    """A duplicate of a memory fd, closed when the last mapping of it is gone."""

    def __init__(self, fd: int) -> None:
        self._fd = -1
        self._fd = os.dup(fd)

    def fileno(self) -> int:
        """The fd; it stays this object's."""
        return self._fd

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)


@dataclass(frozen=True, slots=True)
class Mapping:
    """IOVAs [start, last] lie at ``offset`` bytes of ``file``."""

    start: int
    last: int
    file: SharedFile
    offset: int
    #: ACCESS_RO, ACCESS_WO or ACCESS_RW of linux/vduse.h.
    perm: int


class Iotlb:
    """Mappings that do not overlap, in the order of their IOVAs."""

    def __init__(self) -> None:
        self._mappings: list[Mapping] = []

    def __len__(self) -> int:
        return len(self._mappings)

    def __iter__(self) -> Iterator[Mapping]:
        return iter(self._mappings)

    def first(self, start: int, last: int) -> Mapping | None:
        """The first mapping that overlaps [start, last]."""
        at = bisect_left(self._mappings, start, key=lambda mapping: mapping.last)
        if at < len(self._mappings) and self._mappings[at].start <= last:
            return self._mappings[at]
        return None

    def add(self, mapping: Mapping) -> None:
        """OSError EEXIST: overlaps what is there."""
        there = self.first(mapping.start, mapping.last)
        if there is not None:
            raise OSError(
                errno.EEXIST,
                f"IOVAs {mapping.start:#x}-{mapping.last:#x} overlap the mapping "
                f"{there.start:#x}-{there.last:#x}: invalidate that first",
            )
        insort(self._mappings, mapping, key=lambda each: each.start)

    def remove(self, start: int, last: int) -> None:
        """Removes every mapping that overlaps [start, last], whole."""
        self._mappings = [
            mapping for mapping in self._mappings if mapping.last < start or last < mapping.start
        ]
