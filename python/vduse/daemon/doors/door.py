"""What a door is: one file each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from vduse.control.statistics import HasStats, NamedStats
from vduse.devices.blk import BlkDevice
from vduse.framework import Framework


class OpenDoor(Protocol):
    """The device can be reached, until :meth:`close`."""

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

    def open(self, framework: Framework, name: str, device: BlkDevice | None) -> OpenDoor:
        """Shows the device of that name, which the driver has. ``device``: itself, where it is
        in this process: what comes in by the door is served where it is. ExportError; NoDriver:
        it is no device for this door."""
