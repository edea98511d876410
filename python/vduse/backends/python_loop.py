"""The asyncio loop of a disk whose methods are ``async def``."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import Awaitable, Callable
from typing import Protocol

from vduse import _native
from vduse.backends.loop_thread import LoopThread

Report = Callable[[str, BaseException | None], None]
WriteZeroes = Callable[[int, int, bool], Awaitable[None] | None]


class Methods(Protocol):
    """What a disk is made of."""

    def read(self, offset: int, buffer: memoryview) -> Awaitable[None] | None: ...
    def write(self, offset: int, buffer: memoryview) -> Awaitable[None] | None: ...
    def flush(self) -> Awaitable[None] | None: ...
    def discard(self, offset: int, length: int) -> Awaitable[None] | None: ...
    def write_zeroes(self, offset: int, length: int, unmap: bool) -> Awaitable[None] | None: ...
    def closed(self) -> None:
        """Called once, after the last request."""


class LoopHandler:
    """Runs each request as a task of its own, all on one thread; that and the loop come with the
    first batch."""

    def __init__(
        self, methods: Methods, report: Report, *, write_zeroes: WriteZeroes | None = None
    ) -> None:
        """``write_zeroes``: in place of the disk's own."""
        self._calls: dict[str, Callable[[_native.IoRequest], Awaitable[None] | None]] = {
            "read": lambda request: methods.read(request.offset, request.buffer),
            "write": lambda request: methods.write(request.offset, request.buffer),
            "flush": lambda request: methods.flush(),
            "discard": lambda request: methods.discard(request.offset, request.length),
            "write_zeroes": lambda request: (write_zeroes or methods.write_zeroes)(
                request.offset, request.length, request.may_unmap
            ),
        }
        self._closed = methods.closed
        self._report = report
        self._lock = threading.Lock()
        self._loop: LoopThread | None = None

    def submit(self, batch: _native.IoBatch) -> None:
        """Hands a batch to the loop, from any thread."""
        with self._lock:
            loop = self._loop = self._loop or LoopThread()
        loop.call(self._take, loop, batch)

    def closed(self) -> None:
        """Ends the loop, then the disk."""
        with self._lock:
            loop, self._loop = self._loop, None
        if loop is not None:
            loop.stop()
        self._closed()

    def _take(self, loop: LoopThread, batch: _native.IoBatch) -> None:
        for request in batch:
            loop.start(self._serve(request))

    async def _serve(self, request: _native.IoRequest) -> None:
        error = 0
        try:
            pending = self._calls[request.op](request)
            if pending is not None:
                await pending
        except OSError as raised:
            error = raised.errno or errno.EIO
            if raised.errno is None:
                self._report(_words(request), raised)
        except asyncio.CancelledError:
            error = errno.ECANCELED
        except BaseException as raised:
            error = errno.EIO
            self._report(_words(request), raised)
        request.complete(error)


def _words(request: _native.IoRequest) -> str:
    return f"{request.op} of {request.length} bytes at {request.offset} raised; the request fails"
