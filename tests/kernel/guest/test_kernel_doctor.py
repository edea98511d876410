"""`vduse doctor` names the step that is missing, on the kernel: as root and as an ordinary user."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Iterator

import pytest

from tests.kernel.guest.bed import (
    MIB,
    load_modules,
    newest_api_version,
    node_of,
    set_msg_timeout,
)
from tests.kernel.guest.ordinary import NOBODY
from vduse import _native
from vduse.channel.kernel import KernelControl
from vduse.daemon.doctor import diagnose
from vduse.daemon.doctor.check import Check
from vduse.devices.blk import BlkDevice
from vduse.vdpa.drivers import VdpaBus
from vduse.vdpa.netlink import VdpaManagement

CONTROL = "/dev/vduse/control"


def checks() -> dict[str, Check]:
    """What is found, by name."""
    return {check.name: check for check in diagnose().checks}


def checks_as(uid: int, gid: int) -> dict[str, Check]:
    """What an ordinary user finds."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            with os.fdopen(writing, "wb") as pipe:
                pipe.write(pickle.dumps(checks()))
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        data = pipe.read()
    assert os.waitpid(child, 0)[1] == 0
    found: dict[str, Check] = pickle.loads(data)
    return found


@pytest.fixture
def device() -> Iterator[BlkDevice]:
    """A disk, not started."""
    backend = _native.Backend.memory(16 * MIB)
    yield BlkDevice("disk0", backend)
    backend.close()


@pytest.mark.machine(memory=1536)  # a boot of its own: nobody has loaded anything yet
def test_before_the_modules_are_loaded() -> None:
    found = checks()
    modules = ("vduse", "virtio_vdpa", "vhost_vdpa", "virtio_blk")
    assert found["kernel modules"].detail == f"not loaded: {', '.join(modules)}"
    assert found["kernel modules"].how == f"as root: modprobe -a {' '.join(modules)}"
    assert found["control node"].how == "load the modules first"
    assert not diagnose().kernel


def test_root_has_all_it_takes() -> None:
    load_modules()
    found = checks()
    steps = ("kernel modules", "control node", "vDPA bus", "record folder")
    assert {found[step].state for step in steps} == {"ok"}
    assert f"API version {newest_api_version()}" in found["control node"].detail
    assert diagnose().kernel


def test_ordinary_user_is_told_what_root_has_to_do() -> None:
    load_modules()
    os.chown(CONTROL, 0, 0)
    os.chmod(CONTROL, 0o600)
    found = checks_as(NOBODY, NOBODY)
    assert found["control node"].detail == f"{CONTROL}: root:root 0600, not for nobody"
    assert found["control node"].how.startswith("as root, in a checkout: packaging/install")
    assert "vduse dev add NAME" in found["vDPA bus"].how
    # As the udev rule has it, with a group that every host has.
    shutil.chown(CONTROL, group="disk")
    os.chmod(CONTROL, 0o660)
    found = checks_as(NOBODY, NOBODY)
    assert found["control node"].how.startswith("as root: usermod -aG disk nobody")
    assert checks_as(NOBODY, os.stat(CONTROL).st_gid)["control node"].state == "ok"
    os.chown(CONTROL, 0, 0)
    os.chmod(CONTROL, 0o600)


def test_each_device_says_what_it_waits_for(device: BlkDevice) -> None:
    load_modules()
    control = KernelControl()
    device.start(control)
    assert checks()["device disk0"].how == "as root: vduse dev add disk0"
    with VdpaManagement() as vdpa:
        vdpa.add("disk0")
        path = node_of("disk0")
        check = checks()["device disk0"]
        assert (check.state, check.how) == ("ok", "")
        assert check.detail.endswith(f"(pid {os.getpid()}); virtio_vdpa: {path}")
        VdpaBus().unbind("disk0")
        assert checks()["device disk0"].how == "as root: vduse dev bind disk0 virtio_vdpa"
        # As if the program had died.
        device.close()
        assert checks()["device disk0"].detail == (
            "on the vDPA bus without a program: its requests wait"
        )
        set_msg_timeout("disk0", 1)
        vdpa.delete("disk0")
    assert checks()["device disk0"].detail.endswith("left behind")
    control.destroy_dev("disk0")
    assert "device disk0" not in checks()
    control.close()
