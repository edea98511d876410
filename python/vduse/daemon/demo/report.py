"""The demo's facts, and how a person sees them."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape

from vduse.control.units import format_size
from vduse.daemon.table import Context


@dataclass(frozen=True)
class Checked:
    """Contents that went through the disk and came back equal."""

    what: str
    #: Bytes of the file system or image, number of files in it, and their bytes.
    size: int
    files: int
    bytes: int
    #: How equality was shown.
    checked: str


@dataclass(frozen=True)
class Load:
    """One load of the generator."""

    op: str
    block_size: int
    depth: int
    requests: int
    seconds: float
    iops: float
    #: Megabytes (10^6) a second.
    mb_per_second: float


@dataclass(frozen=True)
class Bounce:
    """Bounce pages of a device, bytes."""

    peak: int
    in_use: int
    #: Given back by the reclaim at the end.
    reclaimed: int
    allocated_after: int


@dataclass(frozen=True)
class DeviceFacts:
    """What moved through one device."""

    name: str
    image: str
    size: int
    read_only: bool
    ring: str
    queues: int
    queue_size: int
    #: What serves the image: io_uring or threads.
    engine: str
    #: Control path: messages to the device and calls of the device, by name.
    messages: dict[str, int]
    calls: dict[str, int]
    #: Data path.
    requests: int
    bytes_read: int
    bytes_written: int
    kicks: int
    irqs: int
    bounce: Bounce


@dataclass(frozen=True)
class Report:
    """Everything that the demo found."""

    checked: tuple[Checked, ...]
    #: What was left out, and why.
    left_out: tuple[str, ...]
    loads: tuple[Load, ...]
    devices: tuple[DeviceFacts, ...]
    kept: tuple[str, ...]
    seconds: float


def show(report: Report, context: Context) -> None:
    """Prints the report."""
    out = context.out
    for done in report.checked:
        files = f"{done.files} files, " if done.files else ""
        out.print(
            f"[green]ok[/]  {escape(done.what)}, {format_size(done.size)}: {files}"
            f"{format_size(done.bytes)}; {done.checked}",
            soft_wrap=True,
        )
    for reason in report.left_out:
        out.print(f"[yellow]--[/]  {reason}", soft_wrap=True)
    for device in report.devices:
        _show_device(device, out)
    if report.loads:
        out.print("\n[bold]load[/]")
    for load in report.loads:
        out.print(
            f"  {load.op:10} {format_size(load.block_size):>8} x {load.depth:<4} "
            f"{load.iops:>12,.0f} IOPS {load.mb_per_second:>10,.1f} MB/s",
            soft_wrap=True,
        )
    if report.kept:
        out.print()
    for path in report.kept:
        out.print(f"kept: {path}", soft_wrap=True, markup=False)
    out.print(f"\n{report.seconds:.1f} s")


def _show_device(device: DeviceFacts, out: Console) -> None:
    access = ", read-only" if device.read_only else ""
    out.print(
        f"\n[bold]device {device.name}[/]: {format_size(device.size)}{access}, {device.queues} x "
        f"{device.queue_size} {device.ring}, {device.engine}",
        soft_wrap=True,
    )
    bounce = device.bounce
    rows = {
        "messages": _counts(device.messages),
        "calls": _counts(device.calls),
        "requests": f"{device.requests:,}: {format_size(device.bytes_read)} read, "
        f"{format_size(device.bytes_written)} written",
        "kicks, irqs": f"{device.kicks:,}, {device.irqs:,}",
        "bounce pages": f"peak {format_size(bounce.peak)}, in use {format_size(bounce.in_use)}, "
        f"reclaimed {format_size(bounce.reclaimed)}, left {format_size(bounce.allocated_after)}",
    }
    for name, text in rows.items():
        out.print(f"  {name:14}{text}", soft_wrap=True)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "none"
