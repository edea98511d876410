"""QEMU's storage daemon against itself: its vduse-blk export under `vduse run --vhost-user` beside
its vhost-user-blk export, on null, with 4 KiB random requests of the crate virtio-driver. What
differs is what `vduse run` costs. The two take turns in every round; what counts is the median of
the rounds."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import median
from tempfile import TemporaryDirectory
from typing import Protocol

from syscalls import counted
from vhost_user_servers import NULL, VhostUserChild, cpu_of, qemu, qemu_daemon

from vduse.testing.load import Op, Spec, VirtioDriver
from vduse.testing.run import RunChild, vduse_run

OPS: tuple[Op, ...] = ("randread", "randwrite")
DEPTHS = (1, 32, 128)
BLOCK_SIZE = 4096
#: QEMU's default for either export; 85 requests of three descriptors.
QUEUE_SIZE = 256
#: At this depth the project promises this share of the requests a second.
PROMISED_DEPTH, TARGET = 128, 0.5

Step = Callable[[str], None]


class Server(Protocol):
    """What is measured."""

    path: str

    def pids(self) -> dict[str, int]:
        """Its processes, by what they are."""

    def notifications(self) -> int:
        """System calls of the daemon that `vduse run` has answered until now."""


@dataclass(frozen=True)
class UnderRun:
    """The vduse-blk export."""

    path: str
    run: RunChild

    def pids(self) -> dict[str, int]:
        return {"supervisor": self.run.process.pid, "daemon": self.run.daemon}

    def notifications(self) -> int:
        return sum(self.run.count()["notifications"].values())


@dataclass(frozen=True)
class Own:
    """The vhost-user-blk export."""

    server: VhostUserChild

    @property
    def path(self) -> str:
        return self.server.path

    def pids(self) -> dict[str, int]:
        return {"daemon": self.server.pid}

    def notifications(self) -> int:
        return 0


@dataclass(frozen=True)
class Row:
    """One operation and depth; ``share`` is the median of the rounds' ratios, ``vduse run``'s to
    QEMU's own."""

    op: Op
    depth: int
    iops: float
    qemu_iops: float
    share: float
    target: float | None
    #: Nanoseconds of CPU a request: of the daemon under `vduse run`, of `vduse run` itself, and of
    #: the daemon with its own export.
    daemon_cpu_ns: float
    run_cpu_ns: float
    qemu_cpu_ns: float
    #: System calls a request of the same three; None: this machine does not let us count them.
    daemon_syscalls: float | None
    run_syscalls: float | None
    qemu_syscalls: float | None
    #: System calls that `vduse run` answered, a request.
    notifications: float
    rounds: int


@dataclass(frozen=True)
class Load:
    """One server in one round."""

    iops: float
    #: Nanoseconds a request, by process.
    cpu_ns: dict[str, float]


def measure(seconds: float, rounds: int, step: Step) -> Iterator[Row]:
    """One row an operation and depth; ``seconds`` each time."""
    with ExitStack() as stack:
        ours = stack.enter_context(_under_run())
        own = Own(stack.enter_context(qemu(NULL)))
        for depth in DEPTHS:
            yield from _compare(ours, own, depth, seconds, rounds, step)


@contextmanager
def _under_run() -> Iterator[UnderRun]:
    with TemporaryDirectory(prefix="vduse-bench-") as folder:
        path = os.path.join(folder, "vhost-user.sock")
        export = "type=vduse-blk,id=disk0,name=disk0,node-name=disk,writable=on"
        daemon = [*qemu_daemon(), "--blockdev", f"{NULL.qemu},node-name=disk", "--export", export]
        with vduse_run(*daemon, options=["--vhost-user", path]) as run:
            run.wait_for("serving")
            yield UnderRun(path, run)
            run.stop()


def _compare(
    ours: Server, own: Server, depth: int, seconds: float, rounds: int, step: Step
) -> Iterator[Row]:
    with ExitStack() as stack:
        sides = [
            (server, stack.enter_context(_driver(server.path, depth))) for server in (ours, own)
        ]
        for op in OPS:
            spec = Spec(op=op, block_size=BLOCK_SIZE, depth=depth, seconds=seconds)
            found: list[list[Load]] = []
            for number in range(rounds):
                step(f"{op}, depth {depth}: round {number + 1} of {rounds}")
                # Who begins changes.
                turn = -1 if number % 2 else 1
                found.append([_load(*side, spec) for side in sides[::turn]][::turn])
            step(f"{op}, depth {depth}: counting")
            yield _row(op, depth, found, sides, spec)


def _driver(path: str, depth: int) -> VirtioDriver:
    return VirtioDriver(path, depth=depth, block_size=BLOCK_SIZE, queue_size=QUEUE_SIZE)


def _row(
    op: Op,
    depth: int,
    found: list[list[Load]],
    sides: list[tuple[Server, VirtioDriver]],
    spec: Spec,
) -> Row:
    ours, own = zip(*found, strict=True)
    (server, driver), (other, other_driver) = sides
    pids = server.pids()
    before = server.notifications()
    requests = driver.run(spec).requests
    notifications = (server.notifications() - before) / requests
    return Row(
        op=op,
        depth=depth,
        iops=median(load.iops for load in ours),
        qemu_iops=median(load.iops for load in own),
        share=median(a.iops / b.iops for a, b in found),
        target=TARGET if depth == PROMISED_DEPTH else None,
        daemon_cpu_ns=median(load.cpu_ns["daemon"] for load in ours),
        run_cpu_ns=median(load.cpu_ns["supervisor"] for load in ours),
        qemu_cpu_ns=median(load.cpu_ns["daemon"] for load in own),
        daemon_syscalls=_calls(pids["daemon"], driver, spec),
        run_syscalls=_calls(pids["supervisor"], driver, spec),
        qemu_syscalls=_calls(other.pids()["daemon"], other_driver, spec),
        notifications=notifications,
        rounds=len(found),
    )


def _calls(pid: int, driver: VirtioDriver, spec: Spec) -> float | None:
    return counted(pid, lambda: driver.run(spec).requests)


def _load(server: Server, driver: VirtioDriver, spec: Spec) -> Load:
    pids = server.pids()
    before = {name: cpu_of(pid) for name, pid in pids.items()}
    report = driver.run(spec)
    cpu = {name: cpu_of(pid) - before[name] for name, pid in pids.items()}
    if report.errors:
        raise RuntimeError(f"{spec.op}: {report.messages[0]}")
    return Load(
        report.iops, {name: seconds * 1e9 / report.requests for name, seconds in cpu.items()}
    )
