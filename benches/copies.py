"""1 MiB requests through bounce pages to a null device, against one thread that copies as much
between as many buffers. The two take turns; what counts is the median of the rounds, in wall
clock and in CPU (which a busy machine does not disturb as much)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from statistics import median

from vduse.testing.harness import blk_stack
from vduse.testing.load import Report, Spec, run_copies, run_ours

BLOCK_SIZE = 1 << 20
#: Requests in flight: 8 MiB and its bounce pages fit the caches of a larger CPU, 32 MiB do not.
DEPTHS = (8, 32)
#: What the project promises: this share of the copying thread's rate.
TARGET = 0.6


@dataclass(frozen=True)
class Row:
    """One direction; rates in bytes a second."""

    op: str
    depth: int
    rate: float
    copy_rate: float
    #: Median of the rounds' shares; 1: as fast as the copy alone.
    share: float
    #: The same of bytes a second of CPU, driver and device together.
    cpu_share: float
    rounds: int


def _cpu_rate(report: Report) -> float:
    return report.bytes / report.process_cpu_seconds


def measure(requests: int, rounds: int, step: Callable[[str], None]) -> Iterator[Row]:
    """Reads and writes; ``requests`` a round."""
    with blk_stack(backend="null") as stack:
        for op, depth in product(("read", "write"), DEPTHS):
            spec = Spec(op=op, block_size=BLOCK_SIZE, depth=depth, requests=requests)
            pairs: list[tuple[Report, Report]] = []
            for number in range(rounds):
                step(f"1 MiB {op}s, depth {depth}, round {number + 1} of {rounds}")
                load = run_ours(stack.native, spec)
                if load.errors:
                    raise RuntimeError(f"1 MiB {op}: {load.messages[0]}")
                pairs.append((load, run_copies(spec)))
            yield Row(
                op,
                depth,
                median(load.bytes_per_second for load, _ in pairs),
                median(copy.bytes_per_second for _, copy in pairs),
                median(load.bytes_per_second / copy.bytes_per_second for load, copy in pairs),
                median(_cpu_rate(load) / _cpu_rate(copy) for load, copy in pairs),
                rounds,
            )
