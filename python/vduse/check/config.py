"""The fields of struct virtio_blk_config that rules are about (virtio 1.3, section 5.2.4)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, Self

from vduse.control.features import BlkFeature

#: Bytes of the config space up to the end of the fields that a feature makes valid.
FIELD_ENDS: Final = {
    BlkFeature.SIZE_MAX: 12,
    BlkFeature.SEG_MAX: 16,
    BlkFeature.GEOMETRY: 20,
    BlkFeature.BLK_SIZE: 24,
    BlkFeature.TOPOLOGY: 32,
    BlkFeature.MQ: 36,
    BlkFeature.DISCARD: 48,
    BlkFeature.WRITE_ZEROES: 57,
    BlkFeature.SECURE_ERASE: 72,
    BlkFeature.ZONED: 96,
}
#: Of ``capacity``, which is there always.
CAPACITY_END: Final = 8

_LAYOUT = struct.Struct("<QII4xI10xH12xI")


@dataclass(frozen=True, slots=True)
class BlkFields:
    """Valid with their features only; zero where the config space ends before."""

    #: Sectors of 512 bytes.
    capacity: int
    #: Bytes.
    size_max: int
    seg_max: int
    #: Bytes.
    blk_size: int
    num_queues: int
    #: Sectors of 512 bytes.
    max_write_zeroes_sectors: int

    @classmethod
    def read(cls, config: bytes) -> Self:
        """From a config space of any length."""
        return cls(*_LAYOUT.unpack_from(config.ljust(_LAYOUT.size, b"\0")))
