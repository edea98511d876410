"""Fds and threads that a block of a test must not leave behind."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from vduse.testing.leaks import Held


@contextmanager
def nothing_left() -> Iterator[None]:
    """After the block this process has no fd and no thread that it did not have before: those that
    end a little later are waited for. Ones that go meanwhile are an earlier test's."""
    gc.collect()
    before = Held.now()
    yield
    found = before.new()
    assert not found, found
