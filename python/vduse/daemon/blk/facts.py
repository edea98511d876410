"""What `vduse blk` has to say: facts, and the same for people."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from shlex import quote

from rich.console import Console

from vduse.control.statistics import Statistics
from vduse.control.units import format_size
from vduse.daemon.table import Context


@dataclass(frozen=True)
class Serving:
    """The disk can be reached."""

    event: str
    pid: int
    name: str
    #: As given.
    backend: str
    #: Bytes.
    size: int
    read_only: bool
    #: split or packed.
    ring: str
    queues: int
    queue_size: int
    #: What serves the backend: see :attr:`vduse._native.Backend.engine`.
    engine: str
    socket: str
    uri: str


@dataclass(frozen=True)
class Counted:
    """SIGUSR1: the counters now."""

    event: str
    statistics: Statistics


@dataclass(frozen=True)
class Resized:
    """The backend has another size; clients that connect from now on see it."""

    event: str
    #: Bytes.
    size: int


@dataclass(frozen=True)
class Ended:
    """The disk is not served any more."""

    event: str
    name: str
    #: The signal, or what broke.
    reason: str
    #: It did not end in order: a device that broke, data that may not be on stable storage.
    broken: bool
    #: Seconds that it was served.
    seconds: float
    statistics: Statistics


Facts = Serving | Counted | Resized | Ended


def show(facts: Facts, context: Context) -> None:
    """For people."""
    match facts:
        case Serving():
            _show_serving(facts, context.out)
        case Counted():
            print(json.dumps(facts.statistics), file=context.out.file, flush=True)
        case Resized():
            _print(context.out, f"resized to {format_size(facts.size)}")
        case Ended(broken=True):
            context.err.print(f"vduse: {facts.name}: {facts.reason}", markup=False, soft_wrap=True)
        case Ended():
            _print(context.out, f"{facts.name}: stopped by {facts.reason}, all is flushed")


def _show_serving(facts: Serving, out: Console) -> None:
    kind = "read-only, " if facts.read_only else ""
    _print(out, f"{facts.name}: {format_size(facts.size)}, {kind}{facts.backend}")
    _print(
        out,
        f"{facts.ring} virtqueues: {facts.queues} of {facts.queue_size}; serves {facts.uri}",
    )
    _print(out, "")
    for line, what in _uses(facts):
        _print(out, f"  # {what}")
        _print(out, f"  {line}")
    _print(out, "")
    pid = facts.pid
    _print(out, f"Ctrl-C or kill {pid} ends it in order; kill -USR1 {pid} prints statistics.")


def _uses(facts: Serving) -> Iterator[tuple[str, str]]:
    """Command lines for a shell, and what each is for."""
    uri, folder = quote(facts.uri), quote(facts.name)
    raw, qcow2 = quote(f"{facts.name}.img"), quote(f"{facts.name}.qcow2")
    yield f"nbdinfo {uri}", "what there is"
    yield f"nbdcopy {uri} {raw}", "copy it to a file; the other way round: fill it"
    yield f"qemu-img convert -O qcow2 {uri} {qcow2}", "the same with QEMU's"
    yield (
        f"mkdir -p {folder}; nbdfuse {folder} {uri} & sleep 1; losetup --find --show {folder}/nbd",
        "a block device, as root",
    )


def _print(out: Console, line: str) -> None:
    # Lines to paste are not wrapped, and brackets are no markup.
    out.print(line, markup=False, soft_wrap=True)
