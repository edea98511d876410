"""The guest's side of a test run: a pytest plugin that sends every report to the machine."""

from __future__ import annotations

import json
from typing import TextIO

import pytest

from tests.kernel.vm import RESULTS_FD


class Reporter:
    """Writes reports as lines of JSON, and ``{"finished": NODEID}`` after a test's last."""

    def __init__(self, config: pytest.Config, results: TextIO) -> None:
        self._config = config
        self._results = results

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """One phase of a test: setup, call or teardown."""
        self._send(
            self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        )

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """The end of a test."""
        self._send({"finished": nodeid})

    def _send(self, data: object) -> None:
        print(json.dumps(data), file=self._results, flush=True)


def pytest_configure(config: pytest.Config) -> None:
    """Takes the place of what runs tests in guests."""
    results = open(RESULTS_FD, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - for the run
    config.pluginmanager.register(Reporter(config, results), "kernel-reporter")
