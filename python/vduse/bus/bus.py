"""The vDPA bus (drivers/vdpa/vdpa.c): devices, drivers by name, and who drives whom.

All of it runs on the caller's thread and may wait for a device there."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol, TypeVar

from vduse import _native
from vduse.bus.class_driver import ClassDriverType
from vduse.bus.disk import Disk
from vduse.bus.errors import DeviceBusy, DeviceExists, DeviceNotFound, NoDriver
from vduse.bus.vdpa import VdpaDevice
from vduse.bus.vhost_vdpa import VhostVdpa
from vduse.bus.virtio_blk import VirtioBlk
from vduse.bus.virtio_vdpa import CLASS_DRIVERS, VirtioVdpa

log = logging.getLogger(__name__)

T = TypeVar("T")


class Binding(Protocol):
    """A driver bound to one device."""

    @property
    def busy(self) -> bool:
        """Somebody holds it open: it cannot be unbound now."""

    def remove(self) -> None:
        """Unbinds: resets the device and fails what is outstanding. Raises nothing that the
        device causes."""


class _Entry:
    """A device on the bus. ``lock`` is held through a probe or remove, device's answers and
    all."""

    def __init__(self, vdpa: VdpaDevice) -> None:
        self.vdpa = vdpa
        self.lock = threading.RLock()
        self.driver: str | None = None
        self.binding: Binding | None = None
        #: Off the bus: whoever has waited for ``lock`` comes too late.
        self.removed = False


class Bus:
    """Devices and their drivers. Methods are thread-safe; each device has its own lock."""

    #: Names of the drivers, as below /sys/bus/vdpa/drivers.
    DRIVERS = ("virtio_vdpa", "vhost_vdpa")

    def __init__(
        self,
        kicks: _native.KickRelay,
        class_drivers: Mapping[int, ClassDriverType] = CLASS_DRIVERS,
    ) -> None:
        """``class_drivers``: what virtio_vdpa drives devices with, by virtio device id."""
        self._kicks = kicks
        self._class_drivers = class_drivers
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}

    @property
    def devices(self) -> dict[str, str | None]:
        """Names of the devices, each with its driver's."""
        with self._lock:
            return {name: entry.driver for name, entry in self._entries.items()}

    def add(self, vdpa: VdpaDevice) -> None:
        """A device without a driver. DeviceExists."""
        with self._lock:
            if vdpa.name in self._entries:
                raise DeviceExists(f"{vdpa.name} is on the vDPA bus already")
            self._entries[vdpa.name] = _Entry(vdpa)

    def remove(self, vdpa: VdpaDevice) -> None:
        """Unbinds the device and takes it off. DeviceNotFound: it left already (another of its
        name may be there); DeviceBusy: open."""
        with self._locked(vdpa.name) as entry:
            if entry.vdpa is not vdpa:
                raise DeviceNotFound(f"{vdpa.name} has left the vDPA bus")
            self._unbind(entry)
            with self._lock:
                entry.removed = True
                self._entries.pop(vdpa.name, None)

    def bind(self, name: str, driver: str) -> VirtioVdpa | VhostVdpa:
        """Binds a driver, in place of the one that is bound; returns it. DeviceNotFound;
        NoDriver; DeviceBusy; whatever the driver's probe raises (nothing is bound then)."""
        with self._locked(name) as entry:
            if driver not in self.DRIVERS:
                raise NoDriver(f"no driver {driver!r}: choose one of {', '.join(self.DRIVERS)}")
            self._unbind(entry)
            bound = self._probe(entry.vdpa, driver)
            entry.driver, entry.binding = driver, bound
            log.info("%s: bound to %s", name, driver)
            return bound

    def unbind(self, name: str) -> None:
        """Leaves the device without a driver. DeviceNotFound; DeviceBusy."""
        with self._locked(name) as entry:
            self._unbind(entry)

    def restart(self, name: str) -> None:
        """Resets a device bound to virtio_vdpa under its driver, which goes on with it:
        :meth:`VirtioVdpa.restart`. DeviceNotFound, NoDriver, and what that raises."""
        with self._locked(name):
            self.virtio(name).restart()

    def virtio(self, name: str) -> VirtioVdpa:
        """The virtio_vdpa binding of a device. DeviceNotFound, NoDriver."""
        binding = self._find(name).binding
        if not isinstance(binding, VirtioVdpa):
            raise NoDriver(f"{name} is not bound to virtio_vdpa: bind it first")
        return binding

    def vhost(self, name: str) -> VhostVdpa:
        """The vhost_vdpa binding of a device. DeviceNotFound, NoDriver."""
        binding = self._find(name).binding
        if not isinstance(binding, VhostVdpa):
            raise NoDriver(f"{name} is not bound to vhost_vdpa: bind it first")
        return binding

    def driver(self, name: str, kind: type[T]) -> T:
        """The class driver, one of ``kind``, of a device bound to virtio_vdpa. DeviceNotFound,
        NoDriver."""
        driver = self.virtio(name).driver
        if not isinstance(driver, kind):
            raise NoDriver(f"{name} is driven by {type(driver).__name__}, no {kind.__name__}")
        return driver

    def disk(self, name: str) -> Disk:
        """The disk of a virtio-blk device bound to virtio_vdpa. DeviceNotFound, NoDriver."""
        return self.driver(name, VirtioBlk).disk

    def close(self) -> None:
        """Takes every device off, open or not."""
        with self._lock:
            entries = list(self._entries.values())
            self._entries.clear()
        for entry in entries:
            with entry.lock:
                entry.removed = True
                if entry.binding is not None:
                    entry.binding.remove()
                entry.driver = entry.binding = None

    def _probe(self, vdpa: VdpaDevice, driver: str) -> VirtioVdpa | VhostVdpa:
        if driver == "vhost_vdpa":
            return VhostVdpa(vdpa, self._kicks)
        return VirtioVdpa(vdpa, self._class_drivers)

    @contextmanager
    def _locked(self, name: str) -> Iterator[_Entry]:
        """The device's entry with its lock held. DeviceNotFound, also if it left meanwhile."""
        entry = self._find(name)
        with entry.lock:
            if entry.removed:
                raise DeviceNotFound(f"{name} has left the vDPA bus")
            yield entry

    def _find(self, name: str) -> _Entry:
        with self._lock:
            entry = self._entries.get(name)
            if entry is None:
                there = ", ".join(self._entries) or "none"
                raise DeviceNotFound(f"{name} is not on the vDPA bus; there are: {there}")
            return entry

    def _unbind(self, entry: _Entry) -> None:
        if entry.binding is None:
            return
        if entry.binding.busy:
            raise DeviceBusy(f"{entry.vdpa.name} is open through {entry.driver}: close it first")
        entry.binding.remove()
        log.info("%s: unbound from %s", entry.vdpa.name, entry.driver)
        entry.driver = entry.binding = None
