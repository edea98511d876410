"""Fixtures of the system tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.system.stage import LogWatch, Stage
from vduse.testing.harness import BlkPark


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """A victim and a neighbour; one stage for all cases of a module, so that what one case
    leaves behind is found by the next."""
    with LogWatch() as log, BlkPark() as park:
        stage = Stage(park, log)
        try:
            yield stage
        finally:
            stage.close()
