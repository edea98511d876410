"""Memory, fds and threads of this process over time, and whether they grow."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

#: What may be more at the end than after the warm-up: of memory a share of it, and KiB beside.
MEMORY_SHARE, MEMORY_KIB = 0.05, 4096
#: The first part of a run, in which caches, pools and allocators fill.
WARM_UP = 0.3


@dataclass(frozen=True)
class Sample:
    """At one moment of rest."""

    pss_kib: int
    rss_kib: int
    fds: int
    threads: int

    @classmethod
    def now(cls) -> Sample:
        """Of /proc/self."""
        sizes = {}
        with open("/proc/self/smaps_rollup", encoding="ascii") as rollup:
            for line in rollup:
                words = line.split()
                if words[0] in ("Pss:", "Rss:"):
                    sizes[words[0]] = int(words[1])
        fds, threads = len(os.listdir("/proc/self/fd")), count_threads(Path("/proc/self/task"))
        return cls(sizes["Pss:"], sizes["Rss:"], fds, threads)


def count_threads(tasks: Path) -> int:
    """Those of the process. The kernel's, which serve its io_uring, come and go as they like."""
    names = []
    for task in tasks.iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # ended meanwhile
            names.append((task / "comm").read_text())
    return sum(not name.startswith("iou-") for name in names)


def growth(samples: list[Sample]) -> dict[str, dict[str, Any]]:
    """For each quantity its medians after the warm-up and at the end, the bound, and whether it
    was kept. The end is as long as the stretch after the warm-up: a third of the rest."""
    kept = [asdict(sample) for sample in samples[int(len(samples) * WARM_UP) :]]
    third = max(1, len(kept) // 3)
    found = {}
    for name in asdict(samples[0]):
        first = median(sample[name] for sample in kept[:third])
        last = median(sample[name] for sample in kept[-third:])
        slack = first * MEMORY_SHARE + MEMORY_KIB if name.endswith("_kib") else 0
        found[name] = {
            "warm": first,
            "end": last,
            "bound": first + slack,
            "flat": last <= first + slack,
        }
    return found
