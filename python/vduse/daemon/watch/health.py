"""Whether a daemon is well, from its state: what is wrong, and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from vduse.daemon.table import Context
from vduse.daemon.watch.spans import span
from vduse.daemon.watch.state import ExportState, NodeState, State

_NS = 1e9


@dataclass(frozen=True)
class Trouble:
    """Something that is not as it should be."""

    kind: Literal["connection", "broken", "stuck"]
    #: The export's id, or the node's name.
    subject: str
    #: What is wrong.
    text: str
    advice: str


@dataclass(frozen=True)
class Health:
    """Of a daemon that answers."""

    status: Literal["ok", "degraded"]
    pid: int
    version: str
    #: Seconds.
    uptime: float
    exports: int
    troubles: tuple[Trouble, ...]


def judge(state: State, *, stuck_after: float) -> Health:
    """``stuck_after``: seconds that a request may be in flight."""
    troubles = (
        *(each for node in state.nodes for each in _node(node, state.time)),
        *(each for export in state.exports for each in _export(export, stuck_after)),
    )
    return Health(
        status="degraded" if troubles else "ok",
        pid=state.process.pid,
        version=state.version,
        uptime=max(0.0, state.time - state.process.started),
        exports=len(state.exports),
        troubles=troubles,
    )


def show(health: Health, context: Context) -> None:
    """For people."""
    exports = "1 export" if health.exports == 1 else f"{health.exports} exports"
    first = f"{health.status}: {exports}, up {span(health.uptime)}, pid {health.pid}"
    context.out.print(first, markup=False, soft_wrap=True)
    for trouble in health.troubles:
        context.out.print(f"{trouble.text}\n  {trouble.advice}", markup=False, soft_wrap=True)


def _node(node: NodeState, now: float) -> Iterator[Trouble]:
    connection = node.connection
    if connection.state == "lost":
        lost = span(max(0.0, now - connection.since))
        yield Trouble(
            "connection",
            node.node_name,
            f"node {node.node_name} ({node.driver}): connection lost for {lost}: {connection.why}",
            "check the server and the network; the daemon goes on connecting",
        )


def _export(export: ExportState, stuck_after: float) -> Iterator[Trouble]:
    if export.broken:
        yield Trouble(
            "broken",
            export.id,
            f"export {export.id}: device {export.device} serves nothing: {export.broken}",
            "a reset by its driver brings it back, as by a restart of its user; else "
            "block-export-del and block-export-add",
        )
    for queue in export.queues:
        age = queue.oldest_in_flight_ns / _NS
        if age > stuck_after:
            yield Trouble(
                "stuck",
                export.id,
                f"export {export.id}: virtqueue {queue.index}: {queue.in_flight} in flight, the "
                f"oldest for {span(age)}",
                f"node {export.node_name} does not answer: check what it is stored on",
            )
