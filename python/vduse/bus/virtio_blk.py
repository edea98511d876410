"""virtio-blk's driver side: features, queues and config interrupts here, requests in Rust."""

from __future__ import annotations

import logging
import struct

from vduse import _native
from vduse.bus.disk import Disk
from vduse.bus.vdpa import VdpaDevice

log = logging.getLogger(__name__)

VIRTIO_ID_BLOCK = 2

# virtio 1.3, section 5.2.3 and 6.
BLK_F_SIZE_MAX = 1 << 1
BLK_F_SEG_MAX = 1 << 2
BLK_F_RO = 1 << 5
BLK_F_BLK_SIZE = 1 << 6
BLK_F_FLUSH = 1 << 9
BLK_F_TOPOLOGY = 1 << 10
BLK_F_MQ = 1 << 12
BLK_F_DISCARD = 1 << 13
BLK_F_WRITE_ZEROES = 1 << 14
F_INDIRECT_DESC = 1 << 28
F_EVENT_IDX = 1 << 29
F_RING_PACKED = 1 << 34

#: struct virtio_blk_config up to write_zeroes_may_unmap; num_queues lies at 34.
_CONFIG_SIZE = 60
_NUM_QUEUES = struct.Struct("<34xH")


class VirtioBlk:
    """A virtio-blk device in our hands, from feature negotiation to removal."""

    FEATURES = (
        BLK_F_SIZE_MAX
        | BLK_F_SEG_MAX
        | BLK_F_RO
        | BLK_F_BLK_SIZE
        | BLK_F_FLUSH
        | BLK_F_TOPOLOGY
        | BLK_F_MQ
        | BLK_F_DISCARD
        | BLK_F_WRITE_ZEROES
        | F_INDIRECT_DESC
        | F_EVENT_IDX
        | F_RING_PACKED
    )

    def __init__(self, vdpa: VdpaDevice, features: int) -> None:
        """Makes the queues. OSError EINVAL: the device's config makes no sense."""
        self._vdpa = vdpa
        config = self._read_config()
        #: Descriptors of each queue in use.
        self.queue_sizes = self._choose_queues(config, features)
        self._driver = _native.BlkDriver(
            vdpa.domain,
            features,
            config,
            self.queue_sizes,
            [vdpa.vq_line(index) for index in range(len(self.queue_sizes))],
        )
        self.disk = Disk(self._driver, vdpa.name)
        vdpa.set_config_cb(self._config_changed)

    def areas(self, index: int) -> tuple[int, int, int]:
        """IOVAs of a queue's descriptor, driver and device areas."""
        return self._driver.areas(index)

    def start(self) -> None:
        """After DRIVER_OK."""
        self._driver.start()
        # A config interrupt before DRIVER_OK could not be injected: look once.
        self._config_changed()

    def stop(self, errno: int) -> None:
        """After the reset: what is outstanding, and all that comes, ends with ``errno``."""
        self._driver.stop(errno)

    def _read_config(self) -> bytes:
        """All of it as of one generation (section 2.5.1)."""
        while True:
            generation = self._vdpa.get_generation()
            config = self._vdpa.get_config(0, max(_CONFIG_SIZE, self._vdpa.get_config_size()))
            if self._vdpa.get_generation() == generation:
                return config

    def _choose_queues(self, config: bytes, features: int) -> list[int]:
        wanted = _NUM_QUEUES.unpack_from(config)[0] if features & BLK_F_MQ else 1
        sizes = [self._vdpa.get_vq_size(index) for index in range(min(wanted, self._vdpa.nvqs))]
        if features & F_RING_PACKED:
            return sizes
        # Split rings are powers of two long (section 2.7).
        return [1 << (size.bit_length() - 1) for size in sizes]

    def _config_changed(self) -> None:
        before = self._driver.size
        self._driver.set_config(self._read_config())
        if self._driver.size != before:
            log.info("%s: resized to %d bytes", self._vdpa.name, self._driver.size)
