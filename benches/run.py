"""The benchmarks: a table for people, JSON for machines.

make bench ARGS="--json figures.json"
make bench ARGS="copies idle"
make bench ARGS="nbd python" # with fio, nbdkit and qemu-nbd: make system-deps
make bench ARGS="vhost-user" # beside qemu-storage-daemon
make bench ARGS="run" # what `vduse run` costs qemu-storage-daemon
make bench ARGS="storage-daemon" # beside qemu-storage-daemon; storage-daemon/qcow2: one driver
make bench ARGS="churn" # what exports that come and go do to others of the storage daemon
make bench ARGS="kernel" # in the test bed, beside qemu-storage-daemon: six minutes
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

from rich.box import MARKDOWN, SIMPLE
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent))

import churn
import copies
import idle
import kernel
import nbd
import per_request
import python_backends
import qemu_run_tables
import storage_daemon_tables
import throttle
import vhost_user_tables
from storage_nodes import NODES

Step = Callable[[str], None]
Figures = list[dict[str, object]]

#: Columns of a table to paste: no row is broken.
_WIDE = 1000


def _requests(quick: bool, step: Step) -> tuple[Table, Figures]:
    table = Table(
        title="4 KiB random reads, null device, a request",
        box=SIMPLE,
        collapse_padding=True,
        title_justify="left",
    )
    for name in ("driver", "memory", "ring"):
        table.add_column(name, no_wrap=True, min_width=6)
    for name in ("depth", "kIOPS", "ns", "CPU ns", "driver's", "p99 us"):
        table.add_column(name, justify="right", no_wrap=True, min_width=len(name))
    rows = list(per_request.measure(0.1 if quick else 1.0, 1 if quick else 3, step))
    for row in rows:
        table.add_row(
            row.driver,
            row.memory,
            row.ring,
            str(row.depth),
            f"{row.iops / 1e3:,.0f}",
            f"{row.ns:,.0f}",
            f"{row.cpu_ns:,.0f}",
            f"{row.driver_cpu_ns:,.0f}",
            f"{row.p99_ns / 1e3:,.0f}",
        )
    return table, [asdict(row) for row in rows]


def _copies(quick: bool, step: Step) -> tuple[Table, Figures]:
    table = Table(
        title=f"1 MiB through bounce pages, null device (promised: {copies.TARGET:.0%})",
        box=SIMPLE,
        title_justify="left",
    )
    for name in ("op", "depth", "MB/s", "copying thread MB/s", "share", "share of CPU"):
        table.add_column(name, justify="right")
    rows = list(copies.measure(200 if quick else 2000, 5, step))
    for row in rows:
        table.add_row(
            row.op,
            str(row.depth),
            f"{row.rate / 1e6:,.0f}",
            f"{row.copy_rate / 1e6:,.0f}",
            f"{row.share:.0%}",
            f"{row.cpu_share:.0%}",
        )
    return table, [asdict(row) for row in rows]


def _idle(quick: bool, step: Step) -> tuple[Table, Figures]:
    devices, seconds = (100, 1.0) if quick else (1000, 10.0)
    step(f"{devices} idle devices")
    row = idle.measure(devices, seconds)
    table = Table(title=f"{devices:,} idle devices", box=SIMPLE, title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_row("RSS a device", f"{row.rss / 1024:,.1f} KiB")
    table.add_row("PSS a device", f"{row.pss / 1024:,.1f} KiB")
    table.add_row("start-up a device", f"{row.start_up * 1e3:.2f} ms")
    table.add_row("fds a device", f"{row.fds:.1f}")
    table.add_row("threads", str(row.threads))
    table.add_row(f"CPU over {seconds:.0f} s", f"{row.cpu:.2%}")
    return table, [asdict(row)]


def _churn(quick: bool, step: Step) -> tuple[Table, Figures]:
    table = Table(
        title=f"{churn.LOADS} exports under load, while {churn.EXPORTS} others come and go",
        caption=f"ms; a disk takes {churn.LATENCY_NS / 1e6:g} ms for a request; the worst of all",
        caption_justify="left",
        box=SIMPLE,
        title_justify="left",
    )
    for name in ("round", "requests", "p50", "p99", "p99.9", "longest", "with churn"):
        table.add_column(name, justify="right")
    rows = list(churn.measure(40 if quick else churn.EXPORTS, 1 if quick else 5, step))
    for row in rows:
        table.add_row(
            str(row.round),
            f"{row.requests:,}",
            *(f"{ns / 1e6:,.2f}" for ns in (row.p50_ns, row.p99_ns, row.p999_ns, row.longest_ns)),
            "yes" if row.has_churn else "no",
        )
    return table, [asdict(row) for row in rows]


def _nbd(quick: bool, step: Step) -> tuple[Table, Figures]:
    table = Table(
        title="4 KiB requests over NBD, one connection of fio's",
        box=SIMPLE,
        collapse_padding=True,
        title_justify="left",
    )
    for name in ("server", "op"):
        table.add_column(name, no_wrap=True)
    for name in ("depth", "kIOPS", "of fastest peer", "user ns", "system ns", "fio's ns"):
        table.add_column(name, justify="right")
    rows = list(nbd.measure(0.05 if quick else 1.0, 1 if quick else 5, step))
    for row in rows:
        table.add_row(
            row.server,
            row.op,
            str(row.depth),
            f"{row.iops / 1e3:,.1f}",
            f"{row.share:.2f}",
            f"{row.user_ns:,.0f}",
            f"{row.system_ns:,.0f}",
            f"{row.client_ns:,.0f}",
        )
    return table, [asdict(row) for row in rows]


def _throttle(quick: bool, step: Step) -> tuple[Table, Figures]:
    seconds = 2.0 if quick else 10.0
    table = Table(
        title=f"Throttle, over {seconds:.0f} s (promised: {throttle.TARGET:.0%} over 10 s)",
        box=SIMPLE,
        title_justify="left",
    )
    for name in ("limit", "wanted", "bytes", "depth", "came out", "off", "CPU"):
        table.add_column(name, justify="right")
    rows = list(throttle.measure(seconds, step))
    for row in rows:
        table.add_row(
            row.unit,
            f"{row.wanted:,.0f}",
            f"{row.block_size:,}",
            str(row.depth),
            f"{row.rate:,.0f}",
            f"{row.error:+.1%}",
            f"{row.cpu:.0%}",
        )
    return table, [asdict(row) | {"error": row.error} for row in rows]


def _python(quick: bool, step: Step) -> tuple[Table, Figures]:
    table = Table(
        title="Disks written in Python, 4 KiB requests, depth 32",
        box=SIMPLE,
        collapse_padding=True,
        title_justify="left",
    )
    for name in ("disk", "op"):
        table.add_column(name, no_wrap=True)
    table.add_column("kIOPS", justify="right", min_width=5)
    table.add_column("against", no_wrap=True)
    for name in ("kIOPS", "share", "promised"):
        table.add_column(name, justify="right", min_width=len(name))
    rows = list(python_backends.measure(0.05 if quick else 1.0, 1 if quick else 5, step))
    for row in rows:
        table.add_row(
            row.what,
            row.op,
            f"{row.iops / 1e3:,.1f}",
            row.against,
            f"{row.against_iops / 1e3:,.1f}",
            f"{row.share:.2f}",
            f"{row.target:.2f}",
        )
    return table, [asdict(row) for row in rows]


def _kernel(quick: bool, step: Step) -> tuple[Table, Figures]:
    table = Table(
        title=f"Linux {kernel.KERNEL}'s VDUSE, emulated: 4 KiB random reads beside QEMU's daemon",
        box=SIMPLE,
        caption="us, calls, irqs: the daemon's CPU, system calls and injected irqs a request",
        caption_justify="left",
        collapse_padding=True,
        title_justify="left",
    )
    names = ("node", "vqs", "depth", "IOPS", "ratio", "us", "ratio")
    for name in (*names, "calls", "QEMU's", "irqs", "QEMU's"):
        table.add_column(name, justify="right", no_wrap=True, min_width=len(name))
    rows = list(kernel.measure(0.2 if quick else 1.5, 1 if quick else 5, step))
    for row in rows:
        table.add_row(
            row.backend,
            str(row.queues),
            str(row.depth),
            f"{row.iops:,.0f}",
            f"{row.share:.2f}",
            f"{row.cpu_ns / 1e3:,.0f}",
            f"{row.cpu_share:.2f}",
            f"{row.syscalls:.2f}",
            f"{row.qemu_syscalls:.2f}",
            f"{row.irqs:.2f}",
            f"{row.qemu_irqs:.2f}",
        )
    return table, [asdict(row) for row in rows]


FIGURES: dict[str, Callable[[bool, Step], tuple[Table | list[Table], object]]] = {
    "requests": _requests,
    "copies": _copies,
    "idle": _idle,
    "nbd": _nbd,
    "throttle": _throttle,
    "churn": _churn,
    "python": _python,
    "kernel": _kernel,
    "vhost-user": vhost_user_tables.measure,
    "run": qemu_run_tables.measure,
    "storage-daemon": partial(storage_daemon_tables.measure, NODES),
}
#: Of one driver each.
PARTS = {
    f"storage-daemon/{driver}": partial(storage_daemon_tables.measure, [driver]) for driver in NODES
}


def machine() -> dict[str, object]:
    """What the figures were taken on."""
    model = "unknown"
    with open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    return {
        "cpu": model,
        "cpus": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
    }


def main() -> None:
    """Runs what was asked for."""
    known = FIGURES | PARTS
    parser = argparse.ArgumentParser(description=__doc__, usage="run.py [options] [FIGURE...]")
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help=", ".join(known))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--markdown", action="store_true", help="tables to paste into a page")
    parser.add_argument("--quick", action="store_true", help="seconds, and rough")
    args = parser.parse_args()
    if unknown := set(args.figures) - set(known):
        parser.error(f"unknown figures: {', '.join(sorted(unknown))}")
    console = Console(width=_WIDE) if args.markdown else Console()
    found: dict[str, object] = {"machine": machine()}
    for name in args.figures or FIGURES:
        with console.status(name) as status:
            tables, found[name] = known[name](args.quick, status.update)
        for table in tables if isinstance(tables, list) else [tables]:
            if args.markdown:
                table.box = MARKDOWN
            console.print(table)
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")
        console.print(f"written to {args.json}")


if __name__ == "__main__":
    main()
