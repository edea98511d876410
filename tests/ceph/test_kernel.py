"""One boot: a guest of QEMU's whose disk is an image, by our daemon and vhost-user, which
grows under it; then the same image in that guest, by its own kernel's VDUSE, after the daemon there
has taken the lock from the one here."""

from __future__ import annotations

import subprocess
from io import BytesIO
from pathlib import Path

import pytest

from tests.ceph.cluster import POOL, Cluster
from tests.ceph.daemon import StorageDaemon, blockdev
from tests.kernel.fetch import kernel
from tests.kernel.skips import skips_without_bed
from tests.kernel.vhost_user import vhost_user_disk
from tests.kernel.vm import VM, Machine, programs
from tests.means import find_program

pytestmark = [
    pytest.mark.needs("ceph-mon", "ceph-osd", "rbd", "system-python"),
    pytest.mark.needs("fio", "mke2fs", "e2fsck", "vdpa"),
    pytest.mark.timeout(900),
]

MIB = 1 << 20

#: Lines on fd 3 are for the test here. The cluster is at the host's loopback, and thus at the
#: guest's: its daemons' addresses are in Ceph's maps.
_GUEST = """
set -e
modprobe -a virtio_net virtio_blk ext4 vduse virtio_vdpa
ip link set eth0 up
ip address add 10.0.2.15/24 dev eth0
python -m tests.ceph.relay 10.0.2.2 {ports} &

mke2fs -qt ext4 /dev/vda
mkdir /run/disk
mount /dev/vda /run/disk
seq 200000 >/run/disk/file
sync
before=$(cat /sys/block/vda/size)
echo grow >&3
while [ $(cat /sys/block/vda/size) = $before ]; do sleep 0.05; done
resize2fs /dev/vda
umount /run/disk
echo size $(cat /sys/block/vda/size) >&3

! vduse storage-daemon --blockdev {node} >/run/refused 2>&1
cat /run/refused
grep -q 'has its lock' /run/refused
vduse storage-daemon --blockdev {node},lock=break \\
    --export vduse-blk,id=e,node-name=disk,name=vduse1,writable=on & daemon=$!
while [ ! -e /dev/vduse/vduse1 ]; do kill -0 $daemon; sleep 0.05; done
vdpa dev add name vduse1 mgmtdev vduse
while [ ! -e /dev/vdb ]; do sleep 0.05; done
e2fsck -fn /dev/vdb
mount /dev/vdb /run/disk
seq 200000 | cmp - /run/disk/file
fio --name=verify --filename=/run/disk/load --ioengine=libaio --direct=1 --iodepth=16 --bs=4k \\
    --rw=randwrite --size=4M --verify=crc32c --verify_fatal=1 --verify_state_save=0
umount /run/disk
vdpa dev del vduse1
kill $daemon
wait $daemon
"""


def test_an_image_of_a_virtual_machine_and_of_a_kernel(cluster: Cluster, tmp_path: Path) -> None:
    with skips_without_bed():
        programs()
        linux = kernel("6.12")
    cluster.image("machine", "32M")
    socket, node = tmp_path / "disk.sock", blockdev(cluster, "machine")
    export = f"vhost-user-blk,id=e,node-name=disk,writable=on,addr.type=unix,addr.path={socket}"
    ports = " ".join(map(str, cluster.ports()))
    machine = Machine(
        memory=1024, shared=True, qemu=(*vhost_user_disk(socket), "-nic", "user,model=virtio")
    )
    output = BytesIO()
    with (
        StorageDaemon(tmp_path, "--blockdev", node, "--export", export),
        VM(linux, _GUEST.format(node=node, ports=ports), machine=machine, output=output) as vm,
    ):
        sizes = []
        for line in vm.lines(300):
            word, _, number = line.partition(" ")
            if word == "grow":
                cluster.rbd("resize", f"{POOL}/machine", "--size", "64M")
            elif word == "size":
                sizes.append(int(number))
        text = output.getvalue().decode(errors="replace")
        assert vm.status == 0, f"{text}\n{vm.console()}"
        assert sizes == [64 * MIB // 512]
    back = tmp_path / "back"
    cluster.rbd("export", f"{POOL}/machine", str(back))
    assert back.stat().st_size == 64 * MIB
    e2fsck = find_program("e2fsck")
    assert e2fsck is not None
    subprocess.run([e2fsck, "-fn", back], check=True, stdout=subprocess.DEVNULL)
