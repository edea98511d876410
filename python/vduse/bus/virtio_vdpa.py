"""The virtio_vdpa bus driver (drivers/virtio/virtio_vdpa.c and virtio.c): a virtio driver on
this side, its memory in the device's IOVA domain."""

from __future__ import annotations

import errno
import logging

from vduse.bus.disk import Disk
from vduse.bus.errors import FeaturesRefused, NoDriver, VdpaError
from vduse.bus.vdpa import VdpaDevice
from vduse.bus.virtio_blk import VIRTIO_ID_BLOCK, VirtioBlk

log = logging.getLogger(__name__)

# Device status (virtio 1.3, section 2.1).
ACKNOWLEDGE = 0x01
DRIVER = 0x02
DRIVER_OK = 0x04
FEATURES_OK = 0x08
FAILED = 0x80

F_VERSION_1 = 1 << 32
F_ACCESS_PLATFORM = 1 << 33
F_RING_PACKED = 1 << 34

#: Device features that every virtio driver here needs.
_REQUIRED = F_VERSION_1 | F_ACCESS_PLATFORM

#: Class drivers, by virtio device id.
CLASS_DRIVERS = {VIRTIO_ID_BLOCK: VirtioBlk}


class VirtioVdpa:
    """A device driven by a virtio driver of ours."""

    def __init__(self, vdpa: VdpaDevice) -> None:
        """Probes: statuses 0, 1, 3, 0xB, 0xF; on a failure, FAILED is added. NoDriver: no class
        driver for this device; FeaturesRefused; DeviceRefused; DeviceTimedOut."""
        self._vdpa = vdpa
        class_driver = CLASS_DRIVERS.get(vdpa.get_device_id())
        if class_driver is None:
            known = ", ".join(map(str, CLASS_DRIVERS))
            raise NoDriver(
                f"{vdpa.name} is virtio device {vdpa.get_device_id()}; virtio_vdpa drives {known} "
                "only: bind it to vhost_vdpa"
            )
        vdpa.reset()
        try:
            self._add_status(ACKNOWLEDGE)
            self._add_status(DRIVER)
            features = self._negotiate(class_driver.FEATURES)
            self._driver = class_driver(vdpa, features)
            self._set_up_queues(features)
            self._add_status(DRIVER_OK)
            self._driver.start()
        except BaseException:
            self._fail()
            raise

    @property
    def busy(self) -> bool:
        return False

    @property
    def disk(self) -> Disk:
        """The block device."""
        return self._driver.disk

    def remove(self) -> None:
        """Resets the device, then fails what is outstanding with ENODEV."""
        try:
            self._vdpa.reset()
        except VdpaError as error:
            log.warning("%s: reset: %s", self._vdpa.name, error)
        self._driver.stop(errno.ENODEV)

    def _add_status(self, bit: int) -> None:
        self._vdpa.set_status(self._vdpa.get_status() | bit)

    def _negotiate(self, supported: int) -> int:
        vdpa = self._vdpa
        offered = vdpa.get_device_features()
        if offered & _REQUIRED != _REQUIRED:
            raise FeaturesRefused(
                f"{vdpa.name} offers features {offered:#x}: VERSION_1 and ACCESS_PLATFORM are "
                "required"
            )
        features = offered & (supported | _REQUIRED)
        vdpa.set_driver_features(features)
        try:
            self._add_status(FEATURES_OK)
        except VdpaError as error:
            raise FeaturesRefused(f"{vdpa.name} refused features {features:#x}: {error}") from error
        return features

    def _set_up_queues(self, features: int) -> None:
        vdpa = self._vdpa
        # After a reset: split starts at 0, packed with both wrap counters 1 (section 2.8.1).
        position = (0, 1, 0, 1) if features & F_RING_PACKED else (0,)
        for index, size in enumerate(self._driver.queue_sizes):
            vdpa.set_vq_num(index, size)
            vdpa.set_vq_state(index, position)
            vdpa.set_vq_address(index, *self._driver.areas(index))
            vdpa.set_vq_ready(index, True)

    def _fail(self) -> None:
        try:
            self._add_status(FAILED)
        except VdpaError as error:
            log.warning("%s: status FAILED: %s", self._vdpa.name, error)
        for index in range(self._vdpa.nvqs):
            self._vdpa.set_vq_ready(index, False)
        self._vdpa.set_config_cb(None)
