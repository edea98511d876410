"""The virtio_vdpa bus driver (drivers/virtio/virtio_vdpa.c and virtio.c): a virtio driver on
this side, its memory in the device's IOVA domain."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from vduse.bus.class_driver import ClassDriver, ClassDriverType, Restorable
from vduse.bus.errors import DeviceRefused, FeaturesRefused, NoDriver, VdpaError
from vduse.bus.vdpa import VdpaDevice, reset_quietly
from vduse.bus.virtio_blk import VirtioBlk
from vduse.bus.virtio_rng import VirtioRng
from vduse.control.features import DeviceId, Feature, Status

log = logging.getLogger(__name__)

#: Device features that every virtio driver here needs.
_REQUIRED = Feature.VERSION_1 | Feature.ACCESS_PLATFORM

#: The class drivers there are, by virtio device id.
CLASS_DRIVERS: Mapping[int, ClassDriverType] = {
    DeviceId.BLOCK: VirtioBlk,
    DeviceId.RNG: VirtioRng,
}


class VirtioVdpa:
    """A device driven by a virtio driver of ours."""

    def __init__(
        self, vdpa: VdpaDevice, class_drivers: Mapping[int, ClassDriverType] = CLASS_DRIVERS
    ) -> None:
        """Probes: statuses 0, 1, 3, 0xB, 0xF; on a failure, FAILED is added. As in the kernel, a
        refused status is no failure by itself: it is not stored, and the next one lacks its bit.
        ``class_drivers``: by virtio device id. NoDriver: none for this device; FeaturesRefused;
        DeviceRefused: DRIVER_OK, twice; DeviceTimedOut."""
        self._vdpa = vdpa
        class_driver = class_drivers.get(vdpa.get_device_id())
        if class_driver is None:
            known = ", ".join(str(int(known)) for known in class_drivers)
            raise NoDriver(
                f"{vdpa.name} is virtio device {vdpa.get_device_id()}; virtio_vdpa drives {known} "
                "only: bind it to vhost_vdpa"
            )
        self._supported = class_driver.FEATURES
        self._driver: ClassDriver

        def make(features: int) -> None:
            self._driver = class_driver(vdpa, features)

        self._set_up(make)

    @property
    def busy(self) -> bool:
        return False

    @property
    def driver(self) -> ClassDriver:
        """The class driver that has the device."""
        return self._driver

    def restart(self) -> None:
        """Resets the device with requests in flight and sets it up again as it was: what it has
        not answered it is asked once more, and programs' requests just take longer
        (virtio_device_freeze and virtio_device_restore of drivers/virtio/virtio.c; those let
        requests come to their end first).

        OSError EOPNOTSUPP: the class driver cannot. Otherwise errors are a probe's; all requests
        end with EIO then."""
        driver = self._driver
        if not isinstance(driver, Restorable):
            raise OSError(
                errno.EOPNOTSUPP,
                f"{self._vdpa.name}: {type(driver).__name__} bears no reset of its device",
            )
        driver.freeze()
        try:
            self._set_up(lambda _features: driver.restore())
        except BaseException:
            driver.stop(errno.EIO)
            raise

    def remove(self) -> None:
        """Resets the device, fails what is outstanding with ENODEV, and acknowledges the device
        for who comes next, as virtio does."""
        reset_quietly(self._vdpa)
        self._driver.stop(errno.ENODEV)
        try:
            self._add_status(Status.ACKNOWLEDGE)
        except VdpaError as error:
            log.warning("%s: status ACKNOWLEDGE: %s", self._vdpa.name, error)

    def _set_up(self, make_queues: Callable[[int], None]) -> None:
        """From the reset to DRIVER_OK; ``make_queues`` gets the negotiated features."""
        vdpa = self._vdpa
        with _may_be_refused(vdpa.name):
            vdpa.reset()
        try:
            for status in (Status.ACKNOWLEDGE, Status.DRIVER):
                with _may_be_refused(vdpa.name):
                    self._add_status(status)
            features = self._negotiate()
            make_queues(features)
            self._set_up_queues(features)
            with _may_be_refused(vdpa.name):
                self._add_status(Status.DRIVER_OK)
            if not vdpa.get_status() & Status.DRIVER_OK:
                self._add_status(Status.DRIVER_OK)
            self._driver.start()
        except BaseException:
            self._fail()
            raise

    def _add_status(self, bit: int) -> None:
        self._vdpa.set_status(self._vdpa.get_status() | bit)

    def _negotiate(self) -> int:
        vdpa = self._vdpa
        offered = vdpa.get_device_features()
        if offered & _REQUIRED != _REQUIRED:
            raise FeaturesRefused(
                f"{vdpa.name} offers features {offered:#x}: VERSION_1 and ACCESS_PLATFORM are "
                "required"
            )
        features = offered & (self._supported | _REQUIRED)
        vdpa.set_driver_features(features)
        try:
            self._add_status(Status.FEATURES_OK)
        except VdpaError as error:
            raise FeaturesRefused(f"{vdpa.name} refused features {features:#x}: {error}") from error
        return features

    def _set_up_queues(self, features: int) -> None:
        vdpa = self._vdpa
        # After a reset: split starts at 0, packed with both wrap counters 1 (section 2.8.1).
        position = (0, 1, 0, 1) if features & Feature.RING_PACKED else (0,)
        for index, size in enumerate(self._driver.queue_sizes):
            vdpa.set_vq_num(index, size)
            vdpa.set_vq_state(index, position)
            vdpa.set_vq_address(index, *self._driver.areas(index))
            vdpa.set_vq_ready(index, True)

    def _fail(self) -> None:
        try:
            self._add_status(Status.FAILED)
        except VdpaError as error:
            log.warning("%s: status FAILED: %s", self._vdpa.name, error)
        for index in range(self._vdpa.nvqs):
            self._vdpa.set_vq_ready(index, False)
        self._vdpa.set_config_cb(None)


@contextmanager
def _may_be_refused(name: str) -> Iterator[None]:
    """The device may refuse what is done here: virtio does not ask."""
    try:
        yield
    except DeviceRefused as error:
        # Its words alone: who keeps the record would keep the device's memory with the error.
        log.warning("%s: refused: %s", name, str(error))
