"""The thread on which a connection's commands run, one after the other."""

from __future__ import annotations

import queue
import threading
from concurrent.futures import Future

from vduse.daemon.qmp.session import Answer, Call

#: A command's answer, and whether it is a success.
Outcome = tuple[Answer, bool]


class Runner:
    """From its making to :meth:`end`. Methods are for one thread."""

    def __init__(self) -> None:
        """RuntimeError: the system has no thread."""
        self._calls: queue.SimpleQueue[tuple[Call, Future[Outcome]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="vduse-qmp-command", daemon=True)
        self._thread.start()

    def submit(self, call: Call) -> Future[Outcome]:
        """Runs it after those before."""
        future: Future[Outcome] = Future()
        self._calls.put((call, future))
        return future

    def end(self) -> None:
        """Runs nothing more; a command that runs goes on."""
        self._calls.put(None)

    def join(self, seconds: float) -> None:
        """After :meth:`end`: waits for the command that runs, at most so long."""
        self._thread.join(seconds)

    def _run(self) -> None:
        while (item := self._calls.get()) is not None:
            call, future = item
            if future.set_running_or_notify_cancel():
                future.set_result(call.run())
