"""Crate virtio-driver, libblkio's driver, on the kernel's vhost-vdpa: memory of its own by fd,
nothing bounced. Nobody here wrote it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.kernel.guest.bed import MIB, load_modules, on_the_bus, read_direct, rebind, write_direct
from vduse import _native
from vduse.channel.kernel import KernelControl
from vduse.devices.blk import BlkDevice
from vduse.testing.load import Op, Spec, run_vhost_vdpa
from vduse.vdpa.drivers import BusDriver

RINGS = [pytest.param(False, id="split"), pytest.param(True, id="packed")]


@pytest.fixture(scope="module", autouse=True)
def modules() -> None:
    load_modules()


@contextmanager
def disk(*, packed: bool) -> Iterator[BlkDevice]:
    """A disk of 16 MiB and four virtqueues, on the bus."""
    backend = _native.Backend.memory(16 * MIB)
    control = KernelControl()
    device = BlkDevice("disk0", backend, queues=4, packed=packed)
    with on_the_bus(device, control):
        yield device
    control.close()
    backend.close()


def verify(node: str, op: Op, *, packed: bool, queues: int = 1) -> None:
    spec = Spec(op=op, requests=1000, depth=24, verify=True, span=4 * MIB)
    report = run_vhost_vdpa(node, spec, packed=packed, queues=queues)
    assert report.errors == 0, report.messages
    assert report.requests == 1000


@pytest.mark.parametrize("packed", RINGS)
def test_what_is_written_is_read(packed: bool) -> None:
    with disk(packed=packed) as device:
        node = rebind("disk0", BusDriver.VHOST_VDPA)
        verify(node, "write", packed=packed, queues=1)
        verify(node, "randread", packed=packed, queues=4)
        verify(node, "mixed", packed=packed, queues=4)
        stats = device.stats()
        assert stats is not None and stats["errors"] == 0


@pytest.mark.parametrize("packed", RINGS)
def test_between_two_lives_on_virtio_vdpa(packed: bool) -> None:
    with disk(packed=packed):
        path = rebind("disk0", BusDriver.VIRTIO_VDPA)
        write_direct(path, 8 * MIB, b"1" * MIB)
        verify(rebind("disk0", BusDriver.VHOST_VDPA), "randwrite", packed=packed)
        path = rebind("disk0", BusDriver.VIRTIO_VDPA)
        assert read_direct(path, 8 * MIB, MIB) == b"1" * MIB
