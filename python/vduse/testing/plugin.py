"""Fixtures for tests of devices, backends, daemons and what uses them; pytest loads this by its
entry point. docs/testing-your-device.md and docs/testing-your-daemon.md show them at work.

Nothing else of vduse is imported before a test asks for a fixture.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from vduse.backends.layers import Faults
    from vduse.bus.disk import Disk
    from vduse.framework import Framework
    from vduse.testing.bench import Bench
    from vduse.testing.conformance import Conformance
    from vduse.testing.daemon import Daemon
    from vduse.testing.harness import BlkStack

MARKERS = (
    "vduse_profile(name, ...): which kernel the framework plays; a test a name",
    "vduse_disk(backend, **options): what vduse_disk is, as vduse_device takes it",
)

#: Where a test's bench is while it lives.
_BENCH = pytest.StashKey["Bench"]()
#: Set once it has failed.
_FAILED = pytest.StashKey[bool]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Where reports on daemons go."""
    parser.getgroup("vduse").addoption(
        "--vduse-reports",
        metavar="DIR",
        type=Path,
        help="write what vduse_conformance finds into DIR, as text and JUnit XML",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Makes the markers known."""
    for line in MARKERS:
        config.addinivalue_line("markers", line)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each profile that the marker names, and for each rule."""
    mark = metafunc.definition.get_closest_marker("vduse_profile")
    if mark is not None and "vduse_profile" in metafunc.fixturenames:
        metafunc.parametrize("vduse_profile", mark.args)
    if "vduse_rule" in metafunc.fixturenames:
        from vduse.check.rules import RULES

        metafunc.parametrize("vduse_rule", list(RULES), indirect=True)


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
def vduse_daemon(_vduse_bench: Bench) -> Callable[..., Daemon]:
    """Starts VDUSE daemons, unmodified programs, by their command lines, on
    :func:`vduse_framework`; see :meth:`vduse.testing.bench.Bench.daemon`."""
    return _vduse_bench.daemon


@pytest.fixture(scope="session")
def vduse_conformance(pytestconfig: pytest.Config) -> Callable[..., Conformance]:
    """Holds a daemon, by its command line, to every rule of docs/conformance.md; see
    :func:`vduse.testing.conformance.conformance`."""
    from vduse.testing.conformance import conformance

    return partial(conformance, folder=pytestconfig.getoption("--vduse-reports"))


@pytest.fixture
def vduse_rule(request: pytest.FixtureRequest) -> str:
    """The name of a rule: a test of its own for each."""
    rule: str = request.param
    return rule


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
