"""In a guest of the test bed: one disk of each storage daemon on the kernel's VDUSE, under fio, in
turns. Run by kernel.py; writes a line of JSON for each run to fd 3.

    python benches/kernel_guest.py '{"servers": {"vduse": ["vduse", "storage-daemon"]}, ...}'
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from vduse.control.abi import Ioctl
from vduse.vdpa.drivers import VdpaBus
from vduse.vdpa.netlink import VdpaManagement

#: What the daemons serve, in QEMU's words; of null_blk each has a device: they lock it.
BACKENDS = {
    "null": "driver=null-co,size=1073741824",
    "null_blk": "driver=host_device,cache.direct=on,aio=native,filename=/dev/nullb{number}",
}
QUEUES = (1, 2)
DEPTHS = (1, 32)
MODULES = ("vduse", "virtio_vdpa", "virtio_blk")
TRACING = Path("/sys/kernel/tracing")
#: Seconds that the kernel and the daemons have for what they do by and by.
PATIENCE = 120.0


class Server:
    """A daemon with one disk, which is on the vDPA bus; in a control group of its own."""

    def __init__(self, name: str, command: list[str], blockdev: str, queues: int) -> None:
        self.name = name
        self._group = Path("/sys/fs/cgroup") / name
        self._group.mkdir(exist_ok=True)
        pidfile = Path(f"/run/{name}.pid")
        export = f"vduse-blk,id=e0,name={name},node-name=n0,writable=on"
        line = [
            *(*command, "--pidfile", str(pidfile), "--blockdev", f"{blockdev},node-name=n0"),
            *("--export", f"{export},num-queues={queues},queue-size=128"),
        ]
        join = f'echo $$ >{self._group}/cgroup.procs; exec "$@"'
        self._process = subprocess.Popen(["sh", "-c", join, "sh", *line], stdout=subprocess.DEVNULL)
        # Written once the export is there.
        eventually(pidfile.exists, f"{name}'s export")
        with VdpaManagement() as vdpa:
            vdpa.add(name)
        eventually(lambda: VdpaBus().node(name), f"{name}'s disk")
        node = VdpaBus().node(name)
        assert node is not None
        self.disk = node

    def cpu_ns(self) -> int:
        """All its threads' CPU so far, the kernel's for it included."""
        [used] = re.findall(r"usage_usec (\d+)", (self._group / "cpu.stat").read_text())
        return int(used) * 1000

    def threads(self) -> set[int]:
        """Thread ids."""
        return {int(task) for task in (self._group / "cgroup.threads").read_text().split()}

    def end(self) -> None:
        """Takes the disk off the bus and ends the daemon."""
        with VdpaManagement() as vdpa:
            vdpa.delete(self.name)
        self._process.send_signal(signal.SIGTERM)
        self._process.wait()


def eventually(look: Callable[[], object], what: str) -> None:
    """Waits until ``look()`` is true."""
    deadline = time.monotonic() + PATIENCE
    while not look():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {PATIENCE:g} s: {what}")
        time.sleep(0.01)  # QEMU writes a pidfile, and tells nobody


def fio(disk: str, queues: int, depth: int, seconds: float) -> dict[str, float]:
    """4 KiB random reads, a job a virtqueue; requests and IOPS."""
    line = [
        *("fio", "--name=load", f"--filename={disk}", "--rw=randread", "--bs=4k"),
        *("--ioengine=libaio", "--direct=1", f"--iodepth={depth}", f"--numjobs={queues}"),
        *("--cpus_allowed=0-1", "--cpus_allowed_policy=split", "--group_reporting"),
        *("--time_based", f"--runtime={seconds * 1000:.0f}ms", "--output-format=json"),
    ]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    read = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]["read"]
    return {"requests": read["total_ios"], "iops": read["iops"]}


@contextmanager
def histogram(event: str, keys: str) -> Iterator[Path]:
    """Counts a tracepoint by ``keys``; where the counts are."""
    folder = TRACING / "events" / event
    (folder / "trigger").write_text(f"hist:keys={keys}")
    try:
        yield folder / "hist"
    finally:
        (folder / "trigger").write_text(f"!hist:keys={keys}")


def counts(path: Path, key: str) -> dict[tuple[int, int], int]:
    """Of a histogram by thread and ``key``."""
    line = re.compile(rf"common_pid:\s*(\d+), {key}:\s*(\d+) }} hitcount:\s*(\d+)")
    return {(int(a), int(b)): int(hits) for a, b, hits in line.findall(path.read_text())}


def counted(server: Server, queues: int, depth: int, seconds: float) -> dict[str, float]:
    """System calls and irqs a request, by the kernel's tracepoints; they cost time."""
    with (
        histogram("raw_syscalls/sys_enter", "common_pid,id") as by_number,
        histogram("syscalls/sys_enter_ioctl", "common_pid,cmd") as by_command,
    ):
        requests = fio(server.disk, queues, depth, seconds)["requests"]
        calls, ioctls = counts(by_number, "id"), counts(by_command, "cmd")
    threads = server.threads()
    of_server = {key: hits for key, hits in calls.items() if key[0] in threads}
    irqs = sum(
        hits
        for (thread, command), hits in ioctls.items()
        if thread in threads and command == Ioctl.VQ_INJECT_IRQ
    )
    by_call: dict[int, int] = {}
    for (_, number), hits in of_server.items():
        by_call[number] = by_call.get(number, 0) + hits
    return {
        "syscalls": sum(of_server.values()) / requests,
        "irqs": irqs / requests,
        **{f"syscall {number}": hits / requests for number, hits in sorted(by_call.items())},
    }


def timed(server: Server, queues: int, depth: int, seconds: float) -> dict[str, float]:
    """IOPS, and the daemon's CPU a request."""
    before = server.cpu_ns()
    found = fio(server.disk, queues, depth, seconds)
    return {"iops": found["iops"], "cpu_ns": (server.cpu_ns() - before) / found["requests"]}


def main(argument: str) -> None:
    """Every backend, number of virtqueues and depth; ``rounds`` timed, one counted."""
    asked = json.loads(argument)
    seconds, rounds = asked["seconds"], asked["rounds"]
    subprocess.run(["modprobe", "-a", *MODULES], check=True)
    subprocess.run(["modprobe", "null_blk", f"nr_devices={len(asked['servers'])}"], check=True)
    subprocess.run(["mount", "-t", "tracefs", "tracefs", str(TRACING)], check=True)
    with os.fdopen(3, "w") as lines:
        for backend, queues in [(b, q) for b in BACKENDS for q in QUEUES]:
            with ExitStack() as stack:
                servers = []
                for number, (name, command) in enumerate(asked["servers"].items()):
                    blockdev = BACKENDS[backend].format(number=number)
                    server = Server(name, command, blockdev, queues)
                    stack.callback(server.end)
                    servers.append(server)
                for depth in DEPTHS:
                    for number in range(rounds + 1):
                        for server in servers:
                            measure = timed if number < rounds else counted
                            row = {"backend": backend, "queues": queues, "depth": depth}
                            row |= {"server": server.name, "round": number}
                            row |= measure(server, queues, depth, seconds)
                            print(json.dumps(row), file=lines, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
