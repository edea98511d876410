"""Layers through a whole stack, from a disk object to the backend."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from vduse import _native
from vduse.backends import layers
from vduse.backends.layers import Faults
from vduse.backends.memory import open_memory
from vduse.bus.disk import Disk
from vduse.channel.embedded import inherited
from vduse.devices.blk import BlkDevice
from vduse.framework.framework import Framework

SIZE = 1 << 20
BLOCK = b"x" * 4096


@contextmanager
def disk_on(backend: _native.Backend) -> Iterator[Disk]:
    """A disk whose device stores on ``backend``, which is closed with it."""
    device = BlkDevice("disk0", backend)
    with Framework() as framework:
        control = inherited(framework.control())
        device.start(control)
        framework.dev_add("disk0", driver="virtio_vdpa")
        try:
            yield framework.disk("disk0")
        finally:
            framework.dev_del("disk0")
            device.close()
            control.close()
            backend.close()


def test_read_only_is_seen_by_the_driver() -> None:
    """virtio 1.3, section 5.2.3: VIRTIO_BLK_F_RO."""
    with disk_on(layers.read_only(open_memory(SIZE))) as disk:
        assert disk.read_only
        with pytest.raises(OSError) as error:
            disk.pwrite(BLOCK, 0)
        assert error.value.errno == errno.EROFS
        assert disk.pread(512, 0) == bytes(512)


@pytest.mark.parametrize(
    ("injected", "seen"),
    [
        (errno.EIO, errno.EIO),
        (errno.ENOSPC, errno.EIO),
        (errno.EOPNOTSUPP, errno.EOPNOTSUPP),
        (errno.ENOSYS, errno.EOPNOTSUPP),
    ],
)
def test_5_2_6_an_error_shows_as_the_status_allows(injected: int, seen: int) -> None:
    faults = Faults()
    with disk_on(layers.error(open_memory(SIZE), faults)) as disk:
        faults.add(injected, ops=["read"])
        with pytest.raises(OSError) as error:
            disk.pread(512, 0)
        assert error.value.errno == seen
        disk.pwrite(BLOCK, 0)
        faults.clear()
        assert disk.pread(4096, 0) == BLOCK


def outcomes(disk: Disk, offsets: list[int]) -> list[bool]:
    """Which writes of a block at ``offsets``, all submitted at once, succeed."""
    tokens = disk.driver.submit([("write", offset, BLOCK) for offset in offsets])
    results = dict(disk.driver.reap(len(offsets)))
    return [results[token] == len(BLOCK) for token in tokens]


def test_errors_are_exact_in_number_and_place() -> None:
    faults = Faults()
    with disk_on(layers.error(open_memory(SIZE), faults)) as disk:
        place = faults.add(offset=6144, length=512, ops=["write", "read"])
        blocks = [n * 4096 for n in range(8)]
        assert outcomes(disk, blocks) == [n != 1 for n in range(8)]
        assert disk.pread(2048, 4096) == bytes(2048)
        faults.clear()
        assert disk.pread(4096, 4096) == bytes(4096)  # nothing of it was written
        number = faults.add(after=3, count=2)
        assert outcomes(disk, blocks) == [True] * 3 + [False] * 2 + [True] * 3
        assert (faults.hits(place), faults.hits(number), faults.hits()) == (1, 2, 3)


def test_a_random_rate_hits_the_same_requests_in_every_run() -> None:
    def run(seed: int) -> list[bool]:
        faults = Faults(seed=seed)
        faults.add(rate=0.3)
        with disk_on(layers.error(open_memory(SIZE), faults)) as disk:
            return [done for _ in range(8) for done in outcomes(disk, [0] * 64)]

    first = run(1)
    assert first == run(1) != run(2)


def test_a_layer_owns_what_lies_beneath() -> None:
    memory = open_memory(SIZE)
    lower = layers.delay(memory)
    upper = layers.read_only(lower)
    for covered in (memory, lower):
        for use in (
            covered.close,
            covered.flush,
            lambda covered=covered: layers.read_only(covered),
        ):
            with pytest.raises(OSError, match="beneath a layer") as error:
                use()
            assert error.value.errno == errno.EBUSY
    upper.close()
    for closed in (memory, lower, upper):
        closed.close()
        with pytest.raises(ValueError, match="closed"):
            closed.flush()


def test_a_backend_is_free_again_once_its_layer_is_gone() -> None:
    memory = open_memory(SIZE)
    layer = layers.read_only(memory)
    del layer
    memory.flush()
    memory.close()


def test_a_backend_in_use_takes_no_layer() -> None:
    memory = open_memory(SIZE)
    with disk_on(memory), pytest.raises(OSError, match="in use") as error:
        layers.read_only(memory)
    assert error.value.errno == errno.EBUSY
