"""Several virtqueues, a late one, and one that does not start at 0."""

from __future__ import annotations

from vduse.check import rules
from vduse.check.scenario import Scenario
from vduse.check.scenarios.disk import Blocks, expect_ok
from vduse.check.session import live
from vduse.check.stage import Stage
from vduse.testing.rawdriver import T_IN

#: Most virtqueues that are used.
_MOST = 16
#: Split: near the end of 16 bits. Packed: the sixth descriptor, wrap counter 0.
_SPLIT_START = 0xFFF0
_PACKED_START = 5 | 5 << 16


def _run(stage: Stage) -> None:
    blocks = Blocks(stage)
    for packed in stage.formats:
        _each(stage, blocks, packed)
        _start(stage, blocks, packed)
        _late(stage, blocks, packed)


def _each(stage: Stage, blocks: Blocks, packed: bool) -> None:
    with live(stage, packed=packed, queues=min(stage.queues, _MOST)) as session:
        for queue in session.queues:
            queue.returned = rules.QUEUE_EACH
            queue.submit(T_IN, 0, room=blocks.size)
            expect_ok(stage, session.run(queue, 1)[0])


def _late(stage: Stage, blocks: Blocks, packed: bool) -> None:
    last = min(stage.queues, _MOST) - 1
    with live(stage, packed=packed, queues=last + 1, ready=range(last)) as session:
        queue = session.queues[last]
        queue.returned = rules.QUEUE_LATE
        session.enable(queue)
        queue.submit(T_IN, 0, room=blocks.size)
        expect_ok(stage, session.run(queue, 1)[0])


def _start(stage: Stage, blocks: Blocks, packed: bool) -> None:
    base = _PACKED_START if packed else _SPLIT_START
    with live(stage, packed=packed, base=base) as session:
        queue = session.queue
        queue.returned = rules.QUEUE_START
        # Around the ring at least once, and past the end of 16 bits.
        for _ in range(queue.size):
            queue.submit(T_IN, 0, room=blocks.size)
            expect_ok(stage, session.run(queue, 1)[0])


SCENARIO = Scenario(
    name="queues",
    title="uses every virtqueue, one that starts anywhere, one that comes late",
    rules=(rules.QUEUE_EACH, rules.QUEUE_START, rules.QUEUE_LATE),
    blame=rules.QUEUE_EACH,
    run=_run,
)
