"""What makes more possible, or faster: each has a stand-in or may be left out."""

from __future__ import annotations

import ctypes
import errno
import importlib.util
import os
import resource
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from vduse.control.units import format_size
from vduse.daemon.doctor.check import Check, limited, missing, ok

_IO_URING_SETUP = 425  # the same number on every architecture
_IO_URING_PARAMS = 120  # sizeof(struct io_uring_params)
_DEFAULT_BOUNCE = 64 << 20


def io_uring() -> Check:
    """Really sets one up: sysctl, seccomp and old kernels all refuse in their own way."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    params = ctypes.create_string_buffer(_IO_URING_PARAMS)
    fd = libc.syscall(ctypes.c_long(_IO_URING_SETUP), ctypes.c_uint(1), params)
    if fd >= 0:
        os.close(fd)
        return ok("io_uring", "file backends use it")
    reason = errno.errorcode.get(ctypes.get_errno(), "refused")
    how = {
        "ENOSYS": "a kernel with CONFIG_IO_URING",
        "ENOMEM": "raise the locked-memory limit (ulimit -l)",
    }.get(reason, "allow it in the container's seccomp profile")
    if _read("/proc/sys/kernel/io_uring_disabled") not in (None, "0"):
        how = "as root: sysctl kernel.io_uring_disabled=0"
    return limited("io_uring", f"{reason}: file backends use threads instead", how)


def locked_memory() -> Check:
    """RLIMIT_MEMLOCK bounds what may be pinned."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY or soft >= _DEFAULT_BOUNCE:
        shown = "unlimited" if soft == resource.RLIM_INFINITY else format_size(soft)
        return ok("locked memory", f"limit {shown}")
    return limited(
        "locked memory",
        f"limit {format_size(soft)}: the bounce pages of a device ({format_size(_DEFAULT_BOUNCE)})"
        " cannot be pinned",
        f"ulimit -l {_DEFAULT_BOUNCE >> 10}, or LimitMEMLOCK= of the service",
    )


def memory_pressure() -> Check:
    """PSI, the shrinker's source of memory pressure."""
    if _read("/proc/pressure/memory"):
        return ok("memory pressure", "PSI is readable")
    if (events := _cgroup_events()) is not None:
        return limited("memory pressure", f"no PSI; {events} stands in", "boot with psi=1")
    return limited(
        "memory pressure",
        "neither PSI nor cgroup memory.events: idle bounce pages are reclaimed on command only",
        "boot with psi=1",
    )


def direct_io() -> Check:
    """O_DIRECT in the folder for temporary files, where images of the demo lie."""
    folder = tempfile.gettempdir()
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        try:
            os.close(os.open(file.name, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC))
        except OSError:
            how = "put images of --direct on another file system (ext4, xfs, btrfs)"
            return limited("direct I/O", f"not in {folder}", how)
    return ok("direct I/O", f"in {folder}")


def _program(program: str, package: str, what: str) -> Callable[[], Check]:
    def check() -> Check:
        found = shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")
        if found:
            return ok(program, found)
        return missing(program, f"not installed: {what}", f"install {package} (make system-deps)")

    check.__doc__ = f"Whether {program} is installed."
    return check


def pyfatfs() -> Check:
    """The library with which the demo makes and reads its FAT file system."""
    if importlib.util.find_spec("pyfatfs"):
        return ok("pyfatfs", "the demo's FAT file system")
    return missing("pyfatfs", "not installed: vduse demo needs it", "pip install 'vduse[demo]'")


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def _cgroup_events() -> str | None:
    for line in (_read("/proc/self/cgroup") or "").splitlines():
        if line.startswith("0::"):
            path = f"/sys/fs/cgroup{line.removeprefix('0::')}/memory.events"
            return path if _read(path) is not None else None
    return None


EXTRAS: tuple[Callable[[], Check], ...] = (
    io_uring,
    direct_io,
    locked_memory,
    memory_pressure,
    pyfatfs,
    _program("mke2fs", "e2fsprogs", "the demo's ext4 image is left out"),
    _program("qemu-img", "qemu-utils", "tests of image locks are skipped"),
)
