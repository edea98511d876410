"""Bounds for what may never end: calls into a backend of somebody else's."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future


def within(seconds: float, work: Callable[[], object], what: str) -> None:
    """Runs ``work`` on a thread of its own and waits for it, at most ``seconds``; signals are
    handled meanwhile. Raises what it raises. TimeoutError, which names ``what``: it has not ended,
    and goes on. At the interpreter's end, where no thread runs any more, there is no bound."""
    if sys.is_finalizing():
        work()
        return
    ended: Future[None] = Future()

    def run() -> None:
        try:
            work()
        except BaseException as error:
            ended.set_exception(error)
        else:
            ended.set_result(None)

    threading.Thread(target=run, name="vduse-within", daemon=True).start()
    try:
        ended.exception(seconds)
    except TimeoutError:
        raise TimeoutError(f"{what} has not ended within {seconds:g} s") from None
    ended.result()
