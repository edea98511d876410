"""Tests on machines that lack what the bed runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.kernel.fetch import BedError


@contextmanager
def skips_without_bed() -> Iterator[None]:
    """Skips the test with what to install; in CI that is a failure: see ``tests/conftest.py``."""
    try:
        yield
    except BedError as why:
        pytest.skip(str(why))
