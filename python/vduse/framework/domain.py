"""A device's IOVA space: the native domain's own memory (virtio_vdpa), or the files that a
vhost_vdpa user mapped in its place."""

from __future__ import annotations

import errno
import mmap
from collections.abc import Iterable
from dataclasses import dataclass

from vduse import _native
from vduse.bus.iotlb import Iotlb, Mapping

PAGE_SIZE = mmap.PAGESIZE


@dataclass(frozen=True, slots=True)
class Region:
    """What overlaps a range asked for. ``fd`` stays its owner's: dup before the lock is gone."""

    start: int
    last: int
    offset: int
    perm: int
    fd: int
    #: Takes user memory (VDUSE_IOVA_CAP_UMEM).
    umem: bool = False


class IovaDomain:
    """Guarded by the device's lock."""

    def __init__(self, bounce_size: int) -> None:
        self.native = _native.Domain(bounce_size)
        self._mapped: Iotlb | None = None
        self._has_umem = False

    @property
    def has_umem(self) -> bool:
        """The bounce pages are the device's own (REG_UMEM)."""
        return self._has_umem

    def first(self, start: int, last: int) -> Region | None:
        """The first region that overlaps [start, last]."""
        if self._mapped is not None:
            found = self._mapped.first(start, last)
            if found is None:
                return None
            return Region(found.start, found.last, found.offset, found.perm, found.file.fileno())
        for first, end, offset, perm in self.native.entries():
            if first <= last and start <= end:
                umem = first == 0 and end == self.native.bounce_size - 1
                return Region(first, end, offset, perm, self.native.fd, umem)
        return None

    def set_map(self, mappings: Iterable[Mapping]) -> None:
        """Replaces everything. OSError EEXIST: they overlap."""
        mapped = Iotlb()
        for mapping in mappings:
            mapped.add(mapping)
        self._mapped = mapped

    def clear_map(self) -> None:
        """Back to the domain's own memory."""
        self._mapped = None

    def reset(self) -> None:
        """Device reset: the bounce entry goes, coherent ones stay."""
        self.native.reset_bounce_map()

    def check_umem(self, iova: int, uaddr: int, size: int) -> None:
        """OSError EINVAL, EEXIST in REG_UMEM's order."""
        if not self.native.bounce_mapped:
            raise OSError(errno.EINVAL, "no bounce page was mapped yet")
        if size != self.native.bounce_size or iova != 0:
            raise OSError(errno.EINVAL, f"umem must be IOVA 0, {self.native.bounce_size} bytes")
        if uaddr % PAGE_SIZE:
            raise OSError(errno.EINVAL, f"umem address {uaddr:#x} is no page's")
        if self._has_umem:
            raise OSError(errno.EEXIST, "user memory is registered already")

    def reg_umem(self, pid: int, uaddr: int) -> None:
        """After :meth:`check_umem`. OSError as process_vm_writev."""
        self.native.reg_umem(pid, uaddr)
        self._has_umem = True

    def dereg_umem(self, iova: int, size: int) -> None:
        """OSError ENOENT; EINVAL: not what was registered."""
        if not self._has_umem:
            raise OSError(errno.ENOENT, "no user memory is registered")
        if iova != 0 or size != self.native.bounce_size:
            raise OSError(errno.EINVAL, "not the user memory that was registered")
        self.drop_umem()

    def drop_umem(self) -> None:
        """Dereg by whoever leaves."""
        if self._has_umem:
            self._has_umem = False
            self.native.dereg_umem()
