"""From the disk to a file system of this machine, with no NBD in its kernel: nbdfuse makes a file
of the export, a loop device a block device of the file."""

from __future__ import annotations

import hashlib
import random
import select
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.means import find_program
from tests.system.nbd_clients import LIMIT, run
from vduse.testing.nbd import blk_server

MIB = 1 << 20
MOUNTS = Path("/proc/self/mountinfo")


def mounted(path: Path) -> bool:
    """Whether something is mounted there."""
    return any(line.split()[4] == str(path) for line in MOUNTS.read_text().splitlines())


@contextmanager
def fuse_file(uri: str, folder: Path) -> Iterator[Path]:
    """The export as a file."""
    folder.mkdir()
    path, program = folder / "nbd", find_program("nbdfuse")
    assert program is not None
    process = subprocess.Popen([program, str(path), uri])
    try:
        with MOUNTS.open() as mounts:
            changed = select.poll()
            changed.register(mounts, select.POLLPRI)
            while not mounted(folder):
                assert process.poll() is None
                assert changed.poll(LIMIT * 1000), "nbdfuse mounts nothing"
        yield path
    finally:
        if mounted(folder):
            # Lazy, so that a loop device that is left over does not keep the mount, and nbdfuse.
            run("umount", "--lazy", str(folder))
        else:
            process.terminate()
        try:
            process.wait(LIMIT)
        finally:
            process.kill()
            process.wait()


@contextmanager
def loop_device(path: Path) -> Iterator[str]:
    """A file as a block device; what is written goes past the page cache to the file."""
    device = run("losetup", "--find", "--show", "--direct-io=on", str(path)).strip()
    try:
        yield device
    finally:
        run("losetup", "--detach", device)


@contextmanager
def mount(device: str, folder: Path) -> Iterator[Path]:
    """The file system on a block device."""
    folder.mkdir(exist_ok=True)
    run("mount", device, str(folder))
    try:
        yield folder
    finally:
        run("umount", str(folder))


def fill(folder: Path) -> dict[str, str]:
    """Files of many sizes; their digests by name."""
    data = random.Random(1)
    digests = {}
    for number, size in enumerate([0, 1, 511, 4096, 65_537, MIB, 3 * MIB + 7] * 6):
        path = folder / f"folder{number % 5}" / f"file{number}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data.randbytes(size))
        digests[str(path.relative_to(folder))] = digest(path)
    return digests


def digest(path: Path) -> str:
    """Of a file's contents."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def attached() -> set[str]:
    """Loop devices in use."""
    return set(run("losetup", "--noheadings", "--output", "NAME").split())


@pytest.mark.needs("loop", "nbdfuse", "losetup", "mount", "umount", "mke2fs", "e2fsck", "fstrim")
@pytest.mark.parametrize("ring", ["split", "packed"])
def test_a_file_system_on_a_loop_device_is_sound(ring: str, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate(256 * MIB)
    rings = ["--packed"] if ring == "packed" else []
    before = attached()
    with (
        blk_server(str(image), "--queues", "2", *rings) as server,
        fuse_file(server.uri, tmp_path / "fuse") as path,
        loop_device(path) as device,
    ):
        run("mke2fs", "-q", "-t", "ext4", device)
        with mount(device, tmp_path / "fs") as folder:
            digests = fill(folder)
            (folder / "large").write_bytes(b"\xa5" * (64 * MIB))
            run("sync", "--file-system", str(folder))
            large = image.stat().st_blocks
            (folder / "large").unlink()
            run("sync", "--file-system", str(folder))
            run("fstrim", str(folder))
            trimmed = image.stat().st_blocks
        run("e2fsck", "-f", "-n", device)
        # What is read now comes from the disk, not from the page cache of the first mount.
        with mount(device, tmp_path / "fs") as folder:
            found = {name: digest(folder / name) for name in digests}
    assert found == digests
    # The trim reached the image: it takes at least 60 of the 64 MiB less, in sectors of 512.
    assert large - trimmed >= 60 * MIB // 512
    run("e2fsck", "-f", "-n", str(image))
    assert attached() == before
    assert not mounted(tmp_path / "fuse")
