"""The front end's memory: its regions, their files, and what its addresses mean."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

from vduse.bus.driver import Driver
from vduse.control.abi import ACCESS_RW
from vduse.control.vhost_user import ProtocolError, Region

#: Most regions at a time (GET_MAX_MEM_SLOTS): QEMU asks for a slot a DIMM.
MAX_SLOTS = 256

_PAGE = os.sysconf("SC_PAGE_SIZE")
_U64_MAX = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class _Mapped:
    region: Region
    fd: int

    @property
    def size(self) -> int:
        """Bytes in the IOTLB: a front end may name the bytes it uses; what it has is pages."""
        return -(-self.region.size // _PAGE) * _PAGE


class Memory:
    """Regions, each an IOTLB entry at its guest physical addresses."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._mapped: list[_Mapped] = []

    def replace(self, regions: list[Region], fds: list[int]) -> None:
        """SET_MEM_TABLE. Takes the fds over. ProtocolError: no such memory; OSError EFAULT: they
        overlap, or the device refuses them; EINVAL: a file that cannot be mapped. After an error
        there is no memory."""
        mapped = [_Mapped(r, fd) for r, fd in zip(regions, fds, strict=True)]
        former, self._mapped = self._mapped, mapped
        try:
            self._driver.iotlb_batch_begin()
            try:
                self._driver.iotlb_invalidate(0, _U64_MAX)
                for each in mapped:
                    self._update(each)
            finally:
                self._driver.iotlb_batch_end()
        except BaseException:
            self.close()
            self._driver.iotlb_invalidate(0, _U64_MAX)
            raise
        finally:
            _close(former)

    def add(self, region: Region, fd: int) -> None:
        """ADD_MEM_REG. Takes the fd over. OSError as :meth:`replace`; ProtocolError: no such
        memory, or no slot is left."""
        mapped = _Mapped(region, fd)
        try:
            if len(self._mapped) >= MAX_SLOTS:
                raise ProtocolError(f"more than {MAX_SLOTS} memory regions")
            self._update(mapped)
        except BaseException:
            _close([mapped])
            raise
        self._mapped.append(mapped)

    def remove(self, region: Region) -> None:
        """REM_MEM_REG: by guest address, user address and size. ProtocolError: there is none."""
        for mapped in self._mapped:
            there = mapped.region
            if (there.guest, there.user, there.size) == (region.guest, region.user, region.size):
                self._driver.iotlb_invalidate(there.guest, mapped.size)
                self._mapped.remove(mapped)
                _close([mapped])
                return
        raise ProtocolError(f"no memory region of {region.size} bytes at {region.guest:#x}")

    def guest(self, user: int) -> int:
        """The guest physical address of one of the front end's own. ProtocolError."""
        mapped = self._holds(user)
        return mapped.region.guest + user - mapped.region.user

    @property
    def end(self) -> int:
        """The guest physical address behind the last region; 0: there is none."""
        return max((mapped.region.guest + mapped.size for mapped in self._mapped), default=0)

    def read(self, user: int, length: int) -> bytes:
        """Bytes at one of the front end's own addresses, fewer at a region's end. OSError,
        ProtocolError."""
        mapped = self._holds(user)
        at = user - mapped.region.user
        return os.pread(mapped.fd, min(length, mapped.size - at), mapped.region.offset + at)

    def close(self) -> None:
        """Forgets the regions; the IOTLB stays."""
        _close(self._mapped)
        self._mapped = []

    def _update(self, mapped: _Mapped) -> None:
        region = mapped.region
        _check_file(mapped)
        self._driver.iotlb_update(region.guest, mapped.size, mapped.fd, region.offset, ACCESS_RW)

    def _holds(self, user: int) -> _Mapped:
        for mapped in self._mapped:
            if 0 <= user - mapped.region.user < mapped.size:
                return mapped
        raise ProtocolError(f"no memory region holds address {user:#x}")


def _check_file(mapped: _Mapped) -> None:
    """What is not there cannot be used: a device that touches it is stopped, and mapping much of
    it leaves no addresses for the memory of others."""
    if mapped.region.guest % _PAGE or mapped.region.offset % _PAGE:
        raise ProtocolError(f"memory region at {mapped.region.guest:#x} does not lie on pages")
    file = os.fstat(mapped.fd)
    if not stat.S_ISREG(file.st_mode):
        raise ProtocolError("a memory region is no memory: its fd is no regular file's")
    end = mapped.region.offset + mapped.size
    if end > -(-file.st_size // _PAGE) * _PAGE:
        raise ProtocolError(f"a memory region ends at {end:#x}, beyond its file of {file.st_size}")


def _close(mapped: list[_Mapped]) -> None:
    for each in mapped:
        os.close(each.fd)
