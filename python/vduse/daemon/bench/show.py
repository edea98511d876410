"""`vduse bench`, as a person sees it."""

from __future__ import annotations

from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from vduse.control.units import format_size
from vduse.daemon.bench.facts import Facts, Figures, Load
from vduse.daemon.table import Context

#: Messages of errors that are shown; JSON has more.
_SHOWN = 5


def show(facts: Facts, context: Context) -> None:
    """What was loaded, how, and a row a round."""
    out = context.out
    out.print(escape(_disk(facts)), soft_wrap=True)
    out.print(escape(_load(facts.load)), soft_wrap=True)
    if facts.rounds:
        out.print(_table(facts))
    for message in facts.messages[:_SHOWN]:
        out.print(escape(f"error: {message}"), soft_wrap=True)
    if facts.errors > _SHOWN:
        out.print(f"{facts.errors:,} errors in all")
    if facts.ended is not None:
        out.print(escape(f"ended early: {facts.ended}"), soft_wrap=True)


def _disk(facts: Facts) -> str:
    disk = facts.disk
    words = [format_size(disk.size), _number(disk.queues, "virtqueue")]
    if disk.read_only:
        words.append("read-only")
    if facts.server is not None:
        words.append(f"served by {facts.server.program} (pid {facts.server.pid})")
    return f"{facts.socket}: {', '.join(words)}"


def _load(load: Load) -> str:
    op = f"mixed ({load.reads} % reads)" if load.op == "mixed" else load.op
    ring = "packed" if load.packed else "split"
    words = [
        f"{op}, {format_size(load.block_size)}, {load.depth} in flight",
        f"{_number(load.queues, f'{ring} virtqueue')} of {load.queue_size}",
        "the client polls" if load.poll else "the client sleeps",
    ]
    if load.verify:
        words.append("verified")
    text = f"{', '.join(words)}, on the first {format_size(load.span)}"
    if load.in_flight < load.depth:
        text += (
            f"\nnote: the virtqueues have room for {load.in_flight} requests; "
            "--queue-size makes it more"
        )
    return text


def _number(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _table(facts: Facts) -> Table:
    table = Table(box=SIMPLE, collapse_padding=True, pad_edge=False)
    table.add_column("round")
    for name in ("IOPS", "MB/s", "p50\nus", "p99\nus", "p99.9\nus", "max\nus"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("client\nns", "server\nns"):
        table.add_column(name, justify="right", no_wrap=True)
    for number, each in enumerate(facts.rounds, 1):
        table.add_row(str(number), *_row(each.figures))
    if facts.median is not None and len(facts.rounds) > 1:
        table.add_section()
        table.add_row("median", *_row(facts.median))
    table.caption = "ns: CPU a request"
    table.caption_justify = "left"
    return table


def _row(figures: Figures) -> list[str]:
    server = "-" if figures.server_cpu_ns is None else f"{figures.server_cpu_ns:,.0f}"
    return [
        f"{figures.iops:,.0f}",
        f"{figures.bytes_per_second / 1e6:,.0f}",
        *(_us(figures.latency_ns[name]) for name in ("p50", "p99", "p99.9", "max")),
        f"{figures.client_cpu_ns:,.0f}",
        server,
    ]


def _us(ns: int) -> str:
    us = ns / 1e3
    return f"{us:.1f}" if us < 100 else f"{us:,.0f}"
