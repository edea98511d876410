"""What scenarios know of the disk: where they may write, and what is expected there."""

from __future__ import annotations

from time import sleep

from vduse.check import rules
from vduse.check.errors import Missed
from vduse.check.request import SECTOR, Request
from vduse.check.session import Session
from vduse.check.stage import Stage
from vduse.control.features import BlkFeature, Feature
from vduse.testing.rawdriver import S_OK, T_IN

#: Bytes of a request, where logical blocks are no larger.
_BLOCK = 4096
_LARGE = 32 << 10
#: Requests that are made at once: each has its block.
BLOCKS = 16


#: Requests of :func:`flood`, and seconds that it lets pass.
_FEW, _MANY = 16, 48
_PAUSES = (0.0, 0.0002, 0.001)
#: Variants of it.
VARIANTS = 2 * len(_PAUSES)


class Blocks:
    """The first :data:`BLOCKS` blocks of the disk. What is there is lost."""

    def __init__(self, stage: Stage) -> None:
        """Missed: no such requests can be made."""
        fields = stage.fields()
        logical = fields.blk_size if stage.offers(BlkFeature.BLK_SIZE) else SECTOR
        longest = fields.size_max if stage.offers(BlkFeature.SIZE_MAX) else _LARGE
        if logical & (logical - 1) or not SECTOR <= logical <= _LARGE:
            raise Missed(f"requests in blocks of {logical} bytes are not made here")
        #: Bytes of a block.
        self.size = max(_BLOCK, logical)
        if longest < self.size:
            raise Missed(f"segments of {longest} bytes do not hold a block of {self.size}")
        #: Bytes of a request that takes its time, whole blocks.
        self.large = min(_LARGE, longest) // self.size * self.size
        #: Sectors of the disk.
        self.capacity = fields.capacity
        self._stage = stage
        self._number = 0
        if self.capacity * SECTOR < max(BLOCKS * self.size, self.large):
            raise Missed(f"the disk has fewer than {BLOCKS} blocks of {self.size} bytes")

    def sector(self, block: int) -> int:
        """Of 512 bytes."""
        return block * self.size // SECTOR

    def fresh(self) -> bytes:
        """A block's bytes that were never written before."""
        self._number += 1
        return self._number.to_bytes(8, "little") * (self.size // 8)


def expect_ok(stage: Stage, request: Request, *more: rules.Rule) -> bool:
    """A legal request has succeeded; else :data:`~rules.BLK_SUCCEEDS` fails, or ``more``
    instead."""
    blamed = more or (rules.BLK_SUCCEEDS,)
    stage.ledger.reach(*blamed)
    if request.status == S_OK:
        return True
    for rule in blamed if request.answered else ():
        stage.ledger.fail(rule, f"{request}: status {request.status:#04x}")
    return False


def expect_data(
    stage: Stage, request: Request, data: bytes, rule: rules.Rule = rules.BLK_DATA
) -> None:
    """A read has given these bytes."""
    if not expect_ok(stage, request):
        return
    stage.ledger.reach(rule)
    if request.data != data:
        at = next(at for at, (a, b) in enumerate(zip(request.data, data, strict=True)) if a != b)
        stage.ledger.fail(
            rule,
            f"{request}: byte {at} is {request.data[at : at + 8].hex(' ')}..., expected "
            f"{data[at : at + 8].hex(' ')}...",
        )


def flood(session: Session, blocks: Blocks, variant: int) -> int:
    """Makes large reads available, kicks, and lets a moment pass; how many. Daemons differ in when
    they are busy: ``variant``, from 0 up, chooses few or many, at once or a little later."""
    queue = session.queue
    many = variant % 2 == 1 and bool(session.features & Feature.INDIRECT_DESC)
    count = min(_MANY, queue.size) if many else min(_FEW, queue.size // 3)
    for _ in range(count):
        queue.submit(T_IN, 0, room=blocks.large, indirect=many)
    session.kick(queue)
    sleep(_PAUSES[variant // 2 % len(_PAUSES)])
    return count
