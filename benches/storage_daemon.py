"""4 KiB random requests at depth 32 on nodes of the storage daemon: ours beside QEMU's, the same
options, the same data, the same export. The daemons take turns in every round, so that what else
the machine does meets both; what counts is the median of the rounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import median

import fio
from storage_daemons import DAEMONS, EXPORTS, StorageDaemon, started
from storage_nodes import NODES

from vduse.testing.load import Op, Spec, VirtioDriver

OPS: tuple[Op, ...] = ("randread", "randwrite")
BLOCK_SIZE = 4096
DEPTH = 32

Step = Callable[[str], None]
#: A load on one daemon: so many seconds of these requests.
Side = Callable[[Op, float], "Load"]


@dataclass(frozen=True)
class Target:
    """What the project promises, ours to QEMU's: of the requests a second at least, of the
    daemon's CPU a request at most."""

    iops: float
    cpu: float | None = None


TARGETS = {"qcow2": Target(1.2), "nbd": Target(1.2), "rbd": Target(1.0, 0.8)}


@dataclass(frozen=True)
class Row:
    """One node, export and operation; ratios are medians of the rounds', ours to QEMU's."""

    driver: str
    data: str
    export: str
    op: Op
    iops: float
    qemu_iops: float
    ratio: float
    target: float | None
    #: Nanoseconds of the daemon's CPU a request.
    cpu_ns: float
    qemu_cpu_ns: float
    cpu_ratio: float
    cpu_target: float | None
    rounds: int


@dataclass(frozen=True)
class Load:
    """One daemon in one round."""

    iops: float
    cpu_ns: float


def measure(driver: str, seconds: float, rounds: int, step: Step) -> Iterator[Row]:
    """One row a data, export and operation of a driver; ``seconds`` each time."""
    for data, make in NODES[driver].items():
        step(f"{driver}, {data}: making its data")
        with make() as blockdevs:
            for export in EXPORTS:
                with _sides(blockdevs, export) as sides:
                    for op in OPS:
                        for side in sides.values():
                            side(op, seconds)  # what it keeps of the node is read now
                        what = f"{driver}, {data}, {export}, {op}"
                        found = list(_rounds(sides, op, seconds, rounds, what, step))
                        yield _row(driver, data, export, op, found)


@contextmanager
def _sides(blockdevs: Mapping[str, str], export: str) -> Iterator[dict[str, Side]]:
    with ExitStack() as stack:
        yield {
            name: _side(stack.enter_context(started(name, blockdevs[name], export)), export, stack)
            for name in DAEMONS
        }


def _side(daemon: StorageDaemon, export: str, stack: ExitStack) -> Side:
    if export == "nbd":
        return lambda op, seconds: _over_nbd(daemon, op, seconds)
    driver = VirtioDriver(daemon.socket, depth=DEPTH, block_size=BLOCK_SIZE)
    stack.enter_context(driver)
    return lambda op, seconds: _over_vhost_user(daemon, driver, op, seconds)


def _over_nbd(daemon: StorageDaemon, op: Op, seconds: float) -> Load:
    """fio's nbd engine, one connection."""
    before = daemon.cpu()
    done = fio.requests(daemon.uri, op, DEPTH, seconds)
    return Load(done.iops, (daemon.cpu() - before) * 1e9 / done.requests)


def _over_vhost_user(daemon: StorageDaemon, driver: VirtioDriver, op: Op, seconds: float) -> Load:
    """The crate virtio-driver, which neither project wrote; one queue."""
    before = daemon.cpu()
    report = driver.run(Spec(op=op, block_size=BLOCK_SIZE, depth=DEPTH, seconds=seconds))
    if report.errors:
        raise RuntimeError(f"{op}: {report.messages[0]}")
    return Load(report.iops, (daemon.cpu() - before) * 1e9 / report.requests)


def _rounds(
    sides: Mapping[str, Side], op: Op, seconds: float, rounds: int, what: str, step: Step
) -> Iterator[dict[str, Load]]:
    for number in range(rounds):
        step(f"{what}: round {number + 1} of {rounds}")
        # Who begins changes.
        turns = list(sides.items())[:: -1 if number % 2 else 1]
        yield {name: side(op, seconds) for name, side in turns}


def _row(driver: str, data: str, export: str, op: Op, found: list[dict[str, Load]]) -> Row:
    pairs = [(of_round["vduse"], of_round["qemu"]) for of_round in found]
    target = TARGETS.get(driver)
    return Row(
        driver=driver,
        data=data,
        export=export,
        op=op,
        iops=median(ours.iops for ours, _ in pairs),
        qemu_iops=median(theirs.iops for _, theirs in pairs),
        ratio=median(ours.iops / theirs.iops for ours, theirs in pairs),
        target=target and target.iops,
        cpu_ns=median(ours.cpu_ns for ours, _ in pairs),
        qemu_cpu_ns=median(theirs.cpu_ns for _, theirs in pairs),
        cpu_ratio=median(ours.cpu_ns / theirs.cpu_ns for ours, theirs in pairs),
        cpu_target=target and target.cpu,
        rounds=len(pairs),
    )
