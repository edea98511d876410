"""States of daemons, made up."""

from __future__ import annotations

from typing import Any

from vduse.daemon.watch.state import (
    BackendConnection,
    Distribution,
    ExportState,
    Latency,
    NodeState,
    ProcessState,
    QueueState,
    State,
    WorkerState,
)

NOW = 1_000_000.0


def distribution(*buckets: tuple[int, int]) -> Distribution:
    """Each value at its bucket's upper bound."""
    values = [bound for bound, count in buckets for _ in range(count)]
    return Distribution(
        count=len(values),
        sum=sum(values),
        p50=0,
        p99=0,
        max=max(values, default=0),
        buckets=[list(bucket) for bucket in buckets],
    )


def latency(**kinds: Distribution) -> Latency:
    names = ("read", "write", "flush", "discard", "other")
    return Latency(**{name: kinds.get(name, distribution()) for name in names})


def queue(index: int = 0, **fields: Any) -> QueueState:
    counts = {
        name: 0
        for name in QueueState.__struct_fields__
        if name not in ("index", "latency_ns", *fields)
    }
    return QueueState(index=index, **{"latency_ns": latency(), **counts, **fields})


def export(name: str = "e0", *queues: QueueState, **fields: Any) -> ExportState:
    return ExportState(
        **{
            "id": name,
            "type": "nbd",
            "node_name": "disk0",
            "device": name,
            "size": 1 << 20,
            "read_only": False,
            "live": True,
            "broken": "",
            "taken_over": False,
            "iotlb_misses": 0,
            "queues": list(queues),
            **fields,
        }
    )


def node(name: str = "disk0", state: Any = "local", **connection: Any) -> NodeState:
    link = {"why": "", "since": NOW - 12, "reconnections": 0, **connection}
    return NodeState(
        node_name=name,
        driver="nbd",
        size=1 << 20,
        connection=BackendConnection(state=state, **link),
    )


def state(*parts: ExportState | NodeState | WorkerState, **fields: Any) -> State:
    process = {
        "pid": 1,
        "started": NOW - 100,
        "cpu_seconds": 0.0,
        "resident_bytes": 1 << 20,
        "open_fds": 9,
        "threads": 3,
    }
    return State(
        version="1.2.3",
        time=fields.pop("time", NOW),
        process=ProcessState(**{**process, **fields}),
        exports=[part for part in parts if isinstance(part, ExportState)],
        nodes=[part for part in parts if isinstance(part, NodeState)],
        workers=[part for part in parts if isinstance(part, WorkerState)],
    )
