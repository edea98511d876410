"""What is counted, and how it is collected; docs/statistics.md says what each field tells.

json.dumps(collect(devices=[device], disks=[disk], exports={"/run/disk.sock": export}))

Counts begin when the device, the driver or the export is made and only grow. Queues are by index
(in JSON, text): a device's that ever ran, all of a driver's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, Protocol, TypedDict

#: Percentiles, to 12 %, and the exact maximum of a histogram. ``buckets``: the largest value of
#: each bucket that is not empty and how many fell into it, in order. All 0 where ``count`` is.
Histogram = TypedDict(
    "Histogram",
    {
        "count": int,
        "sum": int,
        "p50": int,
        "p90": int,
        "p99": int,
        "p99.9": int,
        "max": int,
        "buckets": list[list[int]],
    },
)


class Latency(TypedDict):
    """Nanoseconds from the moment that a request's batch was taken from the virtqueue to the
    one that the request was published as used."""

    read: Histogram
    write: Histogram
    flush: Histogram
    #: Discards and write zeroes.
    discard: Histogram
    #: What else there is, and whatever failed.
    other: Histogram


class DeviceQueueStats(TypedDict):
    """One virtqueue, device side."""

    #: Completed, failed ones too.
    requests: int
    bytes_read: int
    bytes_written: int
    #: Completed with an error status, or with no room for a status.
    errors: int
    #: Wake-ups by kicks; kicks that come together count once.
    kicks: int
    irqs: int
    #: Publications for which the driver wanted no irq.
    irqs_suppressed: int
    #: Publications.
    batches: int
    #: Of those that a predecessor had taken and not completed: carried out again.
    resubmitted: int
    #: Taken and not completed, now.
    in_flight: int
    #: For how long the oldest of those has been; to a second. 0: there is none.
    oldest_in_flight_ns: int
    latency_ns: Latency
    #: Requests of each publication that had any.
    batch_requests: Histogram


class DeviceStats(DeviceQueueStats):
    """A device: its virtqueues together, and each."""

    #: Asked of the framework; many of them mean that the driver maps and unmaps a lot.
    iotlb_misses: int
    queues: dict[int, DeviceQueueStats]


class DriverQueueStats(TypedDict):
    """One virtqueue, driver side."""

    #: Made available.
    requests: int
    bytes_read: int
    bytes_written: int
    errors: int
    kicks: int
    #: Publications for which the device wanted no kick.
    kicks_suppressed: int
    #: Irqs received.
    irqs: int
    #: Requests of each publication.
    batch_requests: Histogram


class DriverStats(DriverQueueStats):
    """A disk's driver: its virtqueues together, and each."""

    queues: dict[int, DriverQueueStats]


class WorkerStats(TypedDict):
    """A worker thread, which serves virtqueues and exports: what looking again before sleeping
    costs."""

    #: Nanoseconds of looking again that ended as something was found.
    poll_found_ns: int
    #: Nanoseconds of looking again in vain.
    poll_vain_ns: int
    #: Waits that were left to the system.
    sleeps: int


class ConnectionState(TypedDict):
    """How a backend's link to whatever holds the bytes stands."""

    #: local: there is none, the bytes are on this host.
    state: Literal["local", "connected", "lost"]
    #: Why it is lost; empty where it is not.
    why: str
    #: Since when it stands so; seconds since 1970 by this host's clock.
    since: float
    #: How often it was lost and came back since the backend was opened.
    reconnections: int


class HasStats(Protocol):
    """Something that counts."""

    def stats(self) -> Any:
        """A mapping that JSON can say; None: nothing yet."""


class NamedStats(HasStats, Protocol):
    """A device or a disk."""

    @property
    def name(self) -> str:
        """The device's name."""


class Statistics(TypedDict):
    """Of a process, at one moment."""

    #: Device side, by device name.
    devices: dict[str, DeviceStats]
    #: Driver side, by device name.
    disks: dict[str, DriverStats]
    #: By what the caller calls them.
    exports: dict[str, dict[str, int]]
    #: Threads of the pools that were asked, one pool after the other.
    workers: list[WorkerStats]


def collect(
    *,
    devices: Iterable[NamedStats] = (),
    disks: Iterable[NamedStats] = (),
    exports: Mapping[str, HasStats] | None = None,
    pools: Iterable[HasStats] = (),
) -> Statistics:
    """Asks all of them once; from any thread, at any time. What has not begun is left out."""
    return {
        "devices": _asked({device.name: device for device in devices}),
        "disks": _asked({disk.name: disk for disk in disks}),
        "exports": _asked(exports or {}),
        "workers": [worker for pool in pools for worker in pool.stats()],
    }


def _asked(sources: Mapping[str, HasStats]) -> dict[str, Any]:
    return {name: stats for name, source in sources.items() if (stats := source.stats())}
