"""An asyncio loop on a thread of its own, for what is written as ``async def``."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Coroutine

from vduse import _native

#: Seconds: what tasks have to end once they are cancelled.
_LAST_STEPS = 2.0
#: Seconds: what the interpreter's end waits for calls of workers, and then for each loop.
_LAST_CALL = 2.0


class LoopThread:
    """Runs tasks side by side until it is stopped or collected, or the interpreter ends; those
    that are not done then are cancelled."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=_run, args=(self._loop,), name="vduse-asyncio", daemon=True
        )
        self._thread.start()
        # The interpreter's end stops it otherwise, after the last call of a worker.
        weakref.finalize(self, _stop, self._loop).atexit = False
        _all.add(self)

    def call(self, function: Callable[..., None], *arguments: object) -> None:
        """Has the loop call ``function``; from any thread. RuntimeError: it is stopped."""
        self._loop.call_soon_threadsafe(function, *arguments)

    def start(self, coroutine: Coroutine[object, object, None]) -> None:
        """Makes a task; on the loop's thread."""
        task = self._loop.create_task(coroutine)
        # The loop itself holds its tasks weakly.
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def stop(self, timeout: float | None = None) -> None:
        """Ends the loop, and waits for its thread for at most ``timeout`` seconds; on that
        thread itself it does not wait."""
        _stop(self._loop)
        if self._thread is not threading.current_thread():
            self._thread.join(timeout)


_all: weakref.WeakSet[LoopThread] = weakref.WeakSet()
# A child has copies of its parent's loops, and none of their threads.
os.register_at_fork(after_in_child=_all.clear)


def _run(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
        if tasks := asyncio.all_tasks(loop):
            for task in tasks:
                task.cancel()
            loop.run_until_complete(asyncio.wait(tasks, timeout=_LAST_STEPS))
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()


def _stop(loop: asyncio.AbstractEventLoop) -> None:
    with contextlib.suppress(RuntimeError):  # it has ended
        loop.call_soon_threadsafe(loop.stop)


@atexit.register
def _at_exit() -> None:
    """No worker runs Python while the interpreter ends, nor does a loop."""
    _native.end_calls(_LAST_CALL)
    for loop in list(_all):
        loop.stop(_LAST_CALL)
