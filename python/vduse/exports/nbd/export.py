"""What clients are told about an export."""

from __future__ import annotations

import os
from dataclasses import dataclass

from vduse import _native
from vduse.control.features import BlkFeature
from vduse.control.nbd import MAX_STRING, TransmissionFlag

#: Bytes: smallest unit, best unit and longest request (NBD_INFO_BLOCK_SIZE). virtio-blk counts
#: in sectors of 512; file systems of today lay out by 4096; the longest is what the protocol
#: lets clients expect of every server.
MINIMUM_BLOCK = 512
PREFERRED_BLOCK = 4096
MAXIMUM_BLOCK = 32 << 20


@dataclass(frozen=True, slots=True)
class Export:
    """One disk, as it is now: its size may change from one handshake to the next."""

    #: The name that is listed.
    name: str
    #: Bytes.
    size: int
    flags: TransmissionFlag
    #: One line for people.
    description: str = ""
    #: The empty name, NBD's default, is the same export.
    default: bool = True

    def serves(self, name: str) -> bool:
        """Whether a client that asks for ``name`` means this one."""
        return name == self.name or (self.default and not name)


def sendable(text: str) -> str:
    """``text`` as the protocol's strings are: UTF-8, no zero byte, at most MAX_STRING bytes. What
    a path has that is none of this is shown as U+FFFD."""
    data = os.fsencode(text).decode(errors="replace").replace("\0", "\N{REPLACEMENT CHARACTER}")
    return data.encode()[:MAX_STRING].decode(errors="ignore")


def transmission_flags(driver: _native.BlkDriver) -> TransmissionFlag:
    """What a driver's features let NBD clients ask for, SEND_DF (a matter of the connection)
    aside.

    CAN_MULTI_CONN always: all connections end in one virtio-blk device, and a flush there
    covers every request completed before it, whichever virtqueue it went through (virtio 1.3,
    section 5.2.6.2). A FUA write is a write and a flush, so it needs VIRTIO_BLK_F_FLUSH too.
    SEND_CACHE always: a hint, which does nothing. FAST_ZERO is answered by what can be known
    beforehand: where zeroing may deallocate it is fast, else it is refused with ENOTSUP.
    """
    features = driver.features
    flags = TransmissionFlag.HAS_FLAGS | TransmissionFlag.CAN_MULTI_CONN
    flags |= TransmissionFlag.SEND_CACHE
    if features & BlkFeature.FLUSH:
        flags |= TransmissionFlag.SEND_FLUSH | TransmissionFlag.SEND_FUA
    if driver.read_only:
        return flags | TransmissionFlag.READ_ONLY
    if features & BlkFeature.DISCARD:
        flags |= TransmissionFlag.SEND_TRIM
    if features & BlkFeature.WRITE_ZEROES:
        flags |= TransmissionFlag.SEND_WRITE_ZEROES | TransmissionFlag.SEND_FAST_ZERO
    return flags
