"""1 MiB requests through bounce pages to a null device, against one thread that copies as much
between as many buffers. The two take turns; what counts is the median of the rounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median

from vduse import _native
from vduse.testing.harness import blk_stack
from vduse.testing.load import Spec, run_ours

BLOCK_SIZE = 1 << 20
DEPTH = 4
#: What the project promises: this share of the copying thread's rate.
TARGET = 0.6


@dataclass(frozen=True)
class Row:
    """One direction; rates in bytes a second."""

    op: str
    rate: float
    copy_rate: float
    rounds: int

    @property
    def ratio(self) -> float:
        """1: as fast as the copy alone."""
        return self.rate / self.copy_rate


def measure(requests: int, rounds: int, step: Callable[[str], None]) -> Iterator[Row]:
    """Reads and writes; ``requests`` a round."""
    moved = requests * BLOCK_SIZE
    with blk_stack(backend="null") as stack:
        for op in ("read", "write"):
            loads: list[float] = []
            copies: list[float] = []
            spec = Spec(op=op, block_size=BLOCK_SIZE, depth=DEPTH, requests=requests)
            for number in range(rounds):
                step(f"1 MiB {op}s, round {number + 1} of {rounds}")
                report = run_ours(stack.native, spec)
                if report.errors:
                    raise RuntimeError(f"1 MiB {op}: {report.messages[0]}")
                loads.append(moved / report.seconds)
                (seconds,) = _native.copy_baseline(BLOCK_SIZE, DEPTH, requests, 1, op == "write")
                copies.append(moved / seconds)
            yield Row(op, median(loads), median(copies), rounds)
