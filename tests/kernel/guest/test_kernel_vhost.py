"""Crate virtio-driver, libblkio's driver, on the kernel's vhost-vdpa: memory of its own by fd,
nothing bounced. Nobody here wrote it.

On vhost-vdpa the crate starts packed rings with wrap counters of 0, which should be 1 (virtio 1.3,
section 2.8.1): vring_base.c puts that right on the way to the kernel."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.kernel.guest.bed import (
    MIB,
    on_the_bus,
    rebind,
    run,
)
from vduse import _native
from vduse.channel.kernel import KernelControl
from vduse.devices.blk import BlkDevice
from vduse.vdpa.drivers import BusDriver

pytestmark = pytest.mark.usefixtures("modules")


@contextmanager
def disk(*, packed: bool = False) -> Iterator[BlkDevice]:
    """A disk of 16 MiB and four virtqueues, on the bus."""
    backend = _native.Backend.memory(16 * MIB)
    control = KernelControl()
    device = BlkDevice("disk0", backend, queues=4, packed=packed)
    with on_the_bus(device, control):
        yield device
    control.close()
    backend.close()


@pytest.fixture(scope="module")
def preload(tmp_path_factory: pytest.TempPathFactory) -> str:
    """vring_base.c, for LD_PRELOAD."""
    library = tmp_path_factory.mktemp("preload") / "vring_base.so"
    source = Path(__file__).with_name("vring_base.c")
    run("cc", "-Wall", "-Werror", "-shared", "-fPIC", "-o", str(library), str(source))
    return str(library)


def front_end(program: str, *, preload: str = "") -> None:
    """Runs a Python program, a process of its own: the kernel holds the front end's memory map
    while it waits for the device's program, which unmaps."""
    imports = "from tests.kernel.guest.bed import *; from vduse.testing.load import *\n"
    run("env", f"LD_PRELOAD={preload}", sys.executable, "-c", imports + program)


#: Loads whose data is verified, on one virtqueue and on four.
_LOADS = """
for op, queues in (("write", 1), ("randread", 4), ("mixed", 4)):
    spec = Spec(op=op, requests=1000, depth=24, verify=True, span=4 * MIB)
    report = run_vhost_vdpa(node, spec, queues=queues, packed=packed)
    assert (report.requests, report.errors) == (1000, 0), report.messages
"""


def test_what_is_written_is_read_on_split_virtqueues() -> None:
    with disk() as device:
        node = rebind("disk0", BusDriver.VHOST_VDPA)
        front_end(f"node, packed = {node!r}, False" + _LOADS)
        stats = device.stats()
        assert stats is not None and stats["errors"] == 0


@pytest.mark.needs("cc")
def test_what_is_written_is_read_on_packed_virtqueues(preload: str) -> None:
    """Every request takes three of 128 descriptors: the rings wrap many times."""
    with disk(packed=True) as device:
        node = rebind("disk0", BusDriver.VHOST_VDPA)
        front_end(f"node, packed = {node!r}, True" + _LOADS, preload=preload)
        stats = device.stats()
        assert stats is not None and stats["errors"] == 0


#: I/O with one bus driver, what it wrote read with the other.
_TEN_TIMES = """
import os
data = os.urandom(MIB)
path = rebind("disk0", BusDriver.VIRTIO_VDPA)
for turn in range(10):
    write_direct(path, 8 * MIB, data)
    node = rebind("disk0", BusDriver.VHOST_VDPA)
    spec = Spec(op="randwrite", requests=100, depth=24, verify=True, span=4 * MIB, seed=turn)
    report = run_vhost_vdpa(node, spec)
    assert (report.requests, report.errors) == (100, 0), report.messages
    path = rebind("disk0", BusDriver.VIRTIO_VDPA)
    assert read_direct(path, 8 * MIB, MIB) == data
    data = os.urandom(MIB)
"""


def test_rebinding_ten_times_with_io_on_both_bus_drivers() -> None:
    with disk() as device:
        front_end(_TEN_TIMES)
        assert device.ended is None
        stats = device.stats()
        assert stats is not None and stats["errors"] == 0
