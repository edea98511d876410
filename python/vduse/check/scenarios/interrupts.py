"""Interrupts that the driver does not want, and kicks that the device does not want."""

from __future__ import annotations

from vduse.check import rules
from vduse.check.scenario import Scenario
from vduse.check.scenarios.disk import Blocks
from vduse.check.session import Session, live
from vduse.check.stage import Stage
from vduse.control.features import Feature
from vduse.testing.rawdriver import T_IN

_DEPTH = 8
_REQUESTS = 200


def _run(stage: Stage) -> None:
    blocks = Blocks(stage)
    for packed in stage.formats:
        variants = [0] + ([int(Feature.EVENT_IDX)] if stage.offers(Feature.EVENT_IDX) else [])
        for without in variants:
            with live(stage, packed=packed, without=without) as session:
                _unwanted(session, blocks)
            with live(stage, packed=packed, without=without) as session:
                _unkicked(session, blocks)


def _unwanted(session: Session, blocks: Blocks) -> None:
    stage, queue = session.stage, session.queue
    stage.ledger.reach(rules.IRQ_SUPPRESSED)
    # Some give interrupts at the start whatever the driver wants, at DRIVER_OK (libvduse) or with
    # the first request: while it wants them, and time for the last one.
    queue.notify.want_irq()
    queue.submit(T_IN, 0, room=blocks.size)
    session.kick(queue)
    queue.watch(1)
    queue.rest(stage.timing.quiet)
    queue.notify.want_no_irq()
    queue.irqs()
    for _ in range(_DEPTH):
        queue.submit(T_IN, 0, room=blocks.size)
        session.kick(queue)
        queue.watch(1)
    queue.rest(stage.timing.quiet)
    if came := queue.irqs():
        stage.ledger.fail(
            rules.IRQ_SUPPRESSED,
            f"{queue.where}, {_how(session)}: {came} interrupts for {_DEPTH} requests\n"
            f"{stage.watch.tail(3)}",
        )


def _unkicked(session: Session, blocks: Blocks) -> None:
    """Kicks only where the device asks for it."""
    queue = session.queue
    queue.returned = rules.KICK_SUPPRESSED
    made = done = 0
    while done < _REQUESTS:
        while made - done < _DEPTH and made < _REQUESTS:
            before = queue.base
            queue.submit(T_IN, 0, room=blocks.size)
            if queue.notify.wants_kick(before):
                session.kick(queue)
            made += 1
        done += len(queue.wait(1))


def _how(session: Session) -> str:
    event_idx = session.features & Feature.EVENT_IDX
    return "used_event is far away" if event_idx and not session.packed else "flags say no"


SCENARIO = Scenario(
    name="interrupts",
    title="does without interrupts, and without kicks that are not wanted",
    rules=(rules.IRQ_SUPPRESSED, rules.KICK_SUPPRESSED),
    blame=rules.KICK_SUPPRESSED,
    run=_run,
)
