"""Who uses a device node: what would be lost if its device went away."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

SYSFS = Path("/sys")
PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Program:
    """A process that has a node open."""

    pid: int
    #: Its name (comm).
    name: str
    #: SIGSTOP, or a debugger, holds it.
    stopped: bool

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid})"


def programs(node: str | os.PathLike[str], proc: Path = PROC) -> list[Program]:
    """The processes that have the node open, of those that this user may look into: root sees
    all of its PID namespace."""
    try:
        number = os.stat(node).st_rdev
    except OSError:
        return []
    return list(_with_open({number}, proc))


def users(node: str, sysfs: Path = SYSFS, proc: Path = PROC) -> tuple[str, ...]:
    """Who uses /dev/vdX (or a partition of it) or /dev/vhost-vdpa-N, for people to read: programs
    that have it open, mounts, devices on top; empty: nobody. Whoever cannot be named (in another
    mount or PID namespace) is found by opening it, which the kernel then refuses; so this is
    complete for who has the right to open it."""
    try:
        found = os.stat(node)
    except OSError:
        return ()
    is_disk = stat.S_ISBLK(found.st_mode)
    numbers = {found.st_rdev}
    if is_disk:
        disk = sysfs / "class/block" / Path(node).name
        numbers |= set(_partitions(disk))
    named = [f"open in {program}" for program in _with_open(numbers, proc)]
    if is_disk:
        named += [f"mounted at {place}" for place in _mounted_at(numbers, proc)]
        named += [f"in use by {path.name}" for path in disk.glob("holders/*")]
        named += [f"in use by {path.name}" for path in disk.glob(f"{disk.name}*/holders/*")]
    if not named and _is_busy(node, is_disk):
        named = ["in use, by whom is not to be seen from here"]
    return tuple(named)


def requests_in_flight(node: str, sysfs: Path = SYSFS) -> int:
    """Requests of /dev/vdX that its device has not answered."""
    try:
        counts = (sysfs / "class/block" / Path(node).name / "inflight").read_text()
    except OSError:
        return 0
    return sum(map(int, counts.split()))


def _partitions(disk: Path) -> Iterator[int]:
    for file in disk.glob(f"{disk.name}*/dev"):
        with suppress(OSError):  # it has gone meanwhile
            major, minor = file.read_text().split(":")
            yield os.makedev(int(major), int(minor))


def _with_open(numbers: set[int], proc: Path) -> Iterator[Program]:
    for process in proc.glob("[0-9]*"):
        with suppress(OSError):
            if any(_device_number(fd) in numbers for fd in (process / "fd").iterdir()):
                yield Program(
                    pid=int(process.name),
                    name=(process / "comm").read_text().strip(),
                    stopped=_state(process) in "Tt",
                )


def _device_number(fd: Path) -> int | None:
    try:
        found = fd.stat()
    except OSError:  # closed meanwhile
        return None
    is_device = stat.S_ISBLK(found.st_mode) or stat.S_ISCHR(found.st_mode)
    return found.st_rdev if is_device else None


def _state(process: Path) -> str:
    # PID (comm) STATE ...; comm may have parentheses of its own.
    return (process / "stat").read_text().rpartition(")")[2].split()[0]


def _mounted_at(numbers: set[int], proc: Path) -> Iterator[str]:
    for line in (proc / "self/mountinfo").read_text().splitlines():
        fields = line.split()
        major, minor = fields[2].split(":")
        if os.makedev(int(major), int(minor)) in numbers:
            # Blanks in it are octal.
            yield re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[4])


def _is_busy(node: str, is_disk: bool) -> bool:
    """O_EXCL of a disk is refused while a mount or another device has it; a vhost-vdpa device has
    one opener."""
    flags = os.O_RDONLY | os.O_EXCL if is_disk else os.O_RDWR
    try:
        os.close(os.open(node, flags | os.O_CLOEXEC | os.O_NONBLOCK))
    except OSError as error:
        return error.errno == errno.EBUSY
    return False
