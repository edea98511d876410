"""A user-mode-linux guest: a Linux kernel as a process of this machine, at its own speed, whose
/dev/vda is a vhost-user device. It sees this machine's files (hostfs) and runs one shell command
as root in them."""

from __future__ import annotations

import os
import selectors
import shlex
import signal
import stat
import subprocess
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Self

from tests.kernel.initramfs import Cpio
from tests.means import find_program

_MODULES = Path("/usr/lib/uml/modules")
_MEMORY = "256M"

#: Process 1. A folder of the guest's own is at /run; the mark tells its lines from the kernel's.
_INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
insmod /virtio_blk.ko
mount -t hostfs -o / host /host
mount -t tmpfs tmpfs /host/run
for folder in proc sys dev; do mount -o move /$folder /host/$folder; done
mkdir -p /host/dev/shm
mount -t tmpfs tmpfs /host/dev/shm
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/run TERM=dumb
chroot /host /bin/sh /run/../COMMAND 2>&1 | /bin/busybox sed 's/^/guest: /'
/bin/busybox poweroff -f
"""


class UmlError(Exception):
    """The guest did not do as it was told; its console."""


class Uml:
    """Boots at once; ``command`` is for sh. ``socket``: the vhost-user device's. A context manager,
    which ends the guest."""

    def __init__(self, folder: Path, socket: str, command: str) -> None:
        busybox, kernel = find_program("busybox"), find_program("linux.uml")
        assert busybox is not None and kernel is not None
        script = folder / "command"
        script.write_text(f"set -e\n{command}\necho status 0\n")
        initrd = folder / "initrd"
        initrd.write_bytes(_initrd(Path(busybox), script))
        arguments = [f"mem={_MEMORY}", f"initrd={initrd}", "init=/init", "con=null", "ssl=null"]
        arguments += ["con0=null,fd:1", "quiet", "panic=-1", f"virtio_uml.device={socket}:2"]
        # Its own processes are in a group of their own: all end together.
        self._process = subprocess.Popen(
            [kernel, *arguments, f"umid=vduse-{os.getpid()}-{id(self):x}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "TMPDIR": "/dev/shm", "HOME": str(folder)},
        )
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)
        self._console = b""
        self._read = 0

    def wait_for(self, line: str, timeout: float = 100) -> None:
        """Until the command prints ``line``. UmlError: it ended before that, or took longer."""
        assert self._process.stdout is not None
        end = monotonic() + timeout
        wanted = f"guest: {line}\r\n".encode()
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while (at := self._console.find(wanted, self._read)) < 0:
                if not selector.select(max(0.0, end - monotonic())):
                    raise UmlError(f"no {line!r} in time; the console:\n{self.console}")
                more = self._process.stdout.read()
                if not more:
                    raise UmlError(f"no {line!r}; the guest ended; the console:\n{self.console}")
                self._console += more
            self._read = at + len(wanted)

    def finish(self, timeout: float = 100) -> None:
        """Until all commands have succeeded. UmlError."""
        self.wait_for("status 0", timeout)

    @property
    def console(self) -> str:
        """All it said so far."""
        return self._console.decode(errors="replace")

    def close(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _initrd(busybox: Path, script: Path) -> bytes:
    [module] = _MODULES.glob("*/kernel/drivers/block/virtio_blk.ko")
    archive = Cpio()
    for name in ("bin", "dev", "host", "proc", "sys"):
        archive.add(name, stat.S_IFDIR | 0o755)
    archive.add("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))
    archive.add("bin/busybox", stat.S_IFREG | 0o755, busybox.read_bytes())
    archive.add("virtio_blk.ko", stat.S_IFREG | 0o644, module.read_bytes())
    init = _INIT.replace("/run/../COMMAND", shlex.quote(str(script)))
    archive.add("init", stat.S_IFREG | 0o755, init.encode())
    return archive.finish()
