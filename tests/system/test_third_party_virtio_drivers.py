"""Crate virtio-drivers (rcore-os), the driver of several hobby kernels, through the IOVA domain:
its rings in coherent memory, its data in bounce pages. Nobody here wrote it."""

from __future__ import annotations

from pathlib import Path

import pytest

from vduse.testing.harness import Where, blk_stack
from vduse.testing.load import Op, Spec, run_virtio_drivers

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


@pytest.mark.parametrize("op", ["write", "randread", "mixed"])
@pytest.mark.parametrize("where", ["process", "child"])
def test_what_is_written_is_read(backend: str, op: Op, where: Where) -> None:
    with blk_stack(backend=backend, driver=None, where=where) as stack:
        spec = Spec(op=op, requests=3000, depth=16, verify=True, span=4 << 20)
        report = run_virtio_drivers(stack.vdpa, spec)
        assert report.errors == 0, report.messages
        assert report.requests == 3000


def test_ring_indices_wrap() -> None:
    with blk_stack(backend="null", driver=None) as stack:
        report = run_virtio_drivers(stack.vdpa, Spec(requests=70_000, depth=16))
        assert (report.requests, report.errors) == (70_000, 0)


def test_small_and_large_requests() -> None:
    with blk_stack(driver=None) as stack:
        for block_size in (512, 1 << 20):
            spec = Spec(op="mixed", block_size=block_size, requests=200, depth=16, verify=True)
            report = run_virtio_drivers(stack.vdpa, spec)
            assert report.errors == 0, report.messages


def test_what_it_borrowed_of_the_domain_it_gives_back() -> None:
    with blk_stack(driver=None) as stack:
        for _ in range(2):
            run_virtio_drivers(stack.vdpa, Spec(op="mixed", requests=100, depth=16))
            stats = stack.vdpa.domain.stats()
            assert (stats["bounce_bytes_in_use"], stats["coherent_bytes"]) == (0, 0)


def test_a_disk_after_it_sees_what_it_wrote() -> None:
    with blk_stack(driver=None) as stack:
        spec = Spec(op="write", requests=16, depth=4, verify=True, span=64 << 10)
        assert run_virtio_drivers(stack.vdpa, spec).errors == 0
        stack.framework.bus.bind(stack.spec.name, "virtio_vdpa")
        blocks = {stack.disk.pread(4096, offset) for offset in range(0, 64 << 10, 4096)}
        assert len(blocks) == 16 and bytes(4096) not in blocks
