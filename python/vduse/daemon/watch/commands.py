"""``vduse health`` and ``vduse top``, as rows of the command table."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vduse.daemon.table import Command, Context, flag, option, required
from vduse.daemon.values import seconds

if TYPE_CHECKING:
    from vduse.daemon.watch.health import Health
    from vduse.daemon.watch.top.rates import Frame

_SOCKET = "a monitor's of vduse storage-daemon, or --qmp's of vduse blk"


@dataclass(frozen=True)
class HealthOptions:
    """Options of ``vduse health``."""

    socket: str = required(_SOCKET, metavar="SOCKET")
    stuck_after: float = option(
        "30", "seconds that a request may be in flight", metavar="SECONDS", parse=seconds(0.1, 1e6)
    )
    timeout: float = option(
        "5", "seconds that the daemon has to answer", metavar="SECONDS", parse=seconds(0.1, 600)
    )


@dataclass(frozen=True)
class TopOptions:
    """Options of ``vduse top``."""

    socket: str = required(_SOCKET, metavar="SOCKET")
    interval: float = option(
        "2", "seconds between two looks", metavar="SECONDS", parse=seconds(0.1, 3600)
    )
    once: bool = flag("one table, after one interval, for scripts")


def _health(options: HealthOptions, _context: Context) -> Health:
    from vduse.daemon.watch.ask import ask
    from vduse.daemon.watch.health import judge

    state = ask(options.socket, buckets=False, timeout=options.timeout)
    return judge(state, stuck_after=options.stuck_after)


def _show_health(health: Health, context: Context) -> None:
    from vduse.daemon.watch.health import show

    show(health, context)


def _top(options: TopOptions, context: Context) -> Generator[Frame]:
    from vduse.daemon.watch.top.run import top

    return top(options, context)


def _show_top(frame: Frame, context: Context) -> None:
    from vduse.daemon.watch.top.run import show

    show(frame, context)


HEALTH = Command(
    name="health",
    help="Whether a daemon is well; exit code 0, 1 degraded, 2 not reachable",
    description=(
        "Asks a daemon that runs, by QMP. Exit code 0: it is well. 1: degraded: a backend's\n"
        "connection is lost, a device serves nothing, a request is in flight for too long; a line\n"
        "each, and what to do. 2: it cannot be reached. A monitor has one client at a time: give\n"
        "the daemon one of its own for this."
    ),
    examples=(
        ("vduse health /run/vduse/health.qmp", "is it well?"),
        ("vduse health disk.qmp --stuck-after 10 --json", "stricter, for a program"),
    ),
    options=HealthOptions,
    run=_health,
    show=_show_health,
    exit_code=lambda health: int(health.status != "ok"),
)

TOP = Command(
    name="top",
    help="A daemon's exports, live: rates, latencies, in flight, connections",
    description=(
        "Shows what a daemon that runs does, until Ctrl-C, on the whole terminal; without one, or\n"
        "with --json, a table or a line an interval. Latencies are those of the requests that\n"
        "ended in the interval, to 12 %. Exports that are in trouble come first, then busy ones."
    ),
    examples=(
        ("vduse top /run/vduse/top.qmp", "live"),
        ("vduse top disk.qmp --once --interval 5", "the next five seconds, once"),
        ("vduse top disk.qmp --once --json", "the same for a script"),
    ),
    options=TopOptions,
    run=_top,
    show=_show_top,
)
