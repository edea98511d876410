"""Fixtures of more than one room's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.node_bench import Bench
from vduse.framework.irq import WorkQueue


@pytest.fixture
def work() -> Iterator[WorkQueue]:
    queue = WorkQueue("test-work")
    yield queue
    queue.close()


@pytest.fixture
def bench(work: WorkQueue) -> Bench:
    return Bench(work)


@pytest.fixture
def bench_v1(work: WorkQueue) -> Bench:
    return Bench(work, "7.2", 1)
