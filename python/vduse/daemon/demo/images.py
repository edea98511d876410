"""The image that the demo works on: whose it is, whether it may be written, what stays."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from vduse.control.units import format_size
from vduse.daemon.errors import UserError, image_error

SECTOR = 512
#: Below this the FAT file system has no room for the files.
MIN_SIZE = 64 << 20
#: The largest file offset.
MAX_SIZE = (1 << 63) - SECTOR


@dataclass(frozen=True)
class Image:
    """An image file. ``blank``: it holds nothing yet, the demo may fill it."""

    path: Path
    size: int
    blank: bool
    #: The demo made it, so the demo removes it.
    made: bool


def check_size(size: int) -> None:
    """UserError for a size that no image of the demo can have."""
    if size % SECTOR:
        raise UserError(
            f"--size {size} is not a multiple of {SECTOR} bytes: "
            f"use {size // SECTOR * SECTOR + SECTOR}"
        )
    if size < MIN_SIZE:
        raise UserError(f"--size {format_size(size)} is too small: use 64M or more")
    if size > MAX_SIZE:
        raise UserError(f"--size {format_size(size)} is too large for a file: use 8388607T or less")


def prepare(path: Path, size: int) -> Image:
    """Makes the image of ``size`` bytes, or looks at the one that is there. UserError for what
    cannot be a disk image."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return _existing(path, size)
    except OSError as error:
        raise image_error(str(path), error) from None
    try:
        os.ftruncate(fd, size)
    except OSError as error:
        path.unlink()
        raise image_error(str(path), error) from None
    finally:
        os.close(fd)
    return Image(path, size, blank=True, made=True)


def _existing(path: Path, size: int) -> Image:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise image_error(str(path), error) from None
    try:
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
            raise UserError(f"{path}: neither a file nor a block device: name a disk image")
        there = os.lseek(fd, 0, os.SEEK_END)
        blank = stat.S_ISREG(mode) and not _has_data(fd)
    finally:
        os.close(fd)
    if there == 0 and blank:
        return _grow(path, size)
    blank = blank and there >= MIN_SIZE
    if blank and not os.access(path, os.W_OK):
        raise UserError(
            f"{path}: it is empty, the demo would fill it, and it may not be written: "
            "change its mode, or name an image with contents"
        )
    if there % SECTOR:
        raise UserError(
            f"{path}: its size is not a multiple of {SECTOR} bytes: "
            f"pad it first (truncate -s %{SECTOR} {path})"
        )
    return Image(path, there, blank=blank, made=False)


def _grow(path: Path, size: int) -> Image:
    """An empty file takes the size that a new one would have."""
    try:
        os.truncate(path, size)
    except OSError as error:
        raise image_error(str(path), error) from None
    return Image(path, size, blank=True, made=False)


def _has_data(fd: int) -> bool:
    try:
        os.lseek(fd, 0, os.SEEK_DATA)
    except OSError:
        return False  # ENXIO: one hole from start to end
    return True
