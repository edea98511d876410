"""virtio-blk's driver side: features, queues and config interrupts here, requests in Rust."""

from __future__ import annotations

import errno
import logging
import struct
import threading

from vduse import _native
from vduse.bus.disk import Disk
from vduse.bus.vdpa import VdpaDevice
from vduse.control.features import BlkFeature, Feature

log = logging.getLogger(__name__)

#: struct virtio_blk_config up to write_zeroes_may_unmap; num_queues lies at 34.
_CONFIG_SIZE = 60
_NUM_QUEUES = struct.Struct("<34xH")


class VirtioBlk:
    """A virtio-blk device in our hands, from feature negotiation to removal."""

    FEATURES = (
        BlkFeature.SIZE_MAX
        | BlkFeature.SEG_MAX
        | BlkFeature.RO
        | BlkFeature.BLK_SIZE
        | BlkFeature.FLUSH
        | BlkFeature.TOPOLOGY
        | BlkFeature.MQ
        | BlkFeature.DISCARD
        | BlkFeature.WRITE_ZEROES
        | Feature.INDIRECT_DESC
        | Feature.EVENT_IDX
        | Feature.RING_PACKED
    )

    def __init__(self, vdpa: VdpaDevice, features: int) -> None:
        """Makes the queues. OSError EINVAL: the device's config makes no sense."""
        self._vdpa = vdpa
        self._frozen = False
        self._config_lock = threading.Lock()
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
        if self._frozen:
            self._frozen = False
            self._driver.hold(submissions=False, completions=False)
        # A config interrupt before DRIVER_OK could not be injected: look once.
        self._config_changed()

    def freeze(self) -> None:
        """As :meth:`vduse.bus.class_driver.Restorable.freeze`."""
        self._frozen = True
        self._driver.hold(submissions=True, completions=True)

    def restore(self) -> None:
        """As :meth:`vduse.bus.class_driver.Restorable.restore`."""
        self._driver.renew()
        self._vdpa.set_config_cb(self._config_changed)

    def stop(self, error: int) -> None:
        """After the reset: what is outstanding, and all that comes, ends with errno ``error``."""
        self._driver.stop(error)

    def _read_config(self) -> bytes:
        """All of it as of one generation (section 2.5.1)."""
        while True:
            generation = self._vdpa.get_generation()
            config = self._vdpa.get_config(0, max(_CONFIG_SIZE, self._vdpa.get_config_size()))
            if self._vdpa.get_generation() == generation:
                return config

    def _choose_queues(self, config: bytes, features: int) -> list[int]:
        wanted = _NUM_QUEUES.unpack_from(config)[0] if features & BlkFeature.MQ else 1
        sizes = [self._vdpa.get_vq_size(index) for index in range(min(wanted, self._vdpa.nvqs))]
        if not sizes or 0 in sizes:
            raise OSError(errno.EINVAL, f"{self._vdpa.name}: virtqueues of sizes {sizes}")
        if features & Feature.RING_PACKED:
            return sizes
        # Split rings are powers of two long (section 2.7).
        return [1 << (size.bit_length() - 1) for size in sizes]

    def _config_changed(self) -> None:
        with self._config_lock:  # or an older config would be stored last
            before = self._driver.size
            self._driver.set_config(self._read_config())
            after = self._driver.size
        if after != before:
            log.info("%s: resized to %d bytes", self._vdpa.name, after)
