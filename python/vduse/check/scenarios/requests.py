"""Ordinary requests of virtio-blk, in each shape that a driver may give them."""

from __future__ import annotations

from vduse.check import rules
from vduse.check.buffers import Layout
from vduse.check.scenario import Scenario
from vduse.check.scenarios.disk import BLOCKS, Blocks, expect_data, expect_ok
from vduse.check.session import Session, live
from vduse.check.stage import Stage
from vduse.control.features import BlkFeature, Feature
from vduse.testing.rawdriver import (
    S_IOERR,
    S_OK,
    S_UNSUPP,
    T_FLUSH,
    T_IN,
    T_OUT,
    T_WRITE_ZEROES,
    range_entry,
)

#: VIRTIO_BLK_T_ that no specification has.
_UNKNOWN = 0x5EED


def _run(stage: Stage) -> None:
    blocks = Blocks(stage)
    for packed in stage.formats:
        with live(stage, packed=packed) as session:
            _shapes(session, blocks)
            _many(session, blocks)
            _others(session, blocks)


def _shapes(session: Session, blocks: Blocks) -> None:
    """Plain, in pieces, indirect: the same requests."""
    queue = session.queue
    _shape(session, blocks, "plain", False, rules.BLK_SUCCEEDS)
    if session.stage.fields().seg_max > 1 or not session.features & BlkFeature.SEG_MAX:
        queue.returned = rules.CHAIN_LAYOUT
        _shape(session, blocks, "pieces", False, rules.CHAIN_LAYOUT)
    if session.features & Feature.INDIRECT_DESC:
        queue.returned = rules.CHAIN_INDIRECT
        _shape(session, blocks, "plain", True, rules.CHAIN_INDIRECT)
    queue.returned = rules.USED_RETURNED


def _shape(
    session: Session, blocks: Blocks, layout: Layout, indirect: bool, rule: rules.Rule
) -> None:
    """A write, and a read of it; ``rule`` fails where they do not succeed."""
    stage, queue = session.stage, session.queue
    data = blocks.fresh()
    if not stage.read_only:
        queue.submit(T_OUT, 0, data, layout=layout, indirect=indirect)
        expect_ok(stage, session.run(queue, 1)[0], rule)
    queue.submit(T_IN, 0, room=blocks.size, layout=layout, indirect=indirect)
    (read,) = session.run(queue, 1)
    if expect_ok(stage, read, rule) and not stage.read_only:
        plain = rule is rules.BLK_SUCCEEDS or stage.ledger.failed(rules.BLK_DATA)
        expect_data(stage, read, data, rules.BLK_DATA if plain else rule)


def _many(session: Session, blocks: Blocks) -> None:
    """As many at a time as the virtqueue takes, several times around the ring."""
    stage, queue = session.stage, session.queue
    at_a_time = min(BLOCKS, queue.size // 3)
    for _ in range(4):
        expected = {}
        for block in range(at_a_time):
            expected[blocks.sector(block)] = blocks.fresh()
            if stage.read_only:
                queue.submit(T_IN, blocks.sector(block), room=blocks.size)
            else:
                queue.submit(T_OUT, blocks.sector(block), expected[blocks.sector(block)])
        for request in session.run(queue, at_a_time):
            expect_ok(stage, request)
        for block in range(at_a_time):
            queue.submit(T_IN, blocks.sector(block), room=blocks.size)
        for request in session.run(queue, at_a_time):
            if not stage.read_only:
                expect_data(stage, request, expected[request.sector])


def _others(session: Session, blocks: Blocks) -> None:
    stage, ledger = session.stage, session.stage.ledger
    if session.features & BlkFeature.FLUSH:
        expect_ok(stage, session.do(T_FLUSH))
    if session.features & BlkFeature.WRITE_ZEROES and not stage.read_only:
        _write_zeroes(session, blocks)
    ledger.reach(rules.BLK_UNSUPPORTED)
    request = session.do(_UNKNOWN, room=512)
    if request.answered and request.status != S_UNSUPP:
        ledger.fail(rules.BLK_UNSUPPORTED, f"{request}: status {request.status:#04x}")
    ledger.reach(rules.BLK_CAPACITY)
    request = session.do(T_IN, blocks.capacity, room=blocks.size)
    if request.status == S_OK:
        ledger.fail(
            rules.BLK_CAPACITY, f"{request}: OK, with a capacity of {blocks.capacity} sectors"
        )
    if stage.read_only:
        ledger.reach(rules.BLK_READ_ONLY)
        request = session.do(T_OUT, 0, blocks.fresh())
        if request.answered and request.status != S_IOERR:
            ledger.fail(rules.BLK_READ_ONLY, f"{request}: status {request.status:#04x}")


def _write_zeroes(session: Session, blocks: Blocks) -> None:
    stage, sectors = session.stage, blocks.sector(1)
    if stage.fields().max_write_zeroes_sectors < sectors:
        return
    expect_ok(stage, session.do(T_OUT, 0, blocks.fresh()))
    if expect_ok(stage, session.do(T_WRITE_ZEROES, 0, range_entry(0, sectors)), rules.BLK_ZEROES):
        expect_data(
            stage, session.do(T_IN, 0, room=blocks.size), bytes(blocks.size), rules.BLK_ZEROES
        )


SCENARIO = Scenario(
    name="requests",
    title="reads and writes, in each shape that a chain may have",
    rules=(
        rules.DRIVER_OK,
        rules.IRQ_DRIVER_OK,
        rules.USED_RETURNED,
        rules.USED_ONCE,
        rules.USED_ID,
        rules.USED_LENGTH,
        rules.IRQ_ANNOUNCED,
        rules.CHAIN_LAYOUT,
        rules.CHAIN_INDIRECT,
        rules.MEMORY_OUTSIDE,
        rules.MEMORY_READABLE,
        rules.BLK_STATUS,
        rules.BLK_SUCCEEDS,
        rules.BLK_DATA,
        rules.BLK_UNSUPPORTED,
        rules.BLK_CAPACITY,
        rules.BLK_READ_ONLY,
        rules.BLK_ZEROES,
    ),
    blame=rules.USED_RETURNED,
    run=_run,
)
