"""4 KiB requests over NBD: `vduse blk` with all defaults against nbdkit and qemu-nbd, on one
connection of fio's. The servers take turns in every round, so that what else the machine does
meets all of them; what counts is the median of the rounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import product
from statistics import median

from fio import fill, load
from servers import OURS, PEERS, Server

from vduse.testing.nbd import NbdChild

OPS = ("randread", "randwrite")
DEPTHS = (1, 32)

Step = Callable[[str], None]


@dataclass(frozen=True)
class Row:
    """One server; times in nanoseconds a request."""

    server: str
    op: str
    depth: int
    iops: float
    #: Median of the rounds' shares of the fastest peer of the same round.
    share: float
    #: CPU of the server, in its own code and in the kernel.
    user_ns: float
    system_ns: float
    #: CPU of fio.
    client_ns: float
    rounds: int


def measure(seconds: float, rounds: int, step: Step) -> Iterator[Row]:
    """One row a server, operation and depth; ``seconds`` each time."""
    with started(OURS | PEERS, step) as servers:
        for op, depth in product(OPS, DEPTHS):
            yield from compare(servers, list(PEERS), op, depth, seconds, rounds, step)


@contextmanager
def started(
    makers: Mapping[str, Callable[[], Server]], step: Step
) -> Iterator[dict[str, NbdChild]]:
    """All servers, their disks full of data."""
    with ExitStack() as stack:
        servers = {}
        for name, make in makers.items():
            step(f"{name}: filling its disk")
            servers[name] = stack.enter_context(make())
            fill(servers[name])
        yield servers


def compare(
    servers: Mapping[str, NbdChild],
    peers: list[str],
    op: str,
    depth: int,
    seconds: float,
    rounds: int,
    step: Step,
) -> Iterator[Row]:
    """The servers, in turns; each one's share is that of the fastest of ``peers``."""
    found = []
    for number in range(rounds):
        step(f"{op}, depth {depth}, round {number + 1} of {rounds}")
        found.append({name: load(server, op, depth, seconds) for name, server in servers.items()})
    for name in servers:
        loads = [of_round[name] for of_round in found]
        fastest = [max(of_round[peer].iops for peer in peers) for of_round in found]
        yield Row(
            name,
            op,
            depth,
            median(load.iops for load in loads),
            median(load.iops / iops for load, iops in zip(loads, fastest, strict=True)),
            median(load.user_ns for load in loads),
            median(load.system_ns for load in loads),
            median(load.client_ns for load in loads),
            rounds,
        )
