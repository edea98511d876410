"""The daemon is killed with requests in flight, and started again."""

from __future__ import annotations

from vduse.check import rules
from vduse.check.errors import Missed
from vduse.check.scenario import Scenario
from vduse.check.scenarios.disk import BLOCKS, Blocks, expect_data, expect_ok
from vduse.check.session import Session, live
from vduse.check.stage import Stage
from vduse.testing.rawdriver import T_IN, T_OUT

_ROUNDS = 3


def _run(stage: Stage) -> None:
    if not stage.can_restart:
        raise Missed("nobody here can start the daemon again")
    blocks = Blocks(stage)
    for packed in stage.formats:
        with live(stage, packed=packed) as session:
            session.queue.returned = rules.RECOVERY_ALL
            session.queue.once = rules.RECOVERY_ONCE
            for _ in range(_ROUNDS):
                _kill_once(session, blocks)


def _kill_once(session: Session, blocks: Blocks) -> None:
    stage, queue = session.stage, session.queue
    count = min(BLOCKS, queue.size // 3)
    written = {}
    for block in range(count):
        sector = blocks.sector(block)
        if stage.read_only:
            queue.submit(T_IN, sector, room=blocks.size)
        else:
            written[sector] = blocks.fresh()
            queue.submit(T_OUT, sector, written[sector])
    session.kick(queue)
    stage.say("kills the daemon with requests in flight")
    stage.restart()
    # No kick: its successor is to look at the rings itself.
    for request in queue.wait(count):
        expect_ok(stage, request)
    session.look()
    for sector, data in written.items():
        expect_data(stage, session.do(T_IN, sector, room=blocks.size), data, rules.RECOVERY_DATA)


SCENARIO = Scenario(
    name="recovery",
    title="kills the daemon, and looks for every request afterwards",
    rules=(rules.RECOVERY_ALL, rules.RECOVERY_ONCE, rules.RECOVERY_DATA),
    blame=rules.RECOVERY_ALL,
    run=_run,
)
