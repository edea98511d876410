"""What goes along with a run, as the command line asks for it."""

from __future__ import annotations

from collections.abc import Callable

from vduse.check.companion import CheckCompanion
from vduse.daemon.errors import UserError
from vduse.daemon.run.commands import RunOptions
from vduse.daemon.trace.companion import TraceCompanion
from vduse.framework.device import VduseDevice
from vduse.framework.vdpa_device import Provision, VdpaDevice
from vduse.run.faults.companion import Faults
from vduse.run.faults.spec import FaultSpec
from vduse.run.hooks import Companion

DeviceType = Callable[[VduseDevice, Provision], VdpaDevice]


def make(options: RunOptions, say: Callable[[str], None]) -> tuple[Companion, ...]:
    """In the order in which they are told and asked. ``say``: a line for whoever waits.
    UserError."""
    made: list[Companion] = []
    if options.junit is not None and not options.check:
        raise UserError("--junit is for the report of --check: add --check")
    if options.check:
        made.append(CheckCompanion(say, options.junit))
    if options.fault:
        made.append(Faults([_fault(text) for text in options.fault]))
    if options.trace is not None or options.trace_json is not None:
        given = (options.trace, options.trace_json, options.profile, options.program)
        made.append(TraceCompanion(*given))
    if options.junit is not None:
        _begin(options.junit)
    return tuple(made)


def _begin(path: str) -> None:
    """Empties a report's file: half a minute later is too late to find that it cannot be written,
    and an earlier run's report is not this one's, should it not come to its end. UserError."""
    try:
        with open(path, "wb"):
            pass
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None


def _fault(text: str) -> FaultSpec:
    try:
        return FaultSpec.parse(text)
    except ValueError as error:
        raise UserError(f"--fault {text}: {error} (--fault help lists them)") from None


def device_type(companions: tuple[Companion, ...]) -> DeviceType:
    """What bus drivers call the devices through."""
    return next((it.vdpa_type for it in companions if it.vdpa_type is not None), VdpaDevice)


def needed_driver(companions: tuple[Companion, ...], options: RunOptions) -> str | None:
    """The bus driver that they need. UserError: somebody wants another one."""
    needed = sorted({it.driver for it in companions if it.driver is not None})
    if len(needed) > 1:
        raise UserError(f"two of the options need different drivers: {', '.join(needed)}")
    wanted = {"virtio_vdpa"} if options.nbd else set()
    wanted |= {"vhost_vdpa"} if options.vhost_user else set()
    wanted |= {options.driver} if options.driver is not None else set()
    if needed and (others := wanted - set(needed)):
        raise UserError(f"{needed[0]} is needed for what is asked for, not {min(others)}")
    return needed[0] if needed else None
