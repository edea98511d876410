"""The kernel's /dev/vdX past its page cache: requests as asynchronous I/O (linux/aio_abi.h), so
that they are in the virtqueue when :meth:`KernelDisk.submit` returns. On x86-64."""

from __future__ import annotations

import ctypes
import itertools
import mmap
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_SETUP, _DESTROY, _GETEVENTS, _SUBMIT = 206, 207, 208, 209
#: struct iocb: data, key, rw_flags, opcode, reqprio, fd, buffer, bytes, offset, and flags.
_IOCB = struct.Struct("=QIIHhIQQqQII")
#: struct io_event: data, iocb, result, second result.
_EVENT = struct.Struct("=QQqq")
_OPCODES = {"read": 0, "write": 1, "flush": 2}
_MOST = 256

_HUGE = 2 << 20
_MAP_HUGETLB = 0x40000
#: Bytes of the largest request: several fit into the smallest bounce region.
_LARGEST = 256 << 10

_libc = ctypes.CDLL(None, use_errno=True)


class _Pages:
    """Memory that lies in one piece for the device too: as many bytes of one request are one
    descriptor, as with a driver of ours."""

    def __init__(self, size: int) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_HUGETLB
        self.map = mmap.mmap(-1, size + -size % _HUGE, flags)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.map))


class _Request:
    def __init__(self, op: str, pages: _Pages, at: int, buffer: Any) -> None:
        self._op = op
        self._pages = pages
        self._at = at
        self._buffer = buffer

    def finish(self, result: int) -> None:
        if self._op == "read" and result > 0:
            self._buffer[:result] = self._pages.map[self._at : self._at + result]


class KernelDisk:
    """Implements :class:`tests.contract.ports.Disk`."""

    def __init__(self, path: str) -> None:
        queue = Path("/sys/class/block", Path(path).name, "queue")
        # One call is one request, no more and mostly no fewer.
        for setting, value in (
            ("scheduler", "none"),
            ("nomerges", "2"),
            ("max_sectors_kb", str(_LARGEST >> 10)),
        ):
            (queue / setting).write_text(value)
        self._fd = os.open(path, os.O_RDWR | os.O_DIRECT)
        self._context = ctypes.c_ulong(0)
        _call(_SETUP, ctypes.c_long(_MOST), ctypes.byref(self._context))
        self._tokens = itertools.count(1)
        self._requests: dict[int, _Request] = {}

    @property
    def size(self) -> int:
        return os.lseek(self._fd, 0, os.SEEK_END)

    def pread(self, length: int, offset: int) -> bytes:
        pages = _Pages(length)
        assert os.preadv(self._fd, [memoryview(pages.map)[:length]], offset) == length
        return pages.map[:length]

    def pwrite(self, data: bytes, offset: int) -> int:
        pages = _Pages(len(data))
        pages.map[: len(data)] = data
        return os.pwritev(self._fd, [memoryview(pages.map)[: len(data)]], offset)

    def flush(self) -> None:
        os.fsync(self._fd)

    def submit(self, batch: Sequence[tuple[str, int, Any]]) -> list[int]:
        """Reads, writes and flushes; the bytes of writes are copied."""
        pages = _Pages(sum(_length(buffer) for _, _, buffer in batch))
        tokens, blocks, at = [], [], 0
        for op, offset, buffer in batch:
            length = _length(buffer)
            if op == "write":
                pages.map[at : at + length] = bytes(buffer)
            token = next(self._tokens)
            block = _IOCB.pack(
                *(token, 0, 0, _OPCODES[op], 0, self._fd, pages.address + at),
                *(length, offset, 0, 0, 0),
            )
            blocks.append(ctypes.create_string_buffer(block, _IOCB.size))
            self._requests[token] = _Request(op, pages, at, buffer)
            tokens.append(token)
            at += length
        pointers = (ctypes.c_void_p * len(blocks))(*map(ctypes.addressof, blocks))
        done = _call(_SUBMIT, self._context, ctypes.c_long(len(blocks)), pointers)
        assert done == len(blocks)
        return tokens

    def reap(self, minimum: int = 1, timeout: float | None = None) -> list[tuple[int, int]]:
        minimum = min(minimum, len(self._requests))
        events = ctypes.create_string_buffer(_MOST * _EVENT.size)
        limit = None
        if timeout is not None:
            limit = struct.pack("=qq", int(timeout), int(timeout % 1 * 1e9))
        count = _call(
            _GETEVENTS,
            *(self._context, ctypes.c_long(minimum), ctypes.c_long(_MOST), events, limit),
        )
        found = []
        for token, _, result, _ in _EVENT.iter_unpack(events.raw[: count * _EVENT.size]):
            self._requests.pop(token).finish(result)
            found.append((token, result))
        return found

    def close(self) -> None:
        """Waits for what is outstanding. Idempotent."""
        if self._fd >= 0:
            _call(_DESTROY, self._context)
            os.close(self._fd)
            self._fd = -1


def _length(buffer: object) -> int:
    return len(buffer) if isinstance(buffer, bytes | bytearray) else 0


def _call(number: int, *arguments: Any) -> int:
    result: int = _libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
