"""What a qcow2 image holds after whoever wrote to it was killed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.rules.tree import ROOT
from tests.system.qcow2_writer import BLOCK, content
from tests.system.test_qcow2 import qemu_img
from tests.waiting import eventually

#: Lines of the writer before it is killed: what it does then is different each time.
LINES = (3, 40, 25, 120)


def write_and_kill(image: Path, first: int, lines: int) -> dict[int, int]:
    """Sequence numbers that were flushed, by block."""
    argv = [sys.executable, "-m", "tests.system.qcow2_writer", str(image), str(first)]
    promised: dict[int, int] = {}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, cwd=ROOT) as writer:
        assert writer.stdout is not None
        said = [writer.stdout.readline() for _ in range(lines)]
        writer.kill()
        said += writer.stdout.readlines()
    assert writer.returncode == -9
    for line in said:
        for pair in line.decode().split():
            block, _, sequence = pair.partition(":")
            promised[int(block)] = int(sequence)
    return promised


def check(image: Path) -> dict[str, Any] | None:
    """What QEMU finds in it; None: it is still locked, for the kernel ends a killed program's
    io_uring after the program."""
    argv = ["qemu-img", "check", "--output=json", str(image)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if "lock" in done.stderr:
        return None
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("cluster_size", [4096, 65536])
def test_what_was_flushed_is_there_after_a_kill(tmp_path: Path, cluster_size: int) -> None:
    image, raw = tmp_path / "disk.qcow2", tmp_path / "raw"
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"cluster_size={cluster_size}", image, "64M")
    promised: dict[int, int] = {}
    for number, lines in enumerate(LINES, 1):
        promised |= write_and_kill(image, number << 32, lines)
        found = eventually(lambda: check(image), f"{image} is unlocked")
        # Leaks are space that a repair gives back; no more may be wrong.
        assert found["check-errors"] == 0 and "corruptions" not in found, found
        qemu_img("convert", "-f", "qcow2", "-O", "raw", image, raw)
        data = raw.read_bytes()
        for block in range(len(data) // BLOCK):
            bytes_there = data[block * BLOCK : (block + 1) * BLOCK]
            sequence = int.from_bytes(bytes_there[8:16], "little")
            assert sequence >= promised.get(block, 0), (block, sequence)
            assert bytes_there == (content(block, sequence) if sequence else bytes(BLOCK)), block
