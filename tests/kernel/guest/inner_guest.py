"""A guest inside the guest, on a disk by vhost_vdpa and QEMU's vhost-vdpa-device-pci: it checks a
file's checksum and writes another one (boot/inner). Run as

    python -m tests.kernel.guest.inner_guest KERNEL INITRAMFS QEMU...

by test_inner_guest.py; the exit status says whether all was well.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from tempfile import mkdtemp

from tests.kernel.guest.bed import MIB, load_modules, rebind, run
from tests.kernel.guest.program import served
from vduse.vdpa.drivers import BusDriver


def make_disk(folder: Path, data: bytes) -> Path:
    """An image with a file system that holds ``data`` and its checksum."""
    files = folder / "files"
    files.mkdir()
    (files / "file").write_bytes(data)
    (files / "sums").write_text(f"{hashlib.sha256(data).hexdigest()}  file\n")
    image = folder / "image"
    run("mke2fs", "-qt", "ext4", "-d", str(files), str(image), "64M")
    return image


def boot(qemu: list[str], kernel: str, initramfs: str, node: str) -> list[str]:
    """Runs the inner guest until it powers off; the lines of its console."""
    options = "console=ttyS0 quiet oops=panic panic=-1 mitigations=off tsc=nowatchdog"
    command = [
        *(*qemu, "-machine", "q35,memory-backend=ram", "-accel", "tcg", "-cpu", "max"),
        # vhost_vdpa gives the device's program what has a file, and is shared.
        *("-object", "memory-backend-memfd,id=ram,size=256M,share=on", "-m", "256"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-kernel", kernel, "-initrd", initramfs, "-append", options),
        *("-serial", "stdio", "-device", f"vhost-vdpa-device-pci,vhostdev={node}"),
    ]
    lines = []
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.strip())
    assert process.returncode == 0, f"QEMU ended with status {process.returncode}"
    return lines


def main(kernel: str, initramfs: str, *qemu: str) -> None:
    """The whole of it. AssertionError for what is wrong."""
    load_modules()
    folder = Path(mkdtemp())
    data = os.urandom(4 * MIB)
    image = make_disk(folder, data)
    with served("disk0", f"file:{image}", queues=2) as program:
        program.add()
        node = rebind("disk0", BusDriver.VHOST_VDPA)
        assert "inner guest: done" in boot(list(qemu), kernel, initramfs, node)
        stats = program.stats()
        assert stats["errors"] == 0 and stats["requests"] > 0
    run("e2fsck", "-fn", str(image))
    twice = folder / "twice"
    run("debugfs", "-R", f"dump twice {twice}", str(image))
    assert twice.read_bytes() == data * 2


if __name__ == "__main__":
    main(*sys.argv[1:])
