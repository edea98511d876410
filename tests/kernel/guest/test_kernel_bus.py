"""The kernel's vDPA bus: management over generic netlink, both bus drivers."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator

import pytest

from tests.kernel.guest.bed import (
    MIB,
    errno_of,
    node_of,
    on_the_bus,
    read_direct,
    rebind,
    write_direct,
)
from vduse import _native
from vduse.channel.kernel import KernelControl
from vduse.control.features import BlkFeature, DeviceId, Feature
from vduse.devices.blk import BlkDevice
from vduse.vdpa.drivers import BusDriver, VdpaBus
from vduse.vdpa.netlink import VdpaManagement

pytestmark = pytest.mark.usefixtures("modules")

#: _IOR(0xAF, 0x70, __u32) of linux/vhost.h.
VHOST_VDPA_GET_DEVICE_ID = 0x8004AF70
#: _IOR(0xAF, 0x79, __u32): bytes of the config space.
VHOST_VDPA_GET_CONFIG_SIZE = 0x8004AF79


@pytest.fixture
def vdpa() -> Iterator[VdpaManagement]:
    with VdpaManagement() as vdpa:
        yield vdpa


@pytest.fixture
def device() -> Iterator[BlkDevice]:
    """A started disk of 16 MiB, not on the bus; taken off it where a test put it there."""
    backend = _native.Backend.memory(16 * MIB)
    control = KernelControl()
    device = BlkDevice("disk0", backend, queues=2, queue_size=64)
    device.start(control)
    yield device
    with VdpaManagement() as vdpa:
        if "disk0" in VdpaBus().names():
            vdpa.delete("disk0")
    device.close(destroy=True)
    control.close()
    backend.close()


def test_management_device_of_vduse(vdpa: VdpaManagement) -> None:
    [vduse] = [found for found in vdpa.management_devices() if found.name == "vduse"]
    assert {DeviceId.NET, DeviceId.BLOCK} <= vduse.device_ids


def test_add_show_delete(vdpa: VdpaManagement, device: BlkDevice) -> None:
    assert vdpa.devices() == []
    vdpa.add("disk0")
    shown = vdpa.device("disk0")
    assert (shown.name, shown.management, shown.device_id) == ("disk0", "vduse", DeviceId.BLOCK)
    assert (shown.max_vqs, shown.max_vq_size) == (2, 64)
    assert vdpa.devices() == [shown]
    assert VdpaBus().names() == ["disk0"]
    assert errno_of(vdpa.add, "disk0") == errno.EEXIST
    vdpa.delete("disk0")
    assert vdpa.devices() == []
    assert errno_of(vdpa.delete, "disk0") == errno.ENODEV
    assert errno_of(vdpa.device, "disk0") == errno.ENODEV


def test_config_as_the_kernel_reads_it(vdpa: VdpaManagement, device: BlkDevice) -> None:
    vdpa.add("disk0")
    config = vdpa.config("disk0")
    assert (config.name, config.device_id) == ("disk0", DeviceId.BLOCK)
    assert config.negotiated_features is not None
    assert config.negotiated_features & (Feature.ACCESS_PLATFORM | Feature.VERSION_1)
    assert config.negotiated_features & BlkFeature.MQ
    assert config.fields["blk_cfg_capacity"] == 16 * MIB // 512
    assert config.fields["blk_cfg_num_queues"] == 2


def test_what_the_kernel_refuses(vdpa: VdpaManagement, device: BlkDevice) -> None:
    assert errno_of(vdpa.add, "nobody") == errno.EINVAL
    assert errno_of(vdpa.add, "disk0", "no/such") == errno.ENODEV
    # VDUSE's management device takes no attributes.
    assert errno_of(vdpa.add, "disk0", features=1 << 32) in (errno.EOPNOTSUPP, errno.EINVAL)
    assert errno_of(vdpa.add, "disk0", mtu=1500) == errno.EOPNOTSUPP
    assert errno_of(vdpa.add, "disk0", mac="52:54:00:12:34:56") == errno.EOPNOTSUPP
    vdpa.add("disk0")
    assert errno_of(vdpa.statistics, "disk0", 0) == errno.EOPNOTSUPP


def test_an_ordinary_user_sees_and_changes_nothing(device: BlkDevice) -> None:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setresuid(65534, 65534, 65534)
            with VdpaManagement() as vdpa:
                vdpa.management_devices()
                try:
                    vdpa.add("disk0")
                except PermissionError:
                    status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert VdpaBus().names() == []


def test_rebinding_with_the_program_alive(vdpa: VdpaManagement, device: BlkDevice) -> None:
    bus = VdpaBus()
    vdpa.add("disk0")
    path = node_of("disk0")
    data = os.urandom(MIB)
    write_direct(path, 0, data)
    for _ in range(10):
        assert bus.driver("disk0") == BusDriver.VIRTIO_VDPA
        vhost = rebind("disk0", BusDriver.VHOST_VDPA)
        assert bus.driver("disk0") == BusDriver.VHOST_VDPA
        fd = os.open(vhost, os.O_RDWR)
        assert ioctl_u32(fd, VHOST_VDPA_GET_DEVICE_ID) == DeviceId.BLOCK
        assert ioctl_u32(fd, VHOST_VDPA_GET_CONFIG_SIZE) >= 60
        os.close(fd)
        path = rebind("disk0", BusDriver.VIRTIO_VDPA)
        assert read_direct(path, 0, MIB) == data
        data = os.urandom(MIB)
        write_direct(path, 0, data)
    assert device.ended is None
    bus.unbind("disk0")
    assert (bus.driver("disk0"), bus.node("disk0")) == (None, None)
    bus.unbind("disk0")


def test_nothing_is_left_open(vdpa: VdpaManagement) -> None:
    """File descriptors of a disk's whole life; the first one starts what the process shares."""
    counts = []
    control = KernelControl()
    backend = _native.Backend.memory(16 * MIB)
    for _ in range(3):
        with on_the_bus(BlkDevice("disk0", backend, queues=2), control) as path:
            write_direct(path, 0, b"o" * MIB)
        counts.append(len(os.listdir("/proc/self/fd")))
    control.close()
    backend.close()
    assert counts[1] == counts[0] == counts[2]


def ioctl_u32(fd: int, nr: int) -> int:
    answer = bytearray(4)
    fcntl.ioctl(fd, nr, answer, True)
    return int(struct.unpack("=I", answer)[0])
