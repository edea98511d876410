"""A Linux guest (user-mode-linux) on qemu-storage-daemon's VDUSE export, by `vduse run`: the
daemon has the guest's memory mapped by its IOTLB calls and copies nothing of ours."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.system.qemu_daemon import MIB, PROGRAM, make_image, on_file
from tests.system.uml import Uml
from tests.system.uml_load import FILE_SYSTEM, verified, verified_with_progress
from vduse.testing.run import vduse_run

pytestmark = pytest.mark.needs(
    *("qemu-storage-daemon", "linux.uml", "busybox", "fio", "mke2fs", "e2fsck", "fstrim")
)

KILLS = 4


def test_a_file_system_and_verified_requests(tmp_path: Path) -> None:
    socket = tmp_path / "disk.sock"
    image = make_image(tmp_path / "disk.img", 256 * MIB)
    with vduse_run(PROGRAM, *on_file(image), options=["--vhost-user", str(socket)]) as run:
        run.wait_for("serving", driver="vhost_vdpa")
        with Uml(tmp_path, str(socket), verified("32M") + FILE_SYSTEM) as guest:
            guest.finish()
            assert "bytes) trimmed" in guest.console
        assert run.stop() == 0


def test_the_daemon_is_killed_under_load(tmp_path: Path) -> None:
    """The next one takes up what was in flight by the log that the former left in its TMPDIR:
    nothing is lost, and the guest sees no error."""
    socket = tmp_path / "disk.sock"
    image = make_image(tmp_path / "disk.img", 64 * MIB)
    options = ["--restart", "--vhost-user", str(socket)]
    commands = verified_with_progress("64M", "--loops=2")
    with vduse_run(PROGRAM, *on_file(image), options=options) as run:
        run.wait_for("serving")
        with Uml(tmp_path, str(socket), commands) as guest:
            for kill in range(KILLS):
                guest.wait_for("more")
                os.kill(run.daemon, signal.SIGKILL)
                run.wait_for("started", starts=kill + 2)
            guest.finish()
        assert run.stop() == 0
