"""A virtio-blk disk as a Python object, and as ordinary binary files."""

from __future__ import annotations

import errno
import io
import threading
from collections.abc import Sequence
from typing import Any, Literal, overload

from typing_extensions import Buffer

from vduse import _native
from vduse.control.statistics import DriverStats

SECTOR_SIZE = 512


class Disk:
    """A disk driven by virtio_vdpa. Thread-safe; every method waits for its requests with the
    GIL released.

    Offsets and lengths are bytes, multiples of 512 (:meth:`open` has no such rule). OSError:
    EINVAL (unaligned, past the end), EIO, EROFS, EOPNOTSUPP (the device cannot discard ...),
    ENODEV (the device was taken away).
    """

    def __init__(self, driver: _native.BlkDriver, name: str) -> None:
        self._driver = driver
        self._name = name
        # Unaligned writes read, change and write whole sectors: one at a time.
        self._sector_lock = threading.Lock()

    @property
    def name(self) -> str:
        """The device's name."""
        return self._name

    @property
    def driver(self) -> _native.BlkDriver:
        """The driver itself, for the load generator."""
        return self._driver

    @property
    def size(self) -> int:
        """Bytes; changes when the device is resized."""
        return self._driver.size

    @property
    def read_only(self) -> bool:
        """VIRTIO_BLK_F_RO."""
        return self._driver.read_only

    def pread(self, length: int, offset: int) -> bytes:
        """``length`` bytes from ``offset``."""
        buffer = bytearray(length)
        self._driver.preadinto(offset, buffer)
        return bytes(buffer)

    def preadinto(self, buffer: Buffer, offset: int) -> int:
        """Fills ``buffer`` from ``offset``; its bytes."""
        return self._driver.preadinto(offset, buffer)

    def pwrite(self, data: Buffer, offset: int) -> int:
        """Writes ``data`` at ``offset``; its bytes. Lasts from the next :meth:`flush` on."""
        return self._driver.pwrite(offset, data)

    def flush(self) -> None:
        """What was written is on stable storage."""
        self._driver.flush()

    def discard(self, offset: int, length: int) -> None:
        """The bytes are not needed any more; what they read as is undefined."""
        self._driver.discard(offset, length)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool = False) -> None:
        """The bytes read as zero; ``unmap``: their storage may be given back."""
        self._driver.write_zeroes(offset, length, unmap)

    def serial(self) -> str:
        """The device's serial (VIRTIO_BLK_T_GET_ID)."""
        return self._driver.serial().rstrip(b"\0").decode("ascii", "replace")

    def submit(self, batch: Sequence[tuple[str, int, Any]]) -> list[int]:
        """Starts requests ``(op, offset, buffer or length)``, op one of read, write, flush,
        discard, write_zeroes; their tokens. Buffers are held until reaped. A batch goes to the
        first virtqueue."""
        return self._driver.submit(batch)

    def reap(self, minimum: int = 1, timeout: float | None = None) -> list[tuple[int, int]]:
        """Completed ``(token, bytes or -errno)``: at least ``minimum``, unless ``timeout``
        seconds passed first or nothing is outstanding."""
        return self._driver.reap(minimum, timeout)

    def stats(self) -> DriverStats:
        """What the driver's side has counted: docs/statistics.md."""
        return self._driver.stats()

    @overload
    def open(  # type: ignore[overload-overlap]  # as builtins.open
        self, mode: str, buffering: Literal[0]
    ) -> DiskFile: ...
    @overload
    def open(
        self, mode: str = "r+b", buffering: int = io.DEFAULT_BUFFER_SIZE
    ) -> io.BufferedReader | io.BufferedRandom: ...
    def open(
        self, mode: str = "r+b", buffering: int = io.DEFAULT_BUFFER_SIZE
    ) -> DiskFile | io.BufferedReader | io.BufferedRandom:
        """A binary file over the disk, with a position of its own: ``rb`` or ``r+b``.
        ``buffering`` 0: unbuffered. Closing it flushes. ValueError: another mode; OSError EROFS:
        ``r+b`` on a read-only disk."""
        if mode not in ("rb", "r+b", "rb+"):
            raise ValueError(f"mode {mode!r}: a disk opens as 'rb' or 'r+b'")
        writable = mode != "rb"
        if writable and self.read_only:
            raise OSError(errno.EROFS, f"{self._name} is read-only: open it as 'rb'")
        raw = DiskFile(self, self._sector_lock, writable)
        if buffering == 0:
            return raw
        if writable:
            return io.BufferedRandom(raw, buffering)
        return io.BufferedReader(raw, buffering)


class DiskFile(io.RawIOBase):
    """An unbuffered file over a disk. Any offset and length: sectors written in part are read
    first. Its writes are whole against each other, not against :meth:`Disk.pwrite`."""

    def __init__(self, disk: Disk, sector_lock: threading.Lock, writable: bool) -> None:
        """For :meth:`Disk.open`."""
        super().__init__()
        self._disk = disk
        self._sector_lock = sector_lock
        self._writable = writable
        self._position = 0
        self._dirty = False
        self.name = disk.name
        self.mode = "rb+" if writable else "rb"

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return self._writable

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        self._check_open()
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._check_open()
        bases = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._disk.size}
        if whence not in bases:
            raise ValueError(f"whence {whence}")
        position = bases[whence] + offset
        if position < 0:
            raise OSError(errno.EINVAL, f"seek to {position}")
        self._position = position
        return position

    def readinto(self, buffer: Buffer) -> int:
        self._check_open()
        view = memoryview(buffer).cast("B")
        length = min(len(view), self._disk.size - self._position)
        if length <= 0:
            return 0
        start, end = _sectors(self._position, length)
        if (start, end) == (self._position, self._position + length):
            self._disk.preadinto(view[:length], start)
        else:
            head = self._position - start
            view[:length] = self._disk.pread(end - start, start)[head : head + length]
        self._position += length
        return length

    def write(self, data: Buffer) -> int:
        self._check_open()
        if not self._writable:
            raise io.UnsupportedOperation("the file was opened for reading")
        view = memoryview(data).cast("B")
        length = min(len(view), self._disk.size - self._position)
        if length <= 0:
            if len(view) == 0:
                return 0
            raise OSError(errno.ENOSPC, f"{self.name} ends at {self._disk.size} bytes")
        self._dirty = True
        with self._sector_lock:
            self._write_sectors(view[:length])
        self._position += length
        return length

    def truncate(self, size: int | None = None) -> int:
        raise io.UnsupportedOperation("a disk has the size that its device gives it")

    def flush(self) -> None:
        super().flush()
        if self._dirty:
            self._disk.flush()
            self._dirty = False

    def _write_sectors(self, view: memoryview) -> None:
        """Writes at the position; sectors at either end that are not wholly covered keep what
        they hold beside."""
        offset, rest = self._position, view
        head = offset % SECTOR_SIZE
        if head:
            part = rest[: SECTOR_SIZE - head]
            self._patch(offset - head, head, part)
            offset, rest = offset + len(part), rest[len(part) :]
        whole = len(rest) - len(rest) % SECTOR_SIZE
        if whole:
            self._disk.pwrite(rest[:whole], offset)
        if len(rest) > whole:
            self._patch(offset + whole, 0, rest[whole:])

    def _patch(self, sector: int, at: int, part: memoryview) -> None:
        data = bytearray(self._disk.pread(SECTOR_SIZE, sector))
        data[at : at + len(part)] = part
        self._disk.pwrite(data, sector)

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("the file is closed")


def _sectors(offset: int, length: int) -> tuple[int, int]:
    """The whole sectors that hold the bytes: start and end offset."""
    end = offset + length
    return offset - offset % SECTOR_SIZE, end + -end % SECTOR_SIZE
