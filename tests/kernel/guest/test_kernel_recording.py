"""What crosses a channel in a device's life is the same on the kernel and on the embedded
framework with the kernel's profile: the control path call by call and message by message, the
data path as the set of its calls with their results."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Protocol, cast

import pytest
from msgspec.structs import replace

from tests.kernel.guest.bed import MIB, node_of, read_direct, rebind, run, write_direct
from tests.kernel.guest.vhost_session import drive
from tests.waiting import eventually
from vduse import _native
from vduse.channel.base import EXT_INFLIGHT, Channel, ControlPort
from vduse.channel.embedded import inherited
from vduse.channel.kernel import KernelControl
from vduse.channel.recorder import recording_tap
from vduse.channel.recording import Header
from vduse.channel.tapped import TappedControl
from vduse.daemon.trace.commands import CompareOptions
from vduse.daemon.trace.compare import compare_files
from vduse.daemon.trace.differences import lines
from vduse.daemon.trace.tracing import header_of_kernel
from vduse.devices.blk import BlkDevice
from vduse.framework import Framework
from vduse.vdpa.drivers import BusDriver, VdpaBus
from vduse.vdpa.netlink import VdpaManagement

pytestmark = pytest.mark.usefixtures("modules")

SIZE = 16 * MIB
DATA = b"recorded" * 512


class Bus(Protocol):
    """What a device is driven by."""

    def control(self) -> ControlPort: ...
    def add(self) -> None:
        """On the bus, under virtio_vdpa."""

    def format(self) -> None:
        """A file system, or requests of the kinds that making one takes."""

    def read(self, offset: int) -> bytes:
        """As many bytes as DATA."""

    def write(self, offset: int, data: bytes) -> None: ...
    def wait_for_size(self, size: int) -> None: ...
    def drive_vhost(self) -> None:
        """Binds vhost_vdpa, drives it, and binds virtio_vdpa again."""

    def delete(self) -> None: ...


class KernelBus:
    """The kernel's."""

    def control(self) -> ControlPort:
        return KernelControl()

    def add(self) -> None:
        with VdpaManagement() as vdpa:
            vdpa.add("disk0")
        node_of("disk0")

    def format(self) -> None:
        run("mke2fs", "-q", "-F", node_of("disk0"))

    def read(self, offset: int) -> bytes:
        return read_direct(node_of("disk0"), offset, len(DATA))

    def write(self, offset: int, data: bytes) -> None:
        write_direct(node_of("disk0"), offset, data)

    def wait_for_size(self, size: int) -> None:
        name = Path(node_of("disk0")).name
        sectors = Path("/sys/class/block", name, "size")
        eventually(lambda: int(sectors.read_text()) * 512 == size, f"{size} bytes")

    def drive_vhost(self) -> None:
        node = rebind("disk0", BusDriver.VHOST_VDPA)
        run(sys.executable, "-m", "tests.kernel.guest.vhost_session", node)
        rebind("disk0", BusDriver.VIRTIO_VDPA)

    def delete(self) -> None:
        if "disk0" in VdpaBus().names():
            with VdpaManagement() as vdpa:
                vdpa.delete("disk0")


class EmbeddedBus:
    """The embedded framework's."""

    def __init__(self, framework: Framework) -> None:
        self._framework = framework

    def control(self) -> ControlPort:
        return cast(ControlPort, _PlainControl(inherited(self._framework.control())))

    def add(self) -> None:
        self._framework.dev_add("disk0", driver="virtio_vdpa")

    def format(self) -> None:
        disk = self._framework.disk("disk0")
        disk.discard(0, SIZE)
        disk.pwrite(bytes(MIB), 0)
        disk.pread(MIB, MIB)
        disk.flush()

    def read(self, offset: int) -> bytes:
        return self._framework.disk("disk0").pread(len(DATA), offset)

    def write(self, offset: int, data: bytes) -> None:
        self._framework.disk("disk0").pwrite(data, offset)

    def wait_for_size(self, size: int) -> None:
        disk = self._framework.disk("disk0")
        eventually(lambda: disk.size == size, f"{size} bytes")

    def drive_vhost(self) -> None:
        self._framework.bus.bind("disk0", "vhost_vdpa")
        drive(self._framework.bus.vhost("disk0").open())
        self._framework.bus.bind("disk0", "virtio_vdpa")

    def delete(self) -> None:
        if "disk0" in self._framework.bus.devices:
            self._framework.dev_del("disk0")


class _PlainChannel:
    """Without the extensions that the kernel's channel lacks: irqs go by VQ_INJECT_IRQ."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.extensions = channel.extensions & {EXT_INFLIGHT}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)


class _PlainControl:
    def __init__(self, control: ControlPort) -> None:
        self._control = control

    def open(self, name: str) -> Channel:
        return cast(Channel, _PlainChannel(self._control.open(name)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._control, name)


def record(bus: Bus, image: Path, path: Path, header: Header) -> None:
    """Probe, a file system, resize, vhost-vdpa and back, a program's end and its successor, the
    end."""
    tap = recording_tap(os.open(path, os.O_WRONLY | os.O_CREAT), path.name, header)
    with open(image, "wb") as file:
        file.truncate(SIZE)
    control = TappedControl(bus.control(), tap, tap.count)
    backend = _native.Backend.file(str(image))
    device = BlkDevice("disk0", backend)
    try:
        device.start(control)
        bus.add()
        bus.format()
        os.truncate(image, 2 * SIZE)
        device.resize()
        bus.wait_for_size(2 * SIZE)
        bus.write(SIZE, DATA)
        bus.drive_vhost()
        device.close()
        device = BlkDevice("disk0", backend)
        assert device.start(control)
        assert bus.read(SIZE) == DATA
    finally:
        bus.delete()
        device.close(destroy=True)
        control.close()
        tap.close()
        backend.close()


def test_a_devices_life_is_the_same_on_the_kernel_and_embedded(kernel: str, tmp_path: Path) -> None:
    files = here, there = tmp_path / "kernel.trace", tmp_path / "embedded.trace"
    header = header_of_kernel()
    record(KernelBus(), tmp_path / "kernel", here, header)
    # Irqs go by calls there, too, and are seen.
    header = replace(header, framework="embedded", kernel=kernel)
    with Framework(kernel) as framework:
        record(EmbeddedBus(framework), tmp_path / "embedded", there, header)
    found = compare_files(CompareOptions(*map(str, files)))
    if not found.equal:
        pytest.fail("\n".join(lines(found)), pytrace=False)
    # It is not that nothing was recorded.
    assert found.notes == ()
    assert found.same > 40
    assert found.same_kinds >= 2
