"""Makes an NBD backend's connections, and makes them again: all backends' on one thread."""

from __future__ import annotations

import asyncio
import os
import threading
import time
import weakref
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from vduse import _native
from vduse.backends.loop_thread import LoopThread
from vduse.backends.nbd.address import Address
from vduse.backends.nbd.backoff import Backoff
from vduse.backends.nbd.connect import connect
from vduse.backends.nbd.handshake import Refused

T = TypeVar("T")

_lock = threading.Lock()
_shared: weakref.ref[LoopThread] | None = None


def _after_fork() -> None:
    """A child has none of its parent's threads."""
    global _lock, _shared
    _lock, _shared = threading.Lock(), None


os.register_at_fork(after_in_child=_after_fork)


def loop_thread() -> LoopThread:
    """The thread on which connections are made; it ends with the last backend."""
    global _shared
    with _lock:
        loop = _shared() if _shared is not None else None
        if loop is None:
            loop = LoopThread()
            _shared = weakref.ref(loop)
        return loop


def run_on(loop: LoopThread, coroutine: Coroutine[Any, Any, T]) -> T:
    """Waits for ``coroutine``; from any other thread."""
    future: Future[T] = Future()

    async def run(future: Future[T]) -> None:
        try:
            result = await coroutine
        except asyncio.CancelledError:
            future.set_exception(Refused("given up: the process ends"))
        except BaseException as error:
            # Without its frames: they hold the future, and so itself.
            future.set_exception(error.with_traceback(None))
        else:
            future.set_result(result)

    loop.call(loop.start, run(future))
    try:
        return future.result()
    finally:
        del future


class Keeper:
    """Of one backend, until that is closed."""

    def __init__(self, loop: LoopThread, address: Address, control: _native.NbdControl) -> None:
        self._loop = loop
        self._address = address
        self._control = control
        self._backoffs: dict[int, Backoff] = {}
        loop.call(self._begin)

    def _begin(self) -> None:
        asyncio.get_running_loop().add_reader(self._control.event_fd, self._look)
        self._look()

    def _look(self) -> None:
        numbers = self._control.wants()
        if self._control.closed:
            asyncio.get_running_loop().remove_reader(self._control.event_fd)
            return
        for number in numbers:
            self._loop.start(self._keep(number))

    async def _keep(self, number: int) -> None:
        """Tries until the connection has a socket, or is not there any more."""
        backoff = self._backoffs.setdefault(number, Backoff())
        while True:
            await asyncio.sleep(backoff.pause(time.monotonic()))
            if not self._control.wanted(number):
                return
            try:
                made = await connect(self._address)
                self._control.connected(number, made.socket.detach(), made.facts, made.tls)
            except (Refused, OSError) as error:
                self._control.refused(number, str(error))
            else:
                backoff.made(time.monotonic())
                return
