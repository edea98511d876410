"""What the embedded framework itself cannot do without."""

from __future__ import annotations

import os
import platform
import resource
import socket
from collections.abc import Callable

from vduse.daemon.doctor.check import Check, limited, missing, ok

#: Fds of a process, and of one device with one queue and both sides in it, rounded up.
_FDS = 48
_FDS_PER_DEVICE = 32


def python() -> Check:
    """The interpreter's version; the package does not install on one that is too old."""
    return ok("python", platform.python_version())


def native_module() -> Check:
    """Whether the Rust half loads."""
    try:
        from vduse import _native
    except ImportError as error:
        return missing("native module", str(error), "in a checkout: make build")
    return ok("native module", os.path.basename(_native.__file__ or "built in"))


def memory_files() -> Check:
    """memfd_create: bounce pages, coherent memory, in-flight records."""
    try:
        os.close(os.memfd_create("vduse-doctor", os.MFD_CLOEXEC))
    except OSError as error:
        return missing("memfd", str(error), "allow memfd_create in the container's seccomp")
    return ok("memfd", "memory that two processes share by fd")


def eventfds() -> Check:
    """eventfd: kicks and irqs."""
    try:
        os.close(os.eventfd(0, os.EFD_CLOEXEC))
    except OSError as error:
        return missing("eventfd", str(error), "allow eventfd2 in the container's seccomp")
    return ok("eventfd", "kicks and irqs")


def packet_sockets() -> Check:
    """AF_UNIX SOCK_SEQPACKET with fds: the embedded channel."""
    try:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            socket.send_fds(ours, [b"x"], [ours.fileno()])
            _, fds, _, _ = socket.recv_fds(theirs, 1, 1)
            for fd in fds:
                os.close(fd)
    except OSError as error:
        return missing("SEQPACKET", str(error), "allow AF_UNIX sockets in the container")
    return ok("SEQPACKET", "the embedded channel's sockets, with fds")


def open_files() -> Check:
    """RLIMIT_NOFILE: how many devices one process can hold."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    devices = max((soft - _FDS) // _FDS_PER_DEVICE, 0) if soft != resource.RLIM_INFINITY else None
    if devices is None or devices >= 32:
        return ok("open files", f"limit {soft}")
    how = f"ulimit -n {max(hard, 1024)}"
    if devices == 0:
        return missing("open files", f"limit {soft}: not enough for one device", how)
    return limited("open files", f"limit {soft}: about {devices} devices", how)


NEEDED: tuple[Callable[[], Check], ...] = (
    python,
    native_module,
    memory_files,
    eventfds,
    packet_sockets,
    open_files,
)
