"""Many devices in one process share its workers, its control thread and its service thread."""

from __future__ import annotations

import atexit
import os
import subprocess
import sys

import pytest

from tests.held import nothing_left
from vduse.testing.harness import BlkPark, BlkSpec
from vduse.testing.leaks import Held

MIB = 1 << 20


def test_threads_do_not_grow_with_devices() -> None:
    with BlkPark() as park:
        park.add(BlkSpec(name="first", size=MIB))
        before = Held.now()
        for number in range(20):
            park.add(BlkSpec(name=f"disk{number}", size=MIB))
        assert not [line for line in before.new() if line.startswith("thread")]


def test_fds_return_to_the_start_when_devices_go() -> None:
    with BlkPark() as park:
        park.add(BlkSpec(name="first", size=MIB))
    with nothing_left(), BlkPark() as park:
        for number in range(20):
            park.add(BlkSpec(name=f"disk{number}", size=MIB))


@pytest.mark.parametrize("where", ["process", "child"])
def test_a_program_that_closes_nothing_ends_at_once(where: str) -> None:
    program = (
        "from vduse.testing.harness import blk_stack\n"
        f"manager = blk_stack(size={MIB}, where={where!r}, msg_timeout=0)\n"
        "stack = manager.__enter__()\n"
        "stack.disk.pwrite(bytes(512), 0)\n"
    )
    # A message would wait for its answer for ever.
    ended = subprocess.run([sys.executable, "-c", program], timeout=60, capture_output=True)
    assert (ended.returncode, ended.stdout) == (0, b"")


def test_a_forked_child_that_ends_leaves_the_parent_alone() -> None:
    with BlkPark() as park:
        park.add(BlkSpec(name="disk0", size=MIB))
        program = os.fork()
        if program == 0:
            atexit._run_exitfuncs()
            os._exit(0)
        assert os.waitpid(program, 0)[1] == 0
        park.framework.dev_del("disk0")
        park.framework.dev_add("disk0")
        assert park.framework.disk("disk0").pread(512, 0) == bytes(512)
