"""The rows of `vduse trace` in the command table. Handlers import what they run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vduse.daemon.table import Command, Context, Group, required

if TYPE_CHECKING:
    from collections.abc import Generator

    from vduse.daemon.trace.compare import Comparison
    from vduse.daemon.trace.show import Facts


@dataclass(frozen=True)
class ShowOptions:
    """Options of ``vduse trace show``."""

    file: str = required("a recording, of --trace-json", metavar="FILE")


@dataclass(frozen=True)
class CompareOptions:
    """Options of ``vduse trace compare``."""

    file: str = required("a recording, of --trace-json", metavar="FILE")
    other: str = required("the one to compare it with", metavar="OTHER")


def _show(options: ShowOptions, _context: Context) -> Generator[Facts]:
    from vduse.daemon.trace.show import show_recording

    return show_recording(options)


def _print_show(facts: Facts, context: Context) -> None:
    from vduse.daemon.trace.show import show

    show(facts, context)


def _compare(options: CompareOptions, _context: Context) -> Comparison:
    from vduse.daemon.trace.compare import compare_files

    return compare_files(options)


def _print_compare(comparison: Comparison, context: Context) -> None:
    from vduse.daemon.trace.differences import show

    show(comparison, context)


TRACE = Group(
    name="trace",
    help="Recordings of calls and messages: show one, compare two",
    description=(
        "Recordings of what crosses between the programs that serve devices and the framework,\n"
        "ours or the kernel's: of vduse run, vduse blk and vduse storage-daemon with\n"
        "--trace-json FILE."
    ),
    commands=(
        Command(
            name="trace show",
            help="A recording as a sequence",
            description=(
                "The control path in two lanes, what the framework says and what the program\n"
                "does, with seconds since the start; then the data path's calls, counted by\n"
                "result. A recording that was cut is shown up to there."
            ),
            examples=(
                ("vduse trace show disk.trace", "for people"),
                ("vduse trace show disk.trace --json", "a line of JSON for each step"),
            ),
            options=ShowOptions,
            run=_show,
            show=_print_show,
        ),
        Command(
            name="trace compare",
            help="Whether two recordings are the same, and where they part",
            description=(
                "Compares each device's control path call by call and message by message, ids,\n"
                "times, fd numbers and addresses aside, and the data path as the set of its\n"
                "calls with their results. One may be the kernel's: what only our channel has\n"
                "(docs/channel.md) is left aside then. Exit code 1 if they differ."
            ),
            examples=(
                ("vduse trace compare ours.trace kernel.trace", "where they part, if they do"),
                ("vduse trace compare before.trace after.trace --json", "the same for a program"),
            ),
            options=CompareOptions,
            run=_compare,
            show=_print_compare,
            exit_code=lambda comparison: 0 if comparison.equal else 1,
        ),
    ),
)
