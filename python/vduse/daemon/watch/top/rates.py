"""Two looks at a daemon, and what happened between them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vduse.daemon.watch.state import ExportState, NodeState, QueueState, State, WorkerState

_NS = 1e9


@dataclass(frozen=True)
class ExportRates:
    """An export, over the time between the looks; per second where a name says nothing else."""

    id: str
    type: str
    node_name: str
    reads: float
    writes: float
    #: Flushes, discards, write zeroes, what failed.
    others: float
    bytes_read: float
    bytes_written: float
    errors: float
    #: Nanoseconds, of all requests that ended; 0: none did.
    p50_ns: int
    p99_ns: int
    #: Now.
    in_flight: int
    #: For how long the oldest has been, nanoseconds.
    oldest_ns: int
    #: Why it serves nothing; empty: it serves.
    broken: str
    #: local, connected or lost; and why.
    backend: str
    why: str


@dataclass(frozen=True)
class Frame:
    """A daemon, between two looks."""

    version: str
    pid: int
    #: Seconds, since its start, and between the looks.
    uptime: float
    seconds: float
    #: Share of one CPU.
    cpu: float
    #: Share of all workers' time that polling in vain took.
    polling: float
    resident_bytes: int
    open_fds: int
    threads: int
    exports: tuple[ExportRates, ...]


def between(former: State, now: State) -> Frame:
    """An export that is new, or of a daemon that is, counts from 0."""
    is_same = former.process.pid == now.process.pid and (
        abs(former.process.started - now.process.started) < 1
    )
    seconds = max(1e-3, now.time - former.time)
    known = {each.id: each for each in former.exports} if is_same else {}
    nodes = {each.node_name: each for each in now.nodes}
    cpu = now.process.cpu_seconds - (former.process.cpu_seconds if is_same else 0)
    return Frame(
        version=now.version,
        pid=now.process.pid,
        uptime=max(0.0, now.time - now.process.started),
        seconds=seconds,
        cpu=max(0.0, cpu / seconds),
        polling=_polling(former.workers if is_same else [], now.workers, seconds),
        resident_bytes=now.process.resident_bytes,
        open_fds=now.process.open_fds,
        threads=now.process.threads,
        exports=tuple(
            _export(known.get(each.id), each, nodes.get(each.node_name), seconds)
            for each in now.exports
        ),
    )


def percentile(buckets: Mapping[int, int], share: float) -> int:
    """The upper bound of the bucket that this share of the values lies at or below; 0: there are
    no values."""
    rank = share * sum(buckets.values())
    seen = 0
    for bound in sorted(buckets):
        seen += buckets[bound]
        if buckets[bound] and seen >= rank:
            return bound
    return 0


def _export(
    former: ExportState | None, now: ExportState, node: NodeState | None, seconds: float
) -> ExportRates:
    before, after = _Totals(former.queues if former is not None else ()), _Totals(now.queues)
    if after.counts["requests"] < before.counts["requests"]:
        before = _Totals(())  # another export under the same id

    def rate(name: str) -> float:
        return max(0, after.counts[name] - before.counts[name]) / seconds

    latency = after.latency - before.latency
    return ExportRates(
        id=now.id,
        type=now.type,
        node_name=now.node_name,
        reads=rate("read"),
        writes=rate("write"),
        others=rate("flush") + rate("discard") + rate("other"),
        bytes_read=rate("bytes_read"),
        bytes_written=rate("bytes_written"),
        errors=rate("errors"),
        p50_ns=percentile(latency, 0.5),
        p99_ns=percentile(latency, 0.99),
        in_flight=after.counts["in_flight"],
        oldest_ns=max((queue.oldest_in_flight_ns for queue in now.queues), default=0),
        broken=now.broken,
        backend=node.connection.state if node is not None else "local",
        why=node.connection.why if node is not None else "",
    )


class _Totals:
    """Of some virtqueues."""

    def __init__(self, queues: Iterable[QueueState]) -> None:
        self.counts: Counter[str] = Counter()
        #: By the buckets' upper bounds.
        self.latency: Counter[int] = Counter()
        for queue in queues:
            for name in ("requests", "bytes_read", "bytes_written", "errors", "in_flight"):
                self.counts[name] += getattr(queue, name)
            for kind, distribution in queue.latency_ns:
                self.counts[kind] += distribution.count
                for bound, count in distribution.buckets:
                    self.latency[bound] += count


def _polling(former: list[WorkerState], now: list[WorkerState], seconds: float) -> float:
    if not now:
        return 0.0
    before = sum(each.poll_vain_ns for each in former) if len(former) == len(now) else 0
    vain = sum(each.poll_vain_ns for each in now) - before
    return max(0.0, vain / _NS / seconds / len(now))
