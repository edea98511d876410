"""Our virtio-blk driver on memory of its own, through the :class:`~vduse.bus.driver.Driver`
port: what a driver over vhost_vdpa does, without bounce pages and without a copy."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from vduse import _native
from vduse.bus.driver import PACKED_START, Driver
from vduse.bus.virtio_blk import VirtioBlk
from vduse.control.abi import ACCESS_RW
from vduse.control.features import Feature, Status
from vduse.testing.closing import Closing

_STARTED = Status.ACKNOWLEDGE | Status.DRIVER
_AGREED = _STARTED | Status.FEATURES_OK


class ArenaBlk(Closing):
    """A started driver; a context manager that resets the device in the end."""

    def __init__(
        self,
        driver: Driver,
        lines: Sequence[_native.VqLine] | int,
        *,
        size: int = 64 << 20,
        iova: int = 1 << 32,
        queue_size: int = 128,
        without: int = 0,
    ) -> None:
        """``lines``: kick and irq of the queues to use, or how many queues to use with eventfds
        of our own (VHOST_SET_VRING_KICK and _CALL). ``size``: bytes of the arena, first
        byte at ``iova``. ``without``: feature bits not to accept. OSError EPROTO: the device
        refuses the features."""
        self._driver = driver
        self._stopped = False
        own = lines if isinstance(lines, int) else 0
        if isinstance(lines, int):
            lines = [_native.VqLine() for _ in range(lines)]
        driver.set_status(0)
        driver.set_status(Status.ACKNOWLEDGE)
        driver.set_status(_STARTED)
        known = VirtioBlk.FEATURES | Feature.VERSION_1 | Feature.ACCESS_PLATFORM
        features = driver.get_features() & known & ~without
        driver.set_features(features)
        driver.set_status(_AGREED)
        if not driver.get_status() & Status.FEATURES_OK:
            raise OSError(errno.EPROTO, f"the device refuses features {features:#x}")
        self.arena = _native.Arena(size, iova)
        driver.iotlb_update(iova, size, self.arena.fd, 0, ACCESS_RW)
        config = driver.get_config(0, driver.get_config_size())
        self.native = _native.BlkDriver(
            self.arena, features, config, [queue_size] * len(lines), list(lines)
        )
        packed = bool(features & Feature.RING_PACKED)
        for index in range(len(lines)):
            driver.set_vring_num(index, queue_size)
            driver.set_vring_addr(index, *self.native.areas(index))
            driver.set_vring_base(index, PACKED_START if packed else 0)
            if index < own:
                self._watch(index, lines[index])
            driver.set_vring_enable(index, True)
        driver.set_status(_AGREED | Status.DRIVER_OK)
        self.native.start()

    def _watch(self, index: int, line: _native.VqLine) -> None:
        kick = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            line.set_kickfd(kick)
            self._driver.set_vring_kick(index, kick)
        finally:
            os.close(kick)  # both hold it
        self._driver.set_vring_call(index, line.callfd)

    def close(self) -> None:
        """Resets the device; what is outstanding ends with ENODEV."""
        if not self._stopped:
            self._stopped = True
            self._driver.set_status(0)
            self.native.stop(errno.ENODEV)
            self._driver.iotlb_invalidate(self.arena.iova, self.arena.size)
