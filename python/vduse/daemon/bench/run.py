"""Connects, loads, measures."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median, median_low
from typing import cast

from rich.status import Status

from vduse.control.units import format_size
from vduse.daemon.bench.commands import BenchOptions
from vduse.daemon.bench.connect import connected, set_up
from vduse.daemon.bench.facts import Disk, Facts, Figures, Load, Round, Server
from vduse.daemon.bench.relay import Relay
from vduse.daemon.errors import UserError
from vduse.daemon.table import Context
from vduse.testing.load import Op, Report, Spec, VirtioDriver

#: Seconds that no request may complete.
PATIENCE = 30.0
#: Descriptors of a request: header, data, status.
_DESCRIPTORS = 3
#: Bytes of all data buffers.
_BUFFERS = 1 << 30
#: Blocks that --verify can remember.
_BLOCKS = 1 << 26
#: Messages that are kept.
_MESSAGES = 16
_SECTOR = 512
#: What --op writes nothing.
_READING = ("read", "randread")


class ServerGone(Exception):
    """The server has closed the connection."""


def run(options: BenchOptions, context: Context) -> Facts:
    """UserError for what cannot be done; what goes wrong in mid-run is in the facts."""
    _check(options)
    with context.stopper.held(), ExitStack() as stack:
        status = stack.enter_context(context.err.status("connecting"))
        relay = stack.enter_context(connected(options.socket))
        with context.stopper.released():
            driver = stack.enter_context(set_up(options, relay))
        # The server leaves the driver's memory before it goes.
        stack.callback(relay.close)
        disk = Disk(driver.capacity, driver.read_only, driver.queues)
        load = _load(options, disk)
        server = _server(options.pid, relay.pid)
        work = _Work(driver, relay, server, status, _spec(options, load))
        with context.stopper.released():
            work.run(options)
        return Facts(
            socket=options.socket,
            disk=disk,
            server=server,
            load=load,
            rounds=tuple(work.rounds),
            median=_median([each.figures for each in work.rounds]) if work.rounds else None,
            errors=sum(each.errors for each in work.rounds),
            messages=tuple(work.messages[:_MESSAGES]),
            ended=work.ended,
        )


class _Work:
    """The rounds."""

    def __init__(
        self,
        driver: VirtioDriver,
        relay: Relay,
        server: Server | None,
        status: Status,
        spec: Spec,
    ) -> None:
        self._driver = driver
        self._relay = relay
        self._server = server
        self._status = status
        self._spec = spec
        self.rounds: list[Round] = []
        self.messages: list[str] = []
        self.ended: str | None = None

    def run(self, options: BenchOptions) -> None:
        """UserError for a load that this disk cannot have."""
        try:
            for number in range(options.rounds):
                self._what = f"round {number + 1} of {options.rounds}"
                self._status.update(self._what)
                self._round()
        except ServerGone:
            self.ended = "the server closed the connection"
        except TimeoutError as error:
            self.ended = str(error)
        except ValueError as error:
            raise UserError(f"{options.socket}: {error}") from None

    def _round(self) -> None:
        before = self._cpu()
        report = self._driver.run(self._spec, self._progress)
        after = self._cpu()
        cpu = None if before is None or after is None else after - before
        self.rounds.append(
            Round(report.requests, report.seconds, report.errors, _figures(report, cpu))
        )
        self.messages += report.messages

    def _progress(self, phase: str, requests: int, blocks: int) -> None:
        if self._relay.gone:
            raise ServerGone
        if phase != "load":
            self._status.update(f"{self._what}: {phase}, {min(1.0, requests / blocks):.0%}")

    def _cpu(self) -> float | None:
        """Of the server. None with ``--verify``: what it takes is not that of the load alone."""
        if self._server is None or self._spec.verify:
            return None
        return _cpu(self._server.pid)


def _check(options: BenchOptions) -> None:
    """What needs no server to be refused. UserError."""
    if _writes(options) and not options.destroy_data:
        what = "--verify" if options.op in _READING else f"--op {options.op}"
        raise UserError(
            f"{what} writes over what is on the disk behind {options.socket}: "
            "add --destroy-data if nobody needs it"
        )
    if options.reads is not None and options.op != "mixed":
        raise UserError("--reads goes with --op mixed")
    if options.block_size % _SECTOR or not options.block_size:
        raise UserError(f"--block-size {options.block_size} is no multiple of 512 bytes")
    if options.depth * options.block_size > _BUFFERS:
        raise UserError(
            f"--depth {options.depth} of {format_size(options.block_size)} each: that is more than "
            f"{format_size(_BUFFERS)} of buffers"
        )


def _writes(options: BenchOptions) -> bool:
    return options.verify or options.op not in _READING


def _load(options: BenchOptions, disk: Disk) -> Load:
    """UserError: not on this disk."""
    if not disk.size:
        raise UserError(f"{options.socket}: a disk of 0 bytes: is it a block device?")
    if disk.read_only and _writes(options):
        raise UserError(f"{options.socket}: the disk is read-only: it can be read, not verified")
    span = disk.size if options.span is None else options.span
    if options.verify and span // options.block_size > _BLOCKS:
        most = format_size(_BLOCKS * options.block_size)
        raise UserError(f"--verify remembers {most} in blocks of that size: use --span")
    room = max(1, options.queue_size // _DESCRIPTORS) * options.queues
    return Load(
        op=options.op,
        reads=_reads(options),
        block_size=options.block_size,
        depth=options.depth,
        in_flight=min(options.depth, room),
        queues=options.queues,
        queue_size=options.queue_size,
        packed=options.packed,
        poll=options.poll,
        span=span,
        verify=options.verify,
    )


def _reads(options: BenchOptions) -> int:
    if options.op == "mixed":
        return 50 if options.reads is None else options.reads
    return 100 if options.op in _READING else 0


def _spec(options: BenchOptions, load: Load) -> Spec:
    return Spec(
        op=cast(Op, load.op),
        block_size=load.block_size,
        depth=load.depth,
        seconds=options.seconds,
        verify=load.verify,
        span=load.span,
        reads=load.reads,
        poll=load.poll,
        patience=PATIENCE,
    )


def _server(asked: int | None, peer: int | None) -> Server | None:
    """The one asked for, or the socket's. UserError: no such process."""
    pid = peer if asked is None else asked
    if pid is None:
        return None
    try:
        return Server(pid, Path(f"/proc/{pid}/comm").read_text().strip())
    except OSError:
        if asked is None:
            return None  # who made the socket left it to another
        raise UserError(f"--pid {pid}: no such process") from None


def _cpu(pid: int) -> float | None:
    """Seconds of all its threads until now; None: it is gone."""
    try:
        # clock_getcpuclockid(3): the number of another process's clock is made of its pid.
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return None


def _figures(report: Report, server_cpu: float | None) -> Figures:
    requests = max(1, report.requests)
    return Figures(
        iops=report.iops,
        bytes_per_second=report.bytes_per_second,
        latency_ns=dict(report.latency_ns),
        client_cpu_ns=report.cpu_seconds * 1e9 / requests,
        server_cpu_ns=None if server_cpu is None else server_cpu * 1e9 / requests,
    )


def _median(figures: Sequence[Figures]) -> Figures:
    cpus = [each.server_cpu_ns for each in figures if each.server_cpu_ns is not None]
    return Figures(
        iops=median(each.iops for each in figures),
        bytes_per_second=median(each.bytes_per_second for each in figures),
        latency_ns={
            name: median_low(each.latency_ns[name] for each in figures)
            for name in figures[0].latency_ns
        },
        client_cpu_ns=median(each.client_cpu_ns for each in figures),
        server_cpu_ns=median(cpus) if cpus else None,
    )
