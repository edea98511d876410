"""The units that the project ships, under systemd: disks served by an ordinary user without
capabilities."""

from __future__ import annotations

import os
import pwd
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.guest.bed import MIB, PACKAGING, node_of, read_direct, run, write_direct
from tests.kernel.guest.ordinary import NO_CAPABILITIES, privileges
from tests.kernel.guest.systemd import Manager, systemd
from vduse.vdpa.drivers import VdpaBus
from vduse.vdpa.netlink import VdpaManagement

NODE = Path("/dev/vduse/disk0")
CONFIGURATION = Path("/etc/vduse")
#: The checkout may lie in a home or in /tmp, and a guest may stand still for long.
BED = "[Service]\nProtectHome=no\nPrivateTmp=no\nWatchdogSec=300\n"


@pytest.fixture(scope="module", autouse=True)
def command(installed: pwd.struct_passwd) -> None:
    """It is where units look for it, and so is the folder of what they are told."""
    CONFIGURATION.mkdir()
    Path("/usr/local/bin/vduse").symlink_to(Path(sys.executable).parent / "vduse")


@pytest.fixture
def image(installed: pwd.struct_passwd) -> Iterator[Path]:
    """16 MiB of zeroes, the service's user's."""
    path = Path("/var/lib/vduse/disk0.img")
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(bytes(16 * MIB))
    os.chown(path, installed.pw_uid, installed.pw_gid)
    yield path
    path.unlink()


def process_of(service: str, manager: Manager, user: pwd.struct_passwd) -> int:
    """Its process, which may do what an ordinary user may."""
    pid = manager.main_pid(service)
    assert pid is not None
    assert privileges(pid) == ({str(user.pw_uid)}, NO_CAPABILITIES)
    return pid


@pytest.mark.timeout(400)  # it starts four of our programs, one after the other
@pytest.mark.needs("udevadm", "systemctl")
def test_disk_is_served_from_start_to_stop(image: Path, installed: pwd.struct_passwd) -> None:
    """vduse@.service: start, I/O, crash, restart, stop."""
    (CONFIGURATION / "disk0.env").write_text(
        f"BLOCKDEV=driver=file,filename={image}\nEXPORT=writable=on,num-queues=2\n"
    )
    service = "vduse@disk0.service"
    with systemd(PACKAGING / "vduse@.service", BED) as manager:
        manager.ctl("start", service)
        path = node_of("disk0")
        first = process_of(service, manager, installed)
        data = os.urandom(MIB)
        write_direct(path, 0, data)
        os.kill(first, signal.SIGKILL)
        # It waits for the next program.
        assert read_direct(path, 0, MIB) == data
        assert manager.main_pid(service) not in (None, first)
        manager.ctl("stop", service)
        assert VdpaBus().names() == []
        assert not NODE.exists()
    assert image.read_bytes()[:MIB] == data


_FILE = """
[blockdev.disk0]
driver = "file"
filename = "{image}"

[nbd-server]
addr = {{type = "fd", str = "nbd"}}

[export.kernel]
type = "vduse-blk"
name = "disk0"
node-name = "disk0"
writable = true

[export.clients]
type = "nbd"
node-name = "disk0"
writable = true
"""


def nbd(*commands: str) -> None:
    """qemu-io at the socket of the unit."""
    words = [word for command in commands for word in ("-c", command)]
    run("qemu-io", *words, "-f", "raw", "nbd+unix:///disk0?socket=/run/vduse-services/disks.nbd")


@pytest.mark.timeout(600)  # it starts two of our programs, and all of it is emulated
@pytest.mark.needs("udevadm", "systemctl", "qemu-io")
# Two kernels would show no more of systemd.
@pytest.mark.parametrize(
    "kernel", [pytest.param("7.2", marks=pytest.mark.kernel("7.2"))], indirect=True
)
def test_storage_daemon_is_restarted_by_the_watchdog(
    image: Path, installed: pwd.struct_passwd
) -> None:
    """vduse-storage-daemon@.service: ready when started, I/O of the kernel's and NBD's, a process
    that hangs, restart, stop."""
    (CONFIGURATION / "disks.toml").write_text(_FILE.format(image=image))
    service, socket = "vduse-storage-daemon@disks.service", "vduse-nbd@disks.socket"
    units = (PACKAGING / "vduse-storage-daemon@.service", PACKAGING / "vduse-nbd@.socket")
    settings = f"{BED}NotifyAccess=all\n"  # for shorten_watchdog
    kernels, clients, waiting = os.urandom(MIB), b"\x22" * MIB, os.urandom(MIB)
    with systemd(units[0], settings, units[1]) as manager, VdpaManagement() as vdpa:
        manager.ctl("start", socket)
        manager.ctl("start", service)
        assert manager.show(service, "StatusText") == "exports: 1 nbd, 1 vduse-blk"
        assert NODE.exists()
        first = process_of(service, manager, installed)
        vdpa.add("disk0")
        path = node_of("disk0")
        write_direct(path, 0, kernels)
        nbd("write -P 0x22 1M 1M", "flush")
        assert read_direct(path, 0, 2 * MIB) == kernels + clients

        os.kill(first, signal.SIGSTOP)
        manager.shorten_watchdog(service)
        # It waits for the process that is killed, whose threads run on for a moment, or the next.
        write_direct(path, 2 * MIB, waiting)
        manager.ctl("start", service)  # that is under way: wait for its end
        assert process_of(service, manager, installed) != first
        assert read_direct(path, 0, 3 * MIB) == kernels + clients + waiting
        nbd("read -P 0x22 1M 1M")

        vdpa.delete("disk0")
        manager.ctl("stop", service)
        assert manager.show(service, "Result") == "success"
        assert not NODE.exists()
    assert image.read_bytes()[: 3 * MIB] == kernels + clients + waiting
