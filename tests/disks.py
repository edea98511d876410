"""Disks of tests, and what they lie on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vduse import _native
from vduse.bus.disk import Disk
from vduse.channel.embedded import inherited
from vduse.devices.blk import BlkDevice
from vduse.framework.framework import Framework


@contextmanager
def disk_on(backend: _native.Backend, name: str = "disk0", queues: int = 1) -> Iterator[Disk]:
    """A disk whose device stores on ``backend``, which is closed with it."""
    device = BlkDevice(name, backend, queues=queues)
    with Framework() as framework:
        control = inherited(framework.control())
        device.start(control)
        framework.dev_add(name, driver="virtio_vdpa")
        try:
            yield framework.disk(name)
        finally:
            framework.dev_del(name)
            device.close()
            control.close()
            backend.close()


def zeroes(path: Path, size: int) -> Path:
    """``path``, a file of ``size`` bytes."""
    with path.open("wb") as file:
        file.truncate(size)
    return path
