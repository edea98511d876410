"""`vduse doctor`: what this host can do, and what is missing for the rest."""

from __future__ import annotations

from dataclasses import dataclass

from rich.text import Text

from vduse.daemon.doctor.check import Check
from vduse.daemon.doctor.devices import device_checks
from vduse.daemon.doctor.extras import EXTRAS
from vduse.daemon.doctor.host import Host
from vduse.daemon.doctor.kernel import bus_management, control_node, modules, record_folder
from vduse.daemon.doctor.needed import NEEDED
from vduse.daemon.doctor.run import supervision
from vduse.daemon.table import Context

_COLOURS = {"ok": "green", "limited": "yellow", "missing": "red"}


@dataclass(frozen=True)
class Diagnosis:
    """Every check, and what works here: the embedded framework; creating and serving devices of
    the kernel's VDUSE."""

    embedded_framework: bool
    kernel: bool
    checks: tuple[Check, ...]


def diagnose() -> Diagnosis:
    """Runs every check; nothing on the host is changed."""
    needed = [probe() for probe in NEEDED]
    works = all(check.state != "missing" for check in needed)
    host = Host()
    steps = [modules(host), control_node(host)]
    usable = all(check.state == "ok" for check in steps)
    kernel = (*steps, bus_management(host), record_folder(host), *device_checks(host))
    return Diagnosis(
        works, usable, (*needed, *(probe() for probe in EXTRAS), supervision(), *kernel)
    )


def show(diagnosis: Diagnosis, context: Context) -> None:
    """One line a check; the advice below those that need some."""
    for check in diagnosis.checks:
        line = Text.assemble(
            (f"{check.state:8}", _COLOURS[check.state]), f" {check.name:16} {check.detail}"
        )
        if check.how:
            line.append(f"\n{'':26}-> {check.how}", style="dim")
        context.out.print(line, soft_wrap=True)
    context.out.print()
    context.out.print(
        "The embedded framework works here."
        if diagnosis.embedded_framework
        else "The embedded framework does not work here: see what is missing above.",
        soft_wrap=True,
    )
    context.out.print(
        "The kernel's VDUSE can be used here."
        if diagnosis.kernel
        else "The kernel's VDUSE cannot be used here yet: see kernel modules and control node.",
        soft_wrap=True,
    )
