"""Resets with requests in flight."""

from __future__ import annotations

from vduse.check import rules
from vduse.check.scenario import Scenario
from vduse.check.scenarios.disk import VARIANTS, Blocks, expect_ok, flood
from vduse.check.session import Session, live
from vduse.check.stage import Stage
from vduse.testing.rawdriver import T_IN


def _run(stage: Stage) -> None:
    blocks = Blocks(stage)
    for packed in stage.formats:
        for variant in range(VARIANTS):
            with live(stage, packed=packed) as session:
                _reset(session, blocks, variant)
            with live(stage, packed=packed) as session:
                stage.ledger.reach(rules.RESET_AGAIN)
                session.queue.returned = rules.RESET_AGAIN
                expect_ok(stage, session.do(T_IN, 0, room=blocks.size), rules.RESET_AGAIN)


def _reset(session: Session, blocks: Blocks, variant: int) -> None:
    stage, queue, ledger = session.stage, session.queue, session.stage.ledger
    flood(session, blocks, variant)
    if not stage.reset():
        ledger.fail(rules.RESET_AGAIN, f"SET_STATUS(0) was refused\n{stage.watch.tail(3)}")
    session.canvas.withdraw_all()
    queue.irqs()
    ledger.reach(rules.RESET_MEMORY, rules.RESET_IRQ)
    queue.rest(stage.timing.quiet)
    if (trespass := session.canvas.trespass()) is not None:
        ledger.fail(rules.RESET_MEMORY, f"{trespass.text}\n{stage.watch.tail(3)}")
    if came := queue.irqs():
        ledger.fail(rules.RESET_IRQ, f"{queue.where}: {came} interrupts\n{stage.watch.tail(3)}")


SCENARIO = Scenario(
    name="reset",
    title="resets with requests in flight",
    rules=(rules.RESET_MEMORY, rules.RESET_IRQ, rules.RESET_AGAIN),
    blame=rules.RESET_AGAIN,
    run=_run,
)
