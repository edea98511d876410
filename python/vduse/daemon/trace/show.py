"""`vduse trace show`: a recording as a sequence."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

from rich.console import Console

from vduse.channel.recorder import heading, printable
from vduse.channel.recording import Header
from vduse.channel.tap import Messaged, Record, Responded
from vduse.daemon.table import Context
from vduse.daemon.trace.commands import ShowOptions
from vduse.daemon.trace.path import Calls, Kind, Path, lane_of
from vduse.daemon.trace.source import opened

#: Characters of the framework's lane.
_LANE = 40


@dataclass(frozen=True)
class About:
    """What was recorded; first."""

    event: str
    #: The rest in a line.
    title: str
    file: str
    #: Of the vduse that wrote it.
    version: str
    started: str
    #: embedded, or kernel.
    framework: str
    #: The profile, or the release.
    kernel: str
    #: framework, or device.
    seen_by: str
    extensions: tuple[str, ...]
    program: tuple[str, ...]


@dataclass(frozen=True)
class Step:
    """A call or a message of the control path (``step``)."""

    event: str
    #: Of the file, from 1.
    line: int
    #: Seconds since the start.
    time: float
    #: Who did it: framework, or program.
    lane: str
    #: Empty: on a control node.
    device: str
    text: str


@dataclass(frozen=True)
class Row:
    """Calls of the data path with one result (``data path``)."""

    event: str
    device: str
    call: str
    #: 0, or an errno's name.
    result: str
    count: int
    #: Seconds since the start; None: they were counted, and not seen one by one.
    first: float | None
    last: float | None


@dataclass(frozen=True)
class Finish:
    """There is no more (``end``)."""

    event: str
    #: Of the control path.
    steps: int
    #: Calls and messages that the recording lacks.
    lost: int
    #: Where it has no end: why.
    cut: str | None


Facts = About | Step | Row | Finish


def show_recording(options: ShowOptions) -> Generator[Facts]:
    """About, the steps, the data path's rows, Finish. UserError: no recording, or damaged."""
    with opened(options.file) as reader:
        yield _about(reader.name, reader.header)
        path = Path(reader)
        steps = 0
        for line, record in path:
            steps += 1
            yield _step(line, record)
        for kind in sorted(path.data):
            yield _row(kind, path.data[kind])
        yield Finish("end", steps, path.lost, reader.cut)


def _about(file: str, header: Header) -> About:
    return About(
        event="recording",
        title=heading(header),
        file=file,
        version=header.version,
        started=header.started,
        framework=header.framework,
        kernel=header.kernel,
        seen_by=header.seen_by,
        extensions=header.extensions,
        program=header.program,
    )


def _step(line: int, record: Record) -> Step:
    device = record.device
    text = record.line()
    if isinstance(record, Messaged | Responded):  # the lane says what an arrow would
        text = f"{device} {record.what()}"
    return Step("step", line, record.time, lane_of(record), device, text)


def _row(kind: Kind, calls: Calls) -> Row:
    call, _, result = kind.text().partition(" = ")
    return Row("data path", kind.device, call, result, calls.count, calls.first, calls.last)


def show(facts: Facts, context: Context) -> None:
    """For people: two lanes, then the data path."""
    match facts:
        case About():
            _print(context.out, facts.title)
            _print(context.out, f"{'seconds':>10}  {'framework':{_LANE}}     program")
        case Step():
            _print(context.out, _lanes(facts))
        case Row():
            _print(context.out, f"data path  {row_text(facts)}")
        case Finish():
            for note in notes(facts.cut, facts.lost):
                _print(context.err, f"vduse: {note}")


def notes(cut: str | None, lost: int) -> list[str]:
    """What is not as it should be with a recording."""
    found = [] if cut is None else [f"the recording is {cut}"]
    if lost:
        found.append(f"{lost} calls and messages are missing: the file did not keep up")
    return found


def row_text(row: Row) -> str:
    """A row, its device in front."""
    times = "once" if row.count == 1 else f"{row.count} times"
    when = "" if row.first is None else f", from {row.first:.6f} to {row.last:.6f} s"
    return f"{row.device}  {row.call} = {row.result}  {times}{when}"


def _lanes(step: Step) -> str:
    left, arrow, right = (
        (step.text, "-->", "") if step.lane == "framework" else ("", "<--", step.text)
    )
    return f"{step.time:10.6f}  {left:{_LANE}} {arrow} {right}".rstrip()


def _print(out: Console, line: str) -> None:
    out.print(printable(line), markup=False, soft_wrap=True)
