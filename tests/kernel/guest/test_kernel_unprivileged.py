"""Devices served by ordinary users: root hands a node over, or udev's rule does; root alone puts
the device on the bus."""

from __future__ import annotations

import errno
import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.guest.bed import MIB, errno_of, node_of, read_direct, rebind, write_direct
from tests.kernel.guest.ordinary import (
    NO_CAPABILITIES,
    NOBODY,
    may_open,
    privileges,
    serving,
)
from tests.waiting import eventually
from vduse import _native
from vduse.channel.kernel import KernelControl
from vduse.devices.blk import BlkDevice
from vduse.vdpa.drivers import BusDriver
from vduse.vdpa.netlink import VdpaManagement

pytestmark = pytest.mark.usefixtures("modules", "checkout")

NODE = "/dev/vduse/disk0"


@pytest.fixture
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 MiB, in a folder that everybody may enter."""
    folder = Path("/var/tmp") / tmp_path_factory.mktemp("image").name
    folder.mkdir(mode=0o755)
    path = folder / "disk0.img"
    with path.open("wb") as file:
        file.truncate(16 * MIB)
    return path


def access(path: str) -> tuple[str, str, int]:
    """Owner, group and permissions of a node."""
    found = Path(path)
    return found.owner(), found.group(), stat.S_IMODE(found.stat().st_mode)


def use(image: Path, pid: int, uid: int) -> Iterator[None]:
    """Root's part while process ``pid`` serves, in two steps: attach, I/O; then the image has
    another size, the program is to look, and root sees it and detaches."""
    with VdpaManagement() as vdpa:
        vdpa.add("disk0")
        path = node_of("disk0")
        data = os.urandom(MIB)
        write_direct(path, 0, data)
        assert read_direct(path, 0, MIB) == data
        assert privileges(pid) == ({str(uid)}, NO_CAPABILITIES)
        os.truncate(image, 32 * MIB)
        yield
        size = Path(f"/sys/block/{Path(path).name}/size")
        eventually(lambda: int(size.read_text()) * 512 == 32 * MIB, "new size")
        write_direct(path, 31 * MIB, data)
        vdpa.delete("disk0")
    assert image.read_bytes()[31 * MIB :] == data


def test_root_creates_a_device_and_hands_it_over(image: Path) -> None:
    """The program has its node and nothing else; root takes it back and destroys it."""
    backend, control = _native.Backend.file(str(image)), KernelControl()
    left = BlkDevice("disk0", backend)
    left.start(control)
    left.close()
    os.chown(NODE, NOBODY, NOBODY)
    os.chown(image, NOBODY, NOBODY)
    backend.close()
    assert not may_open("/dev/vduse/control", NOBODY, NOBODY)
    with serving(image, NOBODY, NOBODY, destroy=False) as program:
        assert program.line() == "taken over"
        steps = use(image, program.pid, NOBODY)
        next(steps)
        program.go_on()
        assert program.line() == str(32 * MIB)
        assert next(steps, "done") == "done"
        assert errno_of(control.destroy_dev, "disk0") == errno.EBUSY  # it has it open
        program.go_on()
        assert program.wait() == 0
    control.destroy_dev("disk0")
    assert not os.path.exists(NODE)
    control.close()


@pytest.mark.needs("udevadm")
def test_group_of_the_udev_rule_creates_and_destroys(
    image: Path, installed: pwd.struct_passwd
) -> None:
    """The node of a new device is root's until udev has seen it; the program waits for that."""
    assert access("/dev/vduse/control") == ("root", "vduse", 0o660)
    os.chown(image, NOBODY, NOBODY)
    assert not may_open("/dev/vduse/control", NOBODY, NOBODY)
    with serving(image, NOBODY, installed.pw_gid, destroy=True) as program:
        assert program.line() == "created"
        assert access(NODE) == ("root", "vduse", 0o660)
        steps = use(image, program.pid, NOBODY)
        next(steps)
        program.go_on()
        assert program.line() == str(32 * MIB)
        assert next(steps, "done") == "done"
        program.go_on()
        assert program.wait() == 0
    assert not os.path.exists(NODE)


@pytest.mark.needs("udevadm")
def test_udev_rule_gives_vhost_vdpa_to_virtual_machines(installed: pwd.struct_passwd) -> None:
    backend, control = _native.Backend.memory(16 * MIB), KernelControl()
    device = BlkDevice("disk0", backend)
    device.start(control)
    with VdpaManagement() as vdpa:
        vdpa.add("disk0")
        path = rebind("disk0", BusDriver.VHOST_VDPA)
        eventually(lambda: access(path) == ("root", "kvm", 0o660), "udev's rule")
        vdpa.delete("disk0")
    device.close(destroy=True)
    control.close()
    backend.close()
