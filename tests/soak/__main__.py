"""Disks of every kind under random load and troubles, for a while: data is what was written, and
memory, fds and threads do not grow.

    python -m tests.soak [SECONDS] [--seed SEED] [--json FILE]

The same seed makes every disk meet the same requests and troubles in the same order. Ends with 1
and says what grew, or what was read wrong.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import logging
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.soak.disks import KINDS, Soaked
from tests.soak.watch import Sample, growth
from vduse.testing.bench import Bench

#: Seconds between two lines of progress.
_PROGRESS = 30.0
#: What the allocator keeps for later is not in use.
_LIBC = ctypes.CDLL(None)
#: Fewer moments of rest say nothing about a trend.
_LEAST_ROUNDS = 20


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak")
    parser.add_argument("seconds", nargs="?", type=float, default=3600.0)
    parser.add_argument("--seed", default=str(time.time_ns()))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    logging.getLogger("vduse").setLevel(logging.CRITICAL)  # what fails here fails on purpose
    print(f"soak for {options.seconds:g} s, --seed {options.seed}", flush=True)
    with TemporaryDirectory(prefix="vduse-soak-") as folder, Bench(trace=False) as bench:
        disks = [
            kind(bench, Path(folder), kind.__name__.lower(), f"{options.seed}/{kind.__name__}")
            for kind in KINDS
        ]
        samples = soak(disks, options.seconds)
    found = growth(samples)
    for name, row in found.items():
        word = "flat" if row["flat"] else "GREW"
        print(f"{name:<8} {row['warm']:>10.0f} -> {row['end']:>10.0f}  {word}")
    for disk in disks:
        print(f"{disk.name:<8} {disk.counts}")
    if options.json:
        counts = {disk.name: disk.counts for disk in disks}
        summary = {"seed": options.seed, "rounds": len(samples), "growth": found, "disks": counts}
        options.json.write_text(json.dumps(summary, indent=2) + "\n")
    return 0 if all(row["flat"] for row in found.values()) else 1


def soak(disks: list[Soaked], seconds: float) -> list[Sample]:
    """Rounds of all disks at once, with a look at the process between them."""
    samples: list[Sample] = []
    begin = told = time.monotonic()
    with ThreadPoolExecutor(len(disks)) as pool:
        while time.monotonic() - begin < seconds or len(samples) < _LEAST_ROUNDS:
            for done in [pool.submit(disk.round) for disk in disks]:
                done.result()
            for disk in disks:
                disk.rest()
            gc.collect()
            _LIBC.malloc_trim(0)
            samples.append(Sample.now())
            if time.monotonic() - told > _PROGRESS:
                told = time.monotonic()
                print(f"{told - begin:6.0f} s  {samples[-1]}", flush=True)
    return samples


if __name__ == "__main__":
    sys.exit(main())
