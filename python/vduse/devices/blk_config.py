"""The config space of a block device, struct virtio_blk_config (virtio 1.3, section 5.2.4)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar

#: Bytes of a sector, the unit of ``capacity`` whatever ``blk_size`` is.
SECTOR = 512

_CAPACITY = struct.Struct("<Q")


def pack_capacity(sectors: int) -> bytes:
    """The field ``capacity`` (at offset 0), for a resize."""
    return _CAPACITY.pack(sectors)


@dataclass(frozen=True, slots=True)
class BlkConfig:
    """The fields up to WRITE_ZEROES; those of features not offered are 0.

    Every field but ``capacity`` is valid only with the feature named beside it.
    """

    #: Sectors of 512 bytes.
    capacity: int
    #: Bytes of the longest segment (SIZE_MAX).
    size_max: int = 0
    #: Most segments of a request (SEG_MAX).
    seg_max: int = 0
    #: GEOMETRY.
    cylinders: int = 0
    heads: int = 0
    sectors: int = 0
    #: Logical block, bytes (BLK_SIZE).
    blk_size: int = SECTOR
    #: Logical blocks in a physical one, as a power of two (TOPOLOGY).
    physical_block_exp: int = 0
    #: First aligned logical block (TOPOLOGY).
    alignment_offset: int = 0
    #: Smallest I/O without penalty, in logical blocks (TOPOLOGY).
    min_io_size: int = 0
    #: Best I/O size, in logical blocks; 0: none (TOPOLOGY).
    opt_io_size: int = 0
    #: CONFIG_WCE.
    writeback: int = 0
    #: MQ.
    num_queues: int = 0
    #: Most sectors of a discard segment (DISCARD).
    max_discard_sectors: int = 0
    #: Most segments of a discard (DISCARD).
    max_discard_seg: int = 0
    #: Sectors (DISCARD).
    discard_sector_alignment: int = 0
    #: Most sectors of a write zeroes segment (WRITE_ZEROES).
    max_write_zeroes_sectors: int = 0
    #: Most segments of a write zeroes (WRITE_ZEROES).
    max_write_zeroes_seg: int = 0
    #: 1: write zeroes may deallocate (WRITE_ZEROES).
    write_zeroes_may_unmap: int = 0

    _LAYOUT: ClassVar[struct.Struct] = struct.Struct("<QIIHBBIBBHIBxHIIIIIB3x")
    SIZE: ClassVar[int] = _LAYOUT.size

    def pack(self) -> bytes:
        """The config space's bytes. struct.error: a value does not fit its field."""
        return self._LAYOUT.pack(
            self.capacity,
            self.size_max,
            self.seg_max,
            self.cylinders,
            self.heads,
            self.sectors,
            self.blk_size,
            self.physical_block_exp,
            self.alignment_offset,
            self.min_io_size,
            self.opt_io_size,
            self.writeback,
            self.num_queues,
            self.max_discard_sectors,
            self.max_discard_seg,
            self.discard_sector_alignment,
            self.max_write_zeroes_sectors,
            self.max_write_zeroes_seg,
            self.write_zeroes_may_unmap,
        )

    @classmethod
    def unpack(cls, data: bytes) -> BlkConfig:
        """From a config space of :attr:`SIZE` bytes or more. ValueError: shorter."""
        if len(data) < cls.SIZE:
            raise ValueError(f"virtio_blk_config: {len(data)} bytes, expected {cls.SIZE} or more")
        return cls(*cls._LAYOUT.unpack_from(data))
