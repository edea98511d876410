"""Programs of ordinary users in the guest."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: nobody and nogroup.
NOBODY = 65534

_SERVE = """
import os, sys
from vduse import _native
from vduse.channel.kernel import KernelControl
from vduse.devices.blk import BlkDevice

image, destroy = sys.argv[1:]
backend = _native.Backend.file(image)
device = BlkDevice("disk0", backend)
with open("/proc/self/status") as status:
    assert "CapEff:\\t0000000000000000" in status.read()
print("taken over" if device.start(KernelControl()) else "created", flush=True)
sys.stdin.readline()
print(device.resize(), flush=True)
sys.stdin.readline()
device.close(destroy=destroy == "destroy")
backend.close()
"""


def open_the_checkout() -> None:
    """Lets everybody read this project: it may lie below somebody's home. The guest's own files
    change, the machine's do not."""
    repository = Path(__file__).resolve().parents[3]
    places = {repository, *map(Path, (sys.executable, sys.base_prefix, *sys.path))}
    for folder in {folder for place in places for folder in (place, *place.parents)}:
        if folder.is_dir():
            folder.chmod(folder.stat().st_mode | 0o055)


class Program:
    """Serves an image as disk0. Lines go to and fro."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def line(self) -> str:
        """What it says next."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def go_on(self) -> None:
        """Has it do its next step: look at the backend's size, end."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def wait(self) -> int:
        """Its exit status."""
        return self._process.wait()


@contextmanager
def serving(image: Path, uid: int, gid: int, *, destroy: bool) -> Iterator[Program]:
    """The program as this user, of this group alone; at its end it destroys the device, if it
    may."""
    argv = [sys.executable, "-W", "error", "-c", _SERVE]
    process = subprocess.Popen(
        [*argv, str(image), "destroy" if destroy else "leave"],
        user=uid,
        group=gid,
        extra_groups=[],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield Program(process)
        finally:
            if process.poll() is None:
                process.kill()


def privileges(pid: int) -> tuple[set[str], set[str]]:
    """Users (real, effective, saved, file system) and capability sets of a process."""
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    sets = ("CapInh", "CapPrm", "CapEff", "CapAmb")
    return set(status["Uid"].split()), {status[name] for name in sets}


#: ``privileges`` of a process without any.
NO_CAPABILITIES = {"0" * 16}


def may_open(path: str, uid: int, gid: int) -> bool:
    """Whether this user may open a node for reading and writing."""
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            os.close(os.open(path, os.O_RDWR))
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0
