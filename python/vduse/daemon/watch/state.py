"""What there is to see of a running daemon, at one moment: the answer of ``x-query-state``, which
metrics, ``vduse health`` and ``vduse top`` are made from. docs/statistics.md says what each figure
of a virtqueue tells; bytes, and nanoseconds where a name ends so."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from vduse.daemon.qmp.arguments import Model


class QueryState(Model, frozen=True, kw_only=True):
    """Of x-query-state."""

    #: Histograms come with their buckets: many.
    buckets: bool = False


class Distribution(Model, frozen=True, kw_only=True):
    """A histogram."""

    count: int
    sum: int
    p50: int
    p99: int
    max: int
    #: Upper bound and count of each that is not empty, in order.
    buckets: list[list[int]]


class Latency(Model, frozen=True, kw_only=True):
    """Nanoseconds from a virtqueue and back to it."""

    read: Distribution
    write: Distribution
    flush: Distribution
    discard: Distribution
    other: Distribution

    def __iter__(self) -> Iterator[tuple[str, Distribution]]:
        """By type of request."""
        return ((name, getattr(self, name)) for name in self.__struct_fields__)


class QueueState(Model, frozen=True, kw_only=True):
    """A virtqueue."""

    index: int
    requests: int
    bytes_read: int
    bytes_written: int
    errors: int
    in_flight: int
    oldest_in_flight_ns: int
    resubmitted: int
    kicks: int
    irqs: int
    irqs_suppressed: int
    batches: int
    latency_ns: Latency


class ExportState(Model, frozen=True, kw_only=True):
    """An export."""

    id: str
    #: vduse-blk, vhost-user-blk or nbd.
    type: str
    node_name: str
    #: Of the device on its bus.
    device: str
    size: int
    read_only: bool
    #: Whether a driver uses the device.
    live: bool
    #: Why it serves nothing now; empty: it serves.
    broken: str
    #: Whether it was taken over from a daemon that is no more.
    taken_over: bool
    iotlb_misses: int
    queues: list[QueueState]


class BackendConnection(Model, frozen=True, kw_only=True):
    """How a node's link to whatever holds the bytes stands."""

    #: local: there is none, the bytes are on this host.
    state: Literal["local", "connected", "lost"]
    #: Why it is lost.
    why: str
    #: Seconds since 1970.
    since: float
    reconnections: int


class NodeState(Model, frozen=True, kw_only=True):
    """A block node."""

    node_name: str
    driver: str
    size: int
    connection: BackendConnection


class WorkerState(Model, frozen=True, kw_only=True):
    """A thread that serves virtqueues."""

    poll_found_ns: int
    poll_vain_ns: int
    sleeps: int


class ProcessState(Model, frozen=True, kw_only=True):
    """The process."""

    pid: int
    #: Seconds since 1970.
    started: float
    cpu_seconds: float
    resident_bytes: int
    open_fds: int
    threads: int


class State(Model, frozen=True, kw_only=True):
    """All of it."""

    #: Of this package.
    version: str
    #: Seconds since 1970.
    time: float
    process: ProcessState
    exports: list[ExportState]
    nodes: list[NodeState]
    workers: list[WorkerState]
