"""What the device says of itself."""

from __future__ import annotations

from vduse.check import rules
from vduse.check.config import CAPACITY_END, FIELD_ENDS, BlkFields
from vduse.check.request import SECTOR
from vduse.check.scenario import Scenario
from vduse.check.stage import Stage
from vduse.control.features import BlkFeature, Feature


def _run(stage: Stage) -> None:
    stage.ledger.reach(rules.OFFER_VERSION_1)
    if not stage.offers(Feature.VERSION_1):
        stage.ledger.fail(rules.OFFER_VERSION_1, f"features {stage.offered:#x}")
    if stage.is_blk:
        _size(stage)
        fields = stage.fields()
        _block(stage, fields)
        _segments(stage, fields)
        _queues(stage, fields)


def _size(stage: Stage) -> None:
    stage.ledger.reach(rules.CONFIG_SIZE)
    size = len(stage.config())
    ends = {"capacity": CAPACITY_END}
    ends |= {
        feature.name or "": end for feature, end in FIELD_ENDS.items() if stage.offers(feature)
    }
    for name, end in ends.items():
        if size < end:
            stage.ledger.fail(
                rules.CONFIG_SIZE, f"{size} bytes; the fields of {name} end at byte {end}"
            )


def _has(stage: Stage, feature: BlkFeature) -> bool:
    """It is offered, and its fields are there."""
    return stage.offers(feature) and len(stage.config()) >= FIELD_ENDS[feature]


def _block(stage: Stage, fields: BlkFields) -> None:
    if not _has(stage, BlkFeature.BLK_SIZE):
        return
    stage.ledger.reach(rules.CONFIG_BLOCK)
    block = fields.blk_size
    if block < SECTOR or block & (block - 1):
        stage.ledger.fail(rules.CONFIG_BLOCK, f"blk_size {block}")
    elif fields.capacity * SECTOR % block:
        stage.ledger.fail(
            rules.CONFIG_BLOCK, f"capacity {fields.capacity} sectors, blk_size {block}"
        )


def _segments(stage: Stage, fields: BlkFields) -> None:
    if _has(stage, BlkFeature.SIZE_MAX):
        stage.ledger.reach(rules.CONFIG_SEGMENTS)
        if fields.size_max == 0:
            stage.ledger.fail(rules.CONFIG_SEGMENTS, "size_max 0")
    if _has(stage, BlkFeature.SEG_MAX):
        stage.ledger.reach(rules.CONFIG_SEGMENTS)
        if not 1 <= fields.seg_max <= stage.max_size - 2:
            stage.ledger.fail(
                rules.CONFIG_SEGMENTS,
                f"seg_max {fields.seg_max}, virtqueues of {stage.max_size} descriptors",
            )


def _queues(stage: Stage, fields: BlkFields) -> None:
    if not _has(stage, BlkFeature.MQ):
        return
    stage.ledger.reach(rules.CONFIG_QUEUES)
    if not 1 <= fields.num_queues <= stage.queues:
        stage.ledger.fail(
            rules.CONFIG_QUEUES, f"num_queues {fields.num_queues}, {stage.queues} virtqueues"
        )


SCENARIO = Scenario(
    name="offers",
    title="reads features and config space",
    rules=(
        rules.OFFER_VERSION_1,
        rules.CONFIG_SIZE,
        rules.CONFIG_BLOCK,
        rules.CONFIG_SEGMENTS,
        rules.CONFIG_QUEUES,
    ),
    blame=rules.OFFER_VERSION_1,
    run=_run,
    blk=False,
)
