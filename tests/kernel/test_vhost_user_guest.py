"""A Linux guest in QEMU on disks of `vduse blk --vhost-user`: split and packed virtqueues, four of
them; the one's socket is ours, the other's QEMU's. One boot for all of it: verified requests while
the whole program is killed and started again, file systems, discards, a disk that grows."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.fetch import kernel
from tests.kernel.skips import skips_without_bed
from tests.kernel.vhost_user import vhost_user_disk
from tests.kernel.vm import VM, Machine, programs

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.needs("fio", "mke2fs", "e2fsck", "fstrim"),
]

MIB = 1 << 20
QUEUES = 4
#: Requests of both disks after which the programs are killed: fio makes 14,336 writes, and as many
#: reads.
KILLS = (2000, 9000, 18000)

#: Lines on fd 3 are for the test here. fio writes all of both disks in random order and reads them
#: back; meanwhile the guest tells how many requests are done.
_GUEST = f"""
set -e
modprobe -a virtio_blk ext4
test -e /sys/block/vda/mq/{QUEUES - 1} -a -e /sys/block/vdb/mq/{QUEUES - 1}

fio --ioengine=libaio --direct=1 --iodepth=32 --bs=4k --rw=randwrite --verify=crc32c \\
    --verify_fatal=1 --verify_state_save=0 --name=vda --filename=/dev/vda \\
    --name=vdb --filename=/dev/vdb & fio=$!
while kill -0 $fio 2>/dev/null; do
    set -- $(cat /sys/block/vda/stat /sys/block/vdb/stat)
    echo done $(($1 + $5 + ${{18}} + ${{22}})) >&3
    sleep 0.1
done
wait $fio

for disk in vda vdb; do
    mke2fs -qt ext4 /dev/$disk
    mkdir /run/$disk
    mount /dev/$disk /run/$disk
    seq 500000 >/run/$disk/file
    sync
    fstrim -v /run/$disk
    umount /run/$disk
    mount /dev/$disk /run/$disk
    seq 500000 | cmp - /run/$disk/file
done

before=$(cat /sys/block/vda/size)
echo grow >&3
while [ $(cat /sys/block/vda/size) = $before ]; do sleep 0.05; done
resize2fs /dev/vda
echo size $(cat /sys/block/vda/size) >&3
umount /run/vda /run/vdb
e2fsck -fn /dev/vda
e2fsck -fn /dev/vdb
"""


class Daemon:
    """`vduse blk IMAGE --vhost-user SOCKET`, started as often as it takes."""

    def __init__(self, folder: Path, name: str, size: int, *options: str) -> None:
        self.image, self.socket = folder / f"{name}.img", folder / f"{name}.sock"
        self.image.touch()
        os.truncate(self.image, size)
        self._line = [sys.executable, "-m", "vduse.daemon", "blk", str(self.image), "--json"]
        self._line += ["--queues", str(QUEUES), "--vhost-user", str(self.socket), *options]
        self.start()

    def start(self) -> None:
        """Until it serves."""
        self._process = subprocess.Popen(self._line, stdout=subprocess.PIPE, text=True)
        assert self.fact()["event"] == "serving"

    def fact(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        fact: dict[str, Any] = json.loads(self._process.stdout.readline())
        return fact

    def kill(self) -> None:
        """SIGKILL: what it had in flight stays in flight."""
        self._process.kill()
        self._process.communicate()

    def end(self) -> dict[str, Any]:
        """In order; the last fact."""
        self._process.send_signal(signal.SIGTERM)
        out, _ = self._process.communicate(timeout=60)
        assert self._process.returncode == 0
        last: dict[str, Any] = json.loads(out.splitlines()[-1])
        return last


@contextmanager
def running(*daemons: Daemon) -> Iterator[None]:
    try:
        yield
    finally:
        for daemon in daemons:
            daemon.kill()


def test_split_and_packed_disks_of_a_guest(tmp_path: Path) -> None:
    with skips_without_bed():
        programs()
        linux = kernel("6.12")
    split = Daemon(tmp_path, "split", 32 * MIB)
    packed = Daemon(tmp_path, "packed", 24 * MIB, "--packed", "--vhost-user-connect")
    disks = (
        *vhost_user_disk(split.socket, name="split", queues=QUEUES),
        *vhost_user_disk(packed.socket, name="packed", queues=QUEUES, packed=True, listens=True),
    )
    machine = Machine(cpus=QUEUES, memory=1024, shared=True, qemu=disks)
    output = BytesIO()
    with running(split, packed), VM(linux, _GUEST, machine=machine, output=output) as vm:
        kills = 0
        for line in vm.lines(300):
            word, _, number = line.partition(" ")
            if word == "done" and kills < len(KILLS) and int(number) >= KILLS[kills]:
                kills += 1
                for daemon in (split, packed):
                    daemon.kill()
                    daemon.start()
            elif word == "grow":
                os.truncate(split.image, 64 * MIB)
            elif word == "size":
                assert int(number) == 64 * MIB // 512
        text = output.getvalue().decode(errors="replace")
        assert vm.status == 0, f"{text}\n{vm.console()}"
        assert kills == len(KILLS)
        assert text.count("bytes) trimmed") == 2
        for daemon in (split, packed):
            assert daemon.end()["statistics"]["devices"]["disk0"]["errors"] == 0
