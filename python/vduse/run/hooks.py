"""What goes along with a run: traces, checks and faults plug in here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from vduse.channel.tap import Tap
from vduse.framework import Framework
from vduse.framework.device import VduseDevice
from vduse.framework.vdpa_device import Provision, VdpaDevice


class Run(Protocol):
    """A run, as its companions see it. Methods may be called from any thread but the framework's
    service thread."""

    @property
    def framework(self) -> Framework:
        """Where the program's devices are."""

    @property
    def pid(self) -> int:
        """The program's process; of a new one after each start."""

    def kill(self) -> None:
        """SIGKILL to the program and whatever it has started, and waits until they are dead and
        their nodes closed. Another one is started at once, whatever --restart says. Nothing where
        the run ends already."""

    def wait_open(self, device: str, timeout: float) -> bool:
        """Waits until a program has the device's node open and all its virtqueues set up: after
        :meth:`kill`, the new one. False: not within ``timeout`` seconds, or the run ends."""

    def rebind(self, device: str, driver: str) -> None:
        """Binds a bus driver (the one that is there, too) in place of the one that there is; the
        device's doors close before and open after, where they are of that driver. DeviceNotFound;
        whatever the driver's probe raises; ExportError."""

    def end(self, reason: str) -> None:
        """Asks for the end of the run, in order; returns at once."""


@dataclass(frozen=True)
class Outcome:
    """What a companion has to say at the end."""

    #: check, fault, trace...
    name: str
    #: False: the command ends with exit code 1.
    ok: bool
    #: For people to read, a line each.
    lines: tuple[str, ...] = ()
    #: What ``--json`` prints: nothing but what JSON has.
    facts: Mapping[str, Any] = field(default_factory=dict)


class Companion:
    """One that goes along. Its calls come in this order: :meth:`attached` for each device, on a
    thread each; :meth:`stop`; :meth:`finish`. Override what is needed."""

    #: Sees everything that crosses the channels, from before the program's start; None: nothing.
    tap: Tap | None = None
    #: The bus driver that every device is bound to; None: whatever the run's user wants.
    driver: str | None = None
    #: What bus drivers call devices through (:meth:`Framework.dev_add`); None: as usual.
    vdpa_type: Callable[[VduseDevice, Provision], VdpaDevice] | None = None

    def attached(self, run: Run, device: str) -> None:
        """The device is on the bus with its driver, and its doors are open. May wait, drive and
        break things. What it raises is logged, and makes the command end with exit code 1."""

    def stop(self) -> None:
        """The run is about to end, devices and doors are there still: :meth:`attached` returns
        soon, or finds that its device has left."""

    def finish(self) -> Outcome | None:
        """Everything has ended, the program too. What was found; None: nothing to say."""
        return None
