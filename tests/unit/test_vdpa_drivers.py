"""The vDPA bus's drivers by sysfs, on a tree of plain files."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from vduse.vdpa.drivers import BusDriver, VdpaBus


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    """Both drivers; disk0 has one, disk1 has none."""
    bus = tmp_path / "bus/vdpa"
    for driver in BusDriver:
        folder = bus / "drivers" / driver
        folder.mkdir(parents=True)
        (folder / "bind").touch()
        (folder / "unbind").touch()
    for name in ("disk0", "disk1"):
        (bus / "devices" / name).mkdir(parents=True)
    give(tmp_path, "disk0", BusDriver.VIRTIO_VDPA)
    return tmp_path


def give(sysfs: Path, name: str, driver: BusDriver) -> None:
    target = sysfs / "bus/vdpa/drivers" / driver
    (sysfs / "bus/vdpa/devices" / name / "driver").symlink_to(target)


def written(sysfs: Path, driver: BusDriver, file: str) -> str:
    return (sysfs / "bus/vdpa/drivers" / driver / file).read_text()


def test_no_bus_no_devices(tmp_path: Path) -> None:
    assert VdpaBus(tmp_path).names() == []


def test_who_has_what(sysfs: Path) -> None:
    bus = VdpaBus(sysfs)
    assert bus.names() == ["disk0", "disk1"]
    assert bus.driver("disk0") == BusDriver.VIRTIO_VDPA
    assert bus.driver("disk1") is None


@pytest.mark.parametrize("name", [".", "..", "", "../devices/disk0", "/"])
def test_a_path_is_no_device(sysfs: Path, name: str) -> None:
    with pytest.raises(OSError) as unknown:
        VdpaBus(sysfs).unbind(name)
    assert unknown.value.errno == errno.ENODEV


@pytest.mark.parametrize("what", ["driver", "unbind", "node"])
def test_unknown_device_is_enodev(sysfs: Path, what: str) -> None:
    with pytest.raises(OSError, match="disk2") as unknown:
        getattr(VdpaBus(sysfs), what)("disk2")
    assert unknown.value.errno == errno.ENODEV


def test_bind_takes_it_from_the_other_driver_first(sysfs: Path) -> None:
    VdpaBus(sysfs).bind("disk0", BusDriver.VHOST_VDPA)
    assert written(sysfs, BusDriver.VIRTIO_VDPA, "unbind") == "disk0"
    assert written(sysfs, BusDriver.VHOST_VDPA, "bind") == "disk0"


def test_bind_of_a_device_that_has_no_driver(sysfs: Path) -> None:
    VdpaBus(sysfs).bind("disk1", BusDriver.VHOST_VDPA)
    assert written(sysfs, BusDriver.VIRTIO_VDPA, "unbind") == ""
    assert written(sysfs, BusDriver.VHOST_VDPA, "bind") == "disk1"


def test_bind_to_the_driver_that_has_it_does_nothing(sysfs: Path) -> None:
    VdpaBus(sysfs).bind("disk0", BusDriver.VIRTIO_VDPA)
    assert written(sysfs, BusDriver.VIRTIO_VDPA, "unbind") == ""
    assert written(sysfs, BusDriver.VIRTIO_VDPA, "bind") == ""


def test_driver_that_is_not_loaded_changes_nothing(sysfs: Path) -> None:
    folder = sysfs / "bus/vdpa/drivers/vhost_vdpa"
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    with pytest.raises(FileNotFoundError, match="modprobe vhost_vdpa"):
        VdpaBus(sysfs).bind("disk0", BusDriver.VHOST_VDPA)
    assert written(sysfs, BusDriver.VIRTIO_VDPA, "unbind") == ""


@pytest.mark.parametrize(
    ("folder", "node"),
    [("virtio3/block/vda", "/dev/vda"), ("vhost-vdpa-0", "/dev/vhost-vdpa-0")],
)
def test_node_that_the_driver_made(sysfs: Path, folder: str, node: str) -> None:
    bus = VdpaBus(sysfs)
    assert bus.node("disk0") is None
    (sysfs / "bus/vdpa/devices/disk0" / folder).mkdir(parents=True)
    assert bus.node("disk0") == node
