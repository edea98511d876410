"""Fixtures for tests of devices, backends and what uses them; pytest loads this by its entry
point. docs/testing-your-device.md shows them at work.

Nothing else of vduse is imported before a test asks for a fixture.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from vduse.backends.layers import Faults
    from vduse.bus.disk import Disk
    from vduse.framework import Framework
    from vduse.testing.bench import Bench
    from vduse.testing.harness import BlkStack

MARKERS = (
    "vduse_profile(name, ...): which kernel the framework plays; a test a name",
    "vduse_disk(backend, **options): what vduse_disk is, as vduse_device takes it",
)

#: Where a test's bench is while it lives.
_BENCH = pytest.StashKey["Bench"]()
#: Set once it has failed.
_FAILED = pytest.StashKey[bool]()


def pytest_configure(config: pytest.Config) -> None:
    """Makes the markers known."""
    for line in MARKERS:
        config.addinivalue_line("markers", line)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each profile that the marker names."""
    mark = metafunc.definition.get_closest_marker("vduse_profile")
    if mark is not None and "vduse_profile" in metafunc.fixturenames:
        metafunc.parametrize("vduse_profile", mark.args)


@pytest.fixture
def vduse_profile() -> str:
    """The profile of :func:`vduse_framework`: 6.12, or what the marker says."""
    return "6.12"


@pytest.fixture
def _vduse_bench(request: pytest.FixtureRequest, vduse_profile: str) -> Iterator[Bench]:
    """Framework and devices, cleared away whatever the test did. A test that passed but
    leaves fds or threads behind fails."""
    from vduse.testing.bench import Bench

    bench = Bench(vduse_profile)
    request.node.stash[_BENCH] = bench
    try:
        yield bench
    finally:
        del request.node.stash[_BENCH]
        bench.close()
    if request.node.stash.get(_FAILED, False):
        return  # its local variables live on in its traceback, and hold what they held
    # As pytest itself does, but after this: disks hold memory and fds as long as they live.
    request.node.funcargs.clear()
    if leaks := bench.leaks():
        lines = "\n  ".join(leaks)
        pytest.fail(f"after the test and its devices were closed:\n  {lines}", pytrace=False)


@pytest.fixture
def vduse_framework(_vduse_bench: Bench) -> Framework:
    """An embedded framework of the test's own."""
    return _vduse_bench.framework


@pytest.fixture
def vduse_device(_vduse_bench: Bench) -> Callable[..., BlkStack]:
    """Makes running block devices on :func:`vduse_framework`; see
    :meth:`vduse.testing.bench.Bench.device`."""
    return _vduse_bench.device


@pytest.fixture
def vduse_faults() -> Faults:
    """Rules by which requests of :func:`vduse_disk` fail; none at first."""
    from vduse.backends.layers import Faults

    return Faults()


@pytest.fixture
def vduse_disk(request: pytest.FixtureRequest, vduse_device: Callable[..., BlkStack]) -> Disk:
    """The disk of a device of its own: 64 MiB of memory, or what the marker says."""
    mark = request.node.get_closest_marker("vduse_disk")
    args, kwargs = ((), {}) if mark is None else (mark.args, dict(mark.kwargs))
    if "vduse_faults" in request.fixturenames:
        kwargs["faults"] = request.getfixturevalue("vduse_faults")
    return vduse_device(*args, **kwargs).disk


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test's report tells of its devices."""
    report = yield
    bench = item.stash.get(_BENCH, None)
    if bench is not None and report.failed:
        report.sections += bench.sections()
        item.stash[_FAILED] = True
    return report
