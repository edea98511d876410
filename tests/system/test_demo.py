"""`vduse demo`, as a person runs it: what it shows, what it refuses, what it leaves behind."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SIZE = 64 << 20


class Runner:
    """Runs the command in an empty folder, with temporary files in another."""

    def __init__(self, folder: Path) -> None:
        self.cwd = folder / "cwd"
        self.tmp = folder / "tmp"
        self.cwd.mkdir()
        self.tmp.mkdir()
        self.env = {**os.environ, "TMPDIR": str(self.tmp)}

    def argv(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "vduse.daemon", "demo", *arguments]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.argv(*arguments), cwd=self.cwd, env=self.env, capture_output=True, text=True
        )

    def facts(self, *arguments: str) -> dict[str, Any]:
        done = self.run("--json", *arguments)
        assert done.returncode == 0, done.stderr
        facts: dict[str, Any] = json.loads(done.stdout)
        return facts

    def refused(self, *arguments: str) -> str:
        """The one line of a refusal."""
        done = self.run(*arguments)
        assert done.returncode == 2, done.stderr
        line = done.stderr.splitlines()[-1]
        assert line.startswith("vduse: error: ")
        return line.removeprefix("vduse: error: ")

    def left_behind(self) -> list[str]:
        return [p.name for folder in (self.cwd, self.tmp) for p in folder.iterdir()]


@pytest.fixture
def demo(tmp_path: Path) -> Runner:
    return Runner(tmp_path)


@pytest.fixture
def image(demo: Runner) -> Path:
    """Somebody's image: contents that nothing may change."""
    path = demo.cwd / "mine.img"
    with path.open("wb") as file:
        file.write(b"precious" * 512)
        file.truncate(SIZE)
    return path


@pytest.mark.needs("mke2fs", "e2fsck")
@pytest.mark.parametrize(
    "options", ["", "--packed --queues 2 --queue-size 64", "--direct", "--read-only"]
)
def test_contents_come_back_equal(demo: Runner, options: str) -> None:
    facts = demo.facts("--size", "64M", *options.split())
    assert [done["what"] for done in facts["checked"]] == ["FAT16 file system", "ext4 file system"]
    assert facts["left_out"] == []
    disk, ext4 = facts["devices"]
    assert disk["size"] == SIZE
    assert disk["read_only"] == ("--read-only" in options)
    assert disk["ring"] == ("packed" if "--packed" in options else "split")
    for device in (disk, ext4):
        # Statuses 0, 1, 3, 0xB, 0xF of the probe, 0 and 1 of the removal.
        assert device["messages"]["SET_STATUS"] == 7
        assert device["calls"]["VQ_SETUP_KICKFD"] >= device["queues"]
        assert device["kicks"] > 0
        assert device["irqs"] > 0
        assert device["bounce"]["in_use"] == 0
        assert 0 < device["bounce"]["reclaimed"] <= device["bounce"]["peak"]
        assert device["bounce"]["allocated_after"] == 0
    assert ext4["bytes_written"] == ext4["bytes_read"] == ext4["size"]
    loads = {load["op"]: load for load in facts["loads"]}
    assert loads["randread"]["iops"] > 0
    assert ("randwrite" in loads) == ("--read-only" not in options)
    assert demo.left_behind() == []


def test_text_shows_what_moved(demo: Runner) -> None:
    done = demo.run("--size", "64M")
    assert done.returncode == 0, done.stderr
    for word in ("FAT16", "SET_STATUS", "kicks, irqs", "bounce pages", "IOPS", "MB/s"):
        assert word in done.stdout


def test_kept_image_is_only_read_the_next_time(demo: Runner) -> None:
    facts = demo.facts("disk.img", "--size", "64M", "--keep")
    image = demo.cwd / "disk.img"
    assert str(image.name) in facts["kept"]
    before = hashlib.sha256(image.read_bytes()).digest()
    again = demo.facts("disk.img", "--size", "1G")
    assert again["devices"][0]["read_only"] is True
    assert again["devices"][0]["bytes_written"] == 0
    assert hashlib.sha256(image.read_bytes()).digest() == before


def test_image_with_contents_is_not_written(demo: Runner, image: Path) -> None:
    before = image.read_bytes()
    [checked] = demo.facts(str(image))["checked"]
    assert checked["bytes"] == SIZE
    assert image.read_bytes() == before


def test_only_the_first_bytes_of_a_large_image_are_read(demo: Runner, image: Path) -> None:
    os.truncate(image, 1 << 30)
    [checked] = demo.facts(str(image), "--size", "64M")["checked"]
    assert (checked["size"], checked["bytes"]) == (1 << 30, SIZE)


def test_empty_file_is_filled_and_stays(demo: Runner) -> None:
    image = demo.cwd / "empty.img"
    image.touch()
    demo.facts("empty.img", "--size", "64M")
    assert image.stat().st_size == SIZE
    assert image.read_bytes()[510:512] == b"\x55\xaa"


def test_without_e2fsprogs_the_ext4_image_is_left_out(demo: Runner) -> None:
    program = (
        "import sys; from vduse.daemon.demo import ext4; ext4.tools = lambda: False;"
        "from vduse.daemon.main import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "demo", "--size", "64M"],
        cwd=demo.cwd,
        env=demo.env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "--  ext4 image: e2fsprogs is not installed (make system-deps)" in done.stdout


# --- bad input: one line, exit code 2, nothing left behind ---------------------------------


def test_missing_folder(demo: Runner) -> None:
    assert demo.refused("no/disk.img") == "no/disk.img: no such file or folder: check the path"
    assert demo.left_behind() == []


@pytest.mark.parametrize(
    ("size", "line"),
    [
        ("100000001", "--size 100000001 is not a multiple of 512 bytes: use 100000256"),
        ("1M", "--size 1 MiB is too small: use 64M or more"),
    ],
)
def test_size_that_cannot_be(demo: Runner, size: str, line: str) -> None:
    assert demo.refused("--size", size) == line
    assert demo.left_behind() == []


def test_folder_as_image(demo: Runner) -> None:
    assert demo.refused(str(demo.tmp)) == (
        f"{demo.tmp}: neither a file nor a block device: name a disk image"
    )


def test_image_of_unaligned_size(demo: Runner, image: Path) -> None:
    os.truncate(image, SIZE - 1)
    assert demo.refused("mine.img") == (
        "mine.img: its size is not a multiple of 512 bytes: "
        "pad it first (truncate -s %512 mine.img)"
    )
    assert demo.left_behind() == ["mine.img"]


@contextlib.contextmanager
def locked_as_by_qemu(image: Path) -> Iterator[None]:
    """Another program writes the image: QEMU's byte 201 (permission bytes 100 up) of OFD locks."""
    with image.open("r+b") as file:
        for offset in (100, 101, 103, 200, 201, 203):
            lock = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, offset, 1, 0)
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, lock)
        yield


def test_image_in_use(demo: Runner) -> None:
    image = demo.cwd / "busy.img"
    image.touch()
    os.truncate(image, SIZE)
    with locked_as_by_qemu(image):
        line = demo.refused("busy.img")
    assert line.startswith("busy.img is in use by another program")
    assert line.endswith("stop that program first")
    assert demo.left_behind() == ["busy.img"]


# --- signals: flushed, cleaned up ----------------------------------------------------------


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("step", ["load generator", "write files to it", "make an ext4 image"])
@pytest.mark.needs("mke2fs")
def test_signal_cleans_up(demo: Runner, signum: signal.Signals, code: int, step: str) -> None:
    with subprocess.Popen(
        demo.argv("disk.img", "--size", "64M"),
        cwd=demo.cwd,
        env=demo.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        seen = ""
        for line in process.stderr:
            seen += line
            if line.startswith(step):
                process.send_signal(signum)
                break
        rest, err = process.communicate()
    assert process.returncode == code, seen + err
    assert err.splitlines()[-1] == "vduse: stopped"
    assert rest == ""
    assert demo.left_behind() == []
