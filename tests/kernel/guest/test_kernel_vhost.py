"""Crate virtio-driver, libblkio's driver, on the kernel's vhost-vdpa: memory of its own by fd,
nothing bounced. Nobody here wrote it.

Split rings: on vhost-vdpa the crate starts packed ones with wrap counters of 0 (virtio 1.3,
section 2.8.1, says 1)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.kernel.guest.bed import (
    MIB,
    load_modules,
    on_the_bus,
    read_direct,
    rebind,
    run,
    write_direct,
)
from vduse import _native
from vduse.channel.kernel import KernelControl
from vduse.devices.blk import BlkDevice
from vduse.vdpa.drivers import BusDriver


@pytest.fixture(scope="module", autouse=True)
def modules() -> None:
    load_modules()


@contextmanager
def disk() -> Iterator[BlkDevice]:
    """A disk of 16 MiB and four virtqueues, on the bus."""
    backend = _native.Backend.memory(16 * MIB)
    control = KernelControl()
    device = BlkDevice("disk0", backend, queues=4)
    with on_the_bus(device, control):
        yield device
    control.close()
    backend.close()


def verify(node: str, op: str, *, queues: int = 1) -> None:
    """In a process of its own: the kernel holds the front end's memory map while it waits for the
    device's program, which unmaps."""
    program = (
        "from vduse.testing.load import *\n"
        f"spec = Spec(op={op!r}, requests=1000, depth=24, verify=True, span={4 * MIB})\n"
        f"report = run_vhost_vdpa({node!r}, spec, queues={queues})\n"
        "print(report.requests, report.errors, *report.messages)\n"
    )
    assert run(sys.executable, "-c", program).strip() == "1000 0"


def test_what_is_written_is_read() -> None:
    with disk() as device:
        node = rebind("disk0", BusDriver.VHOST_VDPA)
        verify(node, "write", queues=1)
        verify(node, "randread", queues=4)
        verify(node, "mixed", queues=4)
        stats = device.stats()
        assert stats is not None and stats["errors"] == 0


def test_between_two_lives_on_virtio_vdpa() -> None:
    with disk():
        path = rebind("disk0", BusDriver.VIRTIO_VDPA)
        write_direct(path, 8 * MIB, b"1" * MIB)
        verify(rebind("disk0", BusDriver.VHOST_VDPA), "randwrite")
        path = rebind("disk0", BusDriver.VIRTIO_VDPA)
        assert read_direct(path, 8 * MIB, MIB) == b"1" * MIB
