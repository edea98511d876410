"""What `vduse bench` finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Disk:
    """What the server says of it."""

    #: Bytes.
    size: int
    read_only: bool
    #: Virtqueues.
    queues: int


@dataclass(frozen=True)
class Server:
    """The program whose CPU is counted."""

    pid: int
    #: As the kernel calls it.
    program: str


@dataclass(frozen=True)
class Load:
    """What was asked for; sizes in bytes."""

    op: str
    #: Of a hundred requests.
    reads: int
    block_size: int
    depth: int
    #: Requests that are in flight at most: the virtqueues may have room for fewer than ``depth``.
    in_flight: int
    queues: int
    queue_size: int
    packed: bool
    poll: bool
    span: int
    verify: bool


@dataclass(frozen=True)
class Figures:
    """Of a round, or the middle ones of all rounds."""

    iops: float
    bytes_per_second: float
    #: Nanoseconds: p50, p90, p99, p99.9, max.
    latency_ns: Mapping[str, int]
    #: Nanoseconds of CPU a request.
    client_cpu_ns: float
    #: None: not to be told.
    server_cpu_ns: float | None


@dataclass(frozen=True)
class Round:
    """One round."""

    requests: int
    seconds: float
    #: Requests that failed, and blocks that were not as written.
    errors: int
    figures: Figures


@dataclass(frozen=True)
class Facts:
    """Everything."""

    socket: str
    disk: Disk
    server: Server | None
    load: Load
    rounds: tuple[Round, ...]
    #: Medians of the rounds, each figure for itself; None: there was no whole round.
    median: Figures | None
    #: Of all rounds.
    errors: int
    #: The first of them, with their offsets.
    messages: tuple[str, ...]
    #: Why it ended early; None: it did not.
    ended: str | None

    @property
    def failed(self) -> bool:
        """Whether not all went well."""
        return bool(self.errors) or self.ended is not None
