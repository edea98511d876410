"""The vhost-user-blk servers that are compared: ours and QEMU's storage daemon, the newest at hand,
each a child with all its defaults."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.kernel.fetch import BedError  # noqa: E402 - from the checkout
from tests.kernel.qemu import Qemu, newest_qemu  # noqa: E402 - from the checkout

#: Where an image is on the checkout's disk.
CACHE = ROOT / ".cache"
#: Bytes of every disk.
SIZE = 256 << 20
#: Seconds a server has to end by itself once told to.
PATIENCE = 30.0


@dataclass(frozen=True)
class VhostUserChild:
    """A child that serves a disk at a vhost-user socket."""

    path: str
    process: subprocess.Popen[str]

    @property
    def pid(self) -> int:
        """Of the child."""
        return self.process.pid

    def cpu(self) -> float:
        """Seconds of CPU used until now, of all threads, those that have ended too."""
        return cpu_of(self.pid)


def cpu_of(pid: int) -> float:
    """Seconds of CPU that a process has used until now."""
    # clock_getcpuclockid(3): the number of another process's clock is made of its pid.
    return time.clock_gettime((~pid << 3) | 2)


Server = AbstractContextManager[VhostUserChild]


@dataclass(frozen=True)
class Disk:
    """A disk as either server takes it: what `vduse blk` is told, and QEMU's ``--blockdev``."""

    ours: tuple[str, ...]
    qemu: str


NULL = Disk(("null", "--size", f"{SIZE}"), f"driver=null-co,size={SIZE},read-zeroes=off")


@contextmanager
def image(folder: str) -> Iterator[str]:
    """A full image of ``SIZE`` bytes, on the disk when this returns."""
    os.makedirs(folder, exist_ok=True)
    with TemporaryDirectory(dir=folder, prefix="vduse-bench-") as place:
        path = os.path.join(place, "disk.img")
        piece = os.urandom(1 << 20)
        with open(path, "wb", buffering=0) as file:
            for _ in range(SIZE // len(piece)):
                file.write(piece)
            os.fsync(file.fileno())
        yield path


def cached_file(path: str) -> Disk:
    """Through the page cache, by io_uring on either side: QEMU's default, a pool of threads, is
    slower."""
    return Disk((path,), f"driver=file,filename={path},aio=io_uring")


def direct_file(path: str, aio: str) -> Disk:
    """Past the page cache. ``aio``: QEMU's engine."""
    return Disk((path, "--direct"), f"driver=file,filename={path},cache.direct=on,aio={aio}")


@contextmanager
def ours(
    disk: Disk, queues: int = 1, env: Mapping[str, str] | None = None
) -> Iterator[VhostUserChild]:
    """`vduse blk`; ``env`` is added to its environment."""
    with TemporaryDirectory(prefix="vduse-bench-") as folder:
        path = os.path.join(folder, "vhost-user.sock")
        command = [sys.executable, "-m", "vduse.daemon", "blk", "--json", "--vhost-user", path]
        command += ["--queues", f"{queues}", *disk.ours]
        with child(command, stdout=subprocess.PIPE, env=env) as process:
            assert process.stdout is not None
            # Its first fact is where it can be reached.
            if not process.stdout.readline():
                raise ChildProcessError(f"{' '.join(command)}: ended with {process.wait()}")
            yield VhostUserChild(path, process)


@contextmanager
def qemu(disk: Disk, queues: int = 1) -> Iterator[VhostUserChild]:
    """QEMU's storage daemon; it is given its socket, so it can be connected to at once."""
    with TemporaryDirectory(prefix="vduse-bench-") as folder:
        path = os.path.join(folder, "vhost-user.sock")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen(16)
            fd = listener.fileno()
            export = (
                f"type=vhost-user-blk,id=export,node-name=disk,writable=on,num-queues={queues},"
                f"addr.type=fd,addr.str={fd}"
            )
            arguments = ["--blockdev", f"{disk.qemu},node-name=disk", "--export", export]
            command = [*qemu_daemon(), *arguments]
            with child(command, pass_fds=[fd]) as process:
                listener.close()
                yield VhostUserChild(path, process)


@cache
def _qemu() -> Qemu:
    try:
        return newest_qemu()
    except BedError:
        if shutil.which("qemu-storage-daemon") is None:
            raise
        return Qemu(Path("/"))


def qemu_daemon() -> list[str]:
    """How QEMU's storage daemon is started, the newest at hand."""
    return _qemu().command("qemu-storage-daemon")


def qemu_version() -> str:
    """What is measured beside us, as in ``QEMU 10.0.2``."""
    command = [*qemu_daemon(), "--version"]
    words = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return f"QEMU {words[words.index('version') + 1]}"


@contextmanager
def child(
    command: Sequence[str],
    stdout: int | None = None,
    pass_fds: Sequence[int] = (),
    env: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[str]]:
    """A program that is ended after the block; ``env`` is added to its environment."""
    process = subprocess.Popen(
        command, stdout=stdout, pass_fds=pass_fds, env={**os.environ, **(env or {})}, text=True
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


#: By name; the first is measured against the second.
SERVERS: dict[str, Callable[[Disk, int], Server]] = {"vduse": ours, "qemu": qemu}
