"""Every test here runs on every kernel."""

from __future__ import annotations

import pytest

from tests.kernel.fetch import SUITES


@pytest.fixture(
    scope="session",
    autouse=True,
    params=[pytest.param(version, marks=pytest.mark.kernel(version)) for version in SUITES],
)
def kernel(request: pytest.FixtureRequest) -> str:
    """The version of the kernel that the test runs on."""
    version: str = request.param
    return version
