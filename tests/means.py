"""What a test may need beyond Python and the native module, and the command that provides it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SYSTEM_DEPS = "make system-deps"
#: The interpreter that Debian's Python packages are for.
SYSTEM_PYTHON = "/usr/bin/python3"


@dataclass(frozen=True)
class Means:
    """One thing a test needs: how to see it is there, how to get it."""

    present: Callable[[], bool]
    provided_by: str


def _program(name: str) -> Means:
    # Debian keeps e2fsprogs in sbin, which is not on every user's PATH.
    return Means(lambda: find_program(name) is not None, SYSTEM_DEPS)


def find_program(name: str) -> str | None:
    """Path of a program, also looked for in the sbin directories."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")


def _psi() -> bool:
    path = Path("/proc/pressure/memory")
    try:
        return bool(path.read_text()) and os.access(path, os.W_OK)
    except OSError:
        return False


def _libnbd() -> bool:
    """The Python module, which Debian has for its own interpreter only."""
    found = subprocess.run([SYSTEM_PYTHON, "-c", "import nbd"], capture_output=True, check=False)
    return found.returncode == 0


def _loop() -> bool:
    """Whether loop devices and file systems can be set up and mounted."""
    return os.geteuid() == 0 and all(map(os.path.exists, ("/dev/loop-control", "/dev/fuse")))


def _nbdkit_python() -> bool:
    """Whether nbdkit has its Python plugin, a package of its own."""
    program = find_program("nbdkit")
    if program is None:
        return False
    return subprocess.run([program, "--dump-plugin", "python"], capture_output=True).returncode == 0


_PROGRAMS = (
    *("mke2fs", "e2fsck", "debugfs", "losetup", "mount", "umount", "fstrim"),
    *("qemu-img", "qemu-io", "qemu-nbd", "qemu-storage-daemon", "qemu-system-x86_64"),
    *("modprobe", "vdpa", "busybox", "linux.uml", "cc"),
    *("udevadm", "systemctl", "systemd-socket-activate", "bwrap", "fuse2fs"),
    *("fio", "nbdkit", "nbdcopy", "nbdinfo", "nbdfuse", "openssl", "mandoc"),
    *("ceph-mon", "ceph-osd", "rbd"),
)

MEANS: dict[str, Means] = {
    **{name: _program(name) for name in _PROGRAMS},
    "system-python": Means(lambda: os.path.exists(SYSTEM_PYTHON), SYSTEM_DEPS),
    "libnbd": Means(lambda: os.path.exists(SYSTEM_PYTHON) and _libnbd(), SYSTEM_DEPS),
    "nbdkit-python": Means(_nbdkit_python, SYSTEM_DEPS),
    "loop": Means(_loop, "root, with /dev/loop-control and /dev/fuse"),
    "psi": Means(_psi, "a kernel with CONFIG_PSI (boot with psi=1), /proc writable"),
}


def missing(names: tuple[str, ...]) -> str | None:
    """Why a test that needs all of ``names`` cannot run here; None if it can."""
    for name in names:
        means = MEANS[name]
        if not means.present():
            return f"needs {name}: {means.provided_by}"
    return None
