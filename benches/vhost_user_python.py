"""Disks written in Python over vhost-user, 4 KiB requests, 32 in flight: a RAM disk that takes
batches against nbdkit's Python plugin, which is one too, over NBD; and a disk that does nothing
against the native null. All take turns in every round; what counts is the median of the rounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import fio
from nbd import OPS, Step, started
from python_backends import NOTHING, RAM_DISK
from servers import PYTHON_PEERS, SIZE
from vhost_user_servers import Disk, ours

from vduse.testing.load import Spec, VirtioDriver

DEPTH = 32
QUEUE_SIZE = 256
HERE = Path(__file__).parent
PATHS = {"PYTHONPATH": f"{HERE}:{HERE.parent / 'examples'}"}
DISKS = {
    name: Disk((backend, "--size", f"{SIZE}"), "")
    for name, backend in (
        ("RAM disk", RAM_DISK),
        ("does nothing", NOTHING),
        ("native null", "null"),
    )
}

#: Requests a second, by name, of one round.
Round = dict[str, float]


@dataclass(frozen=True)
class Row:
    """One comparison."""

    what: str
    op: str
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
    ("RAM disk", "nbdkit Python, NBD", _plugin, 10.0),
    ("does nothing", "native null", lambda of_round: of_round["native null"], 1 / 3),
)


def measure(seconds: float, rounds: int, step: Step) -> Iterator[Row]:
    """One row a comparison and operation; ``seconds`` each time."""
    with ExitStack() as stack:
        peers = stack.enter_context(started(PYTHON_PEERS, step))
        drivers = {name: _driver(disk, stack) for name, disk in DISKS.items()}
        for op in OPS:
            spec = Spec(op=op, block_size=fio.BLOCK_SIZE, depth=DEPTH, seconds=seconds)
            found: list[Round] = []
            for number in range(rounds):
                step(f"{op}, round {number + 1} of {rounds}")
                of_peers = {
                    name: fio.load(server, op, DEPTH, seconds).iops
                    for name, server in peers.items()
                }
                found.append(of_peers | {name: _iops(each, spec) for name, each in drivers.items()})
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


def _driver(disk: Disk, stack: ExitStack) -> VirtioDriver:
    """On a disk that is full."""
    server = stack.enter_context(ours(disk, env=PATHS))
    driver = VirtioDriver(
        server.path, depth=DEPTH, block_size=fio.BLOCK_SIZE, queue_size=QUEUE_SIZE
    )
    stack.enter_context(driver)
    blocks = SIZE // fio.BLOCK_SIZE
    driver.run(Spec(op="write", block_size=fio.BLOCK_SIZE, depth=DEPTH, requests=blocks))
    return driver


def _iops(driver: VirtioDriver, spec: Spec) -> float:
    report = driver.run(spec)
    if report.errors:
        raise RuntimeError(f"{spec.op}: {report.messages[0]}")
    return report.iops
