"""Crate virtio-drivers' entropy driver on a device that is served in Python: split virtqueues,
through the IOVA domain. Nobody here wrote it."""

from __future__ import annotations

import hashlib

import pytest

from tests.system.python_device import Where, rng_stack, stream
from vduse import _native


@pytest.mark.parametrize("where", ["process", "child"])
@pytest.mark.parametrize("part", [7, 4096, 1 << 20])
def test_it_reads_what_the_device_writes(where: Where, part: int) -> None:
    with rng_stack(where, driver=None) as stack:
        data = _native.entropy_virtio_drivers(stack.vdpa, 100_000 if part < 4096 else 3 << 20, part)
        assert hashlib.sha256(data).digest() == hashlib.sha256(stream(len(data))).digest()


def test_what_it_borrowed_of_the_domain_it_gives_back() -> None:
    with rng_stack("process", driver=None) as stack:
        for _ in range(2):
            _native.entropy_virtio_drivers(stack.vdpa, 10_000, 4096)
            stats = stack.vdpa.domain.stats()
            assert (stats["bounce_bytes_in_use"], stats["coherent_bytes"]) == (0, 0)
