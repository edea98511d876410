"""Live migration (vhost-user specification, "Migration"): a guest that reads and writes all the
time moves from one QEMU to another one, its disk from one `vduse blk` to another one on the same
image. Nothing is lost, of the disk or of memory.

Not on QEMU 7.2: its TCG loses what the guest's CPU writes meanwhile, with its own disks too."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.kernel.fetch import kernel
from tests.kernel.initramfs import initramfs
from tests.kernel.migration import MovingGuest, command_line
from tests.kernel.qemu import newest_qemu
from tests.kernel.skips import skips_without_bed
from tests.kernel.vm import programs

INIT = Path(__file__).parent / "boot" / "migrating"
#: crc32c_generic: what ext4 needs of Linux 6.12 but does not name.
MODULES = ("virtio_pci", "virtio_blk", "crc32c_generic", "ext4")
MIB = 1 << 20


def make_image(folder: Path) -> Path:
    """A file system with files, and their checksums."""
    files = folder / "files"
    files.mkdir()
    sums = []
    for number in range(16):
        data = os.urandom(MIB)
        (files / f"file-{number}").write_bytes(data)
        sums.append(f"{hashlib.md5(data).hexdigest()}  file-{number}\n")
    (files / "sums").write_text("".join(sums))
    image = folder / "image"
    subprocess.run(["mke2fs", "-qt", "ext4", "-d", files, image, "48M"], check=True)
    return image


@contextmanager
def served(image: Path, socket: Path, queues: int, packed: bool) -> Iterator[None]:
    """The image at a vhost-user socket, by the command; it ends in order."""
    words = ["blk", str(image), "--vhost-user", str(socket), "--queues", str(queues)]
    process = subprocess.Popen(
        [sys.executable, "-m", "vduse.daemon", *words, *(["--packed"] if packed else [])],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        while "ends it in order" not in (line := process.stdout.readline()):
            assert line, process.communicate()[1]
        yield
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, "")
    finally:
        process.kill()
        process.communicate()


@pytest.mark.timeout(600)
@pytest.mark.needs("mke2fs", "e2fsck")
@pytest.mark.parametrize(("queues", "packed"), [(2, False), (1, True)], ids=["split", "packed"])
def test_a_guest_that_reads_and_writes_moves(tmp_path: Path, queues: int, packed: bool) -> None:
    with skips_without_bed():
        busybox = Path(programs()["busybox"])
        linux, qemu = kernel("6.12"), newest_qemu()
    archive = tmp_path / "initramfs"
    archive.write_bytes(initramfs(linux.modules, busybox, MODULES, INIT))
    image = make_image(tmp_path)
    with ExitStack() as exits:

        def guest(name: str, *more: str) -> MovingGuest:
            socket = tmp_path / f"{name}.sock"
            exits.enter_context(served(image, socket, queues, packed))
            line = command_line(qemu, linux, archive, socket, queues=queues, packed=packed)
            guest = MovingGuest([*line, *more], tmp_path / f"{name}.qmp")
            exits.callback(guest.close)
            return guest

        way = f"unix:{tmp_path / 'way'}"
        source = guest("source")
        target = guest("target", "-incoming", way)
        while source.line() != "round 2":
            continue
        with target.monitor(), source.monitor() as monitor:
            monitor.do(
                "migrate-set-capabilities", capabilities=[{"capability": "events", "state": True}]
            )
            # So slow that the guest goes on for rounds, and writes faster than it is copied.
            monitor.do("migrate-set-parameters", **{"max-bandwidth": 24 * MIB})
            monitor.do("migrate", uri=way)
            for _ in range(3):
                source.line()
            # Then so fast that it comes to an end, however fast this machine runs the guest.
            monitor.do("migrate-set-parameters", **{"max-bandwidth": 4096 * MIB})
            assert monitor.migrated() == "completed", source.console
        moved_to = int(target.line().removeprefix("round "))
        for _ in range(3):
            assert target.line() == f"round {(moved_to := moved_to + 1)}"
        target.say("stop")
        while (line := target.line()).startswith("round "):
            continue
        assert line == "done"
        assert target.process.wait(60) == 0
    subprocess.run(["e2fsck", "-fn", image], check=True, capture_output=True)
