"""Disks written in Python, 4 KiB requests, 32 in flight: a RAM disk through NBD and by the load
generator's submit and reap against nbdkit's Python plugin, which is one too, through NBD; and a
disk that does nothing against the native null. All take turns in every round; what counts
is the median of the rounds."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import fio
from nbd import OPS, Step, started
from servers import PYTHON_PEERS, SIZE

from vduse.testing.harness import blk_stack
from vduse.testing.load import Op, Spec, run_ours
from vduse.testing.nbd import blk_server

DEPTH = 32
HERE = Path(__file__).parent
EXAMPLES = HERE.parent / "examples"
RAM_DISK = "python:ram_disk:RamDisk"
NOTHING = "python:python_disks:Nothing"

#: Requests a second, by name, of one round.
Round = dict[str, float]


@dataclass(frozen=True)
class Row:
    """One comparison."""

    what: str
    op: Op
    iops: float
    against: str
    against_iops: float
    #: Median of the rounds' shares.
    share: float
    #: The share that the project promises.
    target: float
    rounds: int


def _plugin(of_round: Round) -> float:
    return max(of_round[name] for name in PYTHON_PEERS)


#: What is compared, with what, and what is promised.
COMPARISONS: tuple[tuple[str, str, Callable[[Round], float], float], ...] = (
    ("RAM disk, NBD", "nbdkit Python, NBD", _plugin, 3.0),
    ("RAM disk, submit", "nbdkit Python, NBD", _plugin, 10.0),
    ("does nothing", "native null", lambda of_round: of_round["native null"], 1 / 3),
)


def measure(seconds: float, rounds: int, step: Step) -> Iterator[Row]:
    """One row a comparison and operation; ``seconds`` each time."""
    with ExitStack() as stack:
        ours = {
            "RAM disk, NBD": lambda: blk_server(
                RAM_DISK, "--size", f"{SIZE}", env={"PYTHONPATH": str(EXAMPLES)}
            )
        }
        servers = stack.enter_context(started(ours | PYTHON_PEERS, step))
        sys.path[:0] = [str(EXAMPLES), str(HERE)]
        disks = {
            name: stack.enter_context(blk_stack(backend=backend, size=SIZE)).native
            for name, backend in (
                ("RAM disk, submit", RAM_DISK),
                ("does nothing", NOTHING),
                ("native null", "null"),
            )
        }
        for op in OPS:
            spec = Spec(op=op, block_size=fio.BLOCK_SIZE, depth=DEPTH, seconds=seconds)
            found: list[Round] = []
            for number in range(rounds):
                step(f"{op}, round {number + 1} of {rounds}")
                over_nbd = {
                    name: fio.load(server, op, DEPTH, seconds).iops
                    for name, server in servers.items()
                }
                found.append(
                    over_nbd | {name: run_ours(disk, spec).iops for name, disk in disks.items()}
                )
            for what, against, peer, target in COMPARISONS:
                yield Row(
                    what,
                    op,
                    median(of_round[what] for of_round in found),
                    against,
                    median(map(peer, found)),
                    median(of_round[what] / peer(of_round) for of_round in found),
                    target,
                    rounds,
                )
