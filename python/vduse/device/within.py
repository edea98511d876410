"""Bounds for what may never end: calls into a backend of somebody else's."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from queue import Empty, SimpleQueue
from time import monotonic

#: Seconds after which a wait begins anew: a signal that comes just before one does not end it.
_GLANCE = 1.0
#: Threads that :func:`together` takes.
_MOST = 64


def within(seconds: float | None, work: Callable[[], object], what: str) -> None:
    """Runs ``work`` on a thread of its own and waits for it, at most ``seconds``, if they are
    given; signals are handled meanwhile. Raises what it raises. TimeoutError, which names ``what``:
    it has not ended, and goes on. At the interpreter's end, where no thread runs any more, there
    is no bound."""
    (error,) = together(seconds, [work])
    if isinstance(error, StillRunning):
        raise TimeoutError(f"{what} {error}") from None
    if error is not None:
        raise error


class StillRunning(TimeoutError):
    """Of :func:`together`: it goes on."""


def together(
    seconds: float | None, works: Sequence[Callable[[], object]]
) -> list[BaseException | None]:
    """The same for several at once, which share ``seconds``: what each raised, StillRunning where
    it has not ended. They begin in this order, each when there is a thread for it."""
    todo: SimpleQueue[tuple[Callable[[], object], Future[None]]] = SimpleQueue()
    ends: list[Future[None]] = [Future() for _ in works]
    for each in zip(works, ends, strict=True):
        todo.put(each)

    def run() -> None:
        while True:
            try:
                work, end = todo.get_nowait()
            except Empty:
                return
            try:
                work()
            except BaseException as error:
                end.set_exception(error)
            else:
                end.set_result(None)

    if sys.is_finalizing():
        run()
    else:
        for _ in ends[:_MOST]:
            threading.Thread(target=run, name="vduse-within", daemon=True).start()
        deadline = math.inf if seconds is None else monotonic() + seconds
        while wait(ends, min(_GLANCE, max(0.0, deadline - monotonic()))).not_done:
            if monotonic() >= deadline:
                break
    late = StillRunning(f"has not ended within {seconds or 0:g} s")
    return [end.exception() if end.done() else late for end in ends]
