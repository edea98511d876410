"""docs/statistics.md: what is counted, on both sides, in the shape that control/statistics.py
declares."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, get_type_hints, is_typeddict

import pytest

from tests.rules.tree import ROOT
from vduse.control.statistics import DeviceStats, DriverStats, Statistics, WorkerStats, collect
from vduse.testing.harness import BlkPark, BlkSpec, blk_stack
from vduse.testing.load import Spec, run_ours

PAGE = (ROOT / "docs/statistics.md").read_text()


def mismatches(shape: Any, value: object, path: str = "") -> Iterator[str]:
    """Where a value is not of its declared shape."""
    if is_typeddict(shape):
        hints = get_type_hints(shape)
        assert isinstance(value, dict), path
        if value.keys() != hints.keys():
            yield f"{path}: {sorted(value)} for {sorted(hints)}"
        for name in value.keys() & hints.keys():
            yield from mismatches(hints[name], value[name], f"{path}.{name}")
    elif getattr(shape, "__origin__", None) is dict:
        assert isinstance(value, dict), path
        for key, each in value.items():
            yield from mismatches(shape.__args__[1], each, f"{path}[{key!r}]")
    elif shape is int and not isinstance(value, int):
        yield f"{path}: {value!r}"


def field_names(shape: Any) -> set[str]:
    """All names of a typed dictionary and those inside it."""
    if is_typeddict(shape):
        hints = get_type_hints(shape)
        return set(hints).union(*(field_names(inner) for inner in hints.values()))
    return set().union(*(field_names(inner) for inner in getattr(shape, "__args__", ())))


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
@pytest.mark.parametrize("backend", ["memory", "file"])
def test_both_sides_count_the_same_requests(backend: str, packed: bool, tmp_path: Any) -> None:
    if backend == "file":
        backend = str(tmp_path / "disk.img")
        (tmp_path / "disk.img").write_bytes(bytes(4 << 20))
    with blk_stack(backend=backend, queues=2, packed=packed) as stack:
        disk = stack.disk
        report = run_ours(stack.native, Spec(op="mixed", requests=2000, depth=32, span=4 << 20))
        disk.flush()
        driver = disk.stats()
        # Irqs are counted when they are sent: a batch's driver may be back earlier.
        stack.framework.bus.unbind(stack.spec.name)
        device = stack.blk.stats()
        assert device is not None
        for name in ("requests", "bytes_read", "bytes_written", "errors"):
            assert device[name] == driver[name], name
        assert device["requests"] == report.requests + 1
        latency = device["latency_ns"]
        assert latency["read"]["count"] * 4096 == device["bytes_read"]
        assert latency["write"]["count"] * 4096 == device["bytes_written"]
        assert (latency["flush"]["count"], latency["other"]["count"]) == (1, 0)
        # What the driver waited for is no shorter than what the device took, but for 12 %.
        assert latency["read"]["p50"] <= report.latency_ns["max"] * 9 // 8
        for side in (device, driver):
            sizes = side["batch_requests"]
            assert sum(bound * count for bound, count in sizes["buckets"]) >= device["requests"]
            assert 1 <= sizes["p50"] <= sizes["p99"] <= sizes["max"] <= 128
        assert driver["kicks"] + driver["kicks_suppressed"] == driver["batch_requests"]["count"]
        assert device["irqs"] + device["irqs_suppressed"] == device["batches"]


def test_shapes_are_the_declared_ones() -> None:
    with blk_stack(queues=2) as stack:
        stack.disk.pwrite(b"x" * 512, 0)
        assert list(mismatches(DeviceStats, stack.blk.stats())) == []
        assert list(mismatches(DriverStats, stack.disk.stats())) == []
        workers = stack.blk.pool.stats()
        assert len(workers) == stack.blk.pool.workers
        for worker in workers:
            assert list(mismatches(WorkerStats, worker)) == []


def test_every_field_is_on_the_page() -> None:
    named = set(re.findall(r"^\| `([^`]+)` \|", PAGE, re.MULTILINE))
    assert field_names(Statistics) - named == set()


def test_failed_requests_are_errors_and_other() -> None:
    with blk_stack(layers=["error,ops=read"], size=1 << 20) as stack:
        with pytest.raises(OSError):
            stack.disk.pread(512, 0)
        device, driver = stack.blk.stats(), stack.disk.stats()
        assert device is not None
        assert (device["requests"], device["errors"], driver["errors"]) == (1, 1, 1)
        latency = device["latency_ns"]
        assert (latency["read"]["count"], latency["other"]["count"]) == (0, 1)


def test_queues_are_apart_and_outlive_a_reset() -> None:
    with blk_stack(queues=2, size=1 << 20) as stack:
        stack.disk.pread(512, 0)
        stack.framework.bus.unbind(stack.spec.name)
        stack.framework.bus.bind(stack.spec.name, "virtio_vdpa")
        stack.disk.pread(512, 0)
        device, driver = stack.blk.stats(), stack.disk.stats()
        assert device is not None
        assert sum(queue["requests"] for queue in device["queues"].values()) == 2
        assert device["latency_ns"]["read"]["count"] == 2
        assert driver["requests"] == 1  # a driver of its own


def test_collect_asks_everybody_and_json_can_say_it() -> None:
    class Export:
        def stats(self) -> dict[str, int]:
            return {"connections": 3}

    with BlkPark() as park:
        for name in ("vd0", "vd1"):
            park.add(BlkSpec(name=name, size=1 << 20))
            park.framework.disk(name).pread(512, 0)
        devices = [park.device(name).blk for name in ("vd0", "vd1")]
        found = collect(
            devices=devices, disks=[park.framework.disk("vd1")], exports={"sock": Export()}
        )
        assert list(found["devices"]) == ["vd0", "vd1"] and list(found["disks"]) == ["vd1"]
        assert found["exports"] == {"sock": {"connections": 3}}
        again = json.loads(json.dumps(found))
        assert again["devices"]["vd1"]["queues"]["0"]["requests"] == 1
        park.framework.dev_del("vd0")
        park.device("vd0").close()
        assert list(collect(devices=devices)["devices"]) == ["vd1"]  # closed: nothing to tell


def test_idle_devices_have_no_histograms() -> None:
    with blk_stack(queues=4, size=1 << 20) as stack:
        device = stack.blk.stats()
        assert device is not None
        assert len(device["queues"]) == 4
        nothing = dict.fromkeys(("count", "sum", "p50", "p90", "p99", "p99.9", "max"), 0)
        for side in (device, *device["queues"].values()):
            assert side["batch_requests"] == nothing | {"buckets": []}
            assert side["latency_ns"]["read"] == nothing | {"buckets": []}
