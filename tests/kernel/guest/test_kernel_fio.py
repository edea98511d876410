"""Disks of the kernel's under fio, by virtio_vdpa; the disk's program is a process of its own."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.kernel.guest import fio
from tests.kernel.guest.bed import MIB, node_of, run
from tests.kernel.guest.program import served
from tests.waiting import eventually
from vduse.vdpa.netlink import VdpaManagement

pytestmark = [
    pytest.mark.usefixtures("modules"),
    # Linux' virtio_blk takes no more virtqueues than there may be CPUs; two of them run at first.
    pytest.mark.machine(cpus=16, options="maxcpus=2"),
    pytest.mark.needs("fio", "mke2fs", "e2fsck", "mount", "umount", "fstrim"),
    pytest.mark.timeout(300),
]


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


#: The command that this project began with. QEMU's manual has `name` and `wait` today.
SEED = """
vduse storage-daemon
--chardev socket,id=charmonitor,path={monitor},server,nowait
--monitor chardev=charmonitor
--blockdev driver=host_device,cache.direct=on,aio=native,filename=/dev/nullb0,node-name=disk0
--export vduse-blk,id=test,node-name=disk0,writable=on,vduse-id=1,num-queues=16,queue-size=128
"""


def test_the_seeds_command_on_null_blk_with_16_virtqueues_in_use(tmp_path: Path) -> None:
    """A CPU a virtqueue, by the kernel's own table: each of the 16 CPUs sends requests to the disk
    (tracepoint block_rq_issue). The 14 CPUs that the kernel left off come online for it."""
    run("modprobe", "null_blk")
    monitor = tmp_path / "monitor"
    with subprocess.Popen(SEED.format(monitor=monitor).split()) as daemon:
        try:
            with socket.socket(socket.AF_UNIX) as client:
                eventually(lambda: client.connect_ex(str(monitor)) == 0, "the monitor")
                # It greets once the export is made.
                assert "QMP" in json.loads(client.makefile().readline())
                ask(client, "qmp_capabilities")
                use_every_virtqueue("vduse1")
                ask(client, "quit")
            assert daemon.wait() == 0
        finally:
            daemon.kill()


def ask(client: socket.socket, command: str) -> None:
    """A QMP command that must succeed."""
    client.sendall(json.dumps({"execute": command}).encode())
    assert json.loads(client.makefile().readline()) == {"return": {}}


def use_every_virtqueue(name: str) -> None:
    """Puts a device of 16 on the bus, sends requests on each of them and takes it off again."""
    with VdpaManagement() as vdpa:
        vdpa.add(name)
        disk = node_of(name)
        cpus = fio.cpu_of_queues(disk)
        assert sorted(cpus) == list(range(16))
        with requests_by_cpu() as sent:
            fio.read_and_write(disk, 300)
            counted = sent()
        assert all(counted[cpu] >= 300 for cpu in cpus)
        vdpa.delete(name)


@contextmanager
def requests_by_cpu() -> Iterator[Callable[[], dict[int, int]]]:
    """Requests that each CPU has sent to any disk, since the beginning."""
    tracing = Path("/sys/kernel/tracing")
    if not (tracing / "events").is_dir():
        run("mount", "-t", "tracefs", "tracefs", str(tracing))
    event = tracing / "events/block/block_rq_issue"
    (event / "trigger").write_text("hist:keys=common_cpu")
    line = re.compile(r"common_cpu:\s*(\d+) } hitcount:\s*(\d+)")
    try:
        yield lambda: {int(a): int(b) for a, b in line.findall((event / "hist").read_text())}
    finally:
        (event / "trigger").write_text("!hist:keys=common_cpu")


def test_16_virtqueues_as_the_device_sees_them() -> None:
    run("modprobe", "null_blk")
    with served("vduse1", "/dev/nullb0", direct=True, queues=16, queue_size=128) as program:
        disk = program.add()
        assert sorted(fio.cpu_of_queues(disk)) == list(range(16))
        fio.read_and_write(disk, 300)
        counted = program.stats()
        assert len(counted["queues"]) == 16
        assert all(queue["requests"] >= 300 for queue in counted["queues"].values())
        assert counted["errors"] == 0
