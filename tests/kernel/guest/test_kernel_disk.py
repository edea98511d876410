"""A block device on the kernel's bus, by virtio_vdpa: /dev/vdX."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.kernel.guest.bed import (
    MIB,
    newest_api_version,
    on_the_bus,
    read_direct,
    run,
    write_direct,
)
from tests.waiting import eventually
from vduse import _native
from vduse.channel.kernel import KernelControl
from vduse.devices.blk import BlkDevice

pytestmark = pytest.mark.usefixtures("modules")

RINGS = [pytest.param(False, id="split"), pytest.param(True, id="packed")]


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = tmp_path / "image"
    with path.open("wb") as file:
        file.truncate(64 * MIB)
    return str(path)


@contextmanager
def memory(size: int) -> Iterator[_native.Backend]:
    """A memory backend for as long as a test needs it."""
    backend = _native.Backend.memory(size)
    yield backend
    backend.close()


def negotiated(name: str) -> str:
    """Feature bits that the driver took, bit 0 first."""
    [path] = Path(f"/sys/bus/vdpa/devices/{name}").glob("virtio*/features")
    return path.read_text()


@pytest.mark.parametrize("packed", RINGS)
def test_what_is_written_is_read_back(control: KernelControl, packed: bool) -> None:
    data = os.urandom(8 * MIB)
    with memory(64 * MIB) as backend:
        device = BlkDevice("disk0", backend, queues=2, packed=packed)
        with on_the_bus(device, control) as path:
            assert negotiated("disk0")[34] == str(int(packed))
            for at in range(0, len(data), MIB):
                write_direct(path, at, data[at : at + MIB])
            assert read_direct(path, 0, len(data)) == data
            stats = device.stats()
            assert stats is not None and stats["errors"] == 0
            assert stats["bytes_written"] >= len(data)
        assert (device.ended, os.path.exists(path)) == ("closed", False)
    assert not os.path.exists("/dev/vduse/disk0")


def test_api_versions(control: KernelControl) -> None:
    for version in range(newest_api_version() + 1):
        port = KernelControl()
        with memory(16 * MIB) as backend:
            device = BlkDevice("disk0", backend, api_version=version)
            with on_the_bus(device, port) as path:
                write_direct(path, 4096, b"v" * 4096)
                assert read_direct(path, 4096, 4096) == b"v" * 4096
        port.close()


@pytest.mark.needs("mke2fs", "e2fsck", "debugfs", "mount", "umount", "fstrim")
@pytest.mark.parametrize("packed", RINGS)
def test_file_system_on_an_image(
    control: KernelControl, image: str, tmp_path: Path, packed: bool
) -> None:
    backend = _native.Backend.file(image)
    mount = tmp_path / "mnt"
    mount.mkdir()
    try:
        device = BlkDevice("disk0", backend, packed=packed, serial="KERNEL0")
        with on_the_bus(device, control) as path:
            run("mke2fs", "-qt", "ext4", path)
            run("mount", path, str(mount))
            (mount / "file").write_bytes(b"written through the kernel" * 1000)
            run("fstrim", str(mount))
            run("umount", str(mount))
            run("e2fsck", "-fn", path)
            serial = Path(f"/sys/block/{Path(path).name}/serial").read_text()
            assert serial == "KERNEL0"
    finally:
        backend.close()
    # The image itself is the file system.
    run("e2fsck", "-fn", image)
    assert "written through" in run("debugfs", "-R", "cat file", image)


def test_null_backend(control: KernelControl) -> None:
    backend = _native.Backend.null(1 << 40)
    device = BlkDevice("disk0", backend)
    with on_the_bus(device, control) as path:
        write_direct(path, (1 << 40) - 4096, b"x" * 4096)
        assert len(read_direct(path, 0, MIB)) == MIB
        stats = device.stats()
        assert stats is not None and stats["errors"] == 0
    backend.close()


def test_read_only_disk(control: KernelControl) -> None:
    with (
        memory(16 * MIB) as backend,
        on_the_bus(BlkDevice("disk0", backend, read_only=True), control) as path,
    ):
        assert Path(f"/sys/block/{Path(path).name}/ro").read_text() == "1\n"
        assert read_direct(path, 0, 4096) == bytes(4096)


@pytest.mark.needs("mke2fs", "e2fsck", "mount", "umount")
def test_resize_is_seen_by_a_mounted_file_system(
    control: KernelControl, image: str, tmp_path: Path
) -> None:
    backend = _native.Backend.file(image)
    mount = tmp_path / "mnt"
    mount.mkdir()
    device = BlkDevice("disk0", backend)
    with on_the_bus(device, control) as path:
        size = Path(f"/sys/block/{Path(path).name}/size")
        assert int(size.read_text()) * 512 == 64 * MIB
        run("mke2fs", "-qt", "ext4", path)
        run("mount", path, str(mount))
        os.truncate(image, 128 * MIB)
        assert device.resize() == 128 * MIB
        eventually(lambda: int(size.read_text()) * 512 == 128 * MIB, "new size")
        run("resize2fs", path)
        assert os.statvfs(mount).f_blocks * os.statvfs(mount).f_frsize > 100 * MIB
        run("umount", str(mount))
        run("e2fsck", "-fn", path)
    backend.close()


def test_a_device_left_behind_is_taken_over(control: KernelControl) -> None:
    with memory(16 * MIB) as backend:
        left = BlkDevice("disk0", backend)
        assert not left.start(control)
        left.close()
        taken = BlkDevice("disk0", backend)
        with on_the_bus(taken, control) as path:
            write_direct(path, 0, b"t" * 4096)
            assert read_direct(path, 0, 4096) == b"t" * 4096


def test_a_second_program_is_refused(control: KernelControl) -> None:
    with memory(16 * MIB) as backend:
        device, second = BlkDevice("disk0", backend), BlkDevice("disk0", backend)
        with on_the_bus(device, control), pytest.raises(OSError) as refused:
            second.start(control)
        assert refused.value.errno == errno.EBUSY


def test_two_disks_at_once(control: KernelControl) -> None:
    with (
        memory(16 * MIB) as first,
        memory(32 * MIB) as second,
        on_the_bus(BlkDevice("disk0", first), control) as one,
        on_the_bus(BlkDevice("disk1", second), control) as two,
    ):
        write_direct(one, 0, b"1" * 4096)
        write_direct(two, 0, b"2" * 4096)
        assert read_direct(one, 0, 4096) == b"1" * 4096
        assert read_direct(two, 0, 4096) == b"2" * 4096
