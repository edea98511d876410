"""A virtio-blk request, as the driver made it and as it came back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from vduse.testing.rawdriver import (
    S_UNSUPP,
    T_DISCARD,
    T_FLUSH,
    T_GET_ID,
    T_IN,
    T_OUT,
    T_WRITE_ZEROES,
    Part,
)

SECTOR: Final = 512
#: What a status byte is before the device writes it.
PENDING: Final = 0xFF

_NAMES = {
    T_IN: "read",
    T_OUT: "write",
    T_FLUSH: "flush",
    T_GET_ID: "get id",
    T_DISCARD: "discard",
    T_WRITE_ZEROES: "write zeroes",
}


@dataclass(eq=False)
class Request:
    """Made by :meth:`~vduse.check.queue.Queue.submit`."""

    #: VIRTIO_BLK_T_.
    kind: int
    #: Of 512 bytes.
    sector: int
    #: Data bytes to the device, and from it.
    sent: int
    room: int
    #: Where in the memory they lie: the data's pieces from the device, and the status.
    data_at: list[tuple[int, int]] = field(default_factory=list)
    status_at: int = 0
    #: Offsets in the memory that the device may write.
    granted: list[int] = field(default_factory=list)
    #: As offered: IOVA, bytes, flags.
    chain: list[Part] = field(default_factory=list)
    #: Its descriptors of the ring, the head (packed: the buffer id) first.
    descriptors: list[int] = field(default_factory=list)
    #: What came back.
    status: int = PENDING
    data: bytes = b""
    used_length: int = 0

    @property
    def answered(self) -> bool:
        """The status is one that there is; else that rule has failed already."""
        return self.status <= S_UNSUPP

    @property
    def writable(self) -> int:
        """Bytes that the device may write."""
        return self.room + 1

    def __str__(self) -> str:
        name = _NAMES.get(self.kind, f"request of type {self.kind}")
        size = max(self.sent, self.room)
        return f"{name} of {size} bytes at sector {self.sector}"
