"""What `vduse run` costs qemu-storage-daemon, as tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

import qemu_run
from rich.box import SIMPLE
from rich.table import Table
from vhost_user_servers import qemu_version

Step = Callable[[str], None]
Figures = list[dict[str, object]]


def measure(quick: bool, step: Step) -> tuple[list[Table], Figures]:
    """The tables, and the figures of both."""
    rates = _table(
        f"{qemu_version()}: vduse-blk under vduse run --vhost-user, beside its own vhost-user-blk",
        ("kIOPS", "own", "share", "promised"),
        "4 KiB requests on null",
    )
    costs = _table(
        "A request of the same",
        ("ns", "run", "own", "calls", "run", "own", "answered"),
        "CPU and system calls: the daemon's, those of vduse run, and the daemon's with its own "
        "export; answered: further calls of the daemon, which vduse run answered",
    )
    rows = list(qemu_run.measure(0.05 if quick else 1.0, 1 if quick else 5, step))
    for row in rows:
        what = (row.op, str(row.depth))
        rates.add_row(
            *what,
            f"{row.iops / 1e3:,.1f}",
            f"{row.qemu_iops / 1e3:,.1f}",
            f"{row.share:.2f}",
            "" if row.target is None else f"{row.target:.2f}",
        )
        costs.add_row(
            *what,
            *(f"{ns:,.0f}" for ns in (row.daemon_cpu_ns, row.run_cpu_ns, row.qemu_cpu_ns)),
            *map(_calls, (row.daemon_syscalls, row.run_syscalls, row.qemu_syscalls)),
            f"{row.notifications:.3f}",
        )
    return [rates, costs], [asdict(row) for row in rows]


def _table(title: str, names: tuple[str, ...], caption: str) -> Table:
    table = Table(
        title=title,
        caption=caption,
        caption_justify="left",
        box=SIMPLE,
        collapse_padding=True,
        title_justify="left",
    )
    table.add_column("op", no_wrap=True)
    for name in ("depth", *names):
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _calls(calls: float | None) -> str:
    return "-" if calls is None else f"{calls:.2f}"
