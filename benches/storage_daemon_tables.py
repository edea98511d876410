"""What is measured of the storage daemons, as a table."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import asdict

import storage_daemon
from rich.box import SIMPLE
from rich.table import Table
from vhost_user_servers import qemu_version

Step = Callable[[str], None]
Figures = list[dict[str, object]]


def measure(drivers: Collection[str], quick: bool, step: Step) -> tuple[Table, Figures]:
    """The table of these drivers' nodes, and its figures."""
    table = Table(
        title=f"Storage daemon: 4 KiB random requests at depth 32, beside {qemu_version()}",
        caption=f"us: the daemon's CPU, a request; promised: {_promises()}",
        caption_justify="left",
        box=SIMPLE,
        collapse_padding=True,
        title_justify="left",
    )
    for name in ("node", "export", "op"):
        table.add_column(name, no_wrap=True)
    for name in ("kIOPS", "QEMU's", "ratio", "us", "QEMU's", "ratio"):
        table.add_column(name, justify="right", no_wrap=True, min_width=len(name))
    rows = [
        row
        for driver in drivers
        for row in storage_daemon.measure(driver, 0.1 if quick else 1.0, 1 if quick else 5, step)
    ]
    for row in rows:
        table.add_row(
            f"{row.driver} {row.data}",
            row.export.removesuffix("-blk"),
            row.op.removeprefix("rand"),
            f"{row.iops / 1e3:,.1f}",
            f"{row.qemu_iops / 1e3:,.1f}",
            f"{row.ratio:.2f}",
            f"{row.cpu_ns / 1e3:,.1f}",
            f"{row.qemu_cpu_ns / 1e3:,.1f}",
            f"{row.cpu_ratio:.2f}",
        )
    return table, [asdict(row) for row in rows]


def _promises() -> str:
    return ", ".join(
        f"{driver} {target.iops:.2f} of the rate"
        + ("" if target.cpu is None else f" for {target.cpu:.2f} of the CPU")
        for driver, target in storage_daemon.TARGETS.items()
    )
