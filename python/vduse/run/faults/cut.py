"""IOTLB entries cut in two."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import replace

from vduse.bus.iotlb import Mapping

#: Bytes of the largest ring's largest area: 32768 descriptors.
_MOST_OF_A_RING = 32768 * 16


def cut(mapping: Mapping, rings: Sequence[int]) -> list[Mapping]:
    """Two entries for the same memory, cut at a page in the middle; one, where that is too small,
    or lies in or just behind one of the areas that begin at the IOVAs ``rings``: a device may
    take a ring for granted to lie in one piece."""
    size = mapping.last - mapping.start + 1
    at = (mapping.start + size // 2) & -mmap.PAGESIZE
    if at <= mapping.start or any(ring < at < ring + _MOST_OF_A_RING for ring in rings):
        return [mapping]
    return [
        replace(mapping, last=at - 1),
        replace(mapping, start=at, offset=mapping.offset + at - mapping.start),
    ]
