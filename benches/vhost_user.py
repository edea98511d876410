"""4 KiB random requests over vhost-user: ours beside QEMU's storage daemon, each with all its
defaults, on the crate virtio-driver, which neither project wrote. The servers take turns in every
round, so that what else the machine does meets both; what counts is the median of the rounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from statistics import median

from syscalls import counted
from vhost_user_servers import (
    CACHE,
    NULL,
    SERVERS,
    Disk,
    VhostUserChild,
    cached_file,
    direct_file,
    image,
)

from vduse.testing.load import Op, Spec, VirtioDriver

OPS: tuple[Op, ...] = ("randread", "randwrite")
BLOCK_SIZE = 4096
#: Descriptors of a queue, as those of `vduse blk`: 85 requests, whatever the depth.
QUEUE_SIZE = 256

Step = Callable[[str], None]
#: Servers and their drivers.
Sides = Mapping[str, tuple[VhostUserChild, VirtioDriver]]


@dataclass(frozen=True)
class Case:
    """What is compared. ``target``: the ratio of requests a second that the project promises;
    ``cpu_target``: of the server's CPU a request, at most."""

    disk: str
    depth: int
    poll: bool = False
    queues: int = 1
    target: float | None = None
    cpu_target: float | None = None


CASES = (
    Case("null", 1, target=1.5),
    Case("null", 32, target=1.5, cpu_target=0.5),
    Case("null", 128, target=1.35),
    Case("null", 1, poll=True, target=5.0),
    Case("null", 32, poll=True, target=2.0),
    Case("null", 32, queues=2),
    Case("null", 32, queues=4),
    Case("null", 32, queues=8),
    Case("file on tmpfs", 32, target=1.3),
    Case("file, O_DIRECT", 32, target=1.0, cpu_target=1.0),
)


@dataclass(frozen=True)
class Row:
    """One case and operation; ratios are medians of the rounds', ours to QEMU's."""

    disk: str
    op: Op
    depth: int
    queues: int
    client: str
    iops: float
    qemu_iops: float
    ratio: float
    target: float | None
    #: Nanoseconds of the server's CPU a request.
    cpu_ns: float
    qemu_cpu_ns: float
    cpu_ratio: float
    cpu_target: float | None
    #: System calls of the server a request; None: this machine does not let us count them.
    syscalls: float | None
    qemu_syscalls: float | None
    #: Nanoseconds of the client's CPU a request, at ours and at QEMU's.
    client_ns: float
    qemu_client_ns: float
    rounds: int


@dataclass(frozen=True)
class Load:
    """One server in one round."""

    iops: float
    cpu_ns: float
    client_ns: float


def measure(seconds: float, rounds: int, step: Step) -> Iterator[Row]:
    """One row a case and operation; ``seconds`` each time."""
    for (disk, queues), cases in groupby(CASES, lambda case: (case.disk, case.queues)):
        with ExitStack() as stack:
            # A file has one writer: an image each.
            servers = {
                name: stack.enter_context(start(_disk(disk, stack), queues))
                for name, start in SERVERS.items()
            }
            for case in cases:
                yield from _compare(case, servers, seconds, rounds, step)


def _disk(name: str, stack: ExitStack) -> Disk:
    if name == "file on tmpfs":
        return cached_file(stack.enter_context(image("/dev/shm")))
    if name == "file, O_DIRECT":
        return direct_file(stack.enter_context(image(str(CACHE))), "io_uring")
    return NULL


def _compare(
    case: Case,
    servers: Mapping[str, VhostUserChild],
    seconds: float,
    rounds: int,
    step: Step,
) -> Iterator[Row]:
    with ExitStack() as stack:
        sides = {
            name: (server, stack.enter_context(_driver(server, case)))
            for name, server in servers.items()
        }
        for op in OPS:
            yield _row(case, op, sides, seconds, rounds, step)


def _driver(server: VhostUserChild, case: Case) -> VirtioDriver:
    return VirtioDriver(
        server.path,
        depth=case.depth,
        block_size=BLOCK_SIZE,
        queues=case.queues,
        queue_size=QUEUE_SIZE,
    )


def _row(case: Case, op: Op, sides: Sides, seconds: float, rounds: int, step: Step) -> Row:
    client = "polling" if case.poll else "sleeping"
    spec = Spec(op=op, block_size=BLOCK_SIZE, depth=case.depth, seconds=seconds, poll=case.poll)
    what = f"{case.disk}, {op}, depth {case.depth}, {client}, {case.queues} queues"
    found: list[dict[str, Load]] = []
    for number in range(rounds):
        step(f"{what}: round {number + 1} of {rounds}")
        # Who begins changes.
        turns = list(sides.items())[:: -1 if number % 2 else 1]
        found.append({name: _load(*side, spec) for name, side in turns})
    step(f"{what}: counting system calls")
    calls = {name: _calls(*side, spec) for name, side in sides.items()}
    ours = [of_round["vduse"] for of_round in found]
    theirs = [of_round["qemu"] for of_round in found]
    pairs = list(zip(ours, theirs, strict=True))
    return Row(
        disk=case.disk,
        op=op,
        depth=case.depth,
        queues=case.queues,
        client=client,
        iops=median(load.iops for load in ours),
        qemu_iops=median(load.iops for load in theirs),
        ratio=median(a.iops / b.iops for a, b in pairs),
        target=case.target,
        cpu_ns=median(load.cpu_ns for load in ours),
        qemu_cpu_ns=median(load.cpu_ns for load in theirs),
        cpu_ratio=median(a.cpu_ns / b.cpu_ns for a, b in pairs),
        cpu_target=case.cpu_target,
        syscalls=calls["vduse"],
        qemu_syscalls=calls["qemu"],
        client_ns=median(load.client_ns for load in ours),
        qemu_client_ns=median(load.client_ns for load in theirs),
        rounds=rounds,
    )


def _calls(server: VhostUserChild, driver: VirtioDriver, spec: Spec) -> float | None:
    return counted(server.pid, lambda: driver.run(spec).requests)


def _load(server: VhostUserChild, driver: VirtioDriver, spec: Spec) -> Load:
    before = server.cpu()
    report = driver.run(spec)
    cpu = server.cpu() - before
    if report.errors:
        raise RuntimeError(f"{spec.op}: {report.messages[0]}")
    return Load(
        report.iops,
        cpu * 1e9 / report.requests,
        report.cpu_seconds * 1e9 / report.requests,
    )
