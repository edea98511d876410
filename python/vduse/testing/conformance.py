"""A daemon's conformance as pytest's results and as files; ``vduse run --check`` inside a test."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import pytest
from rich.console import Console

from vduse.check.checker import check
from vduse.check.report import Report, junit, show
from vduse.check.rules import RULES
from vduse.check.verdict import Verdict
from vduse.check.watch import Watch
from vduse.framework import Framework
from vduse.testing.daemon import Daemon

#: Columns of a report as text.
_WIDTH = 120


class Conformance:
    """What was found about one device of a daemon."""

    def __init__(self, report: Report) -> None:
        #: All of it.
        self.report = report

    @property
    def failed(self) -> set[str]:
        """The rules that it breaks, by name."""
        return {verdict.rule.id for verdict in self.report.failed}

    def verdict(self, rule: str) -> Verdict:
        """One rule's. LookupError: there is no such rule."""
        for verdict in self.report.verdicts:
            if verdict.rule.id == rule:
                return verdict
        raise LookupError(f"no rule {rule!r}; there are: {', '.join(RULES)}")

    def require(self, rule: str) -> None:
        """Fails the test, with the evidence, where the daemon breaks the rule; skips it, with the
        reason, where that could not be looked at."""
        verdict = self.verdict(rule)
        if verdict.state == "failed":
            evidence = "\n\n".join([verdict.rule.sentence, *verdict.detail])
            pytest.fail(f"{rule} ({verdict.rule.source}): {evidence}", pytrace=False)
        if verdict.state == "not reached":
            pytest.skip(f"{rule} was not reached: {verdict.detail[0]}")

    def text(self) -> str:
        """Every rule a line, evidence below those that it breaks."""
        out = Console(file=io.StringIO(), width=_WIDTH, highlight=False, emoji=False)
        with out.capture() as captured:
            show(self.report, out)
        return captured.get()

    def write(self, folder: Path, name: str) -> None:
        """As text and as JUnit XML, ``NAME.txt`` and ``NAME.xml``; NAME has a number more where
        there are such files. OSError."""
        folder.mkdir(parents=True, exist_ok=True)
        path, number = folder / f"{name}.txt", 1
        while path.exists():
            number += 1
            path = folder / f"{name}-{number}.txt"
        path.write_text(self.text(), encoding="utf-8")
        path.with_suffix(".xml").write_bytes(junit([self.report]))


def conformance(
    *argv: str,
    device: str | None = None,
    profile: str = "6.12",
    env: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Conformance:
    """Starts a daemon on a framework of its own and holds its first device, or ``device``, to
    every rule. What is in the first blocks of its disk is lost. ``folder``: the report is written
    there, too. ProgramError, TimeoutError: it has no such device; ValueError: no such profile."""
    watch = Watch()
    with (
        Framework(profile, tap=watch) as framework,
        Daemon(framework, argv, env=env, restart=True) as daemon,
    ):
        name = daemon.device(device)
        framework.dev_add(name, driver="vhost_vdpa")
        found = Conformance(check(framework, name, watch, kill=lambda: daemon.replace(name)))
    if folder is not None:
        found.write(folder, f"{Path(argv[0]).name}-{name}")
    return found
