"""Throttle layers on a null device: the rate that was asked for, and the rate that came out over
ten seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from vduse.testing.harness import blk_stack
from vduse.testing.load import Spec, run_ours

#: What the project promises: not further off than this, over 10 s.
TARGET = 0.05

_UNIT = Literal["iops", "bps"]
#: Limit, units a second, bytes of a request, requests in flight.
_LOADS: tuple[tuple[_UNIT, int, int, int], ...] = (
    ("iops", 100, 4096, 1),
    ("iops", 100, 4096, 32),
    ("iops", 5_000, 4096, 32),
    ("iops", 5_000, 4096, 1),
    ("iops", 50_000, 4096, 32),
    ("bps", 5_000_000, 1 << 20, 8),
    ("bps", 100_000_000, 4096, 32),
    ("bps", 100_000_000, 1 << 20, 8),
    ("bps", 2_000_000_000, 1 << 20, 8),
)


@dataclass(frozen=True)
class Row:
    """One limit; rates in units a second."""

    unit: _UNIT
    wanted: float
    block_size: int
    depth: int
    rate: float
    #: Share of one CPU that the process took, load and device together.
    cpu: float

    @property
    def error(self) -> float:
        """How far off, as a share of what was wanted."""
        return self.rate / self.wanted - 1


def measure(seconds: float, step: Callable[[str], None]) -> Iterator[Row]:
    """Every load for ``seconds``."""
    for unit, wanted, block_size, depth in _LOADS:
        step(f"{wanted:,} {unit}, {block_size:,} bytes, depth {depth}")
        with blk_stack(backend="null", layers=[f"throttle,{unit}={wanted}"]) as stack:
            spec = Spec(block_size=block_size, depth=depth, seconds=seconds)
            report = run_ours(stack.native, spec)
        if report.errors:
            raise RuntimeError(report.messages[0])
        rate = report.iops if unit == "iops" else report.bytes_per_second
        cpu = report.process_cpu_seconds / report.seconds
        yield Row(unit, wanted, block_size, depth, rate, cpu)
