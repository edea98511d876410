"""Many devices in one process, each with a vhost-user socket and a front end that has connected and
does nothing, while some are busy: memory, fds, threads, start-up time of each; CPU of all when
nothing is asked of any, and what the busy ones get. Run as a program it is the serving process."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from vduse.testing.load import Spec, VirtioDriver

DISK_SIZE = 1 << 20
QUEUE_SIZE = 128

Step = Callable[[str], None]


@dataclass(frozen=True)
class Row:
    """Memory in bytes a device, times in seconds."""

    devices: int
    pss: float
    fds: float
    threads: float
    start_up: float
    #: Shares of one CPU while nothing is asked of any of them: connected, and after all work.
    idle_cpu: float
    idle_after_work: float
    idle_seconds: float
    #: Devices under load at once, their requests a second together, and of one alone.
    busy: int
    busy_iops: float
    alone_iops: float
    #: Nanoseconds of the process's CPU a request.
    busy_cpu_ns: float
    alone_cpu_ns: float


@dataclass(frozen=True)
class _Look:
    pss: int
    fds: int
    threads: int
    cpu: float


def measure(devices: int, busy: int, seconds: float, step: Step) -> Row:
    """``devices`` and one to warm up; ``busy`` of them loaded by a client each; ``seconds`` idle,
    and a tenth of it busy."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with _server() as server, ExitStack() as front_ends:

        def connect(number: int) -> VirtioDriver:
            path = server.add(number)
            driver = VirtioDriver(path, depth=1, queue_size=QUEUE_SIZE)
            return front_ends.enter_context(driver)

        step("the first device")
        connect(0)
        before = server.look()
        drivers = []
        start = time.monotonic()
        for number in range(devices):
            step(f"device {number + 1} of {devices}")
            drivers.append(connect(number + 1))
        start_up = (time.monotonic() - start) / devices
        after = server.look()
        step(f"idle for {seconds:.0f} s")
        idle = server.idle(seconds)
        load = max(0.05, seconds / 10)
        step("one device is busy")
        alone_iops, alone_cpu = server.load(drivers[:1], load)
        step(f"{busy} devices are busy")
        busy_iops, busy_cpu = server.load(drivers[:busy], load)
        step(f"idle for {seconds:.0f} s again")
        return Row(
            devices=devices,
            pss=(after.pss - before.pss) / devices,
            fds=(after.fds - before.fds) / devices,
            threads=(after.threads - before.threads) / devices,
            start_up=start_up,
            idle_cpu=idle,
            idle_after_work=server.idle(seconds),
            idle_seconds=seconds,
            busy=busy,
            busy_iops=busy_iops,
            alone_iops=alone_iops,
            busy_cpu_ns=busy_cpu,
            alone_cpu_ns=alone_cpu,
        )


class _Server:
    """The serving process, a line in and a line out for each thing asked of it."""

    def __init__(self, process: subprocess.Popen[str], folder: str) -> None:
        self._process = process
        self._folder = folder

    def _ask(self, *words: object) -> object:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def add(self, number: int) -> str:
        """One more device; its socket."""
        path = os.path.join(self._folder, f"{number}.sock")
        self._ask("add", f"disk{number}", path)
        return path

    def look(self) -> _Look:
        """Now."""
        proc = Path(f"/proc/{self._process.pid}")
        rollup = (proc / "smaps_rollup").read_text().splitlines()
        pss = next(line for line in rollup if line.startswith("Pss:"))
        return _Look(
            pss=int(pss.split()[1]) * 1024,
            fds=len(os.listdir(proc / "fd")),
            threads=len(os.listdir(proc / "task")),
            cpu=time.clock_gettime((~self._process.pid << 3) | 2),
        )

    def idle(self, seconds: float) -> float:
        """Share of one CPU while nothing is asked."""
        cpu = self.look().cpu
        time.sleep(seconds)  # what is measured: nothing happens
        return (self.look().cpu - cpu) / seconds

    def load(self, drivers: list[VirtioDriver], seconds: float) -> tuple[float, float]:
        """Random reads of all at once: requests a second, the process's CPU a request."""
        reports = []

        def run(driver: VirtioDriver) -> None:
            reports.append(driver.run(Spec(depth=1, seconds=seconds)))

        cpu = self.look().cpu
        threads = [threading.Thread(target=run, args=(driver,)) for driver in drivers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        cpu = self.look().cpu - cpu
        if len(reports) < len(drivers) or any(report.errors for report in reports):
            raise RuntimeError("requests failed")
        requests = sum(report.requests for report in reports)
        return sum(report.iops for report in reports), cpu * 1e9 / requests


@contextmanager
def _server() -> Iterator[_Server]:
    with (
        TemporaryDirectory(prefix="vduse-bench-") as folder,
        subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        # Its end is that of its input, which the process's own context closes.
        yield _Server(process, folder)


def _serve() -> None:
    from vduse.exports.vhost_user import VhostUserServer
    from vduse.testing.harness import BlkPark, BlkSpec

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with BlkPark() as park, ExitStack() as sockets:
        for line in sys.stdin:
            _, name, path = json.loads(line)
            spec = BlkSpec(name=name, backend="null", size=DISK_SIZE, queue_size=QUEUE_SIZE)
            park.add(spec, driver="vhost_vdpa")
            vhost = park.framework.bus.vhost(name)
            sockets.enter_context(VhostUserServer(vhost, path, name=name))
            print(json.dumps(path), flush=True)


if __name__ == "__main__":
    _serve()
