"""fio's nbd engine as the client, and what it costs its server."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass

from vduse.testing.nbd import NbdChild

BLOCK_SIZE = 4096


@dataclass(frozen=True)
class Load:
    """A run of fio; times in nanoseconds a request."""

    iops: float
    #: CPU of the server.
    user_ns: float
    system_ns: float
    #: CPU of fio.
    client_ns: float


@dataclass(frozen=True)
class Done:
    """What fio says of its run."""

    iops: float
    requests: int
    #: Nanoseconds of fio's CPU a request.
    client_ns: float


def load(server: NbdChild, op: str, depth: int, seconds: float) -> Load:
    """As :func:`requests`, and what it costs the server."""
    before = server.cpu()
    done = requests(server.uri, op, depth, seconds)
    cpu = server.cpu() - before
    return Load(
        done.iops,
        cpu.user * 1e9 / done.requests,
        cpu.system * 1e9 / done.requests,
        done.client_ns,
    )


def requests(uri: str, op: str, depth: int, seconds: float) -> Done:
    """4 KiB requests all over the disk on one connection. RuntimeError for what failed."""
    runtime = f"{seconds * 1000:.0f}ms"
    job = _run(uri, rw=op, bs=BLOCK_SIZE, iodepth=depth, time_based=1, runtime=runtime)
    done = job["write" if op == "randwrite" else "read"]
    busy = (job["usr_cpu"] + job["sys_cpu"]) / 100  # of the wall clock
    return Done(done["iops"], done["total_ios"], busy * 1e9 / done["iops"])


def fill(server: NbdChild) -> None:
    """Writes the whole disk: reads find data, nobody allocates while the clock runs."""
    _run(server.uri, rw="write", bs="1m", iodepth=8)


def _run(uri: str, **options: object) -> dict[str, object]:
    everywhere = {"name": "load", "ioengine": "nbd", "uri": uri, "output-format": "json"}
    words = [f"--{name}={value}" for name, value in {**everywhere, **options}.items()]
    done = subprocess.run(["fio", "--thread", *words], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"fio: {done.stdout}{done.stderr}")
    # Its nbd engine prints words before the JSON.
    return json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
