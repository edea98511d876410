"""Metrics for Prometheus, from a daemon's state: a collector of prometheus_client's, which writes
the text. docs/operating.md has the table of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from vduse.daemon.watch.state import Distribution, ExportState, NodeState, QueueState, State

_NS = 1e9
#: Upper bounds of the latency histogram's buckets, seconds.
BUCKETS = (
    *(step * 10.0**power for power in range(-5, 1) for step in (1, 2.5, 5)),
    *(10.0, 30.0, 60.0),
)

#: Counters and gauges of a virtqueue: name, what it is, and where its value comes from.
_COUNTERS: tuple[tuple[str, str, Callable[[QueueState], float]], ...] = (
    ("vduse_read_bytes", "Bytes read", lambda it: it.bytes_read),
    ("vduse_written_bytes", "Bytes written", lambda it: it.bytes_written),
    ("vduse_request_errors", "Requests that failed", lambda it: it.errors),
    (
        "vduse_requests_resubmitted",
        "Requests that a predecessor had taken and not completed, carried out again",
        lambda it: it.resubmitted,
    ),
    ("vduse_kicks", "Wake-ups by the driver's kicks", lambda it: it.kicks),
    ("vduse_interrupts", "Interrupts sent to the driver", lambda it: it.irqs),
    (
        "vduse_interrupts_suppressed",
        "Publications for which the driver wanted no interrupt",
        lambda it: it.irqs_suppressed,
    ),
    ("vduse_batches", "Publications of completed requests", lambda it: it.batches),
)
_GAUGES: tuple[tuple[str, str, Callable[[QueueState], float]], ...] = (
    ("vduse_requests_in_flight", "Requests taken and not completed", lambda it: it.in_flight),
    (
        "vduse_oldest_request_seconds",
        "For how long the oldest of those has been; 0: there is none",
        lambda it: it.oldest_in_flight_ns / _NS,
    ),
)


class Metrics:
    """The text, made anew for each scrape."""

    def __init__(self, state: Callable[[], State]) -> None:
        """``state``: with the histograms' buckets."""
        self._registry = CollectorRegistry()
        self._registry.register(_Daemon(state))
        ProcessCollector(registry=self._registry)

    def text(self, accept: str) -> tuple[bytes, str]:
        """In the format that the header ``accept`` asks for: Prometheus's or OpenMetrics; and its
        content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type


class _Daemon(Collector):
    def __init__(self, state: Callable[[], State]) -> None:
        self._state = state

    def describe(self) -> Iterable[Metric]:
        """Nothing before there is a scrape."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """All families of one moment."""
        state = self._state()
        build = InfoMetricFamily("vduse_build", "This daemon")
        build.add_metric((), {"version": state.version})
        yield build
        yield from _exports(state.exports)
        yield from _queues(state.exports)
        yield from _nodes(state.nodes)
        yield from _workers(state)


def _exports(exports: Iterable[ExportState]) -> Iterator[Metric]:
    info = InfoMetricFamily("vduse_export", "An export", labels=("export",))
    size = GaugeMetricFamily("vduse_export_size_bytes", "Bytes of the disk", labels=("export",))
    live = GaugeMetricFamily(
        "vduse_export_live", "1 while a driver uses the device", labels=("export",)
    )
    broken = GaugeMetricFamily(
        "vduse_export_broken", "1 while it serves nothing: see the log", labels=("export",)
    )
    takeovers = CounterMetricFamily(
        "vduse_export_takeovers",
        "Devices taken over from a daemon that is no more",
        labels=("export",),
    )
    misses = CounterMetricFamily(
        "vduse_iotlb_misses", "Mappings asked of the framework", labels=("export",)
    )
    for export in exports:
        facts = {"type": export.type, "node": export.node_name, "device": export.device}
        info.add_metric((export.id,), facts)
        size.add_metric((export.id,), export.size)
        live.add_metric((export.id,), export.live)
        broken.add_metric((export.id,), bool(export.broken))
        takeovers.add_metric((export.id,), export.taken_over)
        misses.add_metric((export.id,), export.iotlb_misses)
    yield from (info, size, live, broken, takeovers, misses)


def _queues(exports: Iterable[ExportState]) -> Iterator[Metric]:
    queues = [((each.id, str(it.index)), it) for each in exports for it in each.queues]
    labels = ("export", "queue")
    for name, what, value in _COUNTERS:
        counter = CounterMetricFamily(name, what, labels=labels)
        for of, queue in queues:
            counter.add_metric(of, value(queue))
        yield counter
    for name, what, value in _GAUGES:
        gauge = GaugeMetricFamily(name, what, labels=labels)
        for of, queue in queues:
            gauge.add_metric(of, value(queue))
        yield gauge
    requests = CounterMetricFamily("vduse_requests", "Requests completed", labels=(*labels, "type"))
    latency = HistogramMetricFamily(
        "vduse_request_duration_seconds",
        "From the moment that a request was taken from the virtqueue to that of its answer",
        labels=(*labels, "type"),
    )
    for of, queue in queues:
        for kind, distribution in queue.latency_ns:
            requests.add_metric((*of, kind), distribution.count)
            # What was never asked for has no histogram: they are the bulk of the text.
            if distribution.count:
                buckets = classic_buckets(distribution)
                latency.add_metric((*of, kind), buckets, distribution.sum / _NS)
    yield from (requests, latency)


def classic_buckets(distribution: Distribution) -> list[tuple[str, float]]:
    """Prometheus's: how many values are not above each bound, and last, how many there are. A value
    counts by its own bucket's upper bound, at most 12 % above it."""
    found: list[tuple[str, float]] = []
    below, at, buckets = 0, 0, distribution.buckets
    for bound in BUCKETS:
        while at < len(buckets) and buckets[at][0] <= bound * _NS:
            below += buckets[at][1]
            at += 1
        found.append((f"{bound:g}", below))
    return [*found, ("+Inf", distribution.count)]


def _nodes(nodes: Iterable[NodeState]) -> Iterator[Metric]:
    info = InfoMetricFamily("vduse_node", "A block node", labels=("node",))
    connected = GaugeMetricFamily(
        "vduse_backend_connected", "0 while the connection is lost", labels=("node",)
    )
    since = GaugeMetricFamily(
        "vduse_backend_connection_change_timestamp_seconds",
        "When the connection was last made or lost",
        labels=("node",),
    )
    reconnections = CounterMetricFamily(
        "vduse_backend_reconnections",
        "How often a lost connection came back",
        labels=("node",),
    )
    for node in nodes:
        info.add_metric((node.node_name,), {"driver": node.driver})
        if (connection := node.connection).state != "local":
            connected.add_metric((node.node_name,), connection.state == "connected")
            since.add_metric((node.node_name,), connection.since)
            reconnections.add_metric((node.node_name,), connection.reconnections)
    yield from (info, connected, since, reconnections)


def _workers(state: State) -> Iterator[Metric]:
    polled = CounterMetricFamily(
        "vduse_worker_poll_seconds",
        "Time that a worker looked again before it slept, by whether it found something",
        labels=("worker", "result"),
    )
    sleeps = CounterMetricFamily(
        "vduse_worker_sleeps", "Waits that were left to the system", labels=("worker",)
    )
    for index, worker in enumerate(state.workers):
        polled.add_metric((str(index), "found"), worker.poll_found_ns / _NS)
        polled.add_metric((str(index), "vain"), worker.poll_vain_ns / _NS)
        sleeps.add_metric((str(index),), worker.sleeps)
    yield from (polled, sleeps)
