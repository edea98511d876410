"""The benchmarks with other programs run, and compare what they say they compare. What they find
is not looked at: nothing here depends on how fast a machine is."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.qemu import newest_qemu
from tests.kernel.skips import skips_without_bed
from tests.kernel.vm import programs
from tests.rules.tree import ROOT


def figures(part: str, folder: Path) -> Any:
    """What ``benches/run.py`` measures when in a hurry."""
    report = folder / "figures.json"
    command = [sys.executable, "benches/run.py", part, "--quick", "--json", str(report)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(report.read_text())[part]


@pytest.mark.needs("fio", "nbdkit", "qemu-nbd")
def test_nbd_is_compared_with_other_servers(tmp_path: Path) -> None:
    rows = figures("nbd", tmp_path)
    ours = ("vduse memory", "vduse null")
    peers = ("nbdkit memory", "nbdkit null", "qemu-nbd tmpfs", "qemu-nbd null-co")
    assert sorted((row["server"], row["op"], row["depth"]) for row in rows) == sorted(
        product(ours + peers, ("randread", "randwrite"), (1, 32))
    )
    assert all(row["iops"] > 0 and row["share"] > 0 for row in rows)


@pytest.mark.needs("fio", "nbdkit-python")
def test_disks_in_python_are_compared_with_other_disks(tmp_path: Path) -> None:
    rows = figures("python", tmp_path)
    pairs = (
        ("RAM disk, NBD", "nbdkit Python, NBD"),
        ("RAM disk, submit", "nbdkit Python, NBD"),
        ("does nothing", "native null"),
    )
    found = [(row["what"], row["against"], row["op"]) for row in rows]
    assert found == [(*pair, op) for op in ("randread", "randwrite") for pair in pairs]
    assert all(row["iops"] > 0 and row["against_iops"] > 0 for row in rows)


@pytest.mark.needs("fio", "nbdkit-python", "qemu-storage-daemon")
def test_vhost_user_is_compared_with_qemus_daemon(tmp_path: Path) -> None:
    found = figures("vhost-user", tmp_path)
    compared = [
        (row["disk"], row["depth"], row["queues"], row["client"]) for row in found["compared"]
    ]
    assert compared[::2] == compared[1::2]  # reads and writes
    assert compared[::2] == [
        *(("null", depth, 1, "sleeping") for depth in (1, 32, 128)),
        *(("null", depth, 1, "polling") for depth in (1, 32)),
        *(("null", 32, queues, "sleeping") for queues in (2, 4, 8)),
        ("file on tmpfs", 32, 1, "sleeping"),
        ("file, O_DIRECT", 32, 1, "sleeping"),
    ]
    assert all(
        row[figure] > 0
        for row in found["compared"]
        for figure in ("iops", "qemu_iops", "cpu_ns", "qemu_cpu_ns", "client_ns")
    )
    assert [row["op"] for row in found["copies"]] == ["read", "write"]
    assert [(row["what"], row["op"]) for row in found["python"]] == [
        (what, op) for op in ("randread", "randwrite") for what in ("RAM disk", "does nothing")
    ]
    [idle] = found["idle"]
    assert idle["devices"] > idle["busy"] and idle["busy_iops"] > 0 and idle["pss"] > 0


@pytest.mark.needs("qemu-storage-daemon")
def test_vduse_run_is_compared_with_qemus_own_export(tmp_path: Path) -> None:
    rows = figures("run", tmp_path)
    assert [(row["depth"], row["op"]) for row in rows] == list(
        product((1, 32, 128), ("randread", "randwrite"))
    )
    assert all(
        row[figure] > 0
        for row in rows
        for figure in ("iops", "qemu_iops", "daemon_cpu_ns", "run_cpu_ns", "qemu_cpu_ns")
    )
    assert all(row["notifications"] > 0 for row in rows)


@pytest.mark.needs("fio", "qemu-storage-daemon")
def test_storage_daemons_are_compared(tmp_path: Path) -> None:
    rows = figures("storage-daemon/file", tmp_path)
    assert [(row["data"], row["export"], row["op"]) for row in rows] == list(
        product(("tmpfs", "O_DIRECT"), ("vhost-user-blk", "nbd"), ("randread", "randwrite"))
    )
    assert all(
        row[figure] > 0 for row in rows for figure in ("iops", "qemu_iops", "cpu_ns", "qemu_cpu_ns")
    )


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.needs("fio")
def test_the_kernels_disks_are_compared_with_qemus(tmp_path: Path) -> None:
    with skips_without_bed():
        programs()
        newest_qemu()
    rows = figures("kernel", tmp_path)
    assert [(row["backend"], row["queues"], row["depth"]) for row in rows] == list(
        product(("null", "null_blk"), (1, 2), (1, 32))
    )
    assert all(row["iops"] > 0 and row["qemu_iops"] > 0 for row in rows)
    assert all(row["irqs"] > 0 and row["qemu_irqs"] > 0 for row in rows)
