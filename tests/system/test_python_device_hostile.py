"""Hostile drivers of a device served in Python, split and packed: the device stops and says why,
its program never sees a bad chain, a reset makes it whole."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from tests.system.python_chains import Stage, stage
from vduse.control.abi import ACCESS_RO
from vduse.testing.rawdriver import BASE, FREE, RawDriver
from vduse.testing.rings import NEXT, WRITE

__all__ = ["stage"]

UNMAPPED = 0xDEAD_0000
#: IOVA of memory that is mapped read-only.
READ_ONLY = 0x4000_0000

Act = Callable[[RawDriver], None]


def descriptors(*parts: tuple[int, int, int]) -> Act:
    """A chain of (IOVA, bytes, flags), legal in its links."""
    return lambda raw: void(raw.submit(parts))


def void(_: object) -> None:
    """For expressions as statements."""


def loop(raw: RawDriver) -> None:
    for index in (0, 1):
        raw.split.descriptor(index, raw.at(FREE), 16, NEXT, 1 - index)
    raw.split.offer(0)


BOTH: dict[str, tuple[Act, str]] = {
    "zero_length": (descriptors((BASE + FREE, 0, WRITE)), "malformed virtqueue: descriptor"),
    "unmapped": (descriptors((UNMAPPED, 64, WRITE)), "a buffer is out of reach: "),
    "unmapped_readable": (descriptors((UNMAPPED, 64, 0)), "a buffer is out of reach: "),
    "past_the_end": (descriptors((BASE + (1 << 20) - 8, 64, WRITE)), "a buffer is out of reach: "),
    "read_only": (descriptors((READ_ONLY, 64, WRITE)), "a buffer is out of reach: "),
    "order": (
        descriptors((BASE + FREE, 8, WRITE), (BASE + FREE, 8, 0)),
        "malformed virtqueue: device-readable descriptor after",
    ),
}


def check(stage: Stage, act: Act, message: str, packed: bool) -> None:
    with stage.raw(packed=packed) as raw:
        raw.driver.iotlb_update(READ_ONLY, 1 << 16, raw.memory.fd, 0, ACCESS_RO)
        assert raw.start()
        act(raw)
        raw.kick()
        line = stage.log.wait_for("py0: stopped until the driver resets it: virtqueue 0: ")
        assert line.split("virtqueue 0: ")[1].startswith(message)
        assert stage.device.taken() == []
        raw.driver.iotlb_invalidate(READ_ONLY, 1 << 16)
    stage.check_whole(packed=packed)


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
@pytest.mark.parametrize("case", BOTH)
def test_a_bad_chain_never_reaches_the_program(stage: Stage, case: str, packed: bool) -> None:
    act, message = BOTH[case]
    check(stage, act, message, packed)


def test_2_7_5_a_loop_never_reaches_the_program(stage: Stage) -> None:
    check(stage, loop, "malformed virtqueue: descriptor chain loops", packed=False)


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_read_only_pieces_can_be_read(stage: Stage, packed: bool) -> None:
    with stage.raw(packed=packed) as raw:
        raw.driver.iotlb_update(READ_ONLY, 1 << 20, raw.memory.fd, 0, ACCESS_RO)
        assert raw.start()
        raw.memory.write(FREE, b"question")
        raw.submit([(READ_ONLY + FREE, 8, 0), (raw.at(FREE + 64), 16, WRITE)])
        raw.kick()
        chain = stage.device.take()
        assert [bytes(piece) for piece in chain.readable] == [b"question"]
        assert all(piece.readonly for piece in chain.readable)
        with pytest.raises(TypeError):
            chain.readable[0][0] = 1
        chain.write(b"answer")
        chain.complete()
        (used,) = raw.wait_used(1)
        assert (used.length, raw.memory.read(FREE + 64, 6)) == (6, b"answer")
        raw.driver.iotlb_invalidate(READ_ONLY, 1 << 20)


def test_memory_taken_away_stops_this_device(stage: Stage) -> None:
    with stage.raw() as raw:
        assert raw.start()
        os.ftruncate(raw.memory.fd, FREE)
        raw.submit([(raw.at(FREE), 4096, WRITE)])
        raw.kick()
        chain = stage.device.take()
        chain.write(bytes(4096))
        chain.complete()
        stage.log.wait_for(
            "py0: stopped until the driver resets it: virtqueue 0: guest memory was taken away"
        )
    stage.check_whole()
