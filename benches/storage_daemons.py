"""The storage daemons that are compared, ours and QEMU's, the newest at hand: the same options for
both, one node and one export of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote

from tests.kernel.qemu import qemu_with_rbd
from tests.waiting import eventually
from vhost_user_servers import child, cpu_of, qemu_daemon


def _qemu(blockdev: str) -> list[str]:
    if blockdev.startswith("driver=rbd,"):
        return qemu_with_rbd().command("qemu-storage-daemon")
    return qemu_daemon()


#: How each is started for a node of these options.
DAEMONS: dict[str, Callable[[str], list[str]]] = {
    "vduse": lambda _: [sys.executable, "-m", "vduse.daemon", "storage-daemon"],
    "qemu": _qemu,
}
#: What an export takes besides its node; {socket} is where it serves.
EXPORTS = {
    "vhost-user-blk": [
        "--export",
        "type=vhost-user-blk,id=export,node-name=disk,writable=on,"
        "addr.type=unix,addr.path={socket}",
    ],
    "nbd": [
        "--nbd-server",
        "addr.type=unix,addr.path={socket}",
        "--export",
        "type=nbd,id=export,node-name=disk,name=disk,writable=on",
    ],
}


@dataclass(frozen=True)
class StorageDaemon:
    """A child that serves one export at a unix socket."""

    process: subprocess.Popen[str]
    socket: str

    @property
    def uri(self) -> str:
        """Of its NBD export."""
        return f"nbd+unix:///disk?socket={quote(self.socket)}"

    def cpu(self) -> float:
        """Seconds of CPU used until now, of all threads, those that have ended too."""
        return cpu_of(self.process.pid)


@contextmanager
def started(name: str, blockdev: str, export: str) -> Iterator[StorageDaemon]:
    """The daemon ``name`` with a node of these options, once it serves. ChildProcessError if it
    does not."""
    with TemporaryDirectory(prefix="vduse-bench-") as folder:
        socket, pidfile = f"{folder}/export.sock", Path(folder, "pid")
        exported = [word.format(socket=socket) for word in EXPORTS[export]]
        blockdevs = ["--blockdev", f"{blockdev},node-name=disk"]
        command = [*DAEMONS[name](blockdev), *blockdevs, *exported, "--pidfile", str(pidfile)]
        with child(command, stdout=subprocess.DEVNULL) as process:
            wait_for(pidfile, process)
            yield StorageDaemon(process, socket)


def wait_for(pidfile: Path, process: subprocess.Popen[str]) -> None:
    """Until the daemon has made everything: then it writes the file. ChildProcessError: it has
    ended."""

    def look() -> bool:
        if process.poll() is not None:
            raise ChildProcessError("the storage daemon does not serve")
        return pidfile.exists()

    eventually(look, "the storage daemon serves")
