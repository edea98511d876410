"""This kernel's VDUSE as a :class:`tests.contract.ports.Platform`: programs are children on
/dev/vduse; bus, drivers and disks are the kernel's. Runs in a guest, as root."""

from __future__ import annotations

import errno
import functools
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.contract.child_block import ChildBlock
from tests.contract.child_driver import ChildDriver
from tests.contract.child_program import Child, ChildProgram
from tests.contract.device_ring import finish_all
from tests.contract.devices import DEADLINE, RawDevice, background
from tests.contract.kernel_disk import KernelDisk
from tests.contract.kernel_program import BlockSpec, KernelProgram
from tests.contract.ports import BlockProgram, Disk, Program, Where
from tests.kernel.guest.bed import load_modules
from tests.waiting import eventually
from vduse.bus.driver import Driver
from vduse.channel.base import Channel
from vduse.vdpa.drivers import BusDriver, VdpaBus
from vduse.vdpa.netlink import VdpaManagement

_NODES = Path("/dev/vduse")
_CLASS = Path("/sys/class/vduse")
_AUTOPROBE = Path("/sys/bus/vdpa/drivers_autoprobe")
_HUGE_PAGES = Path("/proc/sys/vm/nr_hugepages")
_NOBODY = 65534


@functools.cache
def _prepare() -> None:
    """Once per boot."""
    load_modules()
    _HUGE_PAGES.write_text("32")


class KernelPlatform:
    """Implements :class:`tests.contract.ports.Platform`. One at a time: the bus is the kernel's."""

    where: Where = "child"
    short_timeout = 1.0
    refuses_responses = True
    hears_every_ioctl = True

    def __init__(self, profile: str) -> None:
        self.profile = profile
        self._bus = VdpaBus()
        self._programs: list[ChildProgram] = []
        self._blocks: list[ChildBlock] = []
        self._drivers: list[ChildDriver] = []
        self._disks: dict[str, KernelDisk] = {}
        _prepare()
        _AUTOPROBE.write_text("0")

    def program(self) -> Program:
        return self._add(ChildProgram("kernel"))

    def unprivileged_program(self) -> Program:
        for node in _NODES.iterdir():
            os.chown(node, _NOBODY, _NOBODY)
        return self._add(ChildProgram("kernel", unprivileged=True))

    def block_program(
        self,
        name: str,
        backend: str = "memory",
        *,
        queues: int = 1,
        queue_size: int = 128,
        packed: bool = False,
    ) -> BlockProgram:
        spec = BlockSpec(name, backend, queues, queue_size, packed)
        self._blocks.append(ChildBlock(Child("kernel"), spec))
        return self._blocks[-1]

    def control_mode(self) -> int:
        return stat.S_IMODE((_NODES / "control").stat().st_mode)

    def dev_add(self, name: str, driver: str | None = None) -> None:
        with VdpaManagement() as vdpa:
            vdpa.add(name)
        if driver is not None:
            self.bind(name, driver)

    def dev_del(self, name: str) -> None:
        self._close_disk(name)
        with VdpaManagement() as vdpa:
            vdpa.delete(name)

    def bind(self, name: str, driver: str) -> None:
        self.unbind(name)
        if driver == "virtio_vdpa":
            self._bind_virtio(name)
        else:
            self._bus.bind(name, BusDriver(driver))

    def unbind(self, name: str) -> None:
        self._close_disk(name)
        self._bus.unbind(name)

    def driver(self, name: str) -> Driver:
        path = self._bus.node(name)
        if path is None or self._bus.driver(name) != BusDriver.VHOST_VDPA:
            raise OSError(errno.ENODEV, f"{name} is not bound to vhost_vdpa")
        driver = ChildDriver()
        try:
            driver.open(path)
        except BaseException:
            driver.child.end()
            raise
        self._drivers.append(driver)
        return driver

    def kill_opener(self, name: str, when: Callable[[], object]) -> None:
        path = self._bus.node(name)
        assert path is not None
        driver = ChildDriver()
        opening = background(lambda: driver.open(path))
        when()
        assert not opening.done()
        driver.child.end()
        with pytest.raises(ConnectionResetError):
            opening.result(DEADLINE)

    def disk(self, name: str) -> Disk:
        if name not in self._disks:
            path = self._bus.node(name)
            assert path is not None
            self._disks[name] = KernelDisk(path)
        return self._disks[name]

    def attribute(self, name: str, attribute: str) -> float:
        return float((_CLASS / name / attribute).read_text())

    def set_attribute(self, name: str, attribute: str, value: float) -> None:
        (_CLASS / name / attribute).write_text(str(int(value)))

    def reclaim(self) -> int:
        raise NotImplementedError("Linux gives no bounce pages back")

    def close(self) -> None:
        for program in self._programs:
            program.end()
        for block in self._blocks:
            block.kill()
        self._clean_up()
        os.chown(_NODES / "control", 0, 0)
        _AUTOPROBE.write_text("1")

    def _bind_virtio(self, name: str) -> None:
        """The kernel's virtio-blk reads partition tables where a disk is not empty. A device that
        a test serves by hand is empty until its driver has it."""
        made = self._served_by_hand(name)
        if made is None:
            self._bus.bind(name, BusDriver.VIRTIO_VDPA)
            self._check_probed(name)
            return
        channel, capacity = made
        channel.dev_set_config(0, bytes(len(capacity)))
        try:
            self._bus.bind(name, BusDriver.VIRTIO_VDPA)
        finally:
            channel.dev_set_config(0, capacity)
        self._check_probed(name)
        channel.dev_inject_config_irq()
        path = self._bus.node(name)
        assert path is not None
        size = Path("/sys/class/block", Path(path).name, "size")
        sectors = int.from_bytes(capacity, "little")
        eventually(lambda: int(size.read_text()) == sectors, f"{sectors} sectors of {name}")

    def _check_probed(self, name: str) -> None:
        """What virtio's own drivers make of a device is no error of its binding."""
        if self._bus.node(name) is None:
            raise OSError(errno.ENODEV, f"{name}: virtio-blk did not take it")

    def _served_by_hand(self, name: str) -> tuple[Channel, bytes] | None:
        """The channel of a raw device, and the capacity in its config space."""
        nodes = [node for program in self._programs if (node := program.node(name))]
        configs = [program.created[name] for program in self._programs if name in program.created]
        if not nodes or not configs or not configs[-1].config:
            return None
        return nodes[-1].channel, configs[-1].config[:8]

    def _close_disk(self, name: str) -> None:
        if name in self._disks:
            self._disks.pop(name).close()

    def _clean_up(self) -> None:
        """What a test has left: its requests are completed, drivers closed, devices gone."""
        janitor = KernelProgram()
        left = sorted(entry.name for entry in _CLASS.iterdir() if entry.name != "control")
        devices = []
        for name in left:
            self.set_attribute(name, "msg_timeout", self.short_timeout)
            devices.append(RawDevice.open(janitor, name).serve())
            finish_all(devices[-1].node)
        for driver in self._drivers:
            driver.child.end()
        for device in devices:
            if device.name in self._bus.names():
                self.dev_del(device.name)
            device.close()
            janitor.control.destroy_dev(device.name)
        janitor.end()

    def _add(self, program: ChildProgram) -> Program:
        self._programs.append(program)
        return program
