"""The load generator's front and the rings written by hand."""

from __future__ import annotations

import json

import pytest

from vduse import _native
from vduse.testing.harness import blk_stack
from vduse.testing.load import Report, Spec, VirtioDriver, run_copies
from vduse.testing.rings import AVAIL, NEXT, USED, WRITE, Memory, PackedRing, SplitRing

RESULT = {
    "requests": 1000,
    "bytes": 4_096_000,
    "seconds": 0.5,
    "cpu_seconds": 0.1,
    "process_cpu_seconds": 0.25,
    "errors": 1,
    "messages": ["read at offset 512: EIO"],
    "latency_ns": {"p50": 1, "p90": 2, "p99": 3, "p99.9": 4, "max": 5},
}


def test_report_derives_its_figures() -> None:
    report = Report.from_native(RESULT)
    assert report.iops == 2000
    assert report.ns_per_request == 500_000
    assert report.cpu_ns_per_request == 250_000
    document = json.loads(report.to_json())
    assert document["iops"] == 2000 and document["messages"] == ["read at offset 512: EIO"]
    assert "read at offset 512: EIO" in report.table()


def test_a_report_of_nothing_divides_by_nothing() -> None:
    report = Report.from_native(RESULT | {"requests": 0, "bytes": 0, "seconds": 0.0})
    assert (report.iops, report.ns_per_request, report.cpu_ns_per_request) == (0, 0, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"op": "trim"}, "unknown op"),
        ({"requests": None}, "either requests or seconds"),
        ({"seconds": 1.0}, "either requests or seconds"),
        ({"requests": None, "seconds": -1.0}, "seconds"),
        ({"patience": -1.0}, "patience"),
        ({"reads": 101}, "101 reads of a hundred"),
    ],
)
def test_specs_that_say_nothing_sensible(change: dict[str, object], message: str) -> None:
    spec = {"op": "read", "block_size": 512, "depth": 1, "requests": 1} | change
    with blk_stack(backend="null") as stack, pytest.raises(ValueError, match=message):
        _native.load_ours(stack.native, spec)


def test_a_socket_that_is_not_there() -> None:
    with pytest.raises(FileNotFoundError, match="vhost-user"):
        VirtioDriver("/nowhere")


def test_copies_are_reported_like_a_load() -> None:
    report = run_copies(Spec(op="write", block_size=1 << 16, depth=4, requests=8))
    assert (report.requests, report.bytes, report.errors) == (8, 8 << 16, 0)
    assert report.seconds > 0 and report.cpu_seconds > 0
    with pytest.raises(ValueError, match="reads or writes"):
        run_copies(Spec(op="mixed", requests=8))


def test_split_ring_bytes_virtio_2_7() -> None:
    with Memory(1 << 16, iova=0x100000) as memory:
        ring = SplitRing(memory, offset=0x40, size=4)
        assert ring.areas == (0x100040, 0x100080, 0x100090)
        ring.descriptor(3, addr=0xABCD, length=16, flags=NEXT | WRITE, next=1)
        assert memory.read(0x70, 16) == bytes.fromhex("cdab000000000000 10000000 0300 0100")
        ring.offer(3, 0)
        assert memory.read(0x80, 8) == bytes.fromhex("0000 0200 0300 0000")
        memory.write(0x90, bytes.fromhex("0000 0100 03000000 05000000"))
        assert ring.take_used() == [(3, 5)]
        assert ring.take_used() == []


def test_packed_ring_bytes_virtio_2_8() -> None:
    with Memory(1 << 16) as memory:
        ring = PackedRing(memory, offset=0, size=2)
        assert ring.areas == (0, 32, 36)
        ring.offer(7, (0x1000, 16, 0))
        ring.offer(8, (0x2000, 1, WRITE), (0x3000, 1, WRITE))
        assert memory.read(14, 2) == (USED | WRITE).to_bytes(2, "little")
        assert memory.read(30, 2) == (AVAIL | NEXT | WRITE).to_bytes(2, "little")
        assert (ring.next_avail, ring.avail_wrap) == (1, False)
        assert ring.take_used(1) is None
        ring.descriptor(0, 0, 9, id=7, flags=AVAIL | USED)
        assert ring.take_used(1) == (7, 9)
        ring.set_driver_event(2, offset=1, wrap=True)
        assert memory.read(32, 4) == bytes.fromhex("0180 0200")
