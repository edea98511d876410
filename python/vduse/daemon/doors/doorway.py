"""A device's door, which follows its bus driver: open while the one that it needs is bound."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence

from vduse.control.statistics import HasStats, NamedStats
from vduse.daemon.doors.door import Door, OpenDoor
from vduse.devices.blk import BlkDevice
from vduse.framework import Framework


class Doorway:
    """One device's. Methods may be called from any thread."""

    def __init__(
        self, framework: Framework, name: str, door: Door, device: BlkDevice | None = None
    ) -> None:
        self._framework = framework
        self._name = name
        self._door = door
        self._device = device
        self._lock = threading.RLock()
        self._open: OpenDoor | None = None

    @property
    def socket(self) -> str:
        """Its path, absolute."""
        return os.path.abspath(self._door.path)

    @property
    def uri(self) -> str | None:
        """NBD's, while it is open."""
        opened = self._open
        return opened.uri if opened is not None else None

    @property
    def place(self) -> str | None:
        """The URI, or the socket's path where there is none; None: it is not open."""
        with self._lock:
            return None if self._open is None else self._open.uri or self.socket

    @property
    def disks(self) -> Sequence[NamedStats]:
        """Driver side, for the statistics."""
        opened = self._open
        return opened.disks if opened is not None else ()

    @property
    def exports(self) -> Mapping[str, HasStats]:
        """The server by its socket as given, for the statistics."""
        opened = self._open
        return {self._door.path: opened.export} if opened is not None else {}

    def clients(self) -> int:
        """How many use it now."""
        opened = self._open
        return opened.clients() if opened is not None else 0

    def offer(self) -> None:
        """Opens it, where its driver has the device and it is not open yet. ExportError;
        NoDriver."""
        with self._lock:
            driver = self._framework.bus.devices.get(self._name)
            if self._open is None and driver == self._door.driver:
                self._open = self._door.open(self._framework, self._name, self._device)

    def withdraw(self, *, answering: bool) -> str | None:
        """Closes it, where it is open. As of :meth:`~vduse.daemon.doors.door.OpenDoor.close`."""
        with self._lock:
            opened, self._open = self._open, None
        return opened.close(answering=answering) if opened is not None else None
