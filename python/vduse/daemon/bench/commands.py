"""The row of `vduse bench` in the command table. The handler imports what it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vduse.control.units import parse_size
from vduse.daemon.table import Command, Context, flag, option, optional, required
from vduse.daemon.values import one_of, power_of_two, seconds, whole

if TYPE_CHECKING:
    from vduse.daemon.bench.facts import Facts

#: What --op takes.
OPS = ("read", "write", "randread", "randwrite", "mixed")


@dataclass(frozen=True)
class BenchOptions:
    """Options of ``vduse bench``."""

    socket: str = required("a vhost-user-blk server's, whoever's", metavar="SOCKET")
    op: str = option(
        "randread",
        "read and write go block after block; randread, randwrite and mixed at random",
        metavar="OP",
        parse=one_of(*OPS),
    )
    reads: int | None = optional(
        "of mixed: how many requests of a hundred are reads (50 if left out)",
        metavar="PERCENT",
        parse=whole(0, 100),
    )
    block_size: int = option("4k", "of a request", metavar="SIZE", parse=parse_size)
    depth: int = option("32", "requests in flight, in all", metavar="N", parse=whole(1, 32768))
    queues: int = option(
        "1", "virtqueues, driven by one thread in turns", metavar="N", parse=whole(1, 64)
    )
    queue_size: int = option(
        "256",
        "descriptors of a virtqueue; a request takes three",
        metavar="N",
        parse=power_of_two(4, 32768),
    )
    packed: bool = flag("packed virtqueues instead of split ones; without an event index")
    poll: bool = flag("look for completions all the time instead of sleeping until an irq")
    span: int | None = optional(
        "use only so much of the disk, from its start", metavar="SIZE", parse=parse_size
    )
    seconds: float = option("3", "of a round", metavar="S", parse=seconds(0.01, 86400))
    rounds: int = option("3", "on one connection", metavar="N", parse=whole(1, 1000))
    verify: bool = flag(
        "write patterns and check that they are read; writes the whole span, whatever the --op"
    )
    destroy_data: bool = flag("allow writing: what is on the disk is lost")
    pid: int | None = optional(
        "the server, for its CPU a request; left out: who made the socket",
        metavar="PID",
        parse=whole(1, 1 << 22),
    )


def _bench(options: BenchOptions, context: Context) -> Facts:
    from vduse.daemon.bench.run import run

    return run(options, context)


def _show(facts: Facts, context: Context) -> None:
    from vduse.daemon.bench.show import show

    show(facts, context)


BENCH = Command(
    name="bench",
    help="Load a disk behind a vhost-user socket, and measure it",
    description=(
        "Drives the block device behind a vhost-user socket, vduse's or another server's, as a\n"
        "virtual machine would, by a driver that this project did not write (crate\n"
        "virtio-driver), and tells how fast it is. Reads only, unless --destroy-data is given.\n"
        "Exit code 1 if requests failed, data was not as written, or the server went away."
    ),
    examples=(
        ("vduse bench disk.sock", "random reads of 4 KiB, 32 in flight"),
        ("vduse bench disk.sock --depth 1 --poll", "latency, without the client's sleeping"),
        ("vduse bench disk.sock --op read --block-size 1M --json", "throughput, for a program"),
        (
            "vduse bench scratch.sock --op mixed --reads 70 --queues 4 --destroy-data",
            "seven reads to three writes on four virtqueues",
        ),
        (
            "vduse bench scratch.sock --op randwrite --verify --span 1G --destroy-data",
            "whether what was written is read",
        ),
    ),
    options=BenchOptions,
    run=_bench,
    show=_show,
    exit_code=lambda facts: int(facts.failed),
)
