"""A virtual machine on a disk of ours, by the kernel's vhost_vdpa: a guest inside the guest."""

from __future__ import annotations

import shlex
import sys
from io import BytesIO
from pathlib import Path

import pytest

from tests.kernel.fetch import KERNELS, kernel
from tests.kernel.initramfs import initramfs
from tests.kernel.qemu import newest_qemu
from tests.kernel.skips import skips_without_bed
from tests.kernel.vm import VM, Machine, Stopped, programs

INIT = Path(__file__).parent / "boot" / "inner"
#: crc32c_generic: what ext4 needs of Linux 6.12 but does not name.
MODULES = ("virtio_pci", "virtio_blk", "crc32c_generic", "ext4")


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("version", KERNELS)
def test_inner_guest_checks_a_file_and_writes_one(version: str, tmp_path: Path) -> None:
    with skips_without_bed():
        busybox = Path(programs()["busybox"])
        same, qemu = kernel(version), newest_qemu()
    archive = tmp_path / "initramfs"
    archive.write_bytes(initramfs(same.modules, busybox, MODULES, INIT))
    command = [sys.executable, "-m", "tests.kernel.guest.inner_guest", str(same.image)]
    command += [str(archive), *qemu.command("qemu-system-x86_64")]
    output = BytesIO()
    folder = Path(__file__).parents[2]
    machine = Machine(memory=3072)
    with VM(same, shlex.join(command), machine=machine, output=output, folder=folder) as vm:
        try:
            status: int | str = vm.wait(3000)
        except Stopped as why:
            status = str(why)
    assert status == 0, f"{status}\n{output.getvalue().decode(errors='replace')}"
