"""An ext4 file system by e2fsprogs, there and back through a disk."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from vduse.daemon.demo.progress import Advance

SIZE = 96 << 20
_CHUNK = 1 << 20


class Disk(Protocol):
    """What a copy asks of a disk; offsets and lengths are bytes."""

    def pread(self, length: int, offset: int, /) -> bytes:
        """As :func:`os.pread`."""

    def pwrite(self, data: bytes, offset: int, /) -> int:
        """As :func:`os.pwrite`."""

    def flush(self) -> None:
        """What was written is on stable storage."""


def tools() -> bool:
    """Whether e2fsprogs is installed."""
    return _find("mke2fs") is not None and _find("e2fsck") is not None


def make(image: Path, files: Mapping[str, bytes], folder: Path) -> None:
    """Makes an image of :data:`SIZE` bytes with the files in it; ``folder`` is scratch."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    _run("mke2fs", "-q", "-F", "-t", "ext4", "-d", str(folder), str(image), f"{SIZE >> 10}k")
    shutil.rmtree(folder)


def write(disk: Disk, image: Path, advance: Advance) -> None:
    """Copies the image to the start of the disk."""
    with image.open("rb") as source:
        offset = 0
        while data := source.read(_CHUNK):
            disk.pwrite(data, offset)
            offset += len(data)
            advance(offset >> 20, SIZE >> 20)
    disk.flush()


def digest(disk: Disk, size: int, advance: Advance) -> str:
    """SHA-256 of the disk's first ``size`` bytes, as read through it."""
    total = hashlib.sha256()
    for offset in range(0, size, _CHUNK):
        total.update(disk.pread(min(_CHUNK, size - offset), offset))
        advance((offset >> 20) + 1, size >> 20)
    return total.hexdigest()


def check(image: Path) -> None:
    """e2fsck finds nothing wrong. RuntimeError with what it says otherwise."""
    _run("e2fsck", "-f", "-n", str(image))


def _find(program: str) -> str | None:
    return shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")


def _run(program: str, *arguments: str) -> None:
    done = subprocess.run(
        [_find(program) or program, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        start_new_session=True,  # a ^C is ours to act on
    )
    if done.returncode:
        raise RuntimeError(f"{program} failed: {(done.stderr or done.stdout).strip()}")
