"""The asyncio loop of a device whose ``submit`` is ``async def``."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Awaitable, Callable

from vduse import _native
from vduse.backends.loop_thread import LoopThread

log = logging.getLogger(__name__)

Submit = Callable[[int, _native.ChainBatch], Awaitable[None]]


class SubmitLoop:
    """Serves each batch in a task of its own, all of them on one thread."""

    def __init__(self, name: str, submit: Submit) -> None:
        """``name``: the device's. The loop runs until :meth:`close`."""
        self._name = name
        self._submit = submit
        self._loop = LoopThread()

    def submit(self, queue: int, batch: _native.ChainBatch) -> None:
        """Hands a batch to the loop."""
        self._loop.call(self._take, queue, batch)

    def close(self) -> None:
        """Cancels what still runs, ends the thread."""
        self._loop.stop()

    def _take(self, queue: int, batch: _native.ChainBatch) -> None:
        self._loop.start(self._serve(queue, batch))

    async def _serve(self, queue: int, batch: _native.ChainBatch) -> None:
        try:
            await self._submit(queue, batch)
        except asyncio.CancelledError:
            raise
        except BaseException:  # SystemExit too: it would end the loop
            # As text: a record that kept the exception would keep what its frames hold.
            words = traceback.format_exc().rstrip()
            log.error("%s: virtqueue %d: a batch of chains failed\n%s", self._name, queue, words)
            batch.complete(0)
