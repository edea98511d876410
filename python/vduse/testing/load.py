"""The load generator: the same load on our own virtio-blk driver and on two others.

report = run_vhost_user("disk.sock", Spec(op="mixed", requests=10_000, verify=True))
print(report.table())
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

from vduse import _native
from vduse.bus.vdpa import VdpaDevice
from vduse.testing.closing import Closing

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
    #: Of ``mixed``: how many requests of a hundred are reads.
    reads: int = 50
    #: The driver looks for what has completed all the time instead of sleeping until an irq.
    poll: bool = False
    #: Seconds that no request may complete while some are in flight: TimeoutError. None: for ever.
    patience: float | None = None


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


def run_copies(spec: Spec, *, disk: int | None = None) -> Report:
    """One thread that copies as much as the load moves, between its buffers and as much memory
    again, or a disk of ``disk`` bytes in memory, block after block; ``spec.requests`` and a read
    or a write. No latencies."""
    if spec.requests is None or spec.op not in ("read", "write"):
        raise ValueError("copies are a number of reads or writes")
    others = spec.depth if disk is None else disk // spec.block_size
    write = spec.op == "write"
    return Report.from_native(
        _native.copy_baseline(spec.block_size, spec.depth, spec.requests, write, others)
    )


def run_virtio_drivers(device: VdpaDevice, spec: Spec) -> Report:
    """On crate ``virtio-drivers`` (rcore-os), through the domain of a vDPA device that no bus
    driver is bound to. The device is reset before and after.

    One split queue of 16 descriptors, whatever the device offers: at most 16 requests are in
    flight."""
    return Report.from_native(_native.load_virtio_drivers(device, asdict(spec)))


class VirtioDriver(Closing):
    """Crate ``virtio-driver`` (libblkio's) on a device: any number of loads on one connection."""

    def __init__(
        self,
        path: str,
        *,
        depth: int = 32,
        block_size: int = 4096,
        packed: bool = False,
        queues: int = 1,
        queue_size: int = 128,
        event_idx: bool = True,
    ) -> None:
        """``path``: the socket of a vhost-user block device, or a /dev/vhost-vdpa-N. OSError,
        RuntimeError: it cannot be driven."""
        self._native = _native.VirtioDriver(
            path,
            depth=depth,
            block_size=block_size,
            packed=packed,
            queues=queues,
            queue_size=queue_size,
            event_idx=event_idx,
        )

    @property
    def capacity(self) -> int:
        """Bytes of the disk."""
        return self._native.capacity

    @property
    def read_only(self) -> bool:
        """The device takes no writes."""
        return self._native.read_only

    @property
    def queues(self) -> int:
        """Virtqueues that the device has."""
        return self._native.queues

    def run(self, spec: Spec, progress: Callable[[str, int, int], object] | None = None) -> Report:
        """A load of the driver's depth and block size. ``progress``: called about ten times a
        second with what is being done (filling, load, reading back), the requests completed and
        the blocks in use; its exception ends the load. After an exception the driver is closed."""
        return Report.from_native(self._native.run(asdict(spec), progress))

    def close(self) -> None:
        """Ends the connection."""
        self._native.close()


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
    with VirtioDriver(
        path,
        depth=spec.depth,
        block_size=spec.block_size,
        packed=packed,
        queues=queues,
        queue_size=queue_size,
        event_idx=event_idx,
    ) as driver:
        return driver.run(spec)


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
    with VirtioDriver(
        node,
        depth=spec.depth,
        block_size=spec.block_size,
        packed=packed,
        queues=queues,
        queue_size=queue_size,
        event_idx=event_idx,
    ) as driver:
        return driver.run(spec)
