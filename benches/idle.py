"""Many idle devices, each bound to virtio_vdpa, in a process of their own: memory, start-up
time, CPU. Run as a program it does the work and prints one JSON object."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass

DISK_SIZE = 1 << 20


@dataclass(frozen=True)
class Row:
    """Memory in bytes a device, times in seconds."""

    devices: int
    rss: float
    pss: float
    start_up: float
    #: Share of one CPU while nothing is asked of any of them.
    cpu: float
    idle_seconds: float
    fds: float
    threads: int


def measure(devices: int, seconds: float) -> Row:
    """In a fresh process, so that nothing else counts."""
    done = subprocess.run(
        [sys.executable, __file__, str(devices), str(seconds)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return Row(**json.loads(done.stdout))


def _memory() -> tuple[int, int]:
    """RSS and PSS of this process in bytes."""
    with open("/proc/self/smaps_rollup") as file:
        fields = dict(line.split(":", 1) for line in file if ":" in line)
    rss, pss = (int(fields[name].split()[0]) * 1024 for name in ("Rss", "Pss"))
    return rss, pss


def _run(devices: int, seconds: float) -> Row:
    from vduse.testing.harness import BlkPark, BlkSpec

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with BlkPark() as park:
        park.add(BlkSpec(name="warm-up", backend="null", size=DISK_SIZE))
        rss, pss = _memory()
        fds = len(os.listdir("/proc/self/fd"))
        start = time.monotonic()
        for number in range(devices):
            park.add(BlkSpec(name=f"idle{number}", backend="null", size=DISK_SIZE))
        start_up = (time.monotonic() - start) / devices
        rss_after, pss_after = _memory()
        fds_after = len(os.listdir("/proc/self/fd"))
        cpu = time.process_time()
        time.sleep(seconds)  # what is measured: nothing happens
        cpu = time.process_time() - cpu
        return Row(
            devices,
            (rss_after - rss) / devices,
            (pss_after - pss) / devices,
            start_up,
            cpu / seconds,
            seconds,
            (fds_after - fds) / devices,
            len(os.listdir("/proc/self/task")),
        )


if __name__ == "__main__":
    print(json.dumps(asdict(_run(int(sys.argv[1]), float(sys.argv[2])))))
