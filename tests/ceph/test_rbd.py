"""Images of a real cluster as disks."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.ceph.cluster import POOL, Cluster
from tests.means import find_program
from tests.verified import Verified
from tests.waiting import eventually
from vduse.backends.errors import BackendError
from vduse.backends.spec import open_backend
from vduse.testing.harness import BlkStack, blk_stack
from vduse.testing.load import Spec, run_ours
from vduse.testing.rawdriver import FREE, S_OK, T_IN, T_OUT, RawDriver, header
from vduse.testing.rings import WRITE

pytestmark = [
    pytest.mark.needs("ceph-mon", "ceph-osd", "rbd", "system-python"),
    # The first of all makes the cluster.
    pytest.mark.timeout(300),
]

MIB = 1 << 20
#: Somebody who is alive has an image: their address.
OWNED = r"127\.0\.0\.1:0/\d+ has its lock"


def stack(spec: str, **options: Any) -> AbstractContextManager[BlkStack]:
    return blk_stack(backend=spec, **options)


@pytest.mark.needs("mke2fs", "e2fsck")
def test_a_file_system_goes_to_the_cluster_and_comes_back(cluster: Cluster, tmp_path: Path) -> None:
    spec = cluster.image("filesystem", "64M")
    made, back = tmp_path / "made", tmp_path / "back"
    made.touch()
    os.truncate(made, 64 * MIB)
    mke2fs = find_program("mke2fs")
    assert mke2fs is not None
    folder = Path(__file__).parent
    subprocess.run([mke2fs, "-q", "-t", "ext4", "-d", folder, made], check=True)
    content = made.read_bytes()
    with stack(spec) as disk:
        assert disk.disk.size == 64 * MIB
        for offset in range(0, len(content), MIB):
            disk.disk.pwrite(content[offset : offset + MIB], offset)
        disk.disk.flush()
    cluster.rbd("export", f"{POOL}/filesystem", str(back))
    assert back.read_bytes() == content
    e2fsck = find_program("e2fsck")
    assert e2fsck is not None
    subprocess.run([e2fsck, "-fn", back], check=True, stdout=subprocess.DEVNULL)


def test_zeroes_and_discards_reach_the_image(cluster: Cluster) -> None:
    with stack(cluster.image("zeroes")) as disk:
        disk.disk.pwrite(b"\x11" * (8 * MIB), 0)
        disk.disk.write_zeroes(512, 1024)
        disk.disk.write_zeroes(4 * MIB, 4 * MIB, unmap=True)
        assert disk.disk.pread(2048, 0) == b"\x11" * 512 + bytes(1024) + b"\x11" * 512
        assert disk.disk.pread(4 * MIB, 4 * MIB) == bytes(4 * MIB)
        disk.disk.discard(0, 4 * MIB)
        disk.disk.flush()


def test_an_osd_that_is_killed_under_load_loses_nothing(cluster: Cluster) -> None:
    with stack(cluster.image("killed")) as disk, Verified(disk.disk) as load:
        load.go_on(200)
        cluster.kill_osd()
        cluster.start_osd()
        load.go_on(500)


def test_an_osd_that_stops_holds_no_other_device_and_no_reset(cluster: Cluster) -> None:
    spec = cluster.image("stopped")
    with stack(spec, driver="vhost_vdpa") as stopped, stack("memory", size=MIB) as other:
        with RawDriver(stopped.driver) as raw:
            assert raw.start()
            assert raw.request(T_OUT, 0, b"\x01" * 512)[0] == S_OK
            cluster.pause_osd()
            try:
                message = header(T_OUT, 8) + b"\x02" * 512
                status = FREE + len(message)
                raw.memory.write(FREE, message)
                raw.submit([(raw.at(FREE), len(message), 0), (raw.at(status), 1, WRITE)])
                raw.kick()
                other.disk.pwrite(b"\x03" * 512, 0)
                assert other.disk.pread(512, 0) == b"\x03" * 512
                raw.reset()
            finally:
                cluster.resume_osd()
        with RawDriver(stopped.driver) as raw:
            assert raw.start()
            assert raw.request(T_IN, 0, room=512)[:2] == (S_OK, b"\x01" * 512)


def test_a_thousand_requests_on_a_stopped_osd_hold_no_worker(cluster: Cluster) -> None:
    """librbd's own limits, of 1,024 requests, would make the worker wait, which others are on. The
    connection counts as lost meanwhile."""
    requests = 1300
    with ExitStack() as stacks:
        stopped = stacks.enter_context(stack(cluster.image("deep"), queue_size=4096))
        # One for each worker, and more.
        count = 2 * len(os.sched_getaffinity(0))
        others = [stacks.enter_context(stack("memory", size=MIB)) for _ in range(count)]
        stopped.disk.pwrite(b"\x0a" * MIB, 0)
        stopped.disk.flush()
        backend = stopped.blk.backend
        assert backend.connection["state"] == "connected"
        load = Spec(op="randread", block_size=512, depth=requests, requests=2 * requests, span=MIB)
        cluster.pause_osd()
        with ThreadPoolExecutor() as threads:
            try:
                report = threads.submit(run_ours, stopped.native, load)
                eventually(lambda: in_flight(stopped) >= requests, "requests at the backend")
                for other in others:
                    other.disk.pwrite(b"\x0b" * 512, 0)
                    assert other.disk.pread(512, 0) == b"\x0b" * 512
                eventually(lambda: backend.connection["state"] == "lost", "a lost connection")
            finally:
                cluster.resume_osd()
            assert report.result().errors == 0
        eventually(lambda: backend.connection["state"] == "connected", "a connection that is back")
        assert backend.connection["reconnections"] >= 1


def in_flight(stack: BlkStack) -> int:
    """Requests at the backend."""
    stats = stack.blk.stats()
    return stats["in_flight"] if stats is not None else 0


def test_a_resized_image_resizes_the_disk(cluster: Cluster) -> None:
    with stack(cluster.image("resized", "16M")) as disk:
        assert disk.disk.size == 16 * MIB
        cluster.rbd("resize", f"{POOL}/resized", "--size", "32M")
        wait_for_size(disk, 32 * MIB)
        disk.disk.pwrite(b"\x04" * 512, 32 * MIB - 512)
        cluster.rbd("resize", f"{POOL}/resized", "--size", "8M", "--allow-shrink")
        wait_for_size(disk, 8 * MIB)


def wait_for_size(stack: BlkStack, size: int) -> None:
    """Until the driver knows it; the test's time limit bounds it."""
    while stack.disk.size != size:
        # Any request gives the config change time to arrive.
        stack.disk.pread(512, 0)


def test_a_snapshot_is_read_only_and_stays_as_it_was(cluster: Cluster) -> None:
    spec = cluster.image("snapped")
    with stack(spec) as disk:
        disk.disk.pwrite(b"\x05" * 4096, 0)
        disk.disk.flush()
        cluster.rbd("snap", "create", f"{POOL}/snapped@monday")
        disk.disk.pwrite(b"\x06" * 4096, 0)
        with stack(cluster.spec("snapped@monday")) as snapshot:
            assert snapshot.disk.read_only
            assert snapshot.disk.pread(4096, 0) == b"\x05" * 4096
            with pytest.raises(OSError):
                snapshot.disk.pwrite(bytes(512), 0)
        assert disk.disk.pread(4096, 0) == b"\x06" * 4096


def test_a_lock_elsewhere_refuses_and_can_be_broken(cluster: Cluster) -> None:
    spec = cluster.image("locked")
    first = open_backend(spec)
    try:
        with pytest.raises(BackendError, match=OWNED):
            open_backend(spec)
        # Closing the device flushes, and that fails, too.
        with contextlib.suppress(BrokenPipeError), blk_stack(backend=first) as disk:
            disk.disk.pwrite(b"\x07" * 512, 0)
            with stack(f"{spec},lock=break") as taken:
                with pytest.raises(OSError) as fenced:
                    disk.disk.pwrite(b"\x08" * 512, 0)
                assert fenced.value.errno == errno.EIO
                assert taken.disk.pread(512, 0) == b"\x07" * 512
                taken.disk.pwrite(b"\x09" * 512, 0)
    finally:
        with contextlib.suppress(BrokenPipeError):
            first.close()


def test_a_killed_program_leaves_a_lock_that_can_be_taken(cluster: Cluster) -> None:
    spec = cluster.image("orphan")
    program = """
import os, signal, sys
from vduse.backends.spec import open_backend
from vduse.testing.harness import blk_stack
with blk_stack(backend=sys.argv[1]) as stack:
    stack.disk.pwrite(b"o" * 512, 0)
    stack.disk.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", program, spec], check=False)
    with pytest.raises(BackendError, match=OWNED):
        open_backend(spec)
    with stack(f"{spec},lock=break") as disk:
        assert disk.disk.pread(512, 0) == b"o" * 512
        disk.disk.pwrite(b"p" * 512, 0)


def test_a_user_opens_by_secret_and_by_keyring(cluster: Cluster, tmp_path: Path) -> None:
    cluster.image("private")
    key = cluster.user("opener")
    secret, keyring, wrong = (tmp_path / name for name in ("secret", "keyring", "wrong"))
    secret.write_text(f"{key}\n")
    keyring.write_text(f"[client.opener]\n\tkey = {key}\n")
    wrong.write_text(cluster.user("other"))
    for keys in ({"key-secret": secret}, {"keyring": keyring}):
        named = {name: str(path) for name, path in keys.items()}
        open_backend(cluster.spec("private", id="opener", **named)).close()
    with pytest.raises(BackendError, match=r"client\.opener cannot connect") as refused:
        open_backend(cluster.spec("private", id="opener", key_secret=str(wrong)))
    assert wrong.read_text() not in str(refused.value)


def test_what_is_not_there_is_named(cluster: Cluster) -> None:
    with pytest.raises(BackendError, match="no such image; create it: rbd create rbd/none"):
        open_backend(cluster.spec("none"))
    with pytest.raises(BackendError, match="no pool nopool"):
        open_backend(f"rbd:nopool/none,conf={cluster.conf}")
    spec = cluster.spec("none", id="nobody", keyring="/nowhere/keyring")
    with pytest.raises(BackendError, match=r"client\.nobody cannot connect"):
        open_backend(spec)


def test_a_cluster_that_is_not_there_is_given_up(cluster: Cluster, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        keyring = cluster.folder / "keyring"
        conf = tmp_path / "ceph.conf"
        conf.write_text(f"[global]\nmon_host = [v2:127.0.0.1:{port}]\nkeyring = {keyring}\n")
        with pytest.raises(BackendError, match=r"no monitor answers|no answer from the cluster"):
            open_backend(f"rbd:rbd/disk,conf={conf},open-timeout=1s")
