"""Fixtures of more than one room's tests."""

from __future__ import annotations

import logging
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


@pytest.fixture
def command_logging() -> Iterator[None]:
    """For tests that run `vduse` in this process: it sets the package's logger up for good, and
    after the test that is as it was."""
    logger = logging.getLogger("vduse")
    handlers, propagate, level = list(logger.handlers), logger.propagate, logger.level
    yield
    logger.handlers[:], logger.propagate = handlers, propagate
    logger.setLevel(level)
