"""Crate virtio-driver, libblkio's driver, over vhost-user: split and packed rings, memory of its
own by fd. Nobody here wrote it."""

from __future__ import annotations

from pathlib import Path

import pytest

from vduse.testing.harness import BlkStack, Where, blk_stack
from vduse.testing.load import Op, Report, Spec, run_vhost_user

SIZE = 16 << 20


@pytest.fixture(params=["memory", "file"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """What :func:`blk_stack` takes: memory, or the path of an image."""
    if request.param == "memory":
        return "memory"
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate(SIZE)
    return str(image)


def _verify(stack: BlkStack, op: Op, *, queues: int = 1, **driver: bool) -> None:
    spec = Spec(op=op, requests=3000, depth=24, verify=True, span=4 << 20)
    report = _run(stack, spec, queues=queues, **driver)
    assert report.errors == 0, report.messages
    assert report.requests == 3000


def _run(stack: BlkStack, spec: Spec, *, queues: int = 1, **driver: bool) -> Report:
    with stack.vhost_user() as path:
        return run_vhost_user(path, spec, queues=queues, **driver)


@pytest.mark.parametrize("queues", [1, 4])
@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
@pytest.mark.parametrize("op", ["write", "randread", "mixed"])
def test_what_is_written_is_read(backend: str, op: Op, packed: bool, queues: int) -> None:
    with blk_stack(backend=backend, queues=queues, packed=packed, driver="vhost_vdpa") as stack:
        _verify(stack, op, packed=packed, queues=queues)


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_without_event_idx(packed: bool) -> None:
    with blk_stack(packed=packed, driver="vhost_vdpa") as stack:
        _verify(stack, "mixed", packed=packed, event_idx=False)


@pytest.mark.parametrize("where", ["process", "child"])
def test_one_front_end_after_the_other(where: Where) -> None:
    with blk_stack(packed=True, driver="vhost_vdpa", where=where) as stack:
        _verify(stack, "randwrite", packed=False)
        _verify(stack, "randwrite", packed=True)
        _verify(stack, "randwrite", packed=False)


@pytest.mark.parametrize("block_size", [512, 1 << 20])
def test_small_and_large_requests(block_size: int) -> None:
    with blk_stack(driver="vhost_vdpa") as stack:
        spec = Spec(op="mixed", block_size=block_size, requests=200, depth=8, verify=True)
        report = _run(stack, spec)
        assert report.errors == 0, report.messages


def test_writes_to_a_read_only_disk_fail_one_by_one() -> None:
    with blk_stack(read_only=True, driver="vhost_vdpa") as stack:
        report = _run(stack, Spec(op="write", requests=50, depth=4))
        assert report.errors == 50
        reads = _run(stack, Spec(op="read", requests=50, depth=4))
        assert reads.errors == 0
