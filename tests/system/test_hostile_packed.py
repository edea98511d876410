"""Malformed packed rings (virtio 1.3, section 2.8), each through a whole device: it stops and
says why, its neighbour goes on, a reset makes it whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest

from tests.system.stage import Stage, break_victim
from vduse.control.features import Feature
from vduse.testing.rawdriver import FREE, S_OK, T_FLUSH, TABLES, RawDriver, header
from vduse.testing.rings import AVAIL, INDIRECT, NEXT, USED, WRITE

SIZE = 16
STATUS = FREE + 0x100
_UNMAPPED = 0xDEAD_0000


class Case(NamedTuple):
    """What the driver does, and the reason that the device gives."""

    name: str
    act: Callable[[RawDriver], None]
    message: str
    #: Features that the driver turns down.
    without: int = 0


Desc = tuple[int, int, int]


def ring(*descs: Desc, id: int = 0) -> Callable[[RawDriver], None]:
    """Descriptors ``(offset in the memory, length, flags)``, flags as they are in the ring."""

    def act(raw: RawDriver) -> None:
        raw.memory.write(FREE, header(T_FLUSH))
        for index, (offset, length, flags) in reversed(list(enumerate(descs))):
            raw.packed_ring.descriptor(index, raw.at(offset), length, id, flags)

    return act


def indirect(*descs: Desc, length: int | None = None) -> Callable[[RawDriver], None]:
    """The same in an indirect table of ``length`` bytes."""

    def act(raw: RawDriver) -> None:
        for index, (offset, size, flags) in enumerate(descs):
            raw.packed_ring.indirect(TABLES, index, raw.at(offset), size, flags)
        size = 16 * len(descs) if length is None else length
        raw.packed_ring.offer(0, (raw.at(TABLES), size, INDIRECT))

    return act


def at(addr: int, length: int, flags: int) -> Callable[[RawDriver], None]:
    """One descriptor at an IOVA of one's choice."""
    return lambda raw: raw.packed_ring.offer(0, (addr, length, flags))


def same_id_twice(raw: RawDriver) -> None:
    raw.memory.write(FREE, header(T_FLUSH))
    chain = (raw.at(FREE), 16, 0), (raw.at(STATUS), 1, WRITE)
    # The second first: the device must not look between the two.
    ring_ = raw.packed_ring
    for index, (addr, length, flags) in [(3, chain[1]), (2, chain[0]), (1, chain[1])]:
        ring_.descriptor(index, addr, length, 7, flags | AVAIL | (0 if index % 2 else NEXT))
    ring_.descriptor(0, *chain[0][:2], 7, AVAIL | NEXT)


_INDIRECT = "malformed virtqueue: indirect descriptor where none is allowed"


def _size(length: int) -> str:
    return f"malformed virtqueue: indirect table of {length} bytes"


CASES = [
    Case(
        "2.8.6 a chain round the whole ring",
        ring(*[(FREE, 16, AVAIL | NEXT)] * SIZE),
        "malformed virtqueue: descriptor 0 continues a chain but is not available",
    ),
    Case(
        "2.8.6 goes on in a slot that is not available",
        ring((FREE, 16, AVAIL | NEXT), (STATUS, 1, WRITE)),
        "malformed virtqueue: descriptor 1 continues a chain but is not available",
    ),
    Case(
        "2.8.6 goes on in a used slot",
        ring((FREE, 16, AVAIL | NEXT), (STATUS, 1, WRITE | AVAIL | USED)),
        "malformed virtqueue: descriptor 1 continues a chain but is not available",
    ),
    Case(
        "2.8.17 readable after writable",
        ring((STATUS, 1, AVAIL | WRITE | NEXT), (FREE, 16, AVAIL)),
        "malformed virtqueue: device-readable descriptor after a device-writable one",
    ),
    Case(
        "2.8.5 no bytes",
        ring((FREE, 0, AVAIL | NEXT), (STATUS, 1, AVAIL | WRITE)),
        "malformed virtqueue: descriptor 0 has no bytes",
    ),
    Case(
        "2.8.5 more than 2^32 bytes",
        ring(
            (FREE, 16, AVAIL | NEXT),
            (0, 0xFFFF_FFFF, AVAIL | WRITE | NEXT),
            (STATUS, 1, AVAIL | WRITE),
        ),
        "malformed virtqueue: chain holds more than 2^32 bytes",
    ),
    Case(
        "2.8.13 an id that is in flight",
        same_id_twice,
        "malformed virtqueue: buffer id 7 is already in flight",
    ),
    Case(
        "2.8.7 indirect without negotiation",
        indirect((FREE, 16, 0), (STATUS, 1, WRITE)),
        _INDIRECT,
        without=Feature.INDIRECT_DESC,
    ),
    Case(
        "2.8.19 indirect in a list",
        ring((TABLES, 32, AVAIL | NEXT | INDIRECT), (STATUS, 1, AVAIL | WRITE)),
        _INDIRECT,
    ),
    Case(
        "2.8.19 indirect at the end of a list",
        ring((FREE, 16, AVAIL | NEXT), (TABLES, 32, AVAIL | INDIRECT)),
        _INDIRECT,
    ),
    Case("2.8.19 indirect in an indirect table", indirect((TABLES, 16, INDIRECT)), _INDIRECT),
    Case("2.8.7 an empty table", indirect(length=0), _size(0)),
    Case("2.8.7 a table of 24 bytes", indirect(length=24), _size(24)),
    Case("2.8.7 a table of 1025 descriptors", indirect(length=16 * 1025), _size(16 * 1025)),
    Case(
        "2.8.7 a table that is nowhere",
        at(_UNMAPPED, 32, INDIRECT),
        f"no mapping at IOVA {_UNMAPPED:#x}",
    ),
    Case(
        "5.2.6 a status that is nowhere",
        at(_UNMAPPED, 1, WRITE),
        f"the request's status byte is out of reach: no mapping at IOVA {_UNMAPPED:#x}",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_malformed_packed_ring(stage: Stage, case: Case) -> None:
    break_victim(stage, case.act, case.message, packed=True, without=case.without)


@pytest.mark.parametrize("flags", [0, AVAIL | USED, USED, NEXT, USED | NEXT | INDIRECT | WRITE])
def test_s2_8_1_what_is_not_available_is_not_looked_at(stage: Stage, flags: int) -> None:
    with stage.neighbour_at_work(), stage.raw(packed=True) as raw:
        assert raw.start()
        raw.packed_ring.descriptor(0, _UNMAPPED, 0xFFFF_FFFF, 0xFFFF, flags)
        raw.kick()
        # The kick before was of no effect: this one's request takes the same slot.
        assert raw.request(T_FLUSH) == (S_OK, b"", 1)
    assert stage.device.blk.fault is None
