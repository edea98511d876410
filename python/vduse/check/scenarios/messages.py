"""Messages that no kernel sends today."""

from __future__ import annotations

from vduse.check import rules
from vduse.check.errors import Missed
from vduse.check.scenario import Scenario
from vduse.check.stage import Stage
from vduse.control.abi import GetVqState, SetVqGroupAsid


def _run(stage: Stage) -> None:
    stage.ledger.reach(rules.STATE_UNKNOWN)
    if stage.send(GetVqState(stage.queues)):
        stage.ledger.fail(
            rules.STATE_UNKNOWN,
            f"OK for virtqueue {stage.queues} of {stage.queues}\n{stage.watch.tail(2)}",
        )
    if stage.api_version > 0:
        raise Missed("a device of API version 1 knows every message that there is")
    stage.ledger.reach(rules.MESSAGE_UNKNOWN)
    if stage.send(SetVqGroupAsid(0, 0)):
        stage.ledger.fail(
            rules.MESSAGE_UNKNOWN, f"OK to a message of API version 1\n{stage.watch.tail(2)}"
        )


SCENARIO = Scenario(
    name="messages",
    title="sends messages that no kernel sends",
    rules=(rules.STATE_UNKNOWN, rules.MESSAGE_UNKNOWN),
    blame=rules.STATE_UNKNOWN,
    run=_run,
    blk=False,
)
