"""The embedded framework's ways out of its process: one file each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from vduse.control.statistics import HasStats, NamedStats
from vduse.devices.blk import BlkDevice
from vduse.framework import Framework


class OpenDoor(Protocol):
    """The disk can be reached, until :meth:`close`."""

    @property
    def uri(self) -> str | None:
        """Where, in the words of its users; None: they go by the socket's path."""

    @property
    def disks(self) -> Sequence[NamedStats]:
        """Driver side, for the statistics."""

    @property
    def export(self) -> HasStats:
        """The server, for the statistics."""

    def clients(self) -> int:
        """How many use it now."""

    def close(self, *, answering: bool) -> str | None:
        """Finishes what its users asked for, and takes the socket away. ``answering``: the device
        still serves. Why that was not done in order; None: it was."""


class Door(Protocol):
    """A socket, and the bus driver that it needs."""

    @property
    def driver(self) -> str:
        """By its name on the bus."""

    @property
    def path(self) -> str:
        """Of the socket, as given."""

    def open(self, framework: Framework, device: BlkDevice) -> OpenDoor:
        """Shows the device, which the driver has. ExportError."""
