"""A frame as lines of text, with or without a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.text import Text

from vduse.control.units import format_size
from vduse.daemon.watch.spans import latency, span
from vduse.daemon.watch.top.rates import ExportRates, Frame

_COLUMNS = (
    "EXPORT",
    "NODE",
    "TYPE",
    "READ/s",
    "WRITE/s",
    "OTHER/s",
    "READ B/s",
    "WRITE B/s",
    "p50",
    "p99",
    "IN FLIGHT",
    "ERR/s",
    "BACKEND",
)
#: The first ones are names.
_LEFT = 3
#: A name's characters; longer ones are cut.
_LONGEST_NAME = 24


@dataclass(frozen=True)
class Line:
    """One row of the screen."""

    text: str
    is_trouble: bool = False


def lines(frame: Frame) -> Iterator[Line]:
    """The head, a table of the exports, busy ones first, and what is wrong with them."""
    yield Line(
        f"vduse {frame.version}, pid {frame.pid}, up {span(frame.uptime)}: "
        f"{frame.cpu:.0%} of a CPU, {frame.polling:.0%} of it polling in vain, "
        f"{format_size(frame.resident_bytes)}, {frame.open_fds} files, {frame.threads} threads"
        if frame.polling >= 0.005
        else f"vduse {frame.version}, pid {frame.pid}, up {span(frame.uptime)}: "
        f"{frame.cpu:.0%} of a CPU, {format_size(frame.resident_bytes)}, "
        f"{frame.open_fds} files, {frame.threads} threads"
    )
    yield Line("")
    exports = sorted(frame.exports, key=_busyness)
    rows = [_COLUMNS, *(_row(each) for each in exports)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(_COLUMNS))]
    for row, of in zip(rows, (None, *exports), strict=True):
        yield Line(_joined(row, widths), of is not None and _is_troubled(of))
    if not exports:
        yield Line("no exports")
    for each in exports:
        if each.broken:
            yield Line(f"{each.id}: serves nothing: {each.broken}", True)
        if each.backend == "lost":
            yield Line(f"{each.id}: connection of {each.node_name} lost: {each.why}", True)


def styled(frame: Frame) -> Text:
    """For a terminal: what does not fit is cut, never wrapped."""
    text = Text(no_wrap=True, overflow="ellipsis")
    for at, line in enumerate(lines(frame)):
        style = "bold red" if line.is_trouble else "bold" if at == 2 else ""
        text.append(line.text + "\n", style)
    return text


def _busyness(export: ExportRates) -> tuple[bool, float, str]:
    rate = export.reads + export.writes + export.others
    return not _is_troubled(export), -rate, export.id


def _is_troubled(export: ExportRates) -> bool:
    return bool(export.broken) or export.backend == "lost"


def _row(export: ExportRates) -> tuple[str, ...]:
    has_ended = export.p99_ns > 0
    return (
        _name(export.id),
        _name(export.node_name),
        export.type,
        _rate(export.reads),
        _rate(export.writes),
        _rate(export.others),
        _bytes(export.bytes_read),
        _bytes(export.bytes_written),
        latency(export.p50_ns) if has_ended else "-",
        latency(export.p99_ns) if has_ended else "-",
        str(export.in_flight),
        _rate(export.errors),
        "broken" if export.broken else export.backend,
    )


def _joined(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [
        cell.ljust(width) if at < _LEFT or at == len(row) - 1 else cell.rjust(width)
        for at, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "  ".join(cells).rstrip()


def _name(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or value == 0 else f"{value:.1f}"


def _bytes(value: float) -> str:
    return format_size(int(value))
