"""A Linux guest (user-mode-linux) whose disk is an image: `vduse storage-daemon`, vhost-user."""

from __future__ import annotations

import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.ceph.cluster import POOL, Cluster
from tests.ceph.daemon import StorageDaemon, blockdev
from tests.means import find_program
from tests.system.uml import Uml
from tests.system.uml_load import FILE_SYSTEM, verified_with_progress
from tests.unit.qmp_client import QmpClient
from tests.waiting import eventually

pytestmark = [
    pytest.mark.needs("ceph-mon", "ceph-osd", "rbd", "system-python"),
    pytest.mark.needs("linux.uml", "busybox", "fio", "mke2fs", "e2fsck", "fstrim"),
    pytest.mark.timeout(600),
]

#: Seconds in which a monitor answers, whatever the cluster does: the kernel waits so long for a
#: device before it breaks it. It takes far less.
_IN_TIME = 30.0


class Asking:
    """A thread that asks a monitor again and again until the end of its ``with``; ``slowest`` in
    seconds."""

    def __init__(self, qmp: QmpClient) -> None:
        self._qmp = qmp
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run, name="asking")
        self.slowest = 0.0
        self.answers = 0

    def _run(self) -> None:
        while not self._ends.wait(0.05):
            before = time.monotonic()
            assert len(self._qmp.call("query-block-exports")) == 1
            assert self._qmp.call("query-blockstats")
            self.slowest = max(self.slowest, time.monotonic() - before)
            self.answers += 1

    def wait(self, more: int) -> None:
        """Until there are so many answers more."""
        goal = self.answers + more
        eventually(lambda: self.answers >= goal, "the monitor's answers")

    @property
    def is_alive(self) -> bool:
        """Whether all were answered."""
        return self._thread.is_alive()

    def __enter__(self) -> Asking:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()


def test_a_guest_does_not_notice_that_the_osd_was_killed(cluster: Cluster, tmp_path: Path) -> None:
    """Not one error, not one byte lost, and the daemon answers all the while."""
    cluster.image("guest", "128M")
    export = f"vhost-user-blk,id=e,node-name=disk,writable=on,addr.type=unix,addr.path={tmp_path}/d"
    node = blockdev(cluster, "guest", more=",discard=unmap")
    commands = verified_with_progress("32M", "--loops=2") + FILE_SYSTEM
    with StorageDaemon(tmp_path, "--blockdev", node, "--export", export) as daemon:
        with daemon.qmp() as qmp, Uml(tmp_path, f"{tmp_path}/d", commands) as guest:
            with Asking(qmp) as asking:
                for _ in range(2):
                    guest.wait_for("more", timeout=300)
                    cluster.kill_osd()
                    # The device's requests wait; the monitor answers meanwhile.
                    asking.wait(3)
                    cluster.start_osd()
                guest.finish(timeout=300)
                assert asking.is_alive
            assert "bytes) trimmed" in guest.console
            assert asking.slowest < _IN_TIME
            [stats] = qmp.call("query-blockstats")
            assert stats["stats"]["failed_operations"] == 0
        daemon.quit()
    back = tmp_path / "back"
    cluster.rbd("export", f"{POOL}/guest", str(back))
    e2fsck = find_program("e2fsck")
    assert e2fsck is not None
    subprocess.run([e2fsck, "-fn", back], check=True, stdout=subprocess.DEVNULL)
