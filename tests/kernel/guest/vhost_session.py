"""A driver's session on vhost-vdpa: the same on the kernel's node, in a process of its own, and on
the embedded framework.

    python -m tests.kernel.guest.vhost_session /dev/vhost-vdpa-0
"""

from __future__ import annotations

import sys

from vduse.bus.driver import Driver
from vduse.testing.arena import ArenaBlk
from vduse.vdpa.vhost import VhostVdpaDriver

BLOCK = 4096


def drive(driver: Driver) -> None:
    """Start, a block there and back, position, reset; then the same again, and the close."""
    for number in (1, 2):
        with ArenaBlk(driver, 1) as arena:
            arena.native.pwrite(0, bytes([number]) * BLOCK)
            buffer = bytearray(BLOCK)
            arena.native.preadinto(0, buffer)
            assert buffer == bytes([number]) * BLOCK
            driver.get_vring_base(0)
    driver.close()


if __name__ == "__main__":
    drive(VhostVdpaDriver(sys.argv[1]))
