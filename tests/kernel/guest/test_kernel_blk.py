"""`vduse blk` on the kernel: from one command to a /dev/vdX, and nothing left at the end."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.guest.bed import MIB, read_direct, run, set_msg_timeout, write_direct
from tests.kernel.guest.command import NOTHING, Blk, blk, left, refusal, vduse
from tests.kernel.guest.ordinary import NOBODY, open_the_checkout
from tests.waiting import PATIENCE, eventually
from vduse.daemon.trace.commands import CompareOptions
from vduse.daemon.trace.compare import compare_files
from vduse.daemon.trace.differences import lines
from vduse.vdpa.drivers import BusDriver, VdpaBus

#: Seconds; programs begin slowly on an emulated machine.
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module", autouse=True)
def checkout(modules: None) -> None:
    open_the_checkout()


@pytest.fixture
def image(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(64 * MIB)
    yield path
    assert left() == NOTHING


@pytest.mark.needs("mke2fs", "e2fsck", "mount", "umount")
def test_from_the_command_to_a_mounted_file_system(image: Path, tmp_path: Path) -> None:
    mount = tmp_path / "mnt"
    mount.mkdir()
    with blk(str(image), "--queues", "2") as (child, serving):
        node = serving["node"]
        assert (serving["via"], serving["driver"]) == ("kernel", "virtio_vdpa")
        assert (serving["socket"], serving["uri"], node[:7]) == (None, None, "/dev/vd")
        run("mke2fs", "-qt", "ext4", node)
        run("mount", node, str(mount))
        (mount / "file").write_bytes(b"by one command")

        child.signal(signal.SIGUSR1)
        counted = child.facts()
        assert counted["event"] == "statistics"
        assert counted["statistics"]["devices"]["disk0"]["bytes_written"] > 0

        os.truncate(image, 128 * MIB)
        assert child.facts() == {"event": "resized", "size": 128 * MIB}
        size = Path(f"/sys/block/{Path(node).name}/size")
        eventually(lambda: int(size.read_text()) * 512 == 128 * MIB, "the new size")

        child.signal(signal.SIGTERM)
        waits = child.facts()
        assert waits == {
            "event": "in use",
            "name": "disk0",
            "users": [f"{node} is mounted at {mount}"],
        }
        # It goes on until the file system is unmounted.
        (mount / "file").write_bytes(b"by one command, still")
        os.sync()
        assert (child.is_silent(), child.process.poll()) == (True, None)
        run("umount", str(mount))
        ended = child.facts()
        assert (ended["event"], ended["reason"], ended["broken"]) == ("ended", "SIGTERM", False)
        assert child.process.wait(PATIENCE) == 0
        assert (left(), os.path.exists(node)) == (NOTHING, False)
    run("e2fsck", "-fn", str(image))


def test_vhost_vdpa_and_rebinding_while_it_serves(image: Path) -> None:
    with blk(str(image), "--via", "kernel", "--driver", "vhost_vdpa", "--packed") as (child, facts):
        assert (facts["driver"], facts["node"]) == ("vhost_vdpa", "/dev/vhost-vdpa-0")
        for _ in range(2):
            node = vduse("dev", "bind", "disk0", "virtio_vdpa")["device"]["node"]
            data = os.urandom(MIB)
            write_direct(node, 0, data)
            assert vduse("dev", "bind", "disk0", "vhost_vdpa")["device"]["node"] == facts["node"]
            assert image.read_bytes()[:MIB] == data
        text = refusal("blk", "memory", "--size", "1M")
        assert text == (
            f"disk0: {Path(f'/proc/{child.process.pid}/comm').read_text().strip()} (pid "
            f"{child.process.pid}) serves a device of this name: stop it, or take another --name"
        )
        # Its own look-up of who uses the disk is of the driver that has it now.
        vhost = os.open(facts["node"], os.O_RDWR)
        child.signal(signal.SIGINT)
        [user] = child.facts()["users"]
        assert user.startswith(f"{facts['node']} is open in ")
        os.close(vhost)
        assert child.facts()["reason"] == "SIGINT"
        assert child.process.wait(PATIENCE) == 0


def test_device_of_a_killed_program_is_taken_over(image: Path) -> None:
    data = os.urandom(MIB)
    with blk(str(image)) as (child, facts):
        write_direct(facts["node"], 0, data)
        child.signal(signal.SIGKILL)
        child.process.wait()
        assert left() == (["disk0"], ["disk0"])
    with blk(str(image)) as (child, again):
        assert again["node"] == facts["node"]
        assert read_direct(again["node"], 0, MIB) == data
        child.end()


def test_second_signal_ends_it_at_once_and_says_what_is_left(image: Path) -> None:
    with blk(str(image), "--queues", "2") as (child, facts):
        user = os.open(facts["node"], os.O_RDONLY)
        child.signal(signal.SIGTERM)
        assert child.facts()["event"] == "in use"
        child.signal(signal.SIGINT)
        assert child.process.wait(PATIENCE) == -signal.SIGINT
        assert "vduse dev del disk0 removes it" in child.error()
        assert left() == (["disk0"], ["disk0"])
        os.close(user)
    # Taken off the bus by other means, and given up by the kernel: made anew, whatever it was.
    set_msg_timeout("disk0", 1)
    run("vdpa", "dev", "del", "disk0")
    assert left() == ([], ["disk0"])
    with blk(str(image), "--queues", "1") as (child, _):
        child.end()


def test_a_recording_of_the_kernels_is_as_one_from_here(tmp_path: Path) -> None:
    here, there = str(tmp_path / "kernel.trace"), str(tmp_path / "embedded.trace")
    disk = ("memory", "--size", "16M", "--trace-json")
    with blk(*disk, here) as (child, _):
        child.end()
    with blk(*disk, there, "--nbd", str(tmp_path / "disk.sock")) as (child, _):
        child.end()
    found = compare_files(CompareOptions(here, there))
    assert found.equal, "\n".join(lines(found))
    assert found.devices == ("disk0",)


def test_what_an_ordinary_user_is_told() -> None:
    with Blk("memory", "--size", "1M", user=NOBODY).process as process:
        out, err = process.communicate()
    assert (process.returncode, out) == (2, "")
    assert err.startswith("vduse: error: /dev/vduse/control: Permission denied: run as root")
    assert err.endswith(". Without the kernel: --nbd SOCKET or --vhost-user SOCKET\n")
    assert left() == NOTHING


def test_missing_driver_module_is_named(image: Path) -> None:
    run("modprobe", "-r", "vhost_vdpa")
    try:
        text = refusal("blk", str(image), "--via", "kernel", "--driver", "vhost_vdpa")
    finally:
        run("modprobe", "vhost_vdpa")
    assert "modprobe -a vduse virtio_blk vhost_vdpa" in text
    assert VdpaBus().has_driver(BusDriver.VHOST_VDPA)
