"""A process that may open few files more."""

from __future__ import annotations

import gc
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def fd_limit(more: int) -> Iterator[None]:
    """This process may have so many more fds than it has."""
    # What the collector closes meanwhile would be room that only some runs have.
    gc.collect()
    gc.disable()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    holes = []
    while (fd := os.dup(0)) < highest:  # the limit is one of numbers
        holes.append(fd)
    os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1 + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        gc.enable()
        for fd in holes:
            os.close(fd)
