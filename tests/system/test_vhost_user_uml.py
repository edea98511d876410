"""A Linux guest (user-mode-linux) on a vhost-user socket: a file system, verified I/O, discards,
and a device's program that is killed under it while socket and guest live on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.system.uml import Uml
from tests.system.uml_load import FILE_SYSTEM, verified, verified_with_progress
from vduse.testing.harness import blk_stack

pytestmark = pytest.mark.needs("linux.uml", "busybox", "fio", "mke2fs", "e2fsck", "fstrim")

MIB = 1 << 20
#: user-mode-linux' rings are at most that long.
QUEUE_SIZE = 256


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
    commands = verified("32M") + FILE_SYSTEM
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
    commands = verified_with_progress("64M", "--loops=2")
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
