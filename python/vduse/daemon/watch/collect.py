"""The state of a daemon, from what it has."""

from __future__ import annotations

import importlib.metadata
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from vduse import _native
from vduse.control.statistics import DeviceQueueStats, DeviceStats, Histogram
from vduse.daemon.qmp.table import QmpCommand
from vduse.daemon.watch.state import (
    BackendConnection,
    Distribution,
    ExportState,
    Latency,
    NodeState,
    ProcessState,
    QueryState,
    QueueState,
    State,
    WorkerState,
)
from vduse.device.device import DeviceError
from vduse.devices.blk import BlkDevice


@dataclass(frozen=True)
class Served:
    """An export, and the device that it is."""

    id: str
    type: str
    node_name: str
    device: BlkDevice


@dataclass(frozen=True)
class Opened:
    """A node, and what stores its bytes."""

    name: str
    driver: str
    backend: _native.Backend


class Watched(Protocol):
    """What is looked at; from any thread, and without waiting for anything that serves I/O."""

    def served(self) -> list[Served]:
        """The exports."""

    def opened(self) -> list[Opened]:
        """The nodes."""


def collect(watched: Watched, *, buckets: bool) -> State:
    """Now. What ends meanwhile is left out. ``buckets``: with those of histograms."""
    served = watched.served()
    pools = {id(pool): pool for each in served if (pool := each.device.pool)}
    return State(
        version=importlib.metadata.version("vduse"),
        time=time.time(),
        process=_process(),
        exports=list(_exports(served, buckets)),
        nodes=[
            NodeState(
                node_name=node.name,
                driver=node.driver,
                size=node.backend.size,
                connection=BackendConnection(**node.backend.connection),
            )
            for node in watched.opened()
        ],
        workers=[worker for pool in pools.values() for worker in _workers(pool)],
    )


def state_command(watched: Callable[[], Watched]) -> QmpCommand:
    """The row of a QMP table."""
    return QmpCommand(
        "x-query-state",
        "All that there is to see: exports, virtqueues, connections, the process",
        lambda given: collect(watched(), buckets=given.buckets),
        QueryState,
        State,
    )


def _exports(served: Iterable[Served], buckets: bool) -> Iterator[ExportState]:
    for each in served:
        # One that is just being ended has nothing to tell.
        with suppress(DeviceError, ValueError):
            device = each.device
            stats = device.stats()
            yield ExportState(
                id=each.id,
                type=each.type,
                node_name=each.node_name,
                device=device.name,
                size=device.size,
                read_only=device.read_only,
                live=device.live,
                broken=device.ended or device.fault or "",
                taken_over=device.taken_over,
                iotlb_misses=stats["iotlb_misses"] if stats is not None else 0,
                queues=list(_queues(stats, buckets)) if stats is not None else [],
            )


def _queues(stats: DeviceStats, buckets: bool) -> Iterator[QueueState]:
    for index, queue in stats["queues"].items():
        yield QueueState(
            index=index,
            requests=queue["requests"],
            bytes_read=queue["bytes_read"],
            bytes_written=queue["bytes_written"],
            errors=queue["errors"],
            in_flight=queue["in_flight"],
            oldest_in_flight_ns=queue["oldest_in_flight_ns"],
            resubmitted=queue["resubmitted"],
            kicks=queue["kicks"],
            irqs=queue["irqs"],
            irqs_suppressed=queue["irqs_suppressed"],
            batches=queue["batches"],
            latency_ns=_latency(queue, buckets),
        )


def _latency(queue: DeviceQueueStats, buckets: bool) -> Latency:
    latency = queue["latency_ns"]
    return Latency(
        read=_distribution(latency["read"], buckets),
        write=_distribution(latency["write"], buckets),
        flush=_distribution(latency["flush"], buckets),
        discard=_distribution(latency["discard"], buckets),
        other=_distribution(latency["other"], buckets),
    )


def _distribution(histogram: Histogram, buckets: bool) -> Distribution:
    return Distribution(
        count=histogram["count"],
        sum=histogram["sum"],
        p50=histogram["p50"],
        p99=histogram["p99"],
        max=histogram["max"],
        buckets=histogram["buckets"] if buckets else [],
    )


def _workers(pool: _native.Pool) -> Iterator[WorkerState]:
    # ValueError: it has just ended, with its device.
    with suppress(ValueError):
        for worker in pool.stats():
            yield WorkerState(**worker)


def _process() -> ProcessState:
    with open("/proc/self/stat", "rb") as file:
        # After the name, which may have spaces and brackets: proc_pid_stat(5), from field 3 on.
        fields = file.read().rpartition(b")")[2].split()
    ticks, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    running = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / ticks
    return ProcessState(
        pid=os.getpid(),
        started=time.time() - running,
        cpu_seconds=(int(fields[11]) + int(fields[12])) / ticks,
        resident_bytes=int(fields[21]) * page,
        open_fds=len(os.listdir("/proc/self/fd")),
        threads=int(fields[17]),
    )
