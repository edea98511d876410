"""Who uses a node, on a /proc and a /sys of plain files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vduse.vdpa.users import Program, programs, requests_in_flight, users

#: A node that is there everywhere, and nobody opens by chance.
NODE = "/dev/full"


def test_program_that_has_it_open_is_named() -> None:
    mine = Program(os.getpid(), Path("/proc/self/comm").read_text().strip(), stopped=False)
    assert mine not in programs(NODE)
    with open(NODE, "rb"):
        assert mine in programs(NODE)
        assert f"open in {mine}" in users(NODE)
    assert str(Program(7, "vduse", stopped=False)) == "vduse (pid 7)"


def test_stopped_program() -> None:
    script = "import os, signal; f = open('/dev/full'); os.kill(os.getpid(), signal.SIGSTOP)"
    with subprocess.Popen([sys.executable, "-c", script]) as child:
        os.waitpid(child.pid, os.WUNTRACED)
        [found] = [program for program in programs(NODE) if program.pid == child.pid]
        child.kill()
    assert found.stopped


def test_a_partition_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that goes while it is looked at."""
    (tmp_path / "class/block/full/full1/dev").mkdir(parents=True)
    (tmp_path / "self").mkdir()
    (tmp_path / "self/mountinfo").touch()
    monkeypatch.setattr("stat.S_ISBLK", lambda _mode: True)
    assert users(NODE, tmp_path, tmp_path) == ()


def test_no_node_no_users() -> None:
    assert programs("/dev/no-such") == []
    assert users("/dev/no-such") == ()


def test_mounts_partitions_and_devices_on_top(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = os.stat(NODE)
    disk = tmp_path / "class/block/full"
    (disk / "full1/holders/dm-0").mkdir(parents=True)
    (disk / "full1/dev").write_text("9:7\n")
    (disk / "inflight").write_text("       2        3\n")
    (tmp_path / "self").mkdir()
    major, minor = os.major(found.st_rdev), os.minor(found.st_rdev)
    (tmp_path / "self/mountinfo").write_text(
        f"1 0 {major}:{minor} / /mnt/a\\040b rw - ext4 {NODE} rw\n"
        "2 0 9:7 / /boot rw - ext4 /dev/full1 rw\n"
        "3 0 9:8 / /other rw - ext4 /dev/other rw\n"
    )
    monkeypatch.setattr("stat.S_ISBLK", lambda _mode: True)
    assert users(NODE, tmp_path, tmp_path) == (
        "mounted at /mnt/a b",
        "mounted at /boot",
        "in use by dm-0",
    )
    assert requests_in_flight(NODE, tmp_path) == 5
    assert requests_in_flight("/dev/other", tmp_path) == 0
