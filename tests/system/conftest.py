"""Fixtures of the system tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import settings

from tests.system.stage import LogWatch, Stage
from vduse.testing.harness import BlkPark

# pytest's --hypothesis-profile chooses. In CI every run is the same.
settings.register_profile("ci", derandomize=True, database=None, max_examples=100)
settings.register_profile("dev", max_examples=100)
settings.register_profile("long", max_examples=5000)
settings.load_profile("ci" if os.environ.get("CI") == "true" else "dev")


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
