"""The program's devices: onto the bus as they come, to their doors, and off again."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TypeVar

from vduse.bus.errors import DeviceBusy, DeviceNotFound
from vduse.bus.virtio_vdpa import CLASS_DRIVERS
from vduse.control.statistics import HasStats, NamedStats
from vduse.daemon.dev.features import type_name
from vduse.daemon.doors.doorway import Doorway
from vduse.daemon.errors import UserError
from vduse.daemon.run.commands import NO_DRIVER
from vduse.daemon.run.companions import DeviceType
from vduse.daemon.run.facts import Serving
from vduse.daemon.run.places import Places
from vduse.exports.errors import ExportError
from vduse.framework import Framework
from vduse.framework.device import VduseDevice

log = logging.getLogger(__name__)

T = TypeVar("T")


class Devices:
    """Of one framework. An :class:`~vduse.daemon.dev.embedded.Export`: doors follow the bus
    drivers, whoever binds them. Methods may be called from any thread."""

    def __init__(
        self,
        framework: Framework,
        places: Places,
        driver: str | None,
        needed: str | None,
        device_type: DeviceType,
    ) -> None:
        """``driver``: of devices without a door, as of the command line. ``needed``: the one that
        every device has to have, door or not. ``device_type``: as :meth:`Framework.dev_add`'s."""
        self._framework = framework
        self._places = places
        self._driver = driver
        self._needed = needed
        self._device_type = device_type
        self._lock = threading.Lock()
        #: What has come, by name.
        self._known: dict[str, VduseDevice] = {}
        self._doorways: dict[str, Doorway] = {}
        self._broken: set[VduseDevice] = set()
        #: On their way to the bus.
        self._coming: set[VduseDevice] = set()

    def is_new(self, device: VduseDevice) -> bool:
        """Once for each device."""
        with self._lock:
            if self._known.get(device.name) is device:
                return False
            self._known[device.name] = device
            return True

    def attach(self, device: VduseDevice) -> Serving:
        """Puts a device on the bus and opens its door; waits for the program. DeviceNotFound: it
        was destroyed; OSError, ExportError: it cannot be."""
        name = device.name
        with self._lock:
            door = self._places.take(name)
            self._coming.add(device)
        driver = self._driver_for(device, door.driver if door is not None else None)
        try:
            self._framework.dev_add(name, driver=driver, vdpa_type=self._device_type)
        finally:
            with self._lock:
                self._coming.discard(device)
        if door is not None:
            doorway = self._doorways[name] = Doorway(self._framework, name, door)
            doorway.offer()
        return self._serving(device)

    def unserved(self) -> Iterator[str]:
        """Places that no device has come for, in words."""
        with self._lock:
            yield from self._places.unused()

    def broken(self) -> Iterator[tuple[str, str]]:
        """Those that have broken since the last call, and why."""
        with self._lock:
            for device in self._known.values():
                why = device.messages.why_broken
                if why is not None and device not in self._broken:
                    self._broken.add(device)
                    yield device.name, why

    @property
    def all_broken(self) -> bool:
        """There were some, and none of them answers any more."""
        with self._lock:
            return bool(self._known) and self._broken.issuperset(self._known.values())

    def give_up_one(self, device: VduseDevice) -> None:
        """It could not be put on the bus; the others go on."""
        with self._lock:
            self._broken.add(device)

    def give_up(self, reason: str) -> None:
        """Nobody waits for them any longer."""
        with self._lock:
            known = list(self._known.values())
        for device in known:
            device.messages.break_device(reason, logging.DEBUG)

    def detach(self, *, answering: bool) -> Iterator[str]:
        """Closes the doors, then takes the devices off the bus. ``answering``: the program serves
        still. What was not done in order."""
        with self._lock:
            coming = list(self._coming)
            self._broken |= self._coming
        for device in coming:  # they are not waited for: nobody has used them yet
            device.messages.break_device("the run ends", logging.DEBUG)
        for name, doorway in list(self._doorways.items()):
            if failure := doorway.withdraw(answering=answering and self._answers(name)):
                yield f"{name}: {failure}"
        # Nobody would answer the reset of the others; the framework's own end waits for nobody.
        names = self._framework.bus.devices if answering else ()
        for name in filter(self._answers, names):
            try:
                with suppress(DeviceNotFound):
                    self._framework.dev_del(name)
            except DeviceBusy as error:
                yield str(error)

    def rebind(self, name: str, driver: str) -> None:
        """As of :class:`vduse.run.hooks.Run`."""
        doorway = self._doorways.get(name)
        if doorway is not None and (failure := doorway.withdraw(answering=self._answers(name))):
            log.warning("%s: %s", name, failure)
        try:
            self._framework.bus.bind(name, driver)
        finally:
            if doorway is not None:
                doorway.offer()

    # --- for statistics ---------------------------------------------------------------------

    @property
    def disks(self) -> Sequence[NamedStats]:
        """Driver side."""
        return [disk for doorway in list(self._doorways.values()) for disk in doorway.disks]

    @property
    def exports(self) -> Mapping[str, HasStats]:
        """Servers, by socket as given."""
        return {
            at: one
            for doorway in list(self._doorways.values())
            for at, one in doorway.exports.items()
        }

    def counts(self) -> dict[str, dict[str, int]]:
        """The framework's own, by device."""
        return {name: device.stats() for name, device in self._framework.devices.items()}

    # --- an Export --------------------------------------------------------------------------

    def place(self, name: str) -> str | None:
        """The URI or the path of its socket."""
        return self._of(name, lambda doorway: doorway.place)

    def clients(self, name: str) -> int:
        """At its socket."""
        return self._of(name, lambda doorway: doorway.clients()) or 0

    def withdraw(self, name: str) -> None:
        """UserError: not in order."""
        if failure := self._of(name, lambda doorway: doorway.withdraw(answering=True)):
            raise UserError(f"{name}: {failure}")

    def offer(self, name: str) -> None:
        """UserError: its socket cannot be."""
        try:
            self._of(name, lambda doorway: doorway.offer())
        except ExportError as error:
            raise UserError(str(error)) from None

    def _of(self, name: str, ask: Callable[[Doorway], T]) -> T | None:
        doorway = self._doorways.get(name)
        return None if doorway is None else ask(doorway)

    # --- inside -----------------------------------------------------------------------------

    def _driver_for(self, device: VduseDevice, of_door: str | None) -> str | None:
        wanted = self._needed or of_door or self._driver
        if wanted == NO_DRIVER:
            return None
        return wanted or ("virtio_vdpa" if device.device_id in CLASS_DRIVERS else "vhost_vdpa")

    def _answers(self, name: str) -> bool:
        device = self._known.get(name)
        return device is not None and not device.messages.broken

    def _serving(self, device: VduseDevice) -> Serving:
        driver = self._framework.bus.devices.get(device.name)
        doorway = self._doorways.get(device.name)
        return Serving(
            event="serving",
            name=device.name,
            type=type_name(device.device_id),
            queues=len(device.vqs),
            queue_size=max((vq.num_max for vq in device.vqs), default=0),
            size=self._size(device.name),
            driver=driver,
            socket=doorway.socket if doorway is not None else None,
            uri=doorway.uri if doorway is not None else None,
        )

    def _size(self, name: str) -> int | None:
        """Of a disk; None: it is none, or not driven here."""
        try:
            return self._framework.disk(name).size
        except OSError:
            return None
