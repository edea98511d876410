"""`vduse doctor` on the kernel's way, against hosts made of files."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from vduse.channel import kernel as channel
from vduse.control.abi import pack_u64
from vduse.daemon.doctor import devices
from vduse.daemon.doctor.check import Check
from vduse.daemon.doctor.host import Host
from vduse.daemon.doctor.kernel import MODULES, bus_management, control_node, modules, record_folder
from vduse.vdpa.users import Program

Make = Callable[..., Path]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """One without a kernel's part."""
    return Host(tmp_path, release="6.12")


@pytest.fixture
def folder(host: Host) -> Callable[[str], Path]:
    def make(path: str) -> Path:
        (host.root / path).mkdir(parents=True)
        return host.root / path

    return make


@pytest.fixture
def file(host: Host) -> Callable[[str, str], Path]:
    def make(path: str, text: str) -> Path:
        place = host.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
        return place

    return make


def index(*names: str) -> str:
    """modules.dep, compressed in Debian's way."""
    return "".join(f"kernel/drivers/x/{name.replace('_', '-')}.ko.xz:\n" for name in names)


def test_kernel_without_the_modules(host: Host, file: Make) -> None:
    file("lib/modules/6.12/modules.dep", index("virtio_blk", "vduse_of_another_name"))
    assert modules(host) == Check(
        "kernel modules",
        "missing",
        "not installed for 6.12: vduse, virtio_vdpa, vhost_vdpa",
        "a kernel with CONFIG_VDPA_USER, CONFIG_VIRTIO_VDPA, CONFIG_VHOST_VDPA: Debian's "
        "linux-image-amd64, from 6.12 on",
    )


def test_modules_that_are_not_loaded(host: Host, file: Make, folder: Make) -> None:
    file("lib/modules/6.12/modules.dep", index("vduse", "virtio_vdpa", "vhost_vdpa"))
    file("lib/modules/6.12/modules.builtin", "kernel/drivers/block/virtio_blk.ko\n")
    assert modules(host).how == "as root: modprobe -a vduse virtio_vdpa vhost_vdpa virtio_blk"
    for _, place in MODULES.values():
        folder(f"sys/{place}")
    assert modules(host).state == "ok"


def test_control_node_that_is_not_there(host: Host, folder: Make) -> None:
    assert control_node(host).how == "load the modules first"
    folder("sys/class/vduse")
    check = control_node(host)
    assert check.detail == f"no {host.nodes}/control, although the module is loaded"
    assert check.how.startswith("hand it into the container")


def test_control_node_that_is_another_driver_s(host: Host, folder: Make) -> None:
    (folder("dev/vduse") / "control").symlink_to("/dev/null")
    assert control_node(host).how == "what answers there is not VDUSE"


def test_control_node_says_its_version(
    host: Host, file: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    file("dev/vduse/control", "")
    monkeypatch.setattr(channel, "_ioctl", lambda *_: (0, pack_u64(1)))
    check = control_node(host)
    assert (check.state, check.detail) == ("ok", f"{host.nodes}/control: API version 1")


@pytest.fixture
def denied(host: Host, file: Make, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A control node that this user may not open; the user is in group 7 of the database."""
    path = file("dev/vduse/control", "")

    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr("os.getgrouplist", lambda *_: [7])
    monkeypatch.setattr("os.geteuid", lambda: 65534)
    return path


@pytest.mark.parametrize(
    ("group", "mode", "how"),
    [
        (
            0,
            0o600,
            "as root, in a checkout: packaging/install (group vduse and a udev rule); then as "
            "root: usermod -aG vduse nobody",
        ),
        (6, 0o660, "as root: usermod -aG disk nobody; then log in again"),
        (7, 0o660, "nobody is of group lp since this session began: log in again"),
    ],
    ids=["no udev rule", "not of the group", "not of the group yet"],
)
def test_control_node_of_others(
    host: Host,
    denied: Path,
    monkeypatch: pytest.MonkeyPatch,
    group: int,
    mode: int,
    how: str,
) -> None:
    found = os.stat_result((stat.S_IFCHR | mode, 0, 0, 1, 0, group, 0, 0, 0, 0))
    monkeypatch.setattr(Path, "stat", lambda *_, **__: found)
    check = control_node(host)
    assert (check.state, check.how) == ("limited", how)
    assert check.detail.endswith(f"{mode:04o}, not for nobody")


@pytest.mark.parametrize(
    ("capabilities", "users", "state"),
    [
        ("0000000000001000", "0 0 4294967295", "ok"),
        ("0000000000000000", "0 0 4294967295", "limited"),
        ("000001ffffffffff", "0 100000 65536", "limited"),  # root of a container
    ],
)
def test_who_may_put_devices_on_the_bus(
    host: Host, file: Make, capabilities: str, users: str, state: str
) -> None:
    file("proc/self/status", f"Name:\tx\nCapEff:\t{capabilities}\n")
    file("proc/self/uid_map", f"{users}\n")
    check = bus_management(host)
    assert check.state == state
    assert ("vduse dev add NAME" in check.how) == (state == "limited")


def test_record_folder(host: Host, folder: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/vduse")
    assert record_folder(host).detail.startswith(f"no {host.root}/run, ")
    folder("run")
    assert record_folder(host).state == "ok"
    folder("run/vduse")
    (host.root / "run/vduse").chmod(0o770)
    assert record_folder(host).state == "limited"
    assert "others may write to it" in record_folder(host).detail
    (host.root / "run/vduse").chmod(0o700)
    assert record_folder(host).state == "ok"
    (host.root / "run/vduse").rmdir()
    monkeypatch.setattr("os.access", lambda *_: False)
    assert record_folder(host).state == "limited"
    monkeypatch.delenv("RUNTIME_DIRECTORY")
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr("os.geteuid", lambda: 65534)
    assert "XDG_RUNTIME_DIR" in record_folder(host).detail


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> list[Program]:
    """Who has the device's node open; as root sees it."""
    found: list[Program] = []
    monkeypatch.setattr(devices, "programs", lambda *_: found)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    return found


def look(host: Host) -> tuple[str, str, str]:
    [check] = devices.device_checks(host)
    assert check.name == "device disk0"
    return check.state, check.detail, check.how


def test_device_step_by_step(host: Host, folder: Make, programs: list[Program]) -> None:
    assert list(devices.device_checks(host)) == []
    folder("sys/class/vduse/control")
    folder("sys/class/vduse/disk0")
    assert look(host)[1] == "no program, not on the vDPA bus: left behind"
    assert look(host)[2].startswith("vduse dev del disk0; or ")
    programs.append(Program(12, "vduse", stopped=False))
    assert look(host) == (
        "limited",
        "served by vduse (pid 12), not on the vDPA bus",
        "as root: vduse dev add disk0",
    )
    device = host.root / "sys/bus/vdpa/devices/disk0"
    folder("sys/bus/vdpa/devices/disk0")
    assert look(host)[2] == "as root: vduse dev bind disk0 virtio_vdpa"
    folder("sys/bus/vdpa/drivers/virtio_vdpa")
    (device / "driver").symlink_to(host.root / "sys/bus/vdpa/drivers/virtio_vdpa")
    assert look(host)[1] == "served by vduse (pid 12); virtio_vdpa has it and made no node"
    folder("sys/bus/vdpa/devices/disk0/virtio0/block/vda")
    assert look(host) == ("ok", "served by vduse (pid 12); virtio_vdpa: /dev/vda", "")
    programs[0] = Program(12, "vduse", stopped=True)
    assert look(host)[2].startswith("kill -CONT 12; ")
    programs.clear()
    state, detail, how = look(host)
    assert (state, detail) == ("limited", "on the vDPA bus without a program: its requests wait")
    assert how.endswith("vduse dev del disk0")


def test_an_ordinary_user_does_not_see_who_serves(
    host: Host, folder: Make, programs: list[Program], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 65534)
    folder("sys/class/vduse/disk0")
    assert look(host)[1].startswith("served by a program that is not to be seen from here")
