"""What the guest's tests share: the modules, control ports, disks on the kernel's bus."""

from __future__ import annotations

import mmap
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.waiting import eventually
from vduse.channel.kernel import KernelControl
from vduse.devices.blk import BlkDevice
from vduse.vdpa.drivers import BusDriver, VdpaBus
from vduse.vdpa.netlink import VdpaManagement

MIB = 1 << 20
#: What a host installs for ordinary users.
PACKAGING = Path(__file__).parents[3] / "packaging"
MODULES = ("vduse", "virtio_vdpa", "vhost_vdpa", "virtio_blk")


def newest_api_version() -> int:
    """What this kernel knows: 0 of Linux 6, 1 of Linux 7."""
    return 0 if os.uname().release.startswith("6.") else 1


def load_modules() -> None:
    """modprobe of all that is needed. virtio_vdpa is the first bus driver: it takes new devices."""
    run("modprobe", "-r", "vhost_vdpa")
    run("modprobe", "-a", *MODULES)


def run(*argv: str) -> str:
    """A program that must succeed; what it printed."""
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, f"{argv}: exit {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def errno_of(call: Callable[..., object], *args: object, **named: object) -> int | None:
    """The errno of a call that must fail."""
    with pytest.raises(OSError) as failed:
        call(*args, **named)
    return failed.value.errno


@contextmanager
def on_the_bus(device: BlkDevice, control: KernelControl) -> Iterator[str]:
    """``device`` served and on the vDPA bus; /dev/vdX. Afterwards it is gone from both."""
    device.start(control)
    try:
        with VdpaManagement() as vdpa:
            vdpa.add(device.name)
            try:
                yield node_of(device.name)
            finally:
                vdpa.delete(device.name)
    finally:
        device.close(destroy=True)


class InThread:
    """``vdpa dev add`` or ``del`` on a thread of its own, for who answers its messages here."""

    def __init__(self, call: Callable[[VdpaManagement], None]) -> None:
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._run, args=(call,))
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether it has returned."""
        return not self._thread.is_alive()

    def result(self) -> int | None:
        """Waits for the end; errno, None if all went well."""
        self._thread.join()
        return self._error.errno if self._error else None

    def _run(self, call: Callable[[VdpaManagement], None]) -> None:
        try:
            with VdpaManagement() as vdpa:
                call(vdpa)
        except OSError as error:
            self._error = error


def set_msg_timeout(name: str, seconds: int) -> None:
    """How long the kernel waits for the device's program."""
    Path(f"/sys/class/vduse/{name}/msg_timeout").write_text(str(seconds))


def node_of(name: str) -> str:
    """The node that the driver makes of a device."""
    return eventually(lambda: VdpaBus().node(name), f"node of {name}")


def rebind(name: str, driver: BusDriver) -> str:
    """Gives the device to another bus driver; its new node."""
    VdpaBus().bind(name, driver)
    return node_of(name)


def write_direct(path: str, offset: int, data: bytes) -> None:
    """Past the page cache; multiples of 4096 bytes."""
    with mmap.mmap(-1, len(data)) as buffer:  # page-aligned
        buffer[:] = data
        fd = os.open(path, os.O_WRONLY | os.O_DIRECT)
        try:
            assert os.pwritev(fd, [buffer], offset) == len(data)
        finally:
            os.close(fd)


def read_direct(path: str, offset: int, length: int) -> bytes:
    """Past the page cache; multiples of 4096 bytes."""
    with mmap.mmap(-1, length) as buffer:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
        try:
            assert os.preadv(fd, [buffer], offset) == length
        finally:
            os.close(fd)
        return buffer[:]
