"""`vduse blk --trace` and `--trace-json`, and what `vduse trace` makes of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.test_blk_command import command, run

pytestmark = pytest.mark.needs("qemu-io")

VDUSE = (sys.executable, "-m", "vduse.daemon")
DISK = ("memory", "--size", "16M")


def record(folder: Path, name: str, *arguments: str) -> None:
    """A disk's life over NBD, in a recording."""
    with command(folder, *DISK, "--trace-json", name, "--json", *arguments) as blk:
        assert blk.facts()["event"] == "serving"
        run("qemu-io", "-f", "raw", "-c", "write -P 0x5a 4k 64k", blk.uri)
        run("qemu-io", "-f", "raw", "-c", "read -P 0x5a 4k 64k", blk.uri)
        code, _, err = blk.end()
        assert (code, err) == (0, "")


def trace(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*VDUSE, "trace", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_two_runs_are_the_same_and_packed_virtqueues_are_not(tmp_path: Path) -> None:
    record(tmp_path, "first")
    record(tmp_path, "second")
    record(tmp_path, "packed", "--packed")
    same = trace(tmp_path, "compare", "first", "second")
    assert (same.returncode, same.stderr) == (0, ""), same.stdout
    assert same.stdout.startswith("equal: ")
    assert same.stdout.endswith("devices: disk0\n")
    other = trace(tmp_path, "compare", "first", "packed", "--json")
    assert other.returncode == 1, other.stderr
    facts = json.loads(other.stdout)
    [parting] = facts["partings"]
    # At the first call that names the device: its features.
    assert (parting["device"], parting["same"]) == ("disk0", 0)
    assert [parting[which][0]["text"].split("(")[0] for which in ("ours", "theirs")] == [
        "control CREATE_DEV",
        "control CREATE_DEV",
    ]


def under_run(folder: Path, name: str, *daemon: str) -> None:
    """A daemon's disk over NBD, under `vduse run`, in a recording."""
    (folder / "disk.img").touch()
    os.truncate(folder / "disk.img", 16 << 20)
    options = ("--nbd", "disk.sock", "--trace-json", name, "--json")
    with subprocess.Popen(
        [*VDUSE, "run", *options, "--", *daemon],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            facts: dict[str, str] = {}
            while facts.get("event") != "serving":
                line = process.stdout.readline()
                assert line
                facts = json.loads(line)
            run("qemu-io", "-f", "raw", "-c", "write -P 0x5a 4k 64k", facts["uri"])
            process.terminate()
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0, err


def test_both_sides_of_a_channel_tell_the_same(tmp_path: Path) -> None:
    """Our storage daemon: recorded by itself, as on a kernel, and by who plays the kernel."""
    daemon = (
        *(*VDUSE, "storage-daemon", "--trace-json", "inner"),
        *("--blockdev", "driver=file,filename=disk.img,node-name=n"),
        *("--export", "vduse-blk,id=e,node-name=n,name=disk0,writable=on,num-queues=2"),
    )
    under_run(tmp_path, "outer", *daemon)
    same = trace(tmp_path, "compare", "inner", "outer", "--json")
    assert same.returncode == 0, same.stdout
    found = json.loads(same.stdout)
    assert found["devices"] == ["disk0"]
    # IOTLB misses and irqs: where calls are counted, and where each is seen.
    assert found["same_kinds"] == 2


@pytest.mark.needs("qemu-storage-daemon")
def test_two_runs_of_somebody_elses_daemon_are_the_same(tmp_path: Path) -> None:
    daemon = (
        *("qemu-storage-daemon", "--blockdev", "driver=file,filename=disk.img,node-name=n"),
        *("--export", "vduse-blk,id=e,node-name=n,name=disk0,writable=on,num-queues=2"),
    )
    for name in ("first", "second"):
        under_run(tmp_path, name, *daemon)
    same = trace(tmp_path, "compare", "first", "second")
    assert (same.returncode, same.stderr) == (0, ""), same.stdout


def test_a_recording_shows_the_device_on_its_way(tmp_path: Path) -> None:
    record(tmp_path, "disk.trace")
    shown = trace(tmp_path, "show", "disk.trace")
    assert (shown.returncode, shown.stderr) == (0, "")
    lines = shown.stdout.splitlines()
    assert lines[0].startswith("vduse blk --nbd disk.sock memory --size 16M --trace-json")
    # In this order.
    steps = iter(lines)
    for step in (
        "control CREATE_DEV(name=disk0",
        "disk0 open",
        "disk0 VQ_SETUP(",
        "SET_STATUS 0x1 ACKNOWLEDGE",
        "SET_STATUS 0xb FEATURES_OK",
        "SET_STATUS 0xf DRIVER_OK",
        "SET_STATUS 0x0",
        "disk0 close",
        "control DESTROY_DEV(disk0)",
        "data path  disk0  IOTLB_GET_FD = 0",
    ):
        assert any(step in line for line in steps), step


def test_lines_come_as_it_happens(tmp_path: Path) -> None:
    with command(tmp_path, *DISK, "--trace") as blk:
        assert blk.process.stderr is not None
        seen = [blk.process.stderr.readline()]
        assert seen[0].startswith("# vduse trace: vduse blk")
        while "SET_STATUS 0xf DRIVER_OK" not in seen[-1]:
            assert seen[-1]
            seen.append(blk.process.stderr.readline())
        blk.until("Ctrl-C")
        code, _, err = blk.end()
        assert code == 0
        assert err.splitlines()[-1].endswith(" end")


def test_a_full_disk_costs_the_recording_and_nothing_else(tmp_path: Path) -> None:
    with command(tmp_path, *DISK, "--trace-json", "/dev/full") as blk:
        blk.until("Ctrl-C")
        run("qemu-io", "-f", "raw", "-c", "write -P 0x5a 4k 64k", blk.uri)
        code, _, err = blk.end()
    assert code == 0
    assert err == (
        "vduse: warning: channel.line writer: /dev/full: No space left on device: nothing more "
        "is written there\n"
    )


def test_what_a_killed_program_did_is_there(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with (
        command(tmp_path, *DISK, "--trace-json", "pipe") as blk,
        open(tmp_path / "pipe", "rb") as pipe,
        open(tmp_path / "disk.trace", "wb") as file,
    ):
        line = b""
        while b"SET_STATUS" not in line:
            line = pipe.readline()
            assert line
            file.write(line)
        assert blk.end(signal.SIGKILL)[0] == -signal.SIGKILL
        file.write(pipe.read())
    shown = trace(tmp_path, "show", "disk.trace")
    assert shown.returncode == 0
    assert "SET_STATUS 0x0" in shown.stdout
    assert shown.stderr == (
        "vduse: the recording is without its end: it was cut, or its program runs still or was "
        "killed\n"
    )


def test_a_disk_image_is_not_taken_for_a_trace(tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(b"\xeb" * 4096)
    with command(tmp_path, "disk.img", "--trace-json", "disk.img") as blk:
        _, err = blk.process.communicate()
    assert blk.process.returncode == 2
    assert err == ("vduse: error: disk.img: it has contents that are no trace: name another file\n")
    assert (tmp_path / "disk.img").read_bytes() == b"\xeb" * 4096
