"""Work that an irq starts runs here, never on the injector's stack (the kernel's workqueue)."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

log = logging.getLogger(__name__)


class Work:
    """A function to be run by a :class:`WorkQueue`; queued at most once at a time."""

    def __init__(self, run: Callable[[], None], name: str) -> None:
        self.run = run
        self.name = name


class WorkQueue:
    """One thread that runs work in its order; started by the first work."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._changed = threading.Condition()
        self._queued: deque[Work] = deque()
        self._running: Work | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def queue(self, work: Work) -> None:
        """Nothing if it is queued already, or after :meth:`close`."""
        with self._changed:
            if self._closed or work in self._queued:
                return
            if self._thread is None:
                thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
                thread.start()  # RuntimeError: no thread now; the next work tries again
                self._thread = thread
            self._queued.append(work)
            self._changed.notify_all()

    def flush(self, work: Work) -> None:
        """Waits until ``work`` is neither queued nor running; at once on the queue's thread."""
        if threading.current_thread() is self._thread:
            return
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or (work not in self._queued and work is not self._running)
            )

    def close(self) -> None:
        """Drops what is queued; waits for what runs, unless called by it."""
        with self._changed:
            self._closed = True
            self._queued.clear()
            self._changed.notify_all()
        if self._thread is not None and threading.current_thread() is not self._thread:
            self._thread.join()

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._running = None
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._closed or self._queued)
                if self._closed:
                    return
                self._running = self._queued.popleft()
                work = self._running
            try:
                work.run()
            except Exception:
                # A driver's fault ends here: other devices' irqs go on.
                log.exception("%s failed", work.name)
