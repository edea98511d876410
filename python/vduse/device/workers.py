"""The worker threads that serve device queues: one pool a process, however many devices."""

from __future__ import annotations

import os
import threading

from vduse import _native

_lock = threading.Lock()
_pools: dict[int, _native.Pool] = {}


def shared_pool() -> _native.Pool:
    """This process's pool, started at first use; a forked child gets its own."""
    with _lock:
        pool = _pools.get(os.getpid())
        if pool is None:
            pool = _pools[os.getpid()] = _native.Pool()
        return pool
