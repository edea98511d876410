"""The machine's side of a test run: tests with a ``kernel`` mark run in a guest with that kernel.

They are collected here as any other. All that need the same guest go into one boot, as pytest's
arguments there; the guest sends every report (reports.py) and they become results here. A guest
that dies fails the test it was in, unless the emulation was at fault; the tests after it get a new
one.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Protocol

import pytest

from tests.kernel.fetch import BedError, kernel
from tests.kernel.vm import VM, Machine, Stopped, Tripped

#: Seconds that a guest may take to boot and to start its pytest, on a busy machine.
_START = 240
#: At most so many guests a test is given where the emulation ends them.
_GUESTS = 3


@dataclass(frozen=True)
class Boot:
    """What a test asks of its guest; tests that ask the same share one."""

    version: str
    machine: Machine


def boot_of(item: pytest.Item) -> Boot | None:
    """The guest of a test; None for a test that runs here."""
    mark = item.get_closest_marker("kernel")
    if mark is None:
        return None
    machine = item.get_closest_marker("machine")
    return Boot(mark.args[0], Machine(**machine.kwargs) if machine else Machine())


class Guest:
    """One boot, with the tests that run in it."""

    def __init__(self, boot: Boot, items: list[pytest.Item]) -> None:
        config = items[0].config
        #: The guest's own output; it tells why a run ended early.
        self._output = BytesIO()
        self._vm = VM(
            kernel(boot.version),
            guest_command(config, items),
            machine=boot.machine,
            output=self._output,
            folder=config.rootpath,
        )
        limits = [float(m.args[0]) for i in items if (m := i.get_closest_marker("timeout"))]
        default = float(config.getini("timeout") or 0)
        self.lines = self._vm.lines(_START + max([default, *limits]))

    def ended(self) -> str:
        """What to say of a test that did not run although pytest ended."""
        return f"pytest in the guest ended with status {self._vm.status}:\n{self.output()}"

    def output(self, lines: int = 40) -> str:
        """The last lines that pytest printed in the guest."""
        text = self._output.getvalue().decode(errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def close(self) -> None:
        """Ends the guest."""
        self._vm.close()


def guest_command(config: pytest.Config, items: list[pytest.Item]) -> str:
    """The shell command that runs these tests in the guest."""
    options = ["-p", "tests.kernel.reports", "-p", "no:cacheprovider", "--color=no"]
    options += [f"--tb={config.option.tbstyle}", f"--verbosity={config.option.verbose}"]
    ids = [item.nodeid for item in items]
    return "exec " + shlex.join([sys.executable, "-m", "pytest", *options, *ids])


class Runs(Protocol):
    """What the plugin needs of a guest; ``Guest`` says more of each."""

    lines: Iterator[str]

    def ended(self) -> str: ...
    def output(self) -> str: ...
    def close(self) -> None: ...


class KernelTests:
    """The plugin. ``start`` boots a guest for tests."""

    def __init__(self, start: Callable[[Boot, list[pytest.Item]], Runs] = Guest) -> None:
        self._start = start
        self._guest: Runs | None = None
        self._boot: Boot | None = None
        self._waiting: dict[Boot, list[pytest.Item]] = defaultdict(list)
        self._reports: dict[str, list[pytest.TestReport]] = defaultdict(list)
        self._finished: set[str] = set()
        #: Why the tests of a boot that are left cannot run: the bed is not complete.
        self._missing: dict[Boot, str] = {}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """What runs here comes first, then boot after boot."""
        boots = [None, *dict.fromkeys(filter(None, map(boot_of, items)))]
        items.sort(key=lambda item: boots.index(boot_of(item)))

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Notes what each boot is to run."""
        for item in session.items:
            if boot := boot_of(item):
                self._waiting[boot].append(item)

    @pytest.hookimpl(optionalhook=True)
    def pytest_timeout_set_timer(self, item: pytest.Item) -> bool | None:
        """pytest-timeout watches the test in the guest, not here, where booting counts too."""
        return None if boot_of(item) is None else True

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        """Reports a guest's test."""
        boot = boot_of(item)
        if boot is None:
            return None
        if item.nodeid not in self._finished and not self._ensure_guest(boot):
            # It says what to install; in CI a failure.
            item.add_marker(pytest.mark.skip(reason=self._missing[boot]))
            return None
        hook = item.ihook
        hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in self._results(item, boot):
            hook.pytest_runtest_logreport(report=report)
        hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        self._waiting[boot].remove(item)
        return True

    def pytest_unconfigure(self) -> None:
        """Ends the guest of a run that ends early."""
        self._close()

    def _ensure_guest(self, boot: Boot) -> bool:
        if boot in self._missing:
            return False
        if self._guest is None or self._boot != boot:
            self._close()
            try:
                left = [i for i in self._waiting[boot] if i.nodeid not in self._finished]
                self._guest, self._boot = self._start(boot, left), boot
            except BedError as why:
                self._missing[boot] = str(why)
                return False
        return True

    def _close(self) -> None:
        if self._guest is not None:
            self._guest.close()
            self._guest = None

    def _results(self, item: pytest.Item, boot: Boot) -> Iterator[pytest.TestReport]:
        """A test's reports, from the guest that runs it or has run it."""
        failure = ""
        others = _GUESTS - 1
        while item.nodeid not in self._finished and not failure:
            assert self._guest is not None
            try:
                if line := next(self._guest.lines, None):
                    self._take(item.config, json.loads(line))
                else:
                    failure = self._guest.ended()
            except Stopped as why:
                failure = f"{why}\nand its pytest:\n{self._guest.output()}"
                self._close()
                has_failed = any(report.failed for report in self._reports[item.nodeid])
                if isinstance(why, Tripped) and not has_failed and others:
                    text = f"{item.nodeid}: the emulation has ended its guest: again in another"
                    item.config.get_terminal_writer().line(f"\n{text}")
                    if self._ensure_guest(boot):
                        # What the test has done is gone with the guest.
                        del self._reports[item.nodeid]
                        failure, others = "", others - 1
        yield from self._reports.pop(item.nodeid, [])
        if failure:
            yield from _failure(item, failure)

    def _take(self, config: pytest.Config, data: dict[str, Any]) -> None:
        if "finished" in data:
            self._finished.add(data["finished"])
            return
        report = config.hook.pytest_report_from_serializable(config=config, data=data)
        if isinstance(report.longrepr, list):
            report.longrepr = tuple(report.longrepr)  # of a skip; JSON has no tuples
        self._reports[report.nodeid].append(report)


def _failure(item: pytest.Item, text: str) -> Iterator[pytest.TestReport]:
    """Reports of a test that its guest could not finish."""
    common: dict[str, Any] = {"keywords": dict.fromkeys(item.keywords, 1)}
    common |= {"nodeid": item.nodeid, "location": item.location}
    yield pytest.TestReport(when="call", outcome="failed", longrepr=text, **common)
    # Some reporters count a test as over with this phase.
    yield pytest.TestReport(when="teardown", outcome="passed", longrepr=None, **common)
