"""`vduse dev` beside a kernel that is made up: what it refuses to take away, and what it clears."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Self

import pytest

from vduse.daemon.dev import kernel as module
from vduse.daemon.dev import operation
from vduse.daemon.dev.kernel import KernelFace
from vduse.daemon.errors import UserError
from vduse.vdpa.messages import DeviceConfig, ManagementDevice, VdpaDevice


class Kernel:
    """Bus, management and control node; disk0 is on the bus. ``calls``: in order."""

    def __init__(self, sysfs: Path) -> None:
        self._sysfs = sysfs
        self.calls: list[tuple[str, ...]] = []
        self.delete_error: OSError | None = None
        #: msg_timeout of what was deleted, at that time.
        self.waited = ""
        self.bus: dict[str, str | None] = {"disk0": "virtio_vdpa"}
        self.place = "/dev/vda"
        self.statistics_error = errno.EOPNOTSUPP

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def close(self) -> None:
        pass

    def names(self) -> list[str]:
        return list(self.bus)

    def driver(self, name: str) -> str | None:
        return self.bus[self._there(name)]

    def node(self, name: str) -> str | None:
        return self.place if self.bus[self._there(name)] else None

    def bind(self, name: str, driver: str) -> None:
        self.calls.append(("bind", name, driver))
        self.bus[name] = driver

    def unbind(self, name: str) -> None:
        self.calls.append(("unbind", name))
        self.bus[name] = None

    def delete(self, name: str) -> None:
        self.calls.append(("del", name))
        self.waited = (self._sysfs / name / "msg_timeout").read_text()
        if self.delete_error:
            raise self.delete_error
        del self.bus[name]

    def destroy_dev(self, name: str) -> None:
        self.calls.append(("destroy", name))

    def device(self, name: str) -> VdpaDevice:
        return VdpaDevice(self._there(name), "vduse", 2, 0, 1, 256, 0)

    def devices(self) -> list[VdpaDevice]:
        return [self.device(name) for name in self.bus]

    def management_devices(self) -> list[ManagementDevice]:
        return [ManagementDevice("vduse", frozenset({1, 2, 63}), 0, 0)]

    def config(self, name: str) -> DeviceConfig:
        fields: dict[str, int | str] = {"blk_cfg_capacity": 2048, "features": 1 << 9 | 1 << 32}
        return DeviceConfig(name, 2, 1 << 32 | 1 << 62, fields)

    def statistics(self, name: str, queue: int) -> dict[str, int]:
        raise OSError(self.statistics_error, "refused")

    def _there(self, name: str) -> str:
        if name not in self.bus:
            raise OSError(errno.ENODEV, f"no device {name} on the vDPA bus")
        return name


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """disk0 is VDUSE's, and its program serves it."""
    kernel = Kernel(tmp_path)
    for name in ("VdpaBus", "VdpaManagement", "KernelControl"):
        monkeypatch.setattr(module, name, lambda *_: kernel)
    for name in ("control", "disk0"):
        (tmp_path / name).mkdir()
    (tmp_path / "disk0/msg_timeout").write_text("30\n")
    for place in (module, operation):
        monkeypatch.setattr(place, "CLASS", tmp_path)
        monkeypatch.setattr(place, "NODES", tmp_path)
    used(monkeypatch)
    return kernel


def used(
    monkeypatch: pytest.MonkeyPatch, *users: str, in_flight: int = 0, served: bool = True
) -> None:
    """Who uses the disk, and how it stands with its program."""
    monkeypatch.setattr(module, "users", lambda _node: users)
    monkeypatch.setattr(module, "requests_in_flight", lambda _node: in_flight)
    monkeypatch.setattr(module, "is_served", lambda _name: served)


def test_all_there_is(kernel: Kernel) -> None:
    del kernel.bus["disk0"]
    listing = KernelFace().list()
    assert [(device.name, device.on_bus) for device in listing.devices] == [("disk0", False)]
    assert [found.types for found in listing.management] == [("net", "block", "63")]
    assert KernelFace().show("disk0").no_statistics == "not on the bus: vduse dev add disk0"


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (errno.EOPNOTSUPP, "the kernel counts none of VDUSE's: kill -USR1 to its program"),
        (errno.EPERM, "reading them takes CAP_NET_ADMIN: run it as root"),
    ],
)
def test_one_device(kernel: Kernel, code: int, why: str) -> None:
    kernel.statistics_error = code
    details = KernelFace().show("disk0")
    assert (details.device.driver, details.device.node) == ("virtio_vdpa", "/dev/vda")
    assert details.features == ("VERSION_1", "bit 62")
    assert details.offered == ("FLUSH", "VERSION_1")
    assert details.config == {"blk_cfg_capacity": 2048}
    assert details.no_statistics.startswith(why)


def test_disk_in_use_is_left_alone(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    used(monkeypatch, "mounted at /mnt")
    face = KernelFace()
    calls: list[Callable[[], object]] = [
        lambda: face.delete("disk0", force=False),
        lambda: face.bind("disk0", "vhost_vdpa", force=False),
        lambda: face.unbind("disk0", force=False),
    ]
    for call in calls:
        with pytest.raises(UserError, match="/dev/vda is mounted at /mnt: let go of it first"):
            call()
    assert kernel.calls == []
    assert face.bind("disk0", "virtio_vdpa", force=False).device.driver == "virtio_vdpa"
    face.delete("disk0", force=True)
    assert kernel.calls == [("del", "disk0")]


def test_virtual_machines_disk_is_not_forced(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel would wait for its monitor, and hold everybody up."""
    kernel.place = "/dev/vhost-vdpa-0"
    used(monkeypatch, "open in qemu (pid 7)")
    with pytest.raises(UserError, match=r"is open in qemu \(pid 7\): stop that first"):
        KernelFace().delete("disk0", force=True)


def test_requests_of_a_program_that_has_gone_are_not_waited_for(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    used(monkeypatch, in_flight=2, served=False)
    with pytest.raises(UserError, match=r"2 requests of /dev/vda wait for an answer.*no program"):
        KernelFace().delete("disk0", force=True)
    assert kernel.calls == []


def test_what_a_killed_program_left_is_destroyed_soon(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    used(monkeypatch, served=False)
    face = KernelFace()
    assert face.delete("disk0", force=False).notes == ()
    assert kernel.waited == "1"
    assert kernel.calls == [("del", "disk0"), ("destroy", "disk0")]
    face.delete("disk0", force=False)  # off the bus, left in /dev/vduse
    assert kernel.calls[2:] == [("destroy", "disk0")]


def test_what_a_refused_delete_leaves_is_waited_for_as_before(
    kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used(monkeypatch, served=False)
    kernel.delete_error = OSError(errno.EPERM, "refused")
    with pytest.raises(UserError):
        KernelFace().delete("disk0", force=False)
    assert kernel.waited == "1"
    assert kernel.calls == [("del", "disk0")]
    assert float((tmp_path / "disk0/msg_timeout").read_text()) == 30


def test_served_device_that_is_off_the_bus_is_its_programs(kernel: Kernel) -> None:
    del kernel.bus["disk0"]
    with pytest.raises(UserError, match="a program serves it: it goes when that ends"):
        KernelFace().delete("disk0", force=True)


def test_unknown_name(kernel: Kernel) -> None:
    face = KernelFace()
    calls: list[Callable[[], object]] = [
        lambda: face.delete("d", force=False),
        lambda: face.bind("d", "vhost_vdpa", force=False),
        lambda: face.unbind("d", force=False),
        lambda: face.show("d"),
    ]
    for call in calls:
        with pytest.raises(UserError, match="d: not on the vDPA bus; vduse dev list shows what is"):
            call()
