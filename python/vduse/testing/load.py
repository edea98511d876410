"""The load generator: the same load on our own virtio-blk driver and on two others.

report = run_vhost_user("disk.sock", Spec(op="mixed", requests=10_000, verify=True))
print(report.table())
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

from vduse import _native
from vduse.bus.vdpa import VdpaDevice

Op = Literal["read", "write", "randread", "randwrite", "mixed"]


@dataclass(frozen=True, kw_only=True)
class Spec:
    """A load. Just one of ``requests`` and ``seconds`` is given."""

    op: Op = "randread"
    #: Bytes of a request, a multiple of 512.
    block_size: int = 4096
    #: Requests kept in flight.
    depth: int = 32
    requests: int | None = None
    seconds: float | None = None
    #: Where the random numbers start.
    seed: int = 1
    #: Blocks are written with patterns of their own, what is read must match: loads that only
    #: read write the span first, loads that write read it back afterwards.
    verify: bool = False
    #: Bytes of the disk to use, from its start; None: all.
    span: int | None = None


@dataclass(frozen=True)
class Report:
    """What a load found. Counts and times are of the load proper, without what ``verify``
    adds; ``errors`` are of both."""

    requests: int
    bytes: int
    #: Wall clock.
    seconds: float
    #: CPU of the thread that makes the load.
    cpu_seconds: float
    #: CPU of the process; a device in it is included.
    process_cpu_seconds: float
    #: Requests that failed, and blocks that did not read as written.
    errors: int
    #: The first errors in words, with their offsets.
    messages: tuple[str, ...]
    #: Nanoseconds: p50, p90, p99, p99.9, max.
    latency_ns: Mapping[str, int]

    @classmethod
    def from_native(cls, result: dict[str, Any]) -> Self:
        """From what :mod:`vduse._native` returns."""
        return cls(**{**result, "messages": tuple(result["messages"])})

    @property
    def iops(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds if self.seconds else 0.0

    @property
    def bytes_per_second(self) -> float:
        """Of the requests that succeeded."""
        return self.bytes / self.seconds if self.seconds else 0.0

    @property
    def ns_per_request(self) -> float:
        """Wall clock, in nanoseconds."""
        return self.seconds * 1e9 / self.requests if self.requests else 0.0

    @property
    def cpu_ns_per_request(self) -> float:
        """CPU of the whole process, in nanoseconds."""
        return self.process_cpu_seconds * 1e9 / self.requests if self.requests else 0.0

    def to_json(self) -> str:
        """One object, derived figures included."""
        derived = ("iops", "bytes_per_second", "ns_per_request", "cpu_ns_per_request")
        return json.dumps(asdict(self) | {name: getattr(self, name) for name in derived})

    def table(self) -> str:
        """Some lines for people."""
        rows = [
            ("requests", f"{self.requests:,} in {self.seconds:.3f} s ({self.iops:,.0f} IOPS)"),
            ("data", f"{self.bytes:,} bytes ({self.bytes_per_second / 1e6:,.0f} MB/s)"),
            (
                "a request",
                f"{self.ns_per_request:,.0f} ns, {self.cpu_ns_per_request:,.0f} ns of CPU",
            ),
            ("latency", ", ".join(f"{k} {v / 1e3:,.1f} us" for k, v in self.latency_ns.items())),
            ("errors", str(self.errors)),
        ]
        lines = [f"{name:<10} {value}" for name, value in rows]
        return "\n".join(lines + [f"{'':<10} {message}" for message in self.messages])


def run_ours(driver: _native.BlkDriver, spec: Spec, arena: _native.Arena | None = None) -> Report:
    """On our own driver; with the ``arena`` it was made with, data is not copied."""
    return Report.from_native(_native.load_ours(driver, asdict(spec), arena))


def run_copies(spec: Spec) -> Report:
    """One thread that copies as much as the load moves, between as much memory and as much
    again; ``spec.requests`` and a read or a write. No latencies."""
    if spec.requests is None or spec.op not in ("read", "write"):
        raise ValueError("copies are a number of reads or writes")
    write = spec.op == "write"
    return Report.from_native(
        _native.copy_baseline(spec.block_size, spec.depth, spec.requests, write)
    )


def run_virtio_drivers(device: VdpaDevice, spec: Spec) -> Report:
    """On crate ``virtio-drivers`` (rcore-os), through the domain of a vDPA device that no bus
    driver is bound to. The device is reset before and after.

    One split queue of 16 descriptors, whatever the device offers: at most 16 requests are in
    flight."""
    return Report.from_native(_native.load_virtio_drivers(device, asdict(spec)))


def run_vhost_user(
    path: str,
    spec: Spec,
    *,
    packed: bool = False,
    queues: int = 1,
    queue_size: int = 128,
    event_idx: bool = True,
) -> Report:
    """On crate ``virtio-driver`` (libblkio's): ``path`` is the socket of a vhost-user block device,
    ours or another's. OSError, RuntimeError: it cannot be driven.

    On a packed ring with ``event_idx`` the crate may lose a kick, and stall for a tenth of a
    second, once 65,536 descriptors went by without one.
    """
    result = _native.load_virtio_driver(path, asdict(spec), packed, queues, queue_size, event_idx)
    return Report.from_native(result)


def run_vhost_vdpa(
    node: str,
    spec: Spec,
    *,
    packed: bool = False,
    queues: int = 1,
    queue_size: int = 128,
    event_idx: bool = True,
) -> Report:
    """On the same crate, through the kernel: ``node`` is a /dev/vhost-vdpa-N that nobody has open.
    The device is reset before and after. Its program is another process: the kernel holds this
    one's memory map while it waits for the answer to UPDATE_IOTLB.

    ``queue_size``: at most the device's own. Packed rings do not work: the crate starts them with
    wrap counters of 0, so that the device sees no request."""
    result = _native.load_virtio_driver(node, asdict(spec), packed, queues, queue_size, event_idx)
    return Report.from_native(result)
