"""Fixtures of the system tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.system.stage import LogWatch, Stage
from vduse.testing.harness import BlkPark


@contextmanager
def _stage(**victim: object) -> Iterator[Stage]:
    with LogWatch() as log, BlkPark() as park:
        stage = Stage(park, log, **victim)
        try:
            yield stage
        finally:
            stage.close()


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """A victim and a neighbour; one stage for all cases of a module, so that what one case
    leaves behind is found by the next."""
    with _stage() as stage:
        yield stage


@pytest.fixture
def read_only_stage() -> Iterator[Stage]:
    """The victim's disk is read-only."""
    with _stage(read_only=True) as stage:
        yield stage
