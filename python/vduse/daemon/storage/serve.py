"""From the command's options to the last fact."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from vduse.channel.kernel import KernelControl
from vduse.control.units import format_size
from vduse.daemon import notify
from vduse.daemon.commands import StorageDaemonOptions
from vduse.daemon.errors import Stopped, UserError
from vduse.daemon.storage.daemon import Daemon, OptionError
from vduse.daemon.table import Context


@dataclass(frozen=True)
class Device:
    """An export of the command line's."""

    id: str
    node_name: str
    #: The VDUSE device.
    name: str
    #: Bytes.
    size: int
    read_only: bool


@dataclass(frozen=True)
class Running:
    """Everything is made, monitors answer."""

    event: str
    pid: int
    exports: tuple[Device, ...]


@dataclass(frozen=True)
class Ended:
    """Nothing is served any more."""

    event: str
    #: quit, or the signal.
    reason: str


Facts = Running | Ended


def serve(options: StorageDaemonOptions, context: Context) -> Generator[Facts]:
    """Running, then Ended after quit, SIGTERM, SIGINT or SIGHUP. UserError."""
    with ExitStack() as exits:
        exits.enter_context(context.stopper.held(twice_ends=True))
        control = KernelControl()
        exits.callback(control.close)
        try:
            daemon = Daemon(
                control,
                options.objects,
                pidfile=options.pidfile,
                interruptible=context.stopper.released,
            )
        except OptionError as error:
            raise UserError(str(error)) from None
        exits.callback(daemon.close)
        notify.ready()
        yield Running("serving", os.getpid(), tuple(_devices(daemon)))
        reason = "quit"
        try:
            with context.stopper.released():
                daemon.quitting.wait()
        except Stopped as stopped:
            reason = signal.Signals(stopped.exit_code - 128).name
        exits.close()
        yield Ended("ended", reason)


def show(facts: Facts, context: Context) -> None:
    """For people."""
    match facts:
        case Running():
            for export in facts.exports:
                kind = ", read-only" if export.read_only else ""
                _print(context, f"{export.name}: {format_size(export.size)}{kind}")
                _print(context, f"  vdpa dev add name {export.name} mgmtdev vduse")
        case Ended():
            _print(context, f"ended by {facts.reason}")


def _devices(daemon: Daemon) -> Iterator[Device]:
    for export in daemon.store.exports:
        device = export.device
        yield Device(export.id, export.node.name, device.name, device.size, device.read_only)


def _print(context: Context, line: str) -> None:
    context.out.print(line, markup=False, soft_wrap=True)
