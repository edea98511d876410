"""A Linux guest (user-mode-linux) on a vhost-user socket: a file system, verified I/O, discards,
and a device's program that is killed under it while socket and guest live on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.system.uml import Uml
from vduse.testing.harness import blk_stack

pytestmark = pytest.mark.needs("linux.uml", "busybox", "fio", "mke2fs", "e2fsck", "fstrim")

MIB = 1 << 20
#: user-mode-linux' rings are at most that long.
QUEUE_SIZE = 256

_VERIFY = (
    "fio --name=verify --filename=/dev/vda --ioengine=libaio --direct=1 --iodepth=32 --bs=4k "
    "--rw=randwrite --size={size} --verify=crc32c --verify_fatal=1 --output=/run/fio {more}"
)

#: Prints a line each time some more requests are done, and leaves when fio has ended.
_PROGRESS = """
last=0
while kill -0 $fio 2>/dev/null; do
    set -- $(cat /sys/block/vda/stat)
    if [ $(($1 + $5 - last)) -ge 2000 ]; then last=$(($1 + $5)); echo more; fi
    sleep 0.05
done
wait $fio
"""


@pytest.mark.parametrize("backend", ["memory", "file"])
def test_a_file_system_and_verified_requests(tmp_path: Path, backend: str) -> None:
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate(256 * MIB)
    stack = blk_stack(
        backend=str(image) if backend == "file" else "memory",
        size=256 * MIB if backend == "memory" else None,
        driver="vhost_vdpa",
        queue_size=QUEUE_SIZE,
    )
    commands = f"""
{_VERIFY.format(size="32M", more="")}
mke2fs -qt ext4 /dev/vda
mkdir /run/disk
mount /dev/vda /run/disk
seq 1000000 >/run/disk/file
sync
sum=$(sha256sum </run/disk/file)
fstrim -v /run/disk
umount /run/disk
mount /dev/vda /run/disk
test "$sum" = "$(sha256sum </run/disk/file)"
umount /run/disk
e2fsck -fn /dev/vda
"""
    with stack as running, running.vhost_user() as path, Uml(tmp_path, path, commands) as guest:
        guest.finish()
        assert "bytes) trimmed" in guest.console
        stats = running.blk.stats()
        assert stats is not None and stats["errors"] == 0


def test_the_devices_program_is_killed_under_load(tmp_path: Path) -> None:
    """Nothing is lost, and the guest sees no error."""
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate(64 * MIB)
    commands = f"""
{_VERIFY.format(size="64M", more="--loops=2")} & fio=$!
{_PROGRESS}
"""
    kills = 5
    with (
        blk_stack(
            backend=str(image), driver="vhost_vdpa", where="child", queue_size=QUEUE_SIZE
        ) as stack,
        stack.vhost_user() as path,
        Uml(tmp_path, path, commands) as guest,
    ):
        for _ in range(kills):
            guest.wait_for("more")
            stack.kill_device()
            stack.replace_device()
        guest.finish()
