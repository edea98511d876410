"""A device takes over under a live driver: all it needs is what the last one left."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vduse.device.queues import QueueError
from vduse.testing.harness import LocalDevice, blk_stack


@pytest.mark.parametrize("queue_size", [64, 256])
def test_other_queue_sizes_are_refused_and_cost_nothing(queue_size: int) -> None:
    with blk_stack(size=1 << 20, queue_size=128) as stack:
        stack.disk.pwrite(b"x" * 512, 0)
        stack.device.close()
        with pytest.raises(QueueError, match="other sizes"):
            LocalDevice(stack.framework, replace(stack.spec, queue_size=queue_size))
        assert not stack.blk.taken_over
        stack.replace_device()
        assert stack.blk.taken_over
        # Where the last one stood, not at the start of the rings.
        for sector in range(200):
            stack.disk.pwrite(b"y" * 512, sector * 512)
        assert stack.disk.pread(512, 512) == b"y" * 512
