"""What a check found: for people, for scripts and for CI."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from rich.console import Console
from rich.text import Text

from vduse.check.verdict import State, Verdict

_COLOURS: dict[State, str] = {"passed": "green", "failed": "red", "not reached": "yellow"}
_NO_XML = re.compile("[^\t\n -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
#: Columns of state and rule.
_STATE, _RULE = 12, 28


@dataclass(frozen=True)
class Report:
    """One device's verdicts, in the table's order."""

    device: str
    verdicts: tuple[Verdict, ...]

    @property
    def ok(self) -> bool:
        """No rule failed."""
        return not self.failed

    @property
    def failed(self) -> list[Verdict]:
        """The rules that were broken."""
        return [verdict for verdict in self.verdicts if verdict.state == "failed"]

    def count(self, state: State) -> int:
        """Rules in a state."""
        return sum(verdict.state == state for verdict in self.verdicts)

    @property
    def summary(self) -> str:
        """One line."""
        counts = ", ".join(f"{self.count(state)} {state}" for state in _COLOURS)
        return f"{self.device}: {counts}"

    def facts(self) -> dict[str, Any]:
        """As ``--json`` prints it."""
        return {
            "device": self.device,
            "ok": self.ok,
            "rules": [_facts(verdict) for verdict in self.verdicts],
        }


def show(report: Report, out: Console) -> None:
    """Every rule a line, in the table's parts; evidence below those that failed."""
    part = ""
    for verdict in report.verdicts:
        if verdict.rule.part != part:
            part = verdict.rule.part
            out.print(f"\n[bold]{part}[/]", soft_wrap=True)
        out.print(_line(verdict), soft_wrap=True)
    out.print(f"\n{report.summary}", soft_wrap=True, markup=False)


def _line(verdict: Verdict) -> Text:
    rule = verdict.rule
    line = Text.assemble(
        (f"{verdict.state:{_STATE}}", _COLOURS[verdict.state]), f"{rule.id:{_RULE}}"
    )
    if verdict.state == "not reached":
        line.append(verdict.detail[0], style="dim")
        return line
    line.append(rule.sentence)
    if verdict.state == "failed":
        line.append(f"\n{'':{_STATE}}source: {rule.source}")
        for evidence in verdict.detail:
            line.append("".join(f"\n{'':{_STATE}}{text}" for text in evidence.splitlines()))
        if verdict.broken > len(verdict.detail):
            line.append(f"\n{'':{_STATE}}{verdict.broken} times in all", style="dim")
    return line


def _facts(verdict: Verdict) -> dict[str, Any]:
    rule = verdict.rule
    return {
        "id": rule.id,
        "state": verdict.state,
        "sentence": rule.sentence,
        "source": rule.source,
        "detail": list(verdict.detail),
        "broken": verdict.broken,
    }


def junit(reports: list[Report]) -> bytes:
    """JUnit XML: a test suite a device, a test case a rule; what was not reached is skipped."""
    suites = ElementTree.Element("testsuites", name="vduse check")
    for report in reports:
        suite = ElementTree.SubElement(
            suites,
            "testsuite",
            name=report.device,
            tests=str(len(report.verdicts)),
            failures=str(report.count("failed")),
            errors="0",
            skipped=str(report.count("not reached")),
        )
        for verdict in report.verdicts:
            _case(suite, verdict)
    ElementTree.indent(suites)
    text: bytes = ElementTree.tostring(suites, encoding="utf-8", xml_declaration=True)
    return text + b"\n"


def _case(suite: ElementTree.Element, verdict: Verdict) -> None:
    rule = verdict.rule
    case = ElementTree.SubElement(suite, "testcase", classname=rule.part, name=rule.id)
    if verdict.state == "failed":
        failure = ElementTree.SubElement(case, "failure", message=rule.sentence)
        failure.text = _xml_text("\n\n".join([f"source: {rule.source}", *verdict.detail]))
    elif verdict.state == "not reached":
        ElementTree.SubElement(case, "skipped", message=_xml_text(verdict.detail[0]))


def _xml_text(text: str) -> str:
    """Without what XML 1.0 cannot hold: a device's name may hold anything."""
    return _NO_XML.sub("?", text)
