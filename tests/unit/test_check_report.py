"""The conformance report: as text, JSON and JUnit XML; docs/conformance.md; what goes along with
a run."""

from __future__ import annotations

import io
import json
import threading
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from tests.unit import check_broken as broken
from tests.unit.check_device import TIMING, ModelBlk, Running, checking
from vduse.check import companion as companion_module
from vduse.check import page, rules
from vduse.check.checker import check
from vduse.check.companion import CheckCompanion
from vduse.check.report import Report, junit, show
from vduse.check.rules import RULES
from vduse.check.scenarios import SCENARIOS
from vduse.check.verdict import MOST_EVIDENCE, Ledger
from vduse.framework import Framework


def test_the_page_has_the_table() -> None:
    text = (Path(__file__).parents[2] / "docs" / "conformance.md").read_text()
    assert page.table() in text, "python -m vduse.check.page prints what belongs there"


def test_every_rule_of_a_scenario_is_in_the_table_and_ids_are_unique() -> None:
    assert len({rule.id for rule in RULES.values()}) == len(RULES)
    for scenario in SCENARIOS:
        assert {rule.id for rule in scenario.rules} <= set(RULES)
        assert scenario.blame in scenario.rules


@pytest.fixture
def report() -> Report:
    """One rule passed, one failed five times, the others were not reached."""
    ledger = Ledger()
    ledger.reach(rules.USED_ID)
    for count in range(5):
        ledger.fail(rules.USED_ONCE, f"time {count}\x01\nvd0 <- [message]")
    ledger.miss([rules.BLK_DATA], "not a block device")
    ledger.miss([rules.BLK_DATA], "a later reason")
    return Report("vd0", tuple(ledger.verdicts()))


def test_text_says_what_failed_why_and_how_often(report: Report) -> None:
    text = io.StringIO()
    show(report, Console(file=text, width=60))
    lines = [line.rstrip() for line in text.getvalue().splitlines()]
    assert "Virtqueues" in lines
    at = next(at for at, line in enumerate(lines) if line.startswith("failed"))
    assert lines[at].split(maxsplit=2) == ["failed", "used.once", "No chain is used twice."]
    assert [line.strip() for line in lines[at + 1 : at + 4]] == [
        "source: virtio 2.7.8, 2.8",
        "time 0\x01",
        "vd0 <- [message]",
    ]
    assert lines[at + 2 + 2 * MOST_EVIDENCE].strip() == "5 times in all"
    assert any(
        line.split() == ["not", "reached", "blk.data", "not", "a", "block", "device"]
        for line in lines
    )
    assert lines[-1] == f"vd0: 1 passed, 1 failed, {len(RULES) - 2} not reached"


def test_facts_are_json(report: Report) -> None:
    facts = json.loads(json.dumps(report.facts()))
    assert facts["ok"] is False
    by_id = {rule["id"]: rule for rule in facts["rules"]}
    assert list(by_id) == list(RULES)
    assert by_id["used.once"]["state"] == "failed"
    assert by_id["used.once"]["broken"] == 5
    assert by_id["used.id"]["detail"] == []


def test_junit_has_a_case_for_each_rule(report: Report) -> None:
    (suite,) = ElementTree.fromstring(junit([report]))
    assert suite.attrib == {
        "name": "vd0",
        "tests": str(len(RULES)),
        "failures": "1",
        "errors": "0",
        "skipped": str(len(RULES) - 2),
    }
    cases = {case.attrib["name"]: case for case in suite}
    assert list(cases) == list(RULES)
    (failure,) = cases["used.once"]
    assert failure.tag == "failure"
    assert "time 0?" in (failure.text or ""), "XML has no control characters"
    assert cases["blk.data"][0].attrib == {"message": "not a block device"}
    assert len(cases["used.id"]) == 0


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes along with a run looks a shorter while for what must not happen."""
    monkeypatch.setattr(companion_module, "check", partial(check, timing=TIMING))


class FakeRun:
    """A run of one daemon; ends when it is asked to."""

    pid = 1

    def __init__(self, running: Running) -> None:
        self._running = running
        self.ended = threading.Event()

    @property
    def framework(self) -> Framework:
        return self._running.framework

    def kill(self) -> None:
        self._running.kill()

    def wait_open(self, device: str, timeout: float) -> bool:
        return True

    def rebind(self, device: str, driver: str) -> None:
        raise NotImplementedError

    def end(self, reason: str) -> None:
        self.ended.set()


@pytest.mark.usefixtures("hurried")
def test_a_run_is_checked_and_then_ended(tmp_path: Path) -> None:
    file = tmp_path / "report.xml"
    said: list[str] = []
    companion = CheckCompanion(said.append, str(file))
    with checking(ModelBlk, watch=companion.watch) as running:
        run = FakeRun(running)
        running.framework.dev_add("vd0", driver=companion.driver)
        companion.attached(run, "vd0")
        assert run.ended.is_set()
        companion.stop()
    outcome = companion.finish()
    assert outcome.ok, "\n".join(outcome.lines)
    assert outcome.lines[-1].startswith("vd0: ")
    assert outcome.facts["devices"][0]["ok"] is True
    assert ElementTree.fromstring(file.read_bytes())[0].attrib["failures"] == "0"
    assert "vd0: resets with requests in flight" in said


def test_a_device_that_was_never_attached_is_reported() -> None:
    companion = CheckCompanion(lambda line: None)
    with checking(broken.OneQueueSetUp, watch=companion.watch):
        companion.stop()
    outcome = companion.finish()
    assert not outcome.ok
    assert any("no VDUSE_VQ_SETUP of virtqueue 1" in line for line in outcome.lines)


def test_a_run_without_devices_is_not_well() -> None:
    outcome = CheckCompanion(lambda line: None).finish()
    assert not outcome.ok
    assert outcome.lines == ("no device was created: nothing was checked",)


def test_a_check_that_is_stopped_leaves_the_rest_unreached() -> None:
    stop = threading.Event()
    with checking(ModelBlk) as running:
        running.framework.dev_add("vd0", driver="vhost_vdpa")
        report = check(
            running.framework, "vd0", running.watch, stop=stop, say=lambda line: stop.set()
        )
    assert report.ok
    assert report.count("not reached") > len(RULES) // 2


@pytest.mark.usefixtures("hurried")
def test_a_daemon_that_does_not_come_back_fails_the_recovery(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(companion_module, "_BACK", 0.1)
    companion = CheckCompanion(lambda line: None)
    with checking(ModelBlk, watch=companion.watch) as running:
        run = FakeRun(running)
        run.kill = running.device.kill  # type: ignore[method-assign]
        running.framework.dev_add("vd0", driver="vhost_vdpa")
        companion.attached(run, "vd0")
    failed = companion.finish()
    verdicts = {rule["id"]: rule for rule in failed.facts["devices"][0]["rules"]}
    assert verdicts["recovery.all"]["state"] == "failed"
    assert verdicts["chain.malformed"]["state"] == "not reached"
