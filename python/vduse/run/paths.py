"""What is below /dev/vduse, as a program finds it there with stat(2), access(2) and open(2)."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Protocol

FOLDER = "/dev/vduse"
CONTROL = "control"

#: Of a chrdev region that is given out dynamically (drivers/vdpa/vdpa_user/vduse_dev.c); no host
#: of today has this one.
_MAJOR = 511
_MINORS = 1 << 20


@dataclass(frozen=True, slots=True)
class Found:
    """A file that is there, as struct stat has it."""

    mode: int
    rdev: int


def name_of(path: str, devices: Container[str]) -> str:
    """The name of what is at a normalised path: :data:`CONTROL`, a device's, or empty for
    :data:`FOLDER` itself. OSError ENOENT, ENOTDIR."""
    name = path.removeprefix(FOLDER).removeprefix("/")
    first, slash, _ = name.partition("/")
    if first and first != CONTROL and first not in devices:
        raise OSError(errno.ENOENT, f"no {path}")
    if slash:
        raise OSError(errno.ENOTDIR, f"{FOLDER}/{first} is no folder")
    return name


class Numbered(Protocol):
    """A device."""

    @property
    def number(self) -> int:
        """No other device of this run has it, or had it."""


def look(path: str, devices: Mapping[str, Numbered]) -> Found:
    """Nodes are their owner's only, as devtmpfs makes them. OSError ENOENT, ENOTDIR."""
    name = name_of(path, devices)
    if not name:
        return Found(stat.S_IFDIR | 0o755, 0)
    # A program can tell a device from an earlier one of that name (vduse.channel.kernel_records).
    minor = 0 if name == CONTROL else devices[name].number
    return Found(stat.S_IFCHR | 0o600, os.makedev(_MAJOR, minor % _MINORS))


def check_open(name: str, flags: int) -> None:
    """Whether open(2) with these flags opens the node of that name (:func:`name_of`). OSError
    EACCES: the folder itself, or O_PATH: an fd that stood for them would lead elsewhere."""
    if not name:
        code = errno.EISDIR if flags & os.O_ACCMODE != os.O_RDONLY else errno.EACCES
        raise OSError(code, f"{FOLDER} is not opened: only its nodes are there")
    if flags & os.O_PATH:
        raise OSError(errno.EACCES, f"{FOLDER}/{name} is not opened with O_PATH")
    if flags & os.O_DIRECTORY:
        raise OSError(errno.ENOTDIR, f"{FOLDER}/{name} is no folder")
    if flags & os.O_CREAT and flags & os.O_EXCL:
        raise OSError(errno.EEXIST, f"{FOLDER}/{name} is there")
