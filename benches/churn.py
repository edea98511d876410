"""Latencies of exports under load on the storage daemon, while others are added and removed at
random by QMP, and while none is."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from vhost_user_servers import ROOT, child

sys.path.insert(0, str(ROOT))

from storage_daemons import wait_for
from tests.system.storage_churn import Churn, Load, loads
from tests.unit.qmp_client import QmpClient

#: Exports under load, one request in flight each.
LOADS = 10
#: Exports that come and go in a round.
EXPORTS = 200
#: Of a disk under load: its latency, so that the machine's CPUs are no bottleneck.
LATENCY_NS = 1_000_000
_SEED = 1

_DAEMON = [sys.executable, "-m", "vduse.daemon", "storage-daemon"]


@dataclass(frozen=True)
class Row:
    """The loads together, in one half of a round."""

    round: int
    has_churn: bool
    requests: int
    #: Nanoseconds; the worst of all loads.
    p50_ns: int
    p99_ns: int
    p999_ns: int
    longest_ns: int


def measure(exports: int, rounds: int, step: Callable[[str], None]) -> Iterator[Row]:
    """Each round has so many exports come and go, and then as long without."""
    with TemporaryDirectory(prefix="vduse-bench-") as name:
        folder = Path(name)
        command = [
            *_DAEMON,
            *("--chardev", f"socket,id=c,path={folder}/qmp.sock,server=on,wait=off"),
            *("--monitor", "c", "--object", "throttle-group,id=g"),
            *("--nbd-server", f"addr.type=unix,addr.path={folder}/nbd.sock"),
            *("--pidfile", f"{folder}/pid"),
        ]
        with child(command, stdout=subprocess.DEVNULL) as process:
            wait_for(folder / "pid", process)
            with (
                QmpClient(f"{folder}/qmp.sock") as client,
                loads(client, folder, LOADS, depth=1, latency_ns=LATENCY_NS) as found,
            ):
                for number in range(1, rounds + 1):
                    step(f"round {number}")
                    begun = time.monotonic()
                    Churn(client, folder, _SEED + number).run(exports)
                    taken = time.monotonic() - begun
                    yield _row(number, True, found)
                    # Meanwhile the loads go on.
                    time.sleep(taken)
                    yield _row(number, False, found)


def _row(number: int, has_churn: bool, found: Sequence[Load]) -> Row:
    reports = [report for load in found for report in load.take()]
    worst = {
        key: max(report.latency_ns[key] for report in reports)
        for key in ("p50", "p99", "p99.9", "max")
    }
    requests = sum(report.requests for report in reports)
    return Row(number, has_churn, requests, *worst.values())
