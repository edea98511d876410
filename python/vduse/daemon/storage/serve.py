"""From the command's options to the last fact."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from vduse.channel.kernel import KernelControl
from vduse.control.units import format_size
from vduse.daemon import activation, logs
from vduse.daemon.commands import StorageDaemonOptions
from vduse.daemon.errors import Stopped, UserError
from vduse.daemon.notify import Manager
from vduse.daemon.storage import watchdog
from vduse.daemon.storage.config.check import Checked, check_file
from vduse.daemon.storage.config.document import At, Table
from vduse.daemon.storage.daemon import Daemon, OptionError
from vduse.daemon.storage.daemonize import daemonize
from vduse.daemon.storage.exports.export import Export
from vduse.daemon.storage.watched import WatchedStore
from vduse.daemon.table import Context
from vduse.daemon.trace.tracing import Tracing, header_of_kernel
from vduse.daemon.watch.serving import metrics_served


@dataclass(frozen=True)
class Device:
    """An export of the command line's."""

    id: str
    #: QEMU's name of it.
    type: str
    node_name: str
    #: Of the device on its bus: the kernel's, or this process's.
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


@dataclass(frozen=True)
class Told:
    """What --check found."""

    event: str
    file: str
    #: By line.
    mistakes: tuple[At, ...]


Facts = Running | Ended | Told


def serve(options: StorageDaemonOptions, context: Context) -> Generator[Facts]:
    """Running, then Ended after quit, SIGTERM, SIGINT or SIGHUP; with --check Told. UserError."""
    if options.check is not None:
        yield Told("checked", options.check, _check(options.check).mistakes)
        return
    objects, options = _with_file(options)
    logs.adjust(format=options.log_format, level=options.log_level)
    manager = Manager()
    # They are passed to this process, not to its child.
    activation.sockets()
    # Before any thread.
    ready = daemonize() if options.daemonize else None
    tracing = Tracing(None, options.trace_json, header_of_kernel())
    with ExitStack() as exits:
        exits.enter_context(context.stopper.held(twice_ends=True))
        exits.enter_context(tracing)
        control = tracing.tapped(KernelControl())
        exits.callback(control.close)
        try:
            daemon = Daemon(
                control,
                objects,
                pidfile=options.pidfile,
                interruptible=context.stopper.released,
                changed=lambda exports: manager.status(_status(exports)),
            )
        except OptionError as error:
            raise UserError(str(error)) from None
        exits.callback(daemon.close)
        exits.enter_context(metrics_served(options.metrics, WatchedStore(daemon.store)))
        manager.ready(_status(daemon.store.exports))
        yield Running("serving", os.getpid(), tuple(_devices(daemon)))
        if ready is not None:
            ready()
        reason = "quit"
        try:
            with context.stopper.released():
                watchdog.wait(daemon.quitting, manager, daemon.loops)
        except Stopped as stopped:
            reason = signal.Signals(stopped.exit_code - 128).name
        manager.stopping()
        exits.close()
        yield Ended("ended", reason)


def show(facts: Facts, context: Context) -> None:
    """For people."""
    match facts:
        case Running():
            for export in facts.exports:
                kind = ", read-only" if export.read_only else ""
                _print(context, f"{export.name}: {format_size(export.size)}{kind}")
                if export.type == "vduse-blk":
                    _print(context, f"  vdpa dev add name {export.name} mgmtdev vduse")
        case Told():
            for at in facts.mistakes:
                _print(context, f"{facts.file}:{at.line}: {at.text}")
            if not facts.mistakes:
                _print(context, f"{facts.file}: no mistake")
        case Ended():
            _print(context, f"ended by {facts.reason}")


def _check(path: str) -> Checked:
    try:
        return check_file(path)
    except (OSError, ValueError) as error:
        text = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"{path}: {text}") from None


def _with_file(
    options: StorageDaemonOptions,
) -> tuple[tuple[tuple[str, str | Table], ...], StorageDaemonOptions]:
    """What is to be made, the file's first; and the options, the file's where the command line has
    none. UserError."""
    if options.config is None:
        return options.objects, options
    checked = _check(options.config)
    if checked.mistakes:
        lines = [f"{options.config}:{at.line}: {at.text}" for at in checked.mistakes]
        raise UserError("\n".join(lines))
    given = {name: value for name, value in vars(options).items() if value is not None}
    return (*checked.options, *options.objects), replace(options, **checked.settings | given)


def _devices(daemon: Daemon) -> Iterator[Device]:
    for export in daemon.store.exports:
        device = export.device
        yield Device(
            id=export.id,
            type=export.type,
            node_name=export.node.name,
            name=device.name,
            size=device.size,
            read_only=device.read_only,
        )


def _status(exports: Sequence[Export]) -> str:
    """For `systemctl status`."""
    types = Counter(export.type for export in exports)
    each = ", ".join(f"{count} {type}" for type, count in sorted(types.items()))
    return f"exports: {each}" if exports else "no exports"


def _print(context: Context, line: str) -> None:
    context.out.print(line, markup=False, soft_wrap=True)
