"""Memory for in-flight records that outlives the device's program (extension GET_INFLIGHT_FD)."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os

#: A packed queue of 32768 descriptors needs a little more than 1 MiB (vhost-user spec).
_MAX_BYTES_PER_QUEUE = 2 << 20


class InflightFile:
    """One memory file per device, sealed against size changes: no holder can shrink it under
    another. Its own, or one that the driver's side keeps. Guarded by the device's lock."""

    def __init__(self) -> None:
        self._fd = -1
        self._size = 0
        self._adopted = False

    @property
    def size(self) -> int:
        """Bytes; 0: there is none."""
        return self._size

    def get(self, size: int, queues: int) -> int:
        """A dup of the file of ``size`` bytes; a new, zeroed one when the size changes.
        OSError EINVAL: no bytes, or more than ``queues`` queues can need."""
        if not 0 < size <= _MAX_BYTES_PER_QUEUE * max(queues, 1):
            raise OSError(errno.EINVAL, f"in-flight memory of {size} bytes")
        if size != self._size:
            self.close()
            self._fd = sealed_memfd(size)
            self._size = size
        return os.dup(self._fd)

    def adopt(self, fd: int, size: int) -> None:
        """Uses a dup of the driver's side's file until the next reset. OSError EINVAL: not that
        size, or not sealed against shrinking."""
        if not fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
            raise OSError(errno.EINVAL, "in-flight memory that is not sealed against shrinking")
        if os.fstat(fd).st_size != size:
            raise OSError(errno.EINVAL, f"in-flight memory of {os.fstat(fd).st_size} bytes")
        adopted = os.dup(fd)
        self.close()
        self._fd, self._size, self._adopted = adopted, size, True

    def zero(self) -> None:
        """Device reset: nothing is in flight any more, for whoever has it mapped. The driver's
        side knows better what becomes of its own."""
        if self._adopted:
            self.close()
        elif self._size:
            with mmap.mmap(self._fd, self._size) as memory:
                memory.madvise(mmap.MADV_REMOVE)

    def close(self) -> None:
        """Lets the file go; holders of a dup keep theirs."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._size, self._adopted = -1, 0, False

    def __del__(self) -> None:
        self.close()


def sealed_memfd(size: int) -> int:
    """A memory file of ``size`` zeroes that stays so long (the caller's)."""
    fd = os.memfd_create("vduse-inflight", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        fcntl.fcntl(
            fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
        )
    except OSError:
        os.close(fd)
        raise
    return fd
