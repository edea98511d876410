"""Each rule of the conformance check: a daemon that breaks it, and no other rule fails; daemons
that keep them all, and every rule is reached."""

from __future__ import annotations

import pytest

from tests.unit import check_broken as broken
from tests.unit.check_device import ModelBlk, checking
from vduse.check import rules
from vduse.check.report import Report
from vduse.check.rules import RULES, Rule
from vduse.check.scenarios import SCENARIOS
from vduse.check.stage import Timing

_SCENARIOS = {scenario.name: scenario for scenario in SCENARIOS}

#: A daemon that waits in vain for something costs these seconds.
_TIMING = Timing(patience=3.0, quiet=0.1)

#: A rule, who breaks it, and the scenario that shows it.
BROKEN: list[tuple[Rule, type[ModelBlk], str]] = [
    (rules.MESSAGE_SIZE, broken.CutAnswer, "negotiation"),
    (rules.MESSAGE_RESERVED, broken.ReservedInAnswer, "negotiation"),
    (rules.MESSAGE_RESULT, broken.ResultSeven, "messages"),
    (rules.MESSAGE_ID, broken.AnswersAnother, "negotiation"),
    (rules.MESSAGE_ONCE, broken.AnswersTwice, "negotiation"),
    (rules.MESSAGE_IN_TIME, broken.NeverAnswersUpdates, "iotlb"),
    (rules.MESSAGE_UNKNOWN, broken.AgreesToAnyMessage, "messages"),
    (rules.CALL_RESERVED, broken.ReservedInSetup, "negotiation"),
    (rules.VQ_SIZE, broken.OddSize, "requests"),
    (rules.OFFER_VERSION_1, broken.Legacy, "offers"),
    (rules.CONFIG_SIZE, broken.ShortConfig, "offers"),
    (rules.CONFIG_BLOCK, broken.OddBlock, "offers"),
    (rules.CONFIG_SEGMENTS, broken.ManySegments, "offers"),
    (rules.CONFIG_QUEUES, broken.NineQueues, "offers"),
    (rules.CONFIG_ANNOUNCED, broken.ResizesInSilence, "requests"),
    (rules.FEATURES_UNOFFERED, broken.TakesAnyFeatures, "negotiation"),
    (rules.FEATURES_SUBSET, broken.WantsEventIdx, "negotiation"),
    (rules.DRIVER_OK, broken.NeverStarts, "requests"),
    (rules.DRIVER_OK_UNMAPPED, broken.StartsUnmapped, "impossible"),
    (rules.DRIVER_OK_TOO_LONG, broken.StartsTooLong, "impossible"),
    (rules.IRQ_DRIVER_OK, broken.EarlyIrq, "negotiation"),
    (rules.USED_RETURNED, broken.LosesOne, "requests"),
    (rules.USED_ONCE, broken.UsesTwice, "requests"),
    (rules.USED_ID, broken.UsesUnknown, "requests"),
    (rules.USED_LENGTH, broken.LengthZero, "requests"),
    (rules.IRQ_ANNOUNCED, broken.NeverInterrupts, "requests"),
    (rules.IRQ_SUPPRESSED, broken.AlwaysInterrupts, "interrupts"),
    (rules.KICK_SUPPRESSED, broken.WantsNoKick, "interrupts"),
    (rules.CHAIN_LAYOUT, broken.WantsWholeHeader, "requests"),
    (rules.CHAIN_INDIRECT, broken.OffersTablesOnly, "requests"),
    (rules.CHAIN_MALFORMED, broken.DiesOfBadChains, "malformed"),
    (rules.QUEUE_EACH, broken.ServesTheFirst, "queues"),
    (rules.QUEUE_LATE, broken.NeverLate, "queues"),
    (rules.QUEUE_START, broken.StartsAtZero, "queues"),
    (rules.STATE_DRAINED, broken.AnswersBeforeItDrains, "state"),
    (rules.STATE_INDEX, broken.AnswersAnotherPosition, "state"),
    (rules.STATE_UNKNOWN, broken.KnowsEveryQueue, "messages"),
    (rules.MEMORY_OUTSIDE, broken.WritesBehindTheStatus, "requests"),
    (rules.MEMORY_READABLE, broken.WritesTheHeader, "requests"),
    (rules.MEMORY_UNMAPPED, broken.IgnoresUpdates, "unmapped"),
    (rules.MEMORY_PERM, broken.IgnoresPermission, "permission"),
    (rules.IOTLB_UPDATE, broken.IgnoresUpdates, "iotlb"),
    (rules.IOTLB_IN_FLIGHT, broken.FailsAtUpdates, "iotlb"),
    (rules.BLK_STATUS, broken.StatusNine, "requests"),
    (rules.BLK_SUCCEEDS, broken.NeverFlushes, "requests"),
    (rules.BLK_DATA, broken.ForgetsWrites, "requests"),
    (rules.BLK_UNSUPPORTED, broken.FailsStrangeRequests, "requests"),
    (rules.BLK_CAPACITY, broken.ReadsBeyondItsEnd, "requests"),
    (rules.BLK_READ_ONLY, broken.WritableReadOnly, "requests"),
    (rules.BLK_ZEROES, broken.WritesNoZeroes, "requests"),
    (rules.RESET_IRQ, broken.InterruptsAfterReset, "reset"),
    (rules.RESET_MEMORY, broken.WritesAfterReset, "reset"),
    (rules.RESET_AGAIN, broken.StartsOnce, "reset"),
    (rules.RECOVERY_ALL, broken.ForgetsWhatWasInFlight, "recovery"),
    (rules.RECOVERY_ONCE, broken.DoesTheLastAgain, "recovery"),
    (rules.RECOVERY_DATA, broken.LosesWhatWasInFlight, "recovery"),
]
#: A device one of whose virtqueues is not set up is never attached.
_NEVER_ATTACHED = {rules.VQ_SETUP}


def failed(report: Report) -> dict[str, tuple[str, ...]]:
    """The rules that failed, with the evidence: what a test that fails shows."""
    return {verdict.rule.id: verdict.detail for verdict in report.failed}


def not_reached(report: Report) -> set[str]:
    return {verdict.rule.id for verdict in report.verdicts if verdict.state == "not reached"}


def test_every_rule_is_broken_by_one_daemon() -> None:
    shown = {rule.id for rule, _, _ in BROKEN} | {rule.id for rule in _NEVER_ATTACHED}
    assert shown == set(RULES)


@pytest.mark.parametrize(
    ("rule", "kind", "scenario"), BROKEN, ids=[rule.id for rule, _, _ in BROKEN]
)
def test_who_breaks_a_rule_fails_it_alone(rule: Rule, kind: type[ModelBlk], scenario: str) -> None:
    patient = rule is not rules.MESSAGE_IN_TIME
    with checking(kind, msg_timeout=30.0 if patient else 3.0) as running:
        # Who dies stays dead, where that is what it does wrong.
        kill = rule is not rules.CHAIN_MALFORMED
        report = running.check([_SCENARIOS[scenario]], timing=_TIMING, kill=kill)
    assert list(failed(report)) == [rule.id], failed(report)


def test_virtqueues_that_were_not_set_up_are_named() -> None:
    with checking(broken.OneQueueSetUp) as running:
        watched = running.watch.device("vd0")
        watched.finish()
    report = Report("vd0", tuple(watched.ledger.verdicts()))
    assert failed(report) == {"vq-setup.all": ("no VDUSE_VQ_SETUP of virtqueue 1",)}


@pytest.mark.parametrize(
    ("kind", "missing"),
    [
        (ModelBlk, {"config.announced", "blk.read-only"}),
        (broken.Resizes, {"blk.read-only"}),
        (broken.ReadOnly, {"config.announced", "blk.data", "blk.write-zeroes", "recovery.data"}),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else None,
)
def test_who_keeps_the_rules_passes_them(kind: type[ModelBlk], missing: set[str]) -> None:
    with checking(kind) as running:
        report = running.check(SCENARIOS)
    assert failed(report) == {}
    assert not_reached(report) == missing


@pytest.mark.parametrize(
    ("kind", "failing", "why"),
    [
        (broken.TwoDescriptors, {"config.seg-max"}, "fewer than 8 descriptors"),
        (broken.EndlessBlocks, {"config.blk-size"}, "blocks of 2147483648 bytes"),
        (broken.ShortSegments, set(), "segments of 512 bytes"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else None,
)
def test_requests_that_cannot_be_made_are_not_made(
    kind: type[ModelBlk], failing: set[str], why: str
) -> None:
    with checking(kind) as running:
        report = running.check(SCENARIOS)
    assert set(failed(report)) == failing
    reasons = {verdict.rule.id: verdict.detail for verdict in report.verdicts}
    assert why in reasons["used.returned"][0]


def test_a_daemon_that_refuses_its_first_reset_is_reported() -> None:
    with checking(broken.RefusesResets) as running:
        report = running.check(SCENARIOS)
    assert list(failed(report)) == ["reset.again"]


def test_a_daemon_that_dies_early_leaves_the_rest_unreached() -> None:
    with checking(broken.DiesOfBadChains) as running:
        named = [_SCENARIOS[name] for name in ("malformed", "messages")]
        report = running.check(named, timing=_TIMING, kill=False)
    assert list(failed(report)) == ["chain.malformed"]
    reasons = {verdict.rule.id: verdict.detail for verdict in report.verdicts}
    assert "the daemon died in malformed" in reasons["state.unknown-queue"][0]
