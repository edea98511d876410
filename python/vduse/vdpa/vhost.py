"""A driver on the kernel's /dev/vhost-vdpa-N: the ioctls and IOTLB messages of linux/vhost.h.

It must be in another process than the device's program: while it maps memory the kernel holds
this process's memory map and waits for the program's answer, and the program maps memory before
it answers.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import struct
import threading
from dataclasses import dataclass
from enum import IntEnum

_U64 = struct.Struct("=Q")
#: vhost_vring_state: index, num.
_STATE = struct.Struct("=II")
#: vhost_vring_file: index, fd.
_FILE = struct.Struct("=Ii")
#: vhost_vring_addr: index, flags, descriptor, used and avail ring, log.
_ADDR = struct.Struct("=IIQQQQ")
#: vhost_vdpa_config: offset, length; the bytes follow.
_CONFIG = struct.Struct("=II")
#: vhost_vdpa_iova_range: first, last.
_RANGE = struct.Struct("=QQ")
#: vhost_msg_v2 with its vhost_iotlb_msg: type, asid; IOVA, size, user address, perm, type.
_MESSAGE = struct.Struct("=IIQQQBB38x")
_MSG_V2 = 2

_WRITE, _READ = 1, 2


def _ioc(direction: int, nr: int, size: int) -> int:
    """_IOC of asm-generic/ioctl.h for VHOST_VIRTIO."""
    return direction << 30 | size << 16 | 0xAF << 8 | nr


class _Ioctl(IntEnum):
    """linux/vhost.h, without VHOST_ and VHOST_VDPA_."""

    GET_FEATURES = _ioc(_READ, 0x00, 8)
    SET_FEATURES = _ioc(_WRITE, 0x00, 8)
    SET_OWNER = _ioc(0, 0x01, 0)
    SET_VRING_NUM = _ioc(_WRITE, 0x10, 8)
    SET_VRING_ADDR = _ioc(_WRITE, 0x11, 40)
    SET_VRING_BASE = _ioc(_WRITE, 0x12, 8)
    GET_VRING_BASE = _ioc(_WRITE | _READ, 0x12, 8)
    SET_VRING_KICK = _ioc(_WRITE, 0x20, 8)
    SET_VRING_CALL = _ioc(_WRITE, 0x21, 8)
    SET_BACKEND_FEATURES = _ioc(_WRITE, 0x25, 8)
    GET_BACKEND_FEATURES = _ioc(_READ, 0x26, 8)
    GET_DEVICE_ID = _ioc(_READ, 0x70, 4)
    GET_STATUS = _ioc(_READ, 0x71, 1)
    SET_STATUS = _ioc(_WRITE, 0x72, 1)
    GET_CONFIG = _ioc(_READ, 0x73, 8)
    SET_CONFIG = _ioc(_WRITE, 0x74, 8)
    SET_VRING_ENABLE = _ioc(_WRITE, 0x75, 8)
    GET_VRING_NUM = _ioc(_READ, 0x76, 2)
    SET_CONFIG_CALL = _ioc(_WRITE, 0x77, 4)
    GET_IOVA_RANGE = _ioc(_READ, 0x78, 16)
    GET_CONFIG_SIZE = _ioc(_READ, 0x79, 4)
    GET_VRING_GROUP = _ioc(_WRITE | _READ, 0x7B, 8)
    SET_GROUP_ASID = _ioc(_WRITE, 0x7C, 8)
    GET_VQS_COUNT = _ioc(_READ, 0x80, 4)


class _IotlbMessage(IntEnum):
    UPDATE = 2
    INVALIDATE = 3
    BATCH_BEGIN = 5
    BATCH_END = 6


#: VHOST_BACKEND_F_IOTLB_MSG_V2, _BATCH and _ASID: what the messages here need.
_BACKEND_FEATURES = 1 << 1 | 1 << 2 | 1 << 3

_PROTECTION = {1: mmap.PROT_READ, 2: mmap.PROT_WRITE, 3: mmap.PROT_READ | mmap.PROT_WRITE}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_MAP_FAILED = ctypes.c_void_p(-1).value


class _SharedPages:
    """Part of a file, mapped shared into this process. Not mmap.mmap: that tells no address of
    what is mapped for reading, and wants the file to be there to the end."""

    def __init__(self, fd: int, offset: int, length: int, protection: int) -> None:
        """OSError as mmap(2)."""
        inner = offset % mmap.PAGESIZE
        self._length = inner + length
        start = _libc.mmap(None, self._length, protection, mmap.MAP_SHARED, fd, offset - inner)
        if start == _MAP_FAILED:
            number = ctypes.get_errno()
            raise OSError(number, f"mapping memory for the device: {os.strerror(number)}")
        self._start = int(start)
        #: Where ``offset`` lies.
        self.address = self._start + inner

    def close(self) -> None:
        """Unmaps."""
        _libc.munmap(self._start, self._length)


@dataclass(frozen=True, slots=True)
class _Mapping:
    last: int
    pages: _SharedPages


class VhostVdpaDriver:
    """Implements :class:`vduse.bus.driver.Driver` on /dev/vhost-vdpa-N. Thread-safe; calls that
    reach the device wait for its program. Errors are OSError with the kernel's errno: EIO, the
    program refuses or does not answer; ENOBUFS, no such virtqueue; after :meth:`close`, EBADF."""

    def __init__(self, path: str) -> None:
        """Opens the device, which resets it, and turns the IOTLB's backend features on.
        OSError EBUSY: it is open; ENOENT, EACCES, EIO."""
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._lock = threading.Lock()
        #: By asid and first IOVA. Kept as long as the kernel has their addresses.
        self._mappings: dict[tuple[int, int], _Mapping] = {}
        #: Eventfds for :meth:`kick`, by virtqueue: ours, or duplicates of the caller's.
        self._kicks: dict[int, int] = {}
        try:
            self._call(_Ioctl.SET_OWNER)
            self.set_backend_features(self.get_backend_features() & _BACKEND_FEATURES)
        except BaseException:
            self.close()
            raise

    # --- device -----------------------------------------------------------------------------

    def get_device_id(self) -> int:
        return self._get(_Ioctl.GET_DEVICE_ID)

    def get_status(self) -> int:
        return self._get(_Ioctl.GET_STATUS)

    def set_status(self, status: int) -> None:
        """0 resets. A status that the device refuses is not stored, and nothing is raised: read
        it back. OSError EINVAL: bits taken away; EIO: the reset failed."""
        if not 0 <= status <= 0xFF:
            raise OSError(errno.EINVAL, f"status {status:#x}: 8 bits")
        self._call(_Ioctl.SET_STATUS, bytes([status]))

    def get_features(self) -> int:
        return self._get(_Ioctl.GET_FEATURES)

    def set_features(self, features: int) -> None:
        """OSError EBUSY after FEATURES_OK."""
        self._call(_Ioctl.SET_FEATURES, _U64.pack(features))

    def get_backend_features(self) -> int:
        return self._get(_Ioctl.GET_BACKEND_FEATURES)

    def set_backend_features(self, features: int) -> None:
        """OSError EOPNOTSUPP: not one of the kernel's."""
        self._call(_Ioctl.SET_BACKEND_FEATURES, _U64.pack(features))

    def get_config_size(self) -> int:
        return self._get(_Ioctl.GET_CONFIG_SIZE)

    def get_config(self, offset: int, length: int) -> bytes:
        """OSError EINVAL: no bytes, or any past the end."""
        answer = self._call(_Ioctl.GET_CONFIG, _CONFIG.pack(offset, length) + bytes(length))
        return answer[_CONFIG.size :]

    def set_config(self, offset: int, data: bytes) -> None:
        """Checked as :meth:`get_config`, then dropped by VDUSE."""
        self._call(_Ioctl.SET_CONFIG, _CONFIG.pack(offset, len(data)) + data)

    def set_config_call(self, fd: int) -> None:
        self._call(_Ioctl.SET_CONFIG_CALL, struct.pack("=i", fd))

    def get_iova_range(self) -> tuple[int, int]:
        first, last = _RANGE.unpack(self._call(_Ioctl.GET_IOVA_RANGE, bytes(_RANGE.size)))
        return first, last

    # --- virtqueues -------------------------------------------------------------------------

    def get_vqs_count(self) -> int:
        return self._get(_Ioctl.GET_VQS_COUNT)

    def get_vring_num_max(self) -> int:
        return self._get(_Ioctl.GET_VRING_NUM)

    def get_vring_group(self, index: int) -> int:
        """OSError EOPNOTSUPP: the kernel's VDUSE has no groups (before API version 1)."""
        return self._exchange(_Ioctl.GET_VRING_GROUP, index)

    def set_group_asid(self, group: int, asid: int) -> None:
        """OSError EBUSY under DRIVER_OK; EINVAL; EOPNOTSUPP."""
        self._call(_Ioctl.SET_GROUP_ASID, _STATE.pack(group, asid))

    def set_vring_num(self, index: int, num: int) -> None:
        """OSError EINVAL."""
        self._call(_Ioctl.SET_VRING_NUM, _STATE.pack(index, num))

    def set_vring_addr(self, index: int, desc: int, driver: int, device: int) -> None:
        """OSError EINVAL: driver area not on 2 bytes, device area not on 4."""
        self._call(_Ioctl.SET_VRING_ADDR, _ADDR.pack(index, 0, desc, device, driver, 0))

    def set_vring_base(self, index: int, base: int) -> None:
        """OSError EINVAL: a split ring's index of more than 16 bits."""
        self._call(_Ioctl.SET_VRING_BASE, _STATE.pack(index, base))

    def get_vring_base(self, index: int) -> int:
        return self._exchange(_Ioctl.GET_VRING_BASE, index)

    def set_vring_enable(self, index: int, enable: bool) -> None:
        self._call(_Ioctl.SET_VRING_ENABLE, _STATE.pack(index, enable))

    def set_vring_kick(self, index: int, fd: int) -> None:
        """OSError EBADF, EINVAL: no eventfd."""
        self._call(_Ioctl.SET_VRING_KICK, _FILE.pack(index, fd))
        with self._lock:
            if (before := self._kicks.pop(index, None)) is not None:
                os.close(before)
            if fd >= 0:
                self._kicks[index] = os.dup(fd)

    def set_vring_call(self, index: int, fd: int) -> None:
        """OSError EBADF, EINVAL: no eventfd. A reset takes it away."""
        self._call(_Ioctl.SET_VRING_CALL, _FILE.pack(index, fd))

    def kick(self, index: int) -> None:
        """By the eventfd that is set; by one of our own where none is."""
        with self._lock:  # nobody closes it meanwhile
            if (kick := self._kicks.get(index)) is not None:
                os.eventfd_write(kick, 1)
                return
        own = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            self.set_vring_kick(index, own)
            os.eventfd_write(own, 1)
        finally:
            os.close(own)

    # --- IOTLB ------------------------------------------------------------------------------

    def iotlb_update(
        self, iova: int, size: int, fd: int, offset: int, perm: int, asid: int = 0
    ) -> None:
        """Outside a batch, the device is told at once. OSError EINVAL: perm, no bytes; EFAULT:
        whatever else the kernel or the device finds wrong; as mmap(2) for the memory."""
        if perm not in _PROTECTION:
            raise OSError(errno.EINVAL, f"perm {perm}: 1 (read), 2 (write) or 3")
        if not 0 < size <= (1 << 64) - iova:
            # No memory is that large: the kernel refuses the range before it looks at the address.
            self._send(_IotlbMessage.UPDATE, iova, size, 0, perm, asid)
            return
        pages = _SharedPages(fd, offset, size, _PROTECTION[perm])
        try:
            self._send(_IotlbMessage.UPDATE, iova, size, pages.address, perm, asid)
        except BaseException:
            pages.close()
            raise
        with self._lock:
            self._mappings[asid, iova] = _Mapping(iova + size - 1, pages)

    def iotlb_invalidate(self, iova: int, size: int, asid: int = 0) -> None:
        """Removes every mapping that overlaps, whole. OSError EFAULT."""
        self._send(_IotlbMessage.INVALIDATE, iova, size, 0, 0, asid)
        last = iova + size - 1
        with self._lock:
            gone = [
                key
                for key, mapping in self._mappings.items()
                if key[0] == asid and key[1] <= last and iova <= mapping.last
            ]
            for key in gone:
                self._mappings.pop(key).pages.close()

    def iotlb_batch_begin(self) -> None:
        self._send(_IotlbMessage.BATCH_BEGIN)

    def iotlb_batch_end(self) -> None:
        """OSError EFAULT: the device or the kernel refuses what was mapped since the begin."""
        self._send(_IotlbMessage.BATCH_END)

    def close(self) -> None:
        """Resets the device; the kernel forgets the IOTLB. Idempotent."""
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
            self._fd = -1
            for kick in self._kicks.values():
                os.close(kick)
            self._kicks.clear()
            for mapping in self._mappings.values():
                mapping.pages.close()
            self._mappings.clear()

    # --- inside -----------------------------------------------------------------------------

    def _call(self, nr: _Ioctl, payload: bytes = b"") -> bytes:
        if not payload:
            fcntl.ioctl(self._fd_or_ebadf(), nr)
            return b""
        # A bytearray: other buffers may be no longer than 1024 bytes.
        argument = bytearray(payload)
        fcntl.ioctl(self._fd_or_ebadf(), nr, argument, True)
        return bytes(argument)

    def _get(self, nr: _Ioctl) -> int:
        """An integer of the ioctl's own size."""
        return int.from_bytes(self._call(nr, bytes(nr >> 16 & 0x3FFF)), "little")

    def _exchange(self, nr: _Ioctl, index: int) -> int:
        _, num = _STATE.unpack(self._call(nr, _STATE.pack(index, 0)))
        return int(num)

    def _send(
        self,
        kind: _IotlbMessage,
        iova: int = 0,
        size: int = 0,
        address: int = 0,
        perm: int = 0,
        asid: int = 0,
    ) -> None:
        message = _MESSAGE.pack(_MSG_V2, asid, iova, size, address, perm, kind)
        os.write(self._fd_or_ebadf(), message)

    def _fd_or_ebadf(self) -> int:
        if self._fd < 0:
            raise OSError(errno.EBADF, "the driver is closed")
        return self._fd
