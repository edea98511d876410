"""Malformed split rings (virtio 1.3, section 2.7), each through a whole device: it stops and says
why, its neighbour goes on, a reset makes it whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest

from tests.system.stage import Stage, break_victim
from vduse.control.features import Feature
from vduse.testing.rawdriver import FREE, T_FLUSH, TABLES, RawDriver, header
from vduse.testing.rings import INDIRECT, NEXT, WRITE

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


Desc = tuple[int, int, int, int]


def table(*descs: Desc, head: int = 0) -> Callable[[RawDriver], None]:
    """Descriptors ``(offset in the memory, length, flags, next)``, and a head to offer."""

    def act(raw: RawDriver) -> None:
        raw.memory.write(FREE, header(T_FLUSH))
        for index, (offset, length, flags, following) in enumerate(descs):
            raw.split.descriptor(index, raw.at(offset), length, flags, following)
        raw.split.offer(head)

    return act


def indirect(
    *descs: Desc, length: int | None = None, flags: int = 0
) -> Callable[[RawDriver], None]:
    """The same in an indirect table of ``length`` bytes."""

    def act(raw: RawDriver) -> None:
        for index, (offset, size, desc_flags, following) in enumerate(descs):
            raw.split.indirect(TABLES, index, raw.at(offset), size, desc_flags, following)
        size = 16 * len(descs) if length is None else length
        raw.split.descriptor(0, raw.at(TABLES), size, INDIRECT | flags, 1)
        raw.split.descriptor(1, raw.at(STATUS), 1, WRITE)
        raw.split.offer(0)

    return act


def at(addr: int, length: int, flags: int) -> Callable[[RawDriver], None]:
    """One descriptor at an IOVA of one's choice."""

    def act(raw: RawDriver) -> None:
        raw.split.descriptor(0, addr, length, flags)
        raw.split.offer(0)

    return act


def avail_index(index: int) -> Callable[[RawDriver], None]:
    return lambda raw: raw.split.set_avail_index(index)


def same_head_twice(raw: RawDriver) -> None:
    table((FREE, 16, NEXT, 1), (STATUS, 1, WRITE, 0))(raw)
    raw.split.offer(0)


_LOOP = "malformed virtqueue: descriptor chain loops or is longer than the queue"
_ORDER = "malformed virtqueue: device-readable descriptor after a device-writable one"
_INDIRECT = "malformed virtqueue: indirect descriptor where none is allowed"
_BYTES = "malformed virtqueue: chain holds more than 2^32 bytes"


def _index(index: int) -> str:
    return f"malformed virtqueue: descriptor index {index} is out of range"


def _size(length: int) -> str:
    return f"malformed virtqueue: indirect table of {length} bytes"


CASES = [
    Case("2.7.5 next: itself", table((FREE, 16, NEXT, 0)), _LOOP),
    Case("2.7.5 next: a loop of two", table((FREE, 16, NEXT, 1), (FREE, 16, NEXT, 0)), _LOOP),
    Case("2.7.5 next: one past the table", table((FREE, 16, NEXT, SIZE)), _index(SIZE)),
    Case("2.7.5 next: 65535", table((FREE, 16, NEXT, 0xFFFF)), _index(0xFFFF)),
    Case("2.7.6 head: one past the table", table(head=SIZE), _index(SIZE)),
    Case("2.7.6 head: 65535", table(head=0xFFFF), _index(0xFFFF)),
    Case(
        "2.7.5 a header of no bytes",
        table((FREE, 0, NEXT, 1), (STATUS, 1, WRITE, 0)),
        "malformed virtqueue: descriptor 0 has no bytes",
    ),
    Case(
        "2.7.5 a status of no bytes",
        table((FREE, 16, NEXT, 1), (STATUS, 0, WRITE, 0)),
        "malformed virtqueue: descriptor 1 has no bytes",
    ),
    Case(
        "2.7.5.2 more than 2^32 bytes",
        table((FREE, 16, NEXT, 1), (0, 0xFFFF_FFFF, WRITE | NEXT, 2), (STATUS, 1, WRITE, 0)),
        _BYTES,
    ),
    Case(
        "2.7.4.2 readable after writable",
        table((FREE, 16, NEXT, 1), (STATUS, 1, WRITE | NEXT, 2), (FREE, 512, 0, 0)),
        _ORDER,
    ),
    Case(
        "2.7.6 more available than the queue is long",
        avail_index(SIZE + 1),
        "malformed virtqueue: avail index 17 is more than 16 ahead of 0",
    ),
    Case(
        "2.7.6 avail index goes back",
        avail_index(0xFFFF),
        "malformed virtqueue: avail index 65535 is more than 16 ahead of 0",
    ),
    Case(
        "2.7.6 a head that is in flight",
        same_head_twice,
        "malformed virtqueue: buffer id 0 is already in flight",
    ),
    Case(
        "2.7.5.3 indirect without negotiation",
        indirect((FREE, 16, NEXT, 1), (STATUS, 1, WRITE, 0)),
        _INDIRECT,
        without=Feature.INDIRECT_DESC,
    ),
    Case(
        "2.7.5.3.1 indirect with NEXT",
        indirect((FREE, 16, NEXT, 1), (STATUS, 1, WRITE, 0), flags=NEXT),
        _INDIRECT,
    ),
    Case("2.7.5.3.1 indirect in an indirect table", indirect((TABLES, 16, INDIRECT, 0)), _INDIRECT),
    Case("2.7.5.3.1 an empty table", indirect(length=0), _size(0)),
    Case("2.7.5.3.1 a table of 24 bytes", indirect(length=24), _size(24)),
    Case("2.7.5.3.1 a table of 1025 descriptors", indirect(length=16 * 1025), _size(16 * 1025)),
    Case("2.7.5.3.1 a table of nearly 4 GiB", indirect(length=0xFFFF_FFF0), _size(0xFFFF_FFF0)),
    Case("2.7.5.3 a loop in a table", indirect((FREE, 16, NEXT, 1), (FREE, 16, NEXT, 0)), _LOOP),
    Case("2.7.5.3 next past the table", indirect((FREE, 16, NEXT, 2), (0, 1, 0, 0)), _index(2)),
    Case(
        "2.7.5.3 a table that is nowhere",
        at(_UNMAPPED, 32, INDIRECT),
        f"no mapping at IOVA {_UNMAPPED:#x}",
    ),
    Case(
        "2.7.5.3 a table that wraps past 2^64",
        at((1 << 64) - 16, 32, INDIRECT),
        "bad range: IOVA 0xfffffffffffffff0, 32 bytes",
    ),
    Case(
        "5.2.6 a status that is nowhere",
        at(_UNMAPPED, 1, WRITE),
        f"the request's status byte is out of reach: no mapping at IOVA {_UNMAPPED:#x}",
    ),
    Case(
        "5.2.6 a status past 2^64",
        at((1 << 64) - 1, 2, WRITE),
        "the request's status byte is out of reach: bad range: IOVA 0xffffffffffffffff, 2 bytes",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_malformed_split_ring(stage: Stage, case: Case) -> None:
    break_victim(stage, case.act, case.message, without=case.without)
