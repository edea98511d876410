"""GET_VQ_STATE while requests are under way: the virtqueue is drained, and goes on elsewhere."""

from __future__ import annotations

from vduse.check import rules
from vduse.check.queue import Queue
from vduse.check.scenario import Scenario
from vduse.check.scenarios.disk import VARIANTS, Blocks, expect_ok, flood
from vduse.check.session import Session, go_live, live
from vduse.check.stage import Stage
from vduse.testing.rawdriver import T_IN
from vduse.testing.rings import SplitRing


def _run(stage: Stage) -> None:
    blocks = Blocks(stage)
    for packed in stage.formats:
        for variant in range(VARIANTS):
            with live(stage, packed=packed) as session:
                _stop_and_go_on(session, blocks, variant)


def _stop_and_go_on(session: Session, blocks: Blocks, variant: int) -> None:
    stage, queue, ledger = session.stage, session.queue, session.stage.ledger
    flood(session, blocks, variant)
    with stage.messages():
        base = stage.driver.get_vring_base(0)
    ledger.reach(rules.STATE_DRAINED, rules.STATE_INDEX)
    queue.reap()
    at_answer = _stands_at(queue)
    queue.rest(stage.timing.quiet)
    if late := queue.reap():
        ledger.fail(
            rules.STATE_DRAINED,
            f"{queue.where}: {len(late)} chains were used after the answer, the first: {late[0]}\n"
            f"{stage.watch.tail(3)}",
        )
        return
    if base != at_answer:
        ledger.fail(
            rules.STATE_INDEX,
            f"{queue.where}: answered {base:#x}, used up to {at_answer:#x}\n{stage.watch.tail(3)}",
        )
        return
    session.look()
    _go_on(session, base, blocks)


def _stands_at(queue: Queue) -> int:
    """As VHOST_GET_VRING_BASE has it of a drained ring."""
    if isinstance(queue.ring, SplitRing):
        return queue.ring.seen_used
    index, wrap = queue.ring.seen_used
    return (index | wrap << 15) * 0x10001


def _go_on(session: Session, base: int, blocks: Blocks) -> None:
    """The same ring after a reset, from the position that was answered."""
    stage, queue = session.stage, session.queue
    if not stage.agree(session.features):
        return
    session.map()
    queue.returned = rules.STATE_INDEX
    session.set_up(queue, base=base)
    session.enable(queue)
    go_live(session)
    queue.submit(T_IN, 0, room=blocks.size)
    for request in session.run(queue, len(queue.outstanding)):
        expect_ok(stage, request)


SCENARIO = Scenario(
    name="state",
    title="stops a virtqueue with requests in flight",
    rules=(rules.STATE_DRAINED, rules.STATE_INDEX),
    blame=rules.STATE_INDEX,
    run=_run,
)
