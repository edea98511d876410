"""`vduse storage-daemon` beside qemu-storage-daemon on the kernel's VDUSE, with the same arguments
but their names, in one boot of a guest of the test bed (tests/kernel).

The guest is emulated: only what is compared with each other within a run tells anything."""

from __future__ import annotations

import json
import shlex
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.kernel.fetch import kernel
from tests.kernel.qemu import newest_qemu
from tests.kernel.vm import VM

ROOT = Path(__file__).parents[1]
KERNEL = "7.2"
#: Seconds that the guest may be silent.
PATIENCE = 300.0

Step = Callable[[str], None]
Of = tuple[str, int, int]


@dataclass(frozen=True)
class Row:
    """Ours and QEMU's; the figures but IOPS are those of the daemon, a request."""

    backend: str
    queues: int
    depth: int
    iops: float
    qemu_iops: float
    #: Median of the rounds' ratios, ours to QEMU's.
    share: float
    cpu_ns: float
    qemu_cpu_ns: float
    cpu_share: float
    syscalls: float
    qemu_syscalls: float
    #: VDUSE_VQ_INJECT_IRQ.
    irqs: float
    qemu_irqs: float
    rounds: int


def measure(seconds: float, rounds: int, step: Step) -> Iterator[Row]:
    """One row a backend, number of virtqueues and depth; ``seconds`` of fio each time. BedError:
    there is no guest to be had here."""
    step("QEMU, and a guest")
    servers = {
        "vduse": ["vduse", "storage-daemon"],
        "qemu": newest_qemu().command("qemu-storage-daemon"),
    }
    argument = json.dumps({"servers": servers, "seconds": seconds, "rounds": rounds})
    guest = shlex.join([sys.executable, "benches/kernel_guest.py", argument])
    output = BytesIO()
    found: dict[Of, dict[str, list[dict[str, float]]]] = defaultdict(lambda: defaultdict(list))
    with VM(kernel(KERNEL), guest, output=output, folder=ROOT) as vm:
        for line in vm.lines(PATIENCE):
            load = json.loads(line)
            of = (load["backend"], load["queues"], load["depth"])
            found[of][load["server"]].append(load)
            backend, queues, depth = of
            what = f"{backend}, {queues} virtqueues, depth {depth}"
            step(f"{what}, round {load['round'] + 1} of {rounds + 1}")
    if vm.status:
        raise RuntimeError(output.getvalue().decode(errors="replace"))
    for of, loads in found.items():
        yield _row(*of, loads["vduse"], loads["qemu"])


def _row(
    backend: str,
    queues: int,
    depth: int,
    ours: list[dict[str, float]],
    qemu: list[dict[str, float]],
) -> Row:
    """The last round of each was for counting."""
    *timed, counted = ours
    *qemu_timed, qemu_counted = qemu

    def ratio(key: str) -> float:
        return median(a[key] / b[key] for a, b in zip(timed, qemu_timed, strict=True))

    return Row(
        backend,
        queues,
        depth,
        median(load["iops"] for load in timed),
        median(load["iops"] for load in qemu_timed),
        ratio("iops"),
        median(load["cpu_ns"] for load in timed),
        median(load["cpu_ns"] for load in qemu_timed),
        ratio("cpu_ns"),
        counted["syscalls"],
        qemu_counted["syscalls"],
        counted["irqs"],
        qemu_counted["irqs"],
        len(timed),
    )
