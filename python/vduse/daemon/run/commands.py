"""The row of `vduse run` in the command table. The handler imports what it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vduse.daemon.table import Command, Context, behind, flag, option, optional, repeatable
from vduse.daemon.trace.options import trace_json_option, trace_option
from vduse.daemon.values import DRIVERS, one_of, seconds

if TYPE_CHECKING:
    from collections.abc import Generator

    from vduse.daemon.run.facts import Facts

#: Names of the kernels that can be played (vduse.framework.profile).
PROFILES = ("6.12", "7.2")
#: A device is put on the bus and left there, for vduse dev --qmp.
NO_DRIVER = "none"
#: Seconds, an unsigned int in the kernel.
_MOST_SECONDS = (1 << 32) - 1


@dataclass(frozen=True)
class Place:
    """Where a device is to be served."""

    #: Its name; None: the first device that comes and has no place of its own.
    name: str | None
    #: The socket.
    path: str


def place(text: str) -> Place:
    """``SOCKET`` or ``NAME=SOCKET``; what has a / before its = is a path."""
    name, equals, path = text.partition("=")
    if text and (not equals or "/" in name):
        return Place(None, text)
    if not name or not path:
        raise ValueError(f"'{text}' is no place to serve at: SOCKET, or NAME=SOCKET")
    return Place(name, path)


@dataclass(frozen=True)
class RunOptions:
    """Options of ``vduse run``."""

    program: tuple[str, ...] = behind("the program and its arguments", metavar="DAEMON ARGS")
    nbd: tuple[Place, ...] = repeatable(
        "serve a disk over NBD at this unix socket: the device of that name, or the first that "
        "comes",
        metavar="[NAME=]SOCKET",
        parse=place,
    )
    vhost_user: tuple[Place, ...] = repeatable(
        "serve a device to virtual machines at this unix socket (docs/vhost-user.md)",
        metavar="[NAME=]SOCKET",
        parse=place,
    )
    driver: str | None = optional(
        "bus driver of devices without a socket: virtio_vdpa, vhost_vdpa, none; left out: "
        "virtio_vdpa where it drives their type",
        metavar="DRIVER",
        parse=one_of(*DRIVERS, NO_DRIVER),
    )
    profile: str = option(
        "6.12", "which Linux to play: 6.12, 7.2", metavar="VERSION", parse=one_of(*PROFILES)
    )
    msg_timeout: float = option(
        "30",
        "seconds that the program has for its answer to a message, 0: for ever",
        metavar="S",
        parse=seconds(0, _MOST_SECONDS),
    )
    restart: bool = flag("start the program again where it dies, or ends with an error")
    qmp: str | None = optional(
        "serve the bus in this process by QMP, for vduse dev --qmp SOCKET", metavar="SOCKET"
    )
    trace: str | None = trace_option()
    trace_json: str | None = trace_json_option()
    check: bool = flag(
        "check every device against the rules of VDUSE and virtio, then end; exit code 1 if one "
        "is broken (docs/conformance.md)"
    )
    junit: str | None = optional("write the report of --check there, as JUnit XML", metavar="FILE")
    fault: tuple[str, ...] = repeatable(
        "do this to the devices while they are in use, as kill:after=10000 or rebind:every=2s; "
        "help lists them (docs/faults.md)",
        metavar="NAME[:KEY=VALUE,...]",
    )


def _run(options: RunOptions, context: Context) -> Generator[Facts]:
    from vduse.daemon.run.serve import serve

    return serve(options, context)


def _show(facts: Facts, context: Context) -> None:
    from vduse.daemon.run.show import show

    show(facts, context)


def _exit_code(facts: Facts) -> int:
    return getattr(facts, "exit_code", 0)


RUN = Command(
    name="run",
    help="Run somebody else's VDUSE daemon, unmodified, without kernel module or root",
    description=(
        "Starts a program that finds a /dev/vduse, with the framework of this process behind it:\n"
        "no kernel module, no root, nothing of the program changed. Each of its devices is put on\n"
        "the vDPA bus as soon as its virtqueues are set up, and served where that was asked for.\n"
        "SIGINT, SIGTERM and SIGHUP end everything in order: the sockets, the devices, the\n"
        "program (SIGTERM, after 10 s SIGKILL) and all that it has started; a second signal ends\n"
        "it at once. SIGUSR1 prints the statistics. The exit code is the program's, 128 + N after\n"
        "signal N; 1 where something was not in order (docs/run.md)."
    ),
    examples=(
        (
            "vduse run --nbd disk.sock -- qemu-storage-daemon "
            "--blockdev driver=file,filename=disk.img,node-name=disk0 "
            "--export type=vduse-blk,id=e0,name=disk0,node-name=disk0,writable=on",
            "QEMU's VDUSE export, for NBD clients",
        ),
        (
            "vduse run --vhost-user a=a.sock --nbd b=b.sock -- ./my-daemon",
            "two devices of one program: a for a virtual machine, b for NBD clients",
        ),
        (
            "vduse run --restart --profile 7.2 --json -- ./my-daemon",
            "on a newer kernel, started again when it dies; facts as lines of JSON",
        ),
        (
            "vduse run --check --junit report.xml -- ./my-daemon",
            "a conformance report on its devices, for people and for CI",
        ),
        (
            "vduse run --nbd disk.sock --trace --fault kill:after=10000 -- ./my-daemon",
            "what it is told and does, a line each, and SIGKILL under load",
        ),
        (
            "vduse run --driver none --qmp bus.sock -- ./my-daemon",
            "vduse dev --qmp bus.sock shows and binds its devices",
        ),
    ),
    options=RunOptions,
    run=_run,
    show=_show,
    exit_code=_exit_code,
)
