"""What stands behind the in-flight records in a file: whose they are."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import ClassVar, Self


@dataclass(frozen=True, slots=True)
class InflightHeader:
    """The last :attr:`SIZE` bytes of the file. The records lie before it, from the first byte on,
    in the vhost-user specification's layouts ("Inflight I/O tracking")."""

    #: The boot on which the file was made (/proc/sys/kernel/random/boot_id), 16 bytes.
    boot: bytes
    #: The device; a number that no other device of this boot has.
    device: int
    #: Feature bits that the driver negotiated.
    features: int
    #: Bytes of the records: as many as virtqueues of these sizes need.
    size: int
    #: Counts the resets: each one ends the meaning of what the records said.
    generation: int
    #: Whether the driver is live on these records. False from before a reset is answered until
    #: DRIVER_OK; then there are none.
    live: bool

    MAGIC: ClassVar[bytes] = b"vduse-if"
    VERSION: ClassVar[int] = 1
    _FIELDS: ClassVar[struct.Struct] = struct.Struct("=8sI16sQQQQ?")
    _CHECKSUM: ClassVar[struct.Struct] = struct.Struct("=I")
    SIZE: ClassVar[int] = 128

    def pack(self) -> bytes:
        """The bytes, CRC-32 of all others last."""
        fields = self._FIELDS.pack(
            self.MAGIC,
            self.VERSION,
            self.boot,
            self.device,
            self.features,
            self.size,
            self.generation,
            self.live,
        )
        fields = fields.ljust(self.SIZE - self._CHECKSUM.size, b"\0")
        return fields + self._CHECKSUM.pack(zlib.crc32(fields))

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """ValueError: they are no header, a damaged one, or one of another version."""
        if len(data) != cls.SIZE:
            raise ValueError("it is too short")
        magic, version, boot, device, features, size, generation, live = cls._FIELDS.unpack_from(
            data
        )
        if magic != cls.MAGIC:
            raise ValueError("it is no in-flight record, or a truncated one")
        fields, checksum = data[: -cls._CHECKSUM.size], data[-cls._CHECKSUM.size :]
        if cls._CHECKSUM.pack(zlib.crc32(fields)) != checksum:
            raise ValueError("its header is damaged: wrong checksum")
        if version != cls.VERSION:
            raise ValueError(f"it is of version {version}, not {cls.VERSION}")
        return cls(boot, device, features, size, generation, live)
