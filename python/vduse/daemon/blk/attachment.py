"""The ways from a device to those who use its disk: one object each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from vduse.channel.base import ControlPort
from vduse.control.statistics import Statistics
from vduse.devices.blk import BlkDevice


@dataclass(frozen=True)
class Reach:
    """Where the disk is. None: not there this way."""

    #: The bus driver that has the device.
    driver: str
    #: /dev/vdX or /dev/vhost-vdpa-N.
    node: str | None = None
    #: NBD's or vhost-user's.
    socket: str | None = None
    #: NBD's.
    uri: str | None = None


class Attachment(Protocol):
    """One way. In this order: the device is started on :attr:`control`, :meth:`attach`,
    :meth:`detach`, the device is closed, :meth:`close`; the last one follows whatever fails."""

    @property
    def control(self) -> ControlPort:
        """Where the device is created."""

    def attach(self, device: BlkDevice) -> Reach:
        """Puts the device, which is started, on the bus, as far as its users. UserError."""

    def users(self) -> tuple[str, ...]:
        """Who has to let go of the disk before :meth:`detach`, for people to read."""

    def left(self) -> str:
        """What stays behind if the process ends now, and what removes it; empty: nothing."""

    def statistics(self, device: BlkDevice) -> Statistics:
        """All there is."""

    def detach(self, *, answering: bool) -> str | None:
        """Undoes :meth:`attach`, whatever there is of it. ``answering``: the device still serves.
        Why that was not done in order; None: it was."""

    def close(self) -> str | None:
        """Ends the control port, and what was created on it. What is left, and why."""
