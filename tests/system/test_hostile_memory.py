"""A driver that takes its memory away, or writes it while the device reads it."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from tests.system.stage import Stage, break_victim
from vduse.control.abi import ACCESS_RW
from vduse.testing.rawdriver import (
    BASE,
    FREE,
    S_OK,
    T_FLUSH,
    T_IN,
    T_OUT,
    Part,
    RawDriver,
    header,
)
from vduse.testing.rings import INDIRECT, WRITE, Memory

#: IOVA of memory beside the ring's.
_EXTRA = 0x7000_0000
_LOST = "guest memory was taken away (SIGBUS)"
_HEADER = (BASE + FREE, 16, 0)
_END = (BASE + FREE + 0x100, 1, WRITE)

both_formats = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])


class Lost(NamedTuple):
    """Chains a part of which lies in memory that was taken away."""

    name: str
    kind: int
    chain: list[Part]


CASES = [
    Lost("header", T_FLUSH, [(_EXTRA, 16, 0), _END]),
    Lost("read: data", T_IN, [_HEADER, (_EXTRA, 4096, WRITE), _END]),
    Lost("write: data", T_OUT, [_HEADER, (_EXTRA, 4096, 0), _END]),
    Lost("write: second page of data", T_OUT, [_HEADER, (_EXTRA + 4096, 512, 0), _END]),
    Lost("status", T_FLUSH, [_HEADER, (_EXTRA, 1, WRITE)]),
    Lost("indirect table", T_FLUSH, [(_EXTRA, 32, INDIRECT)]),
]


@both_formats
@pytest.mark.parametrize("mapped_before", [False, True], ids=["cold", "mapped before"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_memory_file_truncated(stage: Stage, case: Lost, mapped_before: bool, packed: bool) -> None:
    with Memory(8192) as extra:

        def act(raw: RawDriver) -> None:
            raw.driver.iotlb_update(_EXTRA, extra.size, extra.fd, 0, ACCESS_RW)
            if mapped_before:
                raw.memory.write(FREE, header(T_IN))
                raw.submit([_HEADER, (_EXTRA, 8192, WRITE), _END])
                raw.kick()
                raw.wait_used(1)
            os.ftruncate(extra.fd, 0)
            raw.memory.write(FREE, header(case.kind))
            raw.submit(case.chain)

        break_victim(stage, act, _LOST, packed=packed)


@both_formats
def test_ring_truncated(stage: Stage, packed: bool) -> None:
    break_victim(stage, lambda raw: os.ftruncate(raw.memory.fd, 0), _LOST, packed=packed)


@both_formats
def test_ring_truncated_after_requests(stage: Stage, packed: bool) -> None:
    def act(raw: RawDriver) -> None:
        for _ in range(5):
            assert raw.request(T_FLUSH) == (S_OK, b"", 1)
        os.ftruncate(raw.memory.fd, 0)

    break_victim(stage, act, _LOST, packed=packed)


@both_formats
def test_ring_truncated_before_the_start(stage: Stage, packed: bool) -> None:
    stage.log.clear()
    with stage.neighbour_at_work(), stage.raw(packed=packed) as raw:
        os.ftruncate(raw.memory.fd, raw.memory.size // 2)
        desc, driver, device = (area + raw.memory.size // 2 for area in raw.ring.areas)
        assert raw.start(areas=(desc, driver, device))
        stage.check_broken(_LOST)
    stage.check_whole(packed=packed)


@both_formats
def test_ring_unmapped_under_the_device(stage: Stage, packed: bool) -> None:
    def act(raw: RawDriver) -> None:
        assert raw.request(T_FLUSH) == (S_OK, b"", 1)
        raw.driver.iotlb_invalidate(raw.memory.iova, raw.memory.size)

    # Where the device looks first: at the ring it writes.
    first = BASE if packed else BASE + 0x128
    break_victim(stage, act, f"no mapping at IOVA {first:#x}", packed=packed)


def test_truncated_file_of_one_device_is_mapped_by_its_neighbour_of_the_same_vm(
    stage: Stage,
) -> None:
    """One VM's memory serves two devices: both stop, one at a time, each by itself."""
    with Memory(8192) as shared:

        def act(raw: RawDriver) -> None:
            raw.driver.iotlb_update(_EXTRA, shared.size, shared.fd, 0, ACCESS_RW)
            os.ftruncate(shared.fd, 0)
            raw.memory.write(FREE, header(T_OUT))
            raw.submit([_HEADER, (_EXTRA, 512, 0), _END])

        break_victim(stage, act, _LOST)
        break_victim(stage, act_again(act, shared), _LOST)


def act_again(act: Callable[[RawDriver], None], shared: Memory) -> Callable[[RawDriver], None]:
    """The file is back, and goes away again: nothing of the first loss is left."""

    def again(raw: RawDriver) -> None:
        os.ftruncate(shared.fd, shared.size)
        act(raw)

    return again


def _mutations(seed: int, count: int) -> Iterator[tuple[int, bytes]]:
    """Offsets in the ring's first KiB and what to write there: mostly small values, which make
    legal indices, flags and lengths."""
    source = random.Random(seed)
    for _ in range(count):
        value = source.choice([source.randrange(32), source.randrange(1 << 16), 1 << 7, 1 << 15])
        yield source.randrange(512) * 2, value.to_bytes(2, "little")


@both_formats
@pytest.mark.parametrize("seed", range(8))
def test_a_ring_that_changes_while_it_is_read(stage: Stage, packed: bool, seed: int) -> None:
    """Whatever the device makes of it, it is answered or stopped, and memory safe."""
    with stage.neighbour_at_work(), stage.raw(packed=packed) as raw:
        assert raw.start()
        raw.memory.write(FREE, header(T_IN))
        for slot in range(4):
            raw.submit([_HEADER, (BASE + FREE + 0x1000 * (slot + 1), 513, WRITE)])

        def mutate() -> None:
            for offset, data in _mutations(seed, 3000):
                raw.memory.write(offset, data)

        mutator = threading.Thread(target=mutate)
        mutator.start()
        for _ in range(200):
            raw.kick()
        mutator.join()
    stage.check_whole(packed=packed)
