"""Waiting for what nothing tells of: a counter, a thread's state, what /proc and sysfs say."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

#: Seconds after which something that must happen has not.
PATIENCE = 60.0
_PAUSE = 0.01


def eventually(look: Callable[[], T | None], what: str) -> T:
    """The first true value of ``look``."""
    deadline = time.monotonic() + PATIENCE
    while not (value := look()):
        assert time.monotonic() < deadline, f"not within {PATIENCE:g} s: {what}"
        time.sleep(_PAUSE)
    return value
