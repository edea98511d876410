"""The asyncio loop of a device whose ``submit`` is ``async def``."""

from __future__ import annotations

import asyncio
import logging
import threading
import traceback
from collections.abc import Awaitable, Callable

from vduse import _native

log = logging.getLogger(__name__)

Submit = Callable[[int, _native.ChainBatch], Awaitable[None]]


class SubmitLoop:
    """Serves each batch in a task of its own, all of them on one thread."""

    def __init__(self, name: str, submit: Submit) -> None:
        """``name``: the device's. The loop runs until :meth:`close`."""
        self._name = name
        self._submit = submit
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="vduse-asyncio", daemon=True
        )
        self._thread.start()

    def submit(self, queue: int, batch: _native.ChainBatch) -> None:
        """Hands a batch to the loop."""
        self._loop.call_soon_threadsafe(self._take, queue, batch)

    def close(self) -> None:
        """Cancels what still runs, ends the thread."""
        asyncio.run_coroutine_threadsafe(self._cancel(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _take(self, queue: int, batch: _native.ChainBatch) -> None:
        task = self._loop.create_task(self._serve(queue, batch))
        # The loop itself holds its tasks weakly.
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, queue: int, batch: _native.ChainBatch) -> None:
        try:
            await self._submit(queue, batch)
        except Exception:
            # As text: a record that kept the exception would keep what its frames hold.
            words = traceback.format_exc().rstrip()
            log.error("%s: virtqueue %d: a batch of chains failed\n%s", self._name, queue, words)
            batch.complete(0)

    async def _cancel(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
