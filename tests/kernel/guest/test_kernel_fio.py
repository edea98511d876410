"""Disks of the kernel's under fio, by virtio_vdpa; the disk's program is a process of its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.kernel.guest import fio
from tests.kernel.guest.bed import MIB, eventually, load_modules, run
from tests.kernel.guest.program import served

pytestmark = [
    # Linux' virtio_blk takes no more virtqueues than there may be CPUs; two of them run at first.
    pytest.mark.machine(cpus=16, options="maxcpus=2"),
    pytest.mark.needs("fio", "mke2fs", "e2fsck", "mount", "umount", "fstrim"),
    pytest.mark.timeout(300),
]


@pytest.fixture(scope="module", autouse=True)
def modules() -> None:
    load_modules()


@pytest.mark.parametrize(
    ("queues", "packed"), [pytest.param(1, False, id="split"), pytest.param(4, True, id="packed-4")]
)
def test_file_system_from_mkfs_to_fsck(tmp_path: Path, queues: int, packed: bool) -> None:
    image, mount = tmp_path / "image", tmp_path / "mnt"
    with image.open("wb") as file:
        file.truncate(128 * MIB)
    mount.mkdir()
    with served("disk0", f"file:{image}", queues=queues, packed=packed) as program:
        disk = program.add()
        run("mke2fs", "-qt", "ext4", disk)
        run("mount", disk, str(mount))

        fio.verify(disk, size=4 * MIB, folder=mount)
        counted = program.stats()["queues"]
        assert len(counted) == queues
        assert all(queue["requests"] > 4 * MIB // fio.BLOCK_SIZE for queue in counted.values())

        for written in mount.glob("job*"):
            written.unlink()
        os.sync()  # blocks are free once the journal says so
        before = image.stat().st_blocks
        run("fstrim", str(mount))
        assert before - image.stat().st_blocks > queues * 4 * MIB // 512 // 2

        os.truncate(image, 256 * MIB)
        assert program.resize() == 256 * MIB
        sectors = Path(f"/sys/block/{Path(disk).name}/size")
        eventually(lambda: int(sectors.read_text()) * 512 == 256 * MIB, "the new size")
        run("resize2fs", disk)
        assert os.statvfs(mount).f_blocks * os.statvfs(mount).f_frsize > 200 * MIB
        fio.verify(disk, size=MIB, folder=mount)

        run("umount", str(mount))
        run("e2fsck", "-fn", disk)
        assert program.stats()["errors"] == 0
    run("e2fsck", "-fn", str(image))


def test_null_blk_behind_16_virtqueues_all_in_use() -> None:
    """A CPU a virtqueue: the 14 that the kernel left off come online for it."""
    run("modprobe", "null_blk")
    with served("vduse1", "/dev/nullb0", direct=True, queues=16, queue_size=128) as program:
        disk = program.add()
        assert sorted(fio.cpu_of_queues(disk)) == list(range(16))
        fio.read_and_write(disk, 300)
        counted = program.stats()
        assert len(counted["queues"]) == 16
        assert all(queue["requests"] >= 300 for queue in counted["queues"].values())
        assert counted["errors"] == 0
