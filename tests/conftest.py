"""Skips: a test that lacks its means says which, and what provides it; in CI that is a failure.

@pytest.mark.needs("qemu-img")
def test_second_daemon_is_locked_out(): ...
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Generator, Iterator

import pytest
from hypothesis import settings

from tests import means
from tests.kernel.plugin import KernelTests

IN_CI = os.environ.get("CI") == "true"


# pytest's --hypothesis-profile chooses another: "long" for a search by hand. In CI every run is
# the same.
settings.register_profile("ci", derandomize=True, database=None, deadline=None)
settings.register_profile("dev", deadline=None)
settings.register_profile("long", deadline=None, max_examples=5000)
settings.load_profile("ci" if IN_CI else "dev")


def pytest_configure(config: pytest.Config) -> None:
    """Sends tests for other kernels to guests, unless this is one."""
    # nohup(1) ignores it, and so would every program that a test starts and hangs up on.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if not config.pluginmanager.has_plugin("tests.kernel.reports"):
        config.pluginmanager.register(KernelTests(), "kernel-tests")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips a test whose ``needs`` marks name something that is not here."""
    for mark in item.iter_markers("needs"):
        if reason := means.missing(mark.args):
            pytest.skip(reason)


#: pytest-timeout's own is SIGALRM: it goes when a test has failed.
_SIGNALS = signal.valid_signals() - {signal.SIGALRM}


def _process_state() -> dict[str, object]:
    """What tests in one process share, and what another test would not expect changed."""
    package = logging.getLogger("vduse")
    return {
        "vduse's logger": (package.level, package.propagate, package.disabled, *package.handlers),
        "logging": (logging.root.level, logging.root.manager.disable),
        "the working directory": os.getcwd(),
        **{f"signal {number}": signal.getsignal(number) for number in _SIGNALS},
    }


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Blames the test that changes the process, not one that comes after it."""
    before = _process_state()
    yield
    after = _process_state()
    changed = {what: (before[what], after[what]) for what in before if before[what] != after[what]}
    assert not changed


def _refuse(report: pytest.TestReport | pytest.CollectReport) -> None:
    if IN_CI and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"nothing may be skipped in CI: {report.longrepr}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI a skipped test is a failed one."""
    report = yield
    _refuse(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """In CI a skipped module is a failed one."""
    report = yield
    _refuse(report)
    return report
