"""The service manager's watchdog gets its signs of life from the threads that matter."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from vduse.daemon.notify import Manager

#: Runs what it is given on a loop's thread, soon.
Post = Callable[[Callable[[], None]], object]

#: Seconds after which a wait begins anew: a signal that does not interrupt it, as it comes to
#: another thread or just before, is handled then.
_GLANCE = 1.0
#: Signs in an interval: a machine that is slow once is not dead.
_SIGNS = 4


def wait(end: threading.Event, manager: Manager, loops: Sequence[Post]) -> None:
    """Waits for ``end`` on the caller's thread. Meanwhile ``manager``'s watchdog, if it has one, is
    told that all is well: each time after every one of ``loops`` has run what it was asked to. A
    loop that hangs ends that, and the manager kills the process: requests in flight are kept."""
    if manager.watchdog is None:
        while not end.wait(_GLANCE):
            pass
        return
    signs = _Signs(loops)
    while not end.wait(manager.watchdog / _SIGNS):
        if signs.seen():
            manager.alive()
            signs = _Signs(loops)


class _Signs:
    """One of each loop."""

    def __init__(self, loops: Sequence[Post]) -> None:
        self._events = [threading.Event() for _ in loops]
        for post, event in zip(loops, self._events, strict=True):
            post(event.set)

    def seen(self) -> bool:
        return all(event.is_set() for event in self._events)
