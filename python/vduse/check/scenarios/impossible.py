"""DRIVER_OK with virtqueues that cannot be started."""

from __future__ import annotations

from vduse.check import rules
from vduse.check.errors import Missed
from vduse.check.scenario import Scenario
from vduse.check.session import agreed
from vduse.check.stage import LIVE, Stage

#: Where nothing is mapped.
_NOWHERE = 1 << 40
_LARGEST_QUEUE = 1 << 15


def _run(stage: Stage) -> None:
    with agreed(stage) as session:
        driver, queue = stage.driver, session.queue
        session.set_up(queue)
        driver.set_vring_addr(0, *(_NOWHERE + area for area in queue.ring.areas))
        session.enable(queue)
        stage.ledger.reach(rules.DRIVER_OK_UNMAPPED)
        if stage.set_status(LIVE):
            stage.ledger.fail(
                rules.DRIVER_OK_UNMAPPED,
                f"OK, with virtqueue 0 at IOVA {_NOWHERE:#x}, which is not mapped\n"
                f"{stage.watch.tail()}",
            )
    _too_long(stage)


def _too_long(stage: Stage) -> None:
    size = 2 << (stage.max_size.bit_length() - 1)
    if size > _LARGEST_QUEUE:
        raise Missed("no virtqueue can be longer")
    with agreed(stage) as session:
        session.set_up(session.queue)
        stage.lengthen_queue(0, size)
        session.enable(session.queue)
        stage.ledger.reach(rules.DRIVER_OK_TOO_LONG)
        if stage.set_status(LIVE):
            stage.ledger.fail(
                rules.DRIVER_OK_TOO_LONG,
                f"OK, with {size} descriptors where VDUSE_VQ_SETUP said {stage.max_size}\n"
                f"{stage.watch.tail()}",
            )


SCENARIO = Scenario(
    name="impossible",
    title="starts virtqueues that cannot be started",
    rules=(rules.DRIVER_OK_UNMAPPED, rules.DRIVER_OK_TOO_LONG),
    blame=rules.DRIVER_OK_UNMAPPED,
    run=_run,
    blk=False,
)
