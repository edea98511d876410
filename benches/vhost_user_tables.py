"""All that is measured over vhost-user, as tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

import vhost_user
import vhost_user_copies
import vhost_user_idle
import vhost_user_python
from rich.box import SIMPLE
from rich.table import Table
from vhost_user_servers import qemu_version

Step = Callable[[str], None]
Figures = list[dict[str, object]]


def measure(quick: bool, step: Step) -> tuple[list[Table], dict[str, Figures]]:
    """The tables, and the figures by what they are of."""
    parts = {
        "compared": _compared(quick, step),
        "copies": _copies(quick, step),
        "python": _python(quick, step),
        "idle": _idle(quick, step),
    }
    return (
        [table for table, _ in parts.values()],
        {name: figures for name, (_, figures) in parts.items()},
    )


def _table(title: str, left: tuple[str, ...], right: tuple[str, ...], caption: str = "") -> Table:
    table = Table(
        title=title,
        caption=caption or None,
        caption_justify="left",
        box=SIMPLE,
        collapse_padding=True,
        title_justify="left",
    )
    for name in left:
        table.add_column(name, no_wrap=True)
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _compared(quick: bool, step: Step) -> tuple[Table, Figures]:
    table = _table(
        f"4 KiB requests over vhost-user, beside {qemu_version()}",
        ("disk", "op", "client"),
        (
            *("depth", "vqs", "kIOPS", "QEMU's", "ratio", "promised"),
            *("CPU ns", "QEMU's", "ratio", "promised", "calls", "QEMU's", "client ns", "QEMU's"),
        ),
        "CPU, calls: the server's, a request; promised: at least of the rate, at most of the CPU; "
        "calls -: not counted here (perf, tracepoints)",
    )
    rows = list(vhost_user.measure(0.05 if quick else 1.0, 1 if quick else 5, step))
    for row in rows:
        table.add_row(
            row.disk,
            row.op,
            row.client,
            str(row.depth),
            str(row.queues),
            f"{row.iops / 1e3:,.1f}",
            f"{row.qemu_iops / 1e3:,.1f}",
            f"{row.ratio:.2f}",
            _promise(row.target),
            f"{row.cpu_ns:,.0f}",
            f"{row.qemu_cpu_ns:,.0f}",
            f"{row.cpu_ratio:.2f}",
            _promise(row.cpu_target),
            _calls(row.syscalls),
            _calls(row.qemu_syscalls),
            f"{row.client_ns:,.0f}",
            f"{row.qemu_client_ns:,.0f}",
        )
    return table, [asdict(row) for row in rows]


def _promise(target: float | None) -> str:
    return "" if target is None else f"{target:.2f}"


def _calls(calls: float | None) -> str:
    return "-" if calls is None else f"{calls:.2f}"


def _copies(quick: bool, step: Step) -> tuple[Table, Figures]:
    table = _table(
        "128 KiB requests over vhost-user on memory, depth 32, beside one thread's memcpy",
        ("op",),
        ("MB/s", "memcpy MB/s", "share", "promised"),
    )
    rows = list(vhost_user_copies.measure(2_000 if quick else 40_000, 1 if quick else 5, step))
    for row in rows:
        table.add_row(
            row.op,
            f"{row.rate / 1e6:,.0f}",
            f"{row.copy_rate / 1e6:,.0f}",
            f"{row.share:.0%}",
            f"{row.target:.0%}",
        )
    return table, [asdict(row) for row in rows]


def _python(quick: bool, step: Step) -> tuple[Table, Figures]:
    table = _table(
        "Disks written in Python over vhost-user, 4 KiB requests, depth 32",
        ("disk", "op", "against"),
        ("kIOPS", "peer's", "share", "promised"),
    )
    rows = list(vhost_user_python.measure(0.05 if quick else 1.0, 1 if quick else 5, step))
    for row in rows:
        table.add_row(
            row.what,
            row.op,
            row.against,
            f"{row.iops / 1e3:,.1f}",
            f"{row.against_iops / 1e3:,.1f}",
            f"{row.share:.2f}",
            f"{row.target:.2f}",
        )
    return table, [asdict(row) for row in rows]


def _idle(quick: bool, step: Step) -> tuple[Table, Figures]:
    devices, busy, seconds = (32, 4, 0.5) if quick else (256, 16, 10.0)
    row = vhost_user_idle.measure(devices, busy, seconds, step)
    table = _table(
        f"{devices} devices in one process, a vhost-user socket and a front end each",
        ("figure",),
        ("value",),
    )
    for name, value in (
        ("PSS a device", f"{row.pss / 1024:,.1f} KiB"),
        ("fds a device", f"{row.fds:.1f}"),
        ("threads a device", f"{row.threads:.2f}"),
        ("start-up and connection a device", f"{row.start_up * 1e3:.1f} ms"),
        (f"CPU over {seconds:g} s, nothing asked yet (promised: 0 %)", f"{row.idle_cpu:.2%}"),
        (f"CPU over {seconds:g} s, after work (promised: 0 %)", f"{row.idle_after_work:.2%}"),
        ("one busy, depth 1", f"{row.alone_iops / 1e3:,.1f} kIOPS, {row.alone_cpu_ns:,.0f} ns CPU"),
        (
            f"{busy} busy, depth 1",
            f"{row.busy_iops / 1e3:,.1f} kIOPS, {row.busy_cpu_ns:,.0f} ns CPU",
        ),
    ):
        table.add_row(name, value)
    return table, [asdict(row)]


def _busy(iops: float, cpu_ns: float) -> str:
    return f"{iops / 1e3:,.1f} kIOPS, {cpu_ns:,.0f} ns CPU a request"
