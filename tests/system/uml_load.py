"""Commands for a guest (tests/system/uml.py): fio that checks its data, and how far it is."""

from __future__ import annotations

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

#: A file system is made, filled, mounted again, and holds what was written.
FILE_SYSTEM = """
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


def verified(size: str, more: str = "") -> str:
    """Random writes of ``size`` in all, 32 in flight, read back and compared."""
    return _VERIFY.format(size=size, more=more)


def verified_with_progress(size: str, more: str = "") -> str:
    """The same, and a line ``more`` after every 2,000 requests or so."""
    return f"{verified(size, more)} & fio=$!\n{_PROGRESS}"
