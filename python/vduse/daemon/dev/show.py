"""What `vduse dev` finds and does, for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from vduse.control.units import format_size
from vduse.daemon.dev.face import Changed, Details, Device, Listing
from vduse.daemon.dev.run import Shown
from vduse.daemon.table import Context

_SECTOR = 512


def show(facts: Listing | Shown | Changed, context: Context) -> None:
    """On stdout; what has gone wrong beside, on stderr."""
    match facts:
        case Listing():
            _show_listing(facts, context.out)
        case Shown():
            for details in facts.devices:
                _show_details(details, context.out)
            if not facts.devices:
                _print(context.out, "no devices")
        case Changed():
            _print(context.out, _changed(facts))
            for note in facts.notes:
                _print(context.err, f"vduse: {note}")


def _show_listing(listing: Listing, out: Console) -> None:
    if listing.devices:
        head = ("NAME", "TYPE", "DRIVER", "NODE", "QUEUES", "ADDED TO")
        _table([head, *map(_row, listing.devices)], out)
    else:
        _print(out, "no devices; one is served by: vduse blk IMAGE")
    _print(out, "")
    for management in listing.management:
        _print(out, f"management device {management.name}: {', '.join(management.types)}")


def _row(device: Device) -> tuple[str, ...]:
    queues = f"{device.max_vqs} of {device.max_vq_size}" if device.max_vqs else None
    node = device.node if device.on_bus else "not on the bus"
    cells = (device.name, device.type, device.driver, node, queues, device.management)
    return tuple(cell or "-" for cell in cells)


def _table(rows: Sequence[tuple[str, ...]], out: Console) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (f"{cell:{width}}" for cell, width in zip(row, widths, strict=True))
        _print(out, "  ".join(cells).rstrip())


def _show_details(details: Details, out: Console) -> None:
    device = details.device
    _print(out, f"{device.name}: {_place(device)}")
    if device.on_bus:
        queues = f"{device.max_vqs} virtqueues of {device.max_vq_size}"
        _print(out, f"  {device.type}, {queues}, added to {device.management}")
    _print(out, f"  served by {details.program or 'no program that is to be seen from here'}")
    if details.features is not None:
        _print(out, f"  features: {' '.join(details.features)}")
    if unused := [name for name in details.offered if name not in (details.features or ())]:
        _print(out, f"  offered, not taken: {' '.join(unused)}")
    for name, value in details.config.items():
        is_capacity = name == "blk_cfg_capacity"
        size = f" sectors ({format_size(int(value) * _SECTOR)})" if is_capacity else ""
        _print(out, f"  {name}: {value}{size}")
    for queue, counters in enumerate(details.statistics):
        counted = ", ".join(f"{name} {value}" for name, value in counters.items())
        _print(out, f"  virtqueue {queue}: {counted}")
    if details.no_statistics:
        _print(out, f"  statistics: {details.no_statistics}")


def _changed(facts: Changed) -> str:
    match facts.event:
        case "deleted" if facts.device.on_bus:  # added again meanwhile
            return f"{facts.device.name}: deleted; {_place(facts.device)}"
        case "deleted":
            return f"{facts.device.name}: off the bus"
    return f"{facts.device.name}: {_place(facts.device)}"


def _place(device: Device) -> str:
    if not device.on_bus:
        return "not on the bus"
    if device.driver is None:
        return "on the bus, without a driver"
    return f"{device.driver}, {device.node or 'no node'}"


def _print(out: Console, line: str) -> None:
    out.print(line, markup=False, soft_wrap=True)
