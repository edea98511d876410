"""A comparison of recordings, for people."""

from __future__ import annotations

from collections.abc import Iterator

from vduse.channel.recorder import printable
from vduse.daemon.table import Context
from vduse.daemon.trace.compare import Comparison, Parting, Step


def show(comparison: Comparison, context: Context) -> None:
    """On stdout; notes on stderr."""
    for line in lines(comparison):
        context.out.print(printable(line), markup=False, soft_wrap=True)
    for note in comparison.notes:
        context.err.print(printable(f"vduse: {note}"), markup=False, soft_wrap=True)


def lines(comparison: Comparison) -> Iterator[str]:
    """What is the same, or where they part."""
    if comparison.equal:
        yield (
            f"equal: {comparison.same} calls and messages of the control path, "
            f"{comparison.same_kinds} kinds of calls of the data path, "
            f"devices: {', '.join(comparison.devices) or 'none'}"
        )
        return
    yield f"- {comparison.ours}"
    yield f"+ {comparison.theirs}"
    for parting in comparison.partings:
        yield from _parting(parting)
    for only in comparison.data_path:
        sign = "-" if only.where == "ours" else "+"
        yield f"{sign} data path  {only.device}  {only.call}, {only.count} times; not in the other"


def _parting(parting: Parting) -> Iterator[str]:
    what = "messages" if parting.lane == "framework" else "calls and answers"
    yield f"{parting.device or 'control'}, {parting.lane}: {parting.same} {what} are the same, then"
    for step in parting.before:
        yield _line(" ", step)
    for sign, steps in (("-", parting.ours), ("+", parting.theirs)):
        for step in steps:
            yield _line(sign, step)
        if not steps:
            yield f"{sign} nothing more"


def _line(sign: str, step: Step) -> str:
    return f"{sign} line {step.line:<6} {step.time:10.6f}  {step.text}"
