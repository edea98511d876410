"""128 KiB sequential requests over vhost-user on our memory backend, against one thread that copies
as much: between as many buffers and a disk as large, block after block, as the requests go. The two
take turns; what counts is the median of the rounds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

from vhost_user import Step
from vhost_user_servers import SIZE, Disk, ours

from vduse.testing.load import Op, Report, Spec, VirtioDriver, run_copies

BLOCK_SIZE = 128 << 10
DEPTH = 32
#: What the project promises: this share of the copying thread's rate.
TARGET = 0.7
OPS: tuple[Op, ...] = ("read", "write")


@dataclass(frozen=True)
class Row:
    """One direction; rates in bytes a second."""

    op: Op
    rate: float
    copy_rate: float
    #: Median of the rounds' shares; 1: as fast as the copy alone.
    share: float
    target: float
    rounds: int


def measure(requests: int, rounds: int, step: Step) -> Iterator[Row]:
    """Reads and writes; ``requests`` a round."""
    memory = Disk(("memory", "--size", f"{SIZE}"), "")
    with (
        ours(memory) as server,
        VirtioDriver(server.path, depth=DEPTH, block_size=BLOCK_SIZE, queue_size=256) as driver,
    ):
        # A disk never written is not there: its reads would copy one page of zeroes.
        _run(driver, "write", SIZE // BLOCK_SIZE)
        for op in OPS:
            pairs = []
            for number in range(rounds):
                step(f"128 KiB {op}s, round {number + 1} of {rounds}")
                copies = Spec(op=op, block_size=BLOCK_SIZE, depth=DEPTH, requests=requests)
                pairs.append((_run(driver, op, requests), run_copies(copies, disk=SIZE)))
            yield Row(
                op,
                median(load.bytes_per_second for load, _ in pairs),
                median(copy.bytes_per_second for _, copy in pairs),
                median(load.bytes_per_second / copy.bytes_per_second for load, copy in pairs),
                TARGET,
                rounds,
            )


def _run(driver: VirtioDriver, op: Op, requests: int) -> Report:
    report = driver.run(Spec(op=op, block_size=BLOCK_SIZE, depth=DEPTH, requests=requests))
    if report.errors:
        raise RuntimeError(f"128 KiB {op}: {report.messages[0]}")
    return report
