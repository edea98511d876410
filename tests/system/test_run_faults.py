"""`vduse run --fault`: a daemon is struck while fio writes over NBD and reads back. QEMU's storage
daemon, untouched, with what it bears (docs/faults.md says what it does not); ours, which is on the
kernel's channel here, with all there is."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.system.nbd_clients import fio_verified
from vduse.testing.run import RunChild, vduse_run

pytestmark = pytest.mark.needs("fio")

OURS = (sys.executable, "-m", "vduse.daemon", "storage-daemon")


def on_image(folder: Path, *, queues: int = 4) -> list[str]:
    """Arguments of both storage daemons: a disk of 64 MiB."""
    image = folder / "disk.img"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    export = "type=vduse-blk,id=e0,name=disk0,node-name=disk0,writable=on"
    return [
        *("--blockdev", f"driver=file,filename={image},node-name=disk0"),
        *("--export", f"{export},num-queues={queues}"),
    ]


def faults(*given: str) -> list[str]:
    return [argument for fault in given for argument in ("--fault", fault)]


def end(run: RunChild) -> dict[str, int]:
    """Ends it; how often each fault has struck. All was in order."""
    run.process.terminate()
    found = run.wait_for("found", name="fault")
    assert found["ok"], found
    assert run.wait() == 0
    return {one["fault"].partition(":")[0]: one["strikes"] for one in found["facts"]["faults"]}


def write_and_read_back(
    daemon: Sequence[str], folder: Path, options: Sequence[str], loads: int = 1
) -> dict[str, int]:
    """What fio wrote it finds; how often each fault has struck meanwhile."""
    socket = folder / "disk.sock"
    with vduse_run(*daemon, *on_image(folder), options=["--nbd", str(socket), *options]) as run:
        uri = run.wait_for("serving")["uri"]
        for _ in range(loads):
            assert fio_verified(uri, folder, bs="4k", size="16m").error == 0
        return end(run)


@pytest.mark.needs("qemu-storage-daemon")
def test_qemu_s_storage_daemon_is_killed_after_so_many_requests(tmp_path: Path) -> None:
    options = faults("kill:after=4000,times=3")
    daemon = ["qemu-storage-daemon"]
    assert write_and_read_back(daemon, tmp_path, options) == {"kill": 3}


@pytest.mark.needs("qemu-storage-daemon")
def test_qemu_s_storage_daemon_follows_memory_that_moves(tmp_path: Path) -> None:
    options = faults("move:after=1500,times=8", "silent:after=4000,times=3,for=50ms")
    daemon = ["qemu-storage-daemon"]
    assert all(write_and_read_back(daemon, tmp_path, options).values())


def test_our_storage_daemon_bears_all_at_once(tmp_path: Path) -> None:
    options = faults(
        "kill:after=8000,times=4",
        "reset:after=1000,times=20",
        "remap:after=700,times=20",
        "move:after=1100,times=9",
        "storm:after=1500,times=5,messages=50",
        "silent:after=2500,times=5,for=20ms",
        "late-enable:by=30ms,queue=0",
    )
    times = write_and_read_back(OURS, tmp_path, options, loads=2)
    # The others take turns: not all of them may come to their end.
    assert len(times) == 7 and all(times.values()), times
    assert times["kill"] == 4


def test_connections_end_with_a_rebind_and_new_ones_find_all_data(tmp_path: Path) -> None:
    options = ["--nbd", str(tmp_path / "disk.sock"), *faults("rebind:after=500,times=1")]
    with vduse_run(*OURS, *on_image(tmp_path, queues=2), options=options) as run:
        uri = run.wait_for("serving")["uri"]
        assert fio_verified(uri, tmp_path, bs="4k", size="16m").error != 0
        assert fio_verified(uri, tmp_path, bs="4k", size="4m").error == 0
        assert end(run) == {"rebind": 1}


def test_a_fault_that_is_none_is_a_mistake_with_a_hint(tmp_path: Path) -> None:
    with vduse_run("true", options=faults("kil")) as run:
        assert run.wait() == 2


@pytest.mark.parametrize("driver", ["vhost_vdpa", "none"])
def test_a_fault_for_another_driver_is_exit_code_1(tmp_path: Path, driver: str) -> None:
    options = ["--driver", driver, *faults("silent")]
    with vduse_run(*OURS, *on_image(tmp_path), options=options) as run:
        assert run.wait() == 1
