"""Nanoseconds and CPU of a request, from driver object to null device: 4 KiB random reads at
several depths, through bounce pages and without a copy, split and packed, on our driver and on
libblkio's (crate virtio-driver, whose vhost-user socket only sets it up)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from vduse.control.features import Feature
from vduse.testing.arena import ArenaBlk
from vduse.testing.harness import blk_stack
from vduse.testing.load import Report, Spec, run_ours, run_vhost_user

DEPTHS = (1, 32, 128)
BLOCK_SIZE = 4096
#: No queue is short of descriptors, 3 a request, at the largest depth.
QUEUE_SIZE = 512

Load = Callable[[Spec], Report]


@dataclass(frozen=True)
class Row:
    """One combination; times in nanoseconds a request."""

    driver: str
    memory: str
    ring: str
    depth: int
    iops: float
    ns: float
    #: Of the whole process: driver and device.
    cpu_ns: float
    #: Of the thread that makes the load: the driver alone.
    driver_cpu_ns: float
    p99_ns: int


@contextmanager
def _bounce(packed: bool) -> Iterator[Load]:
    with blk_stack(backend="null", packed=packed, queue_size=QUEUE_SIZE) as stack:
        yield lambda spec: run_ours(stack.native, spec)


@contextmanager
def _arena(packed: bool) -> Iterator[Load]:
    without = 0 if packed else Feature.RING_PACKED
    with (
        blk_stack(
            backend="null", packed=packed, queue_size=QUEUE_SIZE, driver="vhost_vdpa"
        ) as stack,
        ArenaBlk(
            stack.driver, [stack.vdpa.vq_line(0)], queue_size=QUEUE_SIZE, without=without
        ) as blk,
    ):
        yield lambda spec: run_ours(blk.native, spec, blk.arena)


@contextmanager
def _libblkio(packed: bool) -> Iterator[Load]:
    with (
        blk_stack(
            backend="null", packed=packed, queue_size=QUEUE_SIZE, driver="vhost_vdpa"
        ) as stack,
        stack.vhost_user() as path,
    ):
        yield lambda spec: run_vhost_user(
            path, spec, packed=packed, queue_size=QUEUE_SIZE, event_idx=not packed
        )


ENGINES: tuple[tuple[str, str, Callable[[bool], AbstractContextManager[Load]]], ...] = (
    ("ours", "bounce", _bounce),
    ("ours", "arena", _arena),
    ("libblkio", "own", _libblkio),
)


def measure(seconds: float, rounds: int, step: Callable[[str], None]) -> Iterator[Row]:
    """One row a combination, the middle one of its rounds; ``step`` hears of each before."""
    for driver, memory, engine in ENGINES:
        for ring in ("split", "packed"):
            with engine(ring == "packed") as load:
                for depth in DEPTHS:
                    step(f"{driver}, {memory}, {ring}, depth {depth}")
                    spec = Spec(block_size=BLOCK_SIZE, depth=depth, seconds=seconds)
                    reports = sorted((load(spec) for _ in range(rounds)), key=lambda r: r.iops)
                    middle = reports[len(reports) // 2]
                    if middle.errors:
                        raise RuntimeError(f"{driver}, {ring}: {middle.messages[0]}")
                    yield Row(
                        driver,
                        memory,
                        ring,
                        depth,
                        middle.iops,
                        middle.ns_per_request,
                        middle.cpu_ns_per_request,
                        middle.cpu_seconds * 1e9 / middle.requests,
                        middle.latency_ns["p99"],
                    )
