"""The one thread of a process that serves the message fds of all its devices.

It waits in epoll and nowhere else: what takes time (drain, reset) runs on a thread of its own
for as long as it takes, see :meth:`ControlThread.offload`.
"""

from __future__ import annotations

import atexit
import logging
import os
import selectors
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")


class Owner(Protocol):
    """Whose callbacks run here; it alone breaks when one raises."""

    @property
    def name(self) -> str:
        """For the log."""

    def on_exception(self, error: Exception) -> None:
        """A callback raised; the traceback is in the log already."""


class ControlThread:
    """An epoll loop. :meth:`watch` and :meth:`unwatch` are for callbacks, on the thread itself;
    everything else may be called from any thread."""

    _shared: ControlThread | None = None
    _shared_lock = threading.Lock()

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._wakeup = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._wakeup_lock = threading.Lock()
        self._selector.register(self._wakeup, selectors.EVENT_READ)
        self._posted: deque[Callable[[], None]] = deque()
        self._stopping = False
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._run, name="vduse-control", daemon=True)
        self._thread.start()

    @classmethod
    def shared(cls) -> ControlThread:
        """This process's one; a forked child gets its own."""
        with cls._shared_lock:
            shared = cls._shared
            if shared is None or shared._pid != os.getpid():
                shared = cls._shared = ControlThread()
                # The interpreter stops its threads without a word; who calls one later waits.
                atexit.register(shared.close)
            return shared

    def post(self, callback: Callable[[], None]) -> bool:
        """Runs ``callback`` on the thread, soon. It must not raise. Nothing, and false, after
        :meth:`close`: work that was given up on may end later."""
        with self._wakeup_lock:
            if self._wakeup < 0:
                return False
            self._posted.append(callback)
            os.eventfd_write(self._wakeup, 1)
            return True

    def call(self, function: Callable[[], T]) -> T:
        """Runs ``function`` on the thread and returns what it returns, or raises what it
        raises. On the thread itself it runs at once, and on the caller's after :meth:`close`.
        RuntimeError in a forked child, which the thread did not follow."""
        if os.getpid() != self._pid:
            raise RuntimeError(f"made by process {self._pid}: it cannot be used after a fork")
        if threading.current_thread() is self._thread:
            return function()
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        if not self.post(run):
            run()
        return future.result()

    def offload(self, owner: Owner, work: Callable[[], T], then: Callable[[T], None]) -> None:
        """Runs ``work`` on a thread of its own, then ``then`` with its result on this one.
        An exception from either is the owner's."""

        def run() -> None:
            try:
                result = work()
            except Exception as error:
                # A variable of its own: `error` is gone when the callback runs.
                failure = error
                self.post(lambda: self._failed(owner, failure))
                return
            self.post(lambda: self._guarded(owner, lambda: then(result)))

        threading.Thread(target=run, name=f"vduse-wait-{owner.name}", daemon=True).start()

    def watch(self, fd: int, owner: Owner, callback: Callable[[], None]) -> None:
        """Calls ``callback`` whenever ``fd`` is readable, until :meth:`unwatch`."""
        self._selector.register(fd, selectors.EVENT_READ, (owner, callback))

    def unwatch(self, fd: int) -> None:
        """Stops watching; an fd that is not watched is left alone."""
        if self._wakeup >= 0 and fd in self._selector.get_map():
            self._selector.unregister(fd)

    def close(self) -> None:
        """Ends the thread: nothing is watched any more. A forked child has no such thread."""
        if self._pid != os.getpid():
            return
        with self._wakeup_lock:
            if self._wakeup < 0:
                return
            self._stopping = True
            os.eventfd_write(self._wakeup, 1)
        self._thread.join()
        with self._wakeup_lock:
            os.close(self._wakeup)
            self._wakeup = -1
        self._selector.close()
        self._run_posted()

    def _run(self) -> None:
        while not self._stopping:
            self._serve(self._selector.select())

    def _serve(self, ready: list[tuple[selectors.SelectorKey, int]]) -> None:
        """One round; a function of its own, so that a waiting thread keeps no device alive."""
        for key, _ in ready:
            if key.fd == self._wakeup:
                os.eventfd_read(self._wakeup)
                self._run_posted()
            # An earlier callback of this round may have ended this watch.
            elif self._selector.get_map().get(key.fd) is key:
                owner, callback = key.data
                self._guarded(owner, callback)

    def _run_posted(self) -> None:
        while self._posted:
            callback = self._posted.popleft()
            try:
                callback()
            except Exception:
                log.exception("control thread: a posted call raised")

    def _guarded(self, owner: Owner, callback: Callable[[], None]) -> None:
        try:
            callback()
        except Exception as error:
            self._failed(owner, error)

    def _failed(self, owner: Owner, error: Exception) -> None:
        log.error("%s: broken by %r", owner.name, error, exc_info=error)
        try:
            owner.on_exception(error)
        except Exception:
            log.exception("%s: while it broke", owner.name)
