"""Backend ``python``: a disk written in Python. See docs/backends/python.md.

class RamDisk(PythonBackend):
    def __init__(self, size: int) -> None:
        self.size = size
        self.data = bytearray(size)

    def read(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = self.data[offset : offset + len(buffer)]

    def write(self, offset: int, buffer: memoryview) -> None:
        self.data[offset : offset + len(buffer)] = buffer

device = BlkDevice("disk0", RamDisk(64 << 20))
"""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Awaitable, Callable, Sequence
from enum import IntEnum
from inspect import iscoroutinefunction
from operator import index

from typing_extensions import Buffer

from vduse import _native
from vduse.backends.python_loop import LoopHandler

log = logging.getLogger(__name__)

#: Zeroes written at once where a disk has no ``write_zeroes`` of its own, bytes.
_ZEROES = bytes(1 << 20)

#: One request of a batch.
IoRequest = _native.IoRequest
#: A batch of requests.
IoBatch = _native.IoBatch


class IoOp(IntEnum):
    """``op`` in the records of a batch: numbers of virtio-blk requests (virtio 1.3, section
    5.2.6)."""

    READ = 0
    WRITE = 1
    FLUSH = 4
    DISCARD = 11
    WRITE_ZEROES = 13


class PythonBackend:
    """A disk: subclass it, say what ``size`` it has, and write :meth:`read` and :meth:`write`.

    The methods are called on the thread that serves the device, one at a time. One that is
    ``async def`` makes all of them run on an asyncio loop of the backend's own thread. A subclass
    that overrides :meth:`submit` gets whole batches instead. An ``OSError`` raised by a method is
    the request's errno; any other exception, or a result other than None, is EIO and a line in
    the log.

    A method must not use a disk that it serves itself: it would wait for its own end. Nor can it
    close its device.
    """

    #: Bytes, a multiple of 512. To be set before the backend is used.
    size: int = 0
    #: Smallest unit in bytes that is written without reading first; a power of two from 512 to
    #: 65536.
    block_size: int = 512
    #: Writes, discards and zeroes are refused with EROFS.
    read_only: bool = False
    #: Discarding gives space back. None: whether :meth:`discard` is overridden.
    can_discard: bool | None = None

    # --- to be written by a subclass ---------------------------------------------------------

    def read(self, offset: int, buffer: memoryview) -> Awaitable[None] | None:
        """Fills ``buffer`` with the bytes at ``offset``. The buffer is the driver's memory: it
        is valid until the method returns."""
        raise TypeError(f"{type(self).__name__} has no method read")

    def write(self, offset: int, buffer: memoryview) -> Awaitable[None] | None:
        """Stores ``buffer``, which is read-only, at ``offset``. The driver may change its bytes
        at any time: whoever checks them, copies them first."""
        raise TypeError(f"{type(self).__name__} has no method write")

    def flush(self) -> Awaitable[None] | None:
        """What was written before is on stable storage when this returns. Here: nothing."""

    def discard(self, offset: int, length: int) -> Awaitable[None] | None:
        """``length`` bytes at ``offset`` are not needed any more. Here: nothing."""

    def write_zeroes(self, offset: int, length: int, unmap: bool) -> Awaitable[None] | None:
        """``length`` bytes at ``offset`` read as zeroes from now on; with ``unmap`` their space
        may be given back. Here: by :meth:`write`."""
        for part, zeroes in _zeroes(offset, length):
            self.write(part, zeroes)
        return None

    def submit(self, batch: _native.IoBatch) -> None:
        """Overridden, this gets the requests of a batch in place of the methods above: each is
        to be completed once, now or later, by any thread. See :class:`_native.IoBatch`."""
        raise TypeError(f"{type(self).__name__} has no method submit")

    def closed(self) -> None:
        """Called once, after the last request: lets go of what the disk is made of."""

    # --- for whoever uses it ------------------------------------------------------------------

    @property
    def native(self) -> _native.PythonBackend:
        """The same for a device or a layer; made at first use, when the attributes are read.
        ValueError or OSError EINVAL: an attribute is out of range. TypeError: it is of a wrong
        type."""
        with _making:
            made: _native.PythonBackend | None = self.__dict__.get("_native")
            if made is None:
                made = self.__dict__["_native"] = self._make()
            return made

    def resize(self, size: int) -> None:
        """The disk has ``size`` bytes from now on, and devices on it tell their drivers. What is
        new must be there before, what goes may be removed after. ValueError, OSError EINVAL: out of
        range."""
        self.native.resize(_unsigned("size", size, 64))
        self.size = size

    def complete(
        self, tokens: int | Sequence[int] | Buffer, error: int | Sequence[int] | Buffer = 0
    ) -> None:
        """Completes requests by their tokens, those of any batch, from any thread: see
        :meth:`_native.PythonBackend.complete`."""
        self.native.complete(tokens, error)

    def stats(self) -> dict[str, int]:
        """``batches`` and ``requests`` handed over, ``exceptions`` raised, requests ``dropped``
        without being completed, ``stale_views``: buffers in use after their request."""
        return dict(self.native.python_stats())

    def close(self) -> None:
        """Flushes, then :meth:`closed`. OSError EBUSY: a device on it is not closed; another one:
        what the flush raised."""
        self.native.close()

    # --- inside -------------------------------------------------------------------------------

    def _make(self) -> _native.PythonBackend:
        kind = type(self)
        methods = (self.read, self.write, self.flush, self.discard, self.write_zeroes)
        can_discard = self.can_discard
        if can_discard is None:
            can_discard = kind.discard is not PythonBackend.discard
        handler: object = self
        batches = kind.submit is not PythonBackend.submit
        if iscoroutinefunction(self.submit):
            raise TypeError(
                "submit is called on the device's worker and cannot be async def; read, write and "
                "the others can"
            )
        if not batches and kind.read is PythonBackend.read and "read" not in vars(self):
            raise TypeError(f"{kind.__name__} has neither a method read nor a method submit")
        report, closed = _reporter(kind.__name__), self.closed
        if not batches and any(map(iscoroutinefunction, methods)):
            zeroes = self._write_zeroes if kind.write_zeroes is PythonBackend.write_zeroes else None
            loop = LoopHandler(self, report, write_zeroes=zeroes)
            handler, batches, closed = loop, True, loop.closed
        return _native.PythonBackend(
            handler,
            report,
            closed,
            size=_unsigned("size", self.size, 64),
            block_size=_unsigned("block_size", self.block_size, 32),
            read_only=self.read_only,
            can_discard=can_discard and not self.read_only,
            batches=batches,
        )

    async def _write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        for part, zeroes in _zeroes(offset, length):
            if (pending := self.write(part, zeroes)) is not None:
                await pending


_making = threading.RLock()


def _unsigned(name: str, value: int, bits: int) -> int:
    """As the native half takes it: it says what else is wrong with it. ValueError, TypeError."""
    try:
        number = index(value)
    except TypeError:
        raise TypeError(f"{name}: {value!r} is not a whole number") from None
    if not 0 <= number < 1 << bits:
        raise ValueError(f"{name}: {number} bytes are out of range")
    return number


def _zeroes(offset: int, length: int) -> list[tuple[int, memoryview]]:
    """Where zeroes are to be written, and as many."""
    zeroes = memoryview(_ZEROES)
    steps = range(offset, offset + length, len(zeroes))
    return [(at, zeroes[: min(len(zeroes), offset + length - at)]) for at in steps]


def _reporter(name: str) -> Callable[[str, BaseException | None], None]:
    """Writes to the log for the backend ``name``."""

    def report(message: str, error: BaseException | None) -> None:
        if error is None:
            log.warning("%s: %s", name, message)
            return
        # As text: a record that keeps the exception would keep the buffers in its frames.
        words = "".join(traceback.format_exception(error)).rstrip()
        _clear(error)
        log.error("%s: %s\n%s", name, message, words)

    return report


def _clear(error: BaseException | None) -> None:
    """Lets go of the frames of an exception, and of those that led to it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
