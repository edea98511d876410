"""virtio-blk requests that a driver must not make (virtio 1.3, section 5.2.6): the request fails
or ends with length 0, the device goes on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import pytest

from tests.system.stage import SIZE, Stage
from vduse.control.abi import ACCESS_RO, ACCESS_WO
from vduse.control.features import BlkFeature
from vduse.devices.blk import MAX_RANGE_SECTORS, MAX_RANGE_SEGMENTS
from vduse.testing.rawdriver import (
    BASE,
    FREE,
    S_IOERR,
    S_OK,
    S_UNSUPP,
    T_DISCARD,
    T_FLUSH,
    T_GET_ID,
    T_IN,
    T_OUT,
    T_WRITE_ZEROES,
    Part,
    header,
    range_entry,
)
from vduse.testing.rings import WRITE, Memory

SECTORS = SIZE // 512
STATUS = FREE + 0x8000
_UNMAPPED = 0xDEAD_0000
_READ_ONLY = 0x7000_0000
_WRITE_ONLY = 0x7100_0000


class Case(NamedTuple):
    """A request of whole descriptors, and the status it must get."""

    name: str
    kind: int
    status: int
    sector: int = 0
    #: What follows the header.
    data: bytes = b""
    #: Bytes before the status.
    room: int = 0


REQUESTS = [
    Case("read: first sector past the end", T_IN, S_IOERR, SECTORS, room=512),
    Case("read: across the end", T_IN, S_IOERR, SECTORS - 1, room=1024),
    Case("read: last sector", T_IN, S_OK, SECTORS - 1, room=512),
    Case("read: sector 2^64 - 1", T_IN, S_IOERR, (1 << 64) - 1, room=512),
    Case("read: sector * 512 wraps to 0", T_IN, S_IOERR, 1 << 55, room=512),
    Case("read: half a sector", T_IN, S_IOERR, 0, room=256),
    Case("read: a sector and a byte", T_IN, S_IOERR, 0, room=513),
    Case("write: past the end", T_OUT, S_IOERR, SECTORS, bytes(512)),
    Case("write: sector 2^64 - 1", T_OUT, S_IOERR, (1 << 64) - 1, bytes(512)),
    Case("write: a sector and a byte", T_OUT, S_IOERR, 0, bytes(513)),
    Case("flush: with a sector and data", T_FLUSH, S_OK, 99, bytes(512), 512),
    Case("get id: 19 bytes", T_GET_ID, S_IOERR, room=19),
    Case("get id: no bytes", T_GET_ID, S_IOERR),
    Case("get id: room to spare", T_GET_ID, S_OK, room=64),
    Case("type 2", 2, S_UNSUPP, room=512),
    Case("type 5: FLUSH_OUT of old", 5, S_UNSUPP),
    Case("type 14: SECURE_ERASE, not offered", 14, S_UNSUPP, 0, range_entry(0, 1)),
    Case("type 16: a zoned one, not offered", 16, S_UNSUPP, 0, room=64),
    Case("type 2^31", 1 << 31, S_UNSUPP),
    Case("type 2^32 - 1", (1 << 32) - 1, S_UNSUPP),
    *(
        Case(f"{name}: {what}", kind, status, 0, data)
        for name, kind in [("discard", T_DISCARD), ("write zeroes", T_WRITE_ZEROES)]
        for what, status, data in [
            ("no range", S_IOERR, b""),
            ("half a range", S_IOERR, range_entry(0, 1)[:8]),
            ("a range and a half", S_IOERR, range_entry(0, 1) + bytes(8)),
            ("most ranges", S_OK, range_entry(0, 1) * MAX_RANGE_SEGMENTS),
            ("one range too many", S_IOERR, range_entry(0, 1) * (MAX_RANGE_SEGMENTS + 1)),
            ("past the end", S_IOERR, range_entry(SECTORS, 1)),
            ("across the end", S_IOERR, range_entry(SECTORS - 1, 2)),
            ("sector 2^64 - 1", S_IOERR, range_entry((1 << 64) - 1, 1)),
            ("more sectors than allowed", S_IOERR, range_entry(0, MAX_RANGE_SECTORS + 1)),
            ("2^32 - 1 sectors", S_IOERR, range_entry(0, (1 << 32) - 1)),
            ("no sectors", S_OK, range_entry(0, 0)),
            ("a reserved flag", S_UNSUPP, range_entry(0, 1, 2)),
            ("all flags", S_UNSUPP, range_entry(0, 1, (1 << 32) - 1)),
            ("second range is bad", S_IOERR, range_entry(0, 1) + range_entry(SECTORS, 1)),
        ]
    ),
    Case("discard: with unmap", T_DISCARD, S_UNSUPP, 0, range_entry(0, 1, 1)),
    Case("write zeroes: with unmap", T_WRITE_ZEROES, S_OK, 0, range_entry(0, 1, 1)),
]


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
@pytest.mark.parametrize("case", REQUESTS, ids=lambda case: case.name)
def test_s5_2_6_request(stage: Stage, case: Case, packed: bool) -> None:
    with stage.raw(packed=packed) as raw:
        assert raw.start()
        status, _, length = raw.request(case.kind, case.sector, case.data, case.room)
        assert status == case.status
        # A failed request has written its status and nothing else.
        written = {T_IN: case.room, T_GET_ID: 20}.get(case.kind, 0) if status == S_OK else 0
        assert length == written + 1
        assert raw.request(T_FLUSH) == (S_OK, b"", 1)


class Chain(NamedTuple):
    """A chain of one's own, its addresses IOVAs."""

    name: str
    parts: Sequence[Part]
    #: The status byte; None if none is to be written.
    status: int | None
    length: int
    kind: int = T_IN


_HEADER = (BASE + FREE, 16, 0)
_END = (BASE + STATUS, 1, WRITE)
_DATA = BASE + FREE + 0x1000
_MAPPED_END = BASE + (1 << 20)
_WRAPPING = (1 << 64) - 256

CHAINS = [
    Chain("no writable descriptor", [_HEADER], None, 0),
    Chain("one readable byte", [(BASE + FREE, 1, 0)], None, 0),
    Chain("no header", [_END], S_IOERR, 1),
    Chain("a header of 15 bytes", [(BASE + FREE, 15, 0), _END], S_IOERR, 1),
    Chain("a header that is nowhere", [(_UNMAPPED, 16, 0), _END], S_IOERR, 1),
    Chain("a header past 2^64", [((1 << 64) - 8, 16, 0), _END], S_IOERR, 1),
    Chain("read: data nowhere", [_HEADER, (_UNMAPPED, 512, WRITE), _END], S_IOERR, 1),
    Chain("read: data half mapped", [_HEADER, (_MAPPED_END - 256, 512, WRITE), _END], S_IOERR, 1),
    Chain("read: data past 2^64", [_HEADER, (_WRAPPING, 512, WRITE), _END], S_IOERR, 1),
    Chain("read: data read-only", [_HEADER, (_READ_ONLY, 512, WRITE), _END], S_IOERR, 1),
    Chain("read: nearly 4 GiB", [_HEADER, (_DATA, 0xFFFF_FE00, WRITE), _END], S_IOERR, 1),
    Chain("write: data read-only", [_HEADER, (_READ_ONLY, 512, 0), _END], S_OK, 1, T_OUT),
    Chain("write: data write-only", [_HEADER, (_WRITE_ONLY, 512, 0), _END], S_IOERR, 1, T_OUT),
    Chain("write: data nowhere", [_HEADER, (_UNMAPPED, 512, 0), _END], S_IOERR, 1, T_OUT),
    Chain("write: data past 2^64", [_HEADER, (_WRAPPING, 512, 0), _END], S_IOERR, 1, T_OUT),
    Chain("write: data writable", [_HEADER, (_DATA, 512, WRITE), _END], S_OK, 1, T_OUT),
    Chain("ranges nowhere", [_HEADER, (_UNMAPPED, 16, 0), _END], S_IOERR, 1, T_WRITE_ZEROES),
]


@pytest.mark.parametrize("indirect", [False, True], ids=["direct", "indirect"])
@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
@pytest.mark.parametrize("case", CHAINS, ids=lambda case: case.name)
def test_s5_2_6_chain(stage: Stage, case: Chain, packed: bool, indirect: bool) -> None:
    with Memory(4096) as extra, stage.raw(packed=packed) as raw:
        raw.driver.iotlb_update(_READ_ONLY, 4096, extra.fd, 0, ACCESS_RO)
        raw.driver.iotlb_update(_WRITE_ONLY, 4096, extra.fd, 0, ACCESS_WO)
        assert raw.start()
        raw.memory.write(FREE, header(case.kind))
        raw.memory.write(STATUS, b"\xff")
        raw.submit(case.parts, indirect=indirect)
        raw.kick()
        (used,) = raw.wait_used(1)
        assert used.length == case.length
        assert raw.memory.read(STATUS, 1)[0] == (0xFF if case.status is None else case.status)
        assert raw.request(T_FLUSH) == (S_OK, b"", 1)
        raw.reset()
        raw.driver.iotlb_invalidate(_READ_ONLY, 4096)
        raw.driver.iotlb_invalidate(_WRITE_ONLY, 4096)


@pytest.mark.parametrize("flags", [ACCESS_RO, ACCESS_WO])
def test_a_status_byte_that_may_not_be_written(stage: Stage, flags: int) -> None:
    """Write-only memory is enough for a status; read-only memory stops the device."""
    with Memory(4096) as extra, stage.neighbour_at_work(), stage.raw() as raw:
        stage.log.clear()
        raw.driver.iotlb_update(_READ_ONLY, 4096, extra.fd, 0, flags)
        assert raw.start()
        raw.memory.write(FREE, header(T_FLUSH))
        raw.submit([_HEADER, (_READ_ONLY, 1, WRITE)])
        raw.kick()
        if flags == ACCESS_WO:
            assert [used.length for used in raw.wait_used(1)] == [1]
        else:
            stage.check_broken(
                "the request's status byte is out of reach: "
                f"mapping at IOVA {_READ_ONLY:#x} does not permit Write"
            )
        raw.reset()
        raw.driver.iotlb_invalidate(_READ_ONLY, 4096)


@pytest.mark.parametrize(
    ("without", "case"),
    [
        (BlkFeature.DISCARD, Case("", T_DISCARD, S_UNSUPP, 0, range_entry(0, 1))),
        (BlkFeature.WRITE_ZEROES, Case("", T_WRITE_ZEROES, S_UNSUPP, 0, range_entry(0, 1))),
        (BlkFeature.FLUSH, Case("", T_FLUSH, S_OK)),
        (BlkFeature.SIZE_MAX | BlkFeature.SEG_MAX, Case("", T_OUT, S_OK, 0, bytes(1 << 18))),
    ],
    ids=["discard", "write zeroes", "flush", "limits"],
)
def test_s5_2_6_2_features_turned_down(stage: Stage, without: int, case: Case) -> None:
    with stage.raw(without=without) as raw:
        assert raw.start()
        status, _, _ = raw.request(case.kind, case.sector, case.data)
        assert status == case.status


def test_s5_2_6_2_more_segments_than_seg_max(stage: Stage) -> None:
    """SEG_MAX of the victim is its queue's size less two."""
    with stage.raw() as raw:
        assert raw.start()
        raw.memory.write(FREE, header(T_IN))
        for segments, status in [(14, S_OK), (15, S_IOERR)]:
            data: list[Part] = [(_DATA + 512 * i, 512, WRITE) for i in range(segments)]
            # The status shares a descriptor with the last data, else the queue is too short.
            data[-1] = (data[-1][0], 513, WRITE)
            raw.submit([_HEADER, *data], indirect=True)
            raw.kick()
            raw.wait_used(1)
            at = data[-1][0] + 512 - raw.memory.iova
            assert raw.memory.read(at, 1)[0] == status


def test_writes_to_a_read_only_disk(read_only_stage: Stage) -> None:
    with read_only_stage.raw() as raw:
        assert raw.start()
        assert raw.request(T_OUT, 0, bytes(512)) == (S_IOERR, b"", 1)
        assert raw.request(T_IN, 0, room=512) == (S_OK, bytes(512), 513)
        # Not offered, then.
        assert raw.request(T_WRITE_ZEROES, 0, range_entry(0, 1)) == (S_UNSUPP, b"", 1)
        assert raw.request(T_DISCARD, 0, range_entry(0, 1)) == (S_UNSUPP, b"", 1)
