"""What this process holds: fds and threads, and what of them is new since an earlier look."""

from __future__ import annotations

import gc
import os
from collections import Counter
from dataclasses import dataclass
from time import monotonic, sleep
from typing import Self

from vduse.device.control_thread import ControlThread
from vduse.device.workers import shared_pool

#: Seconds that threads which were told to end are given; a file's idle ones stay for 5.
PATIENCE = 30.0
#: Seconds between two looks.
_PAUSE = 0.01
#: A worker makes one of each at its first file, and keeps them.
_RING, _OF_RING = "anon_inode:[io_uring]", "anon_inode:[eventfd]"
#: The kernel's threads of an io_uring.
_KERNEL_THREAD = "iou-"


@dataclass(frozen=True)
class Held:
    """A look at /proc/self."""

    #: What the fds lead to, as readlink says it, and how many lead there.
    fds: Counter[str]
    #: Names of threads, by thread id.
    threads: dict[int, str]

    @classmethod
    def now(cls) -> Self:
        """What is held at this moment. What a process has once, made at first use and kept (the
        workers, the control thread), is made first: it is nobody's leak."""
        shared_pool()
        ControlThread.shared()
        return cls(_fds(), _threads())

    def new(self) -> list[str]:
        """What is held and was not, one line each; waits up to :data:`PATIENCE` for it to go."""
        deadline = monotonic() + PATIENCE
        if self._new():
            gc.collect()
        while (found := self._new()) and monotonic() < deadline:
            sleep(_PAUSE)  # nothing tells of the end of a native thread
        return found

    def _new(self) -> list[str]:
        fds = _fds() - self.fds
        threads = [name for tid, name in _threads().items() if tid not in self.threads]
        lines = [f"fd: {count} more of {target}" for target, count in sorted(fds.items())]
        return lines + [f"thread: {name}" for name in sorted(threads)]


def _fds() -> Counter[str]:
    found: Counter[str] = Counter()
    for fd in os.listdir("/proc/self/fd"):
        try:
            found[os.readlink(f"/proc/self/fd/{fd}")] += 1
        except FileNotFoundError:  # the listing's own
            continue
    found[_OF_RING] -= found.pop(_RING, 0)
    return found


def _threads() -> dict[int, str]:
    found = {}
    for task in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{task}/comm", encoding="utf-8") as comm:
                name = comm.read().strip()
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            continue
        if not name.startswith(_KERNEL_THREAD):
            found[int(task)] = name
    return found
