"""Many devices in one process share its workers, its control thread and its service thread."""

from __future__ import annotations

import os

from vduse.testing.harness import BlkPark, BlkSpec

MIB = 1 << 20


def test_threads_do_not_grow_with_devices() -> None:
    with BlkPark() as park:
        park.add(BlkSpec(name="first", size=MIB))
        threads = len(os.listdir("/proc/self/task"))
        for number in range(20):
            park.add(BlkSpec(name=f"disk{number}", size=MIB))
        assert len(os.listdir("/proc/self/task")) == threads


def test_fds_return_to_the_start_when_devices_go() -> None:
    with BlkPark() as park:
        park.add(BlkSpec(name="first", size=MIB))
    before = len(os.listdir("/proc/self/fd"))
    with BlkPark() as park:
        for number in range(20):
            park.add(BlkSpec(name=f"disk{number}", size=MIB))
    assert len(os.listdir("/proc/self/fd")) == before
