"""Whole stacks in one call, for tests and figures.

with blk_stack(backend="memory", queues=2) as stack:
    stack.disk.pwrite(data, 0)

with blk_stack(backend="null", driver="vhost_vdpa", where="child") as stack:
    stack.driver.get_features()
    stack.kill_device()
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Literal

from vduse import _native
from vduse.backends.python import PythonBackend
from vduse.bus.disk import Disk
from vduse.bus.driver import Driver
from vduse.channel.embedded import inherited
from vduse.channel.tap import Tap
from vduse.devices.blk import BlkDevice
from vduse.devices.local import local_blk
from vduse.exports.vhost_user import VhostUserServer
from vduse.framework.framework import DEFAULT_BOUNCE_SIZE, DEFAULT_MSG_TIMEOUT, Framework
from vduse.framework.vdpa_device import VdpaDevice
from vduse.testing.closing import Closing

Where = Literal["process", "child"]
BusDriver = Literal["virtio_vdpa", "vhost_vdpa"]


@dataclass(frozen=True, kw_only=True)
class BlkSpec:
    """A block device: see :class:`vduse.devices.blk.BlkDevice` and
    :func:`vduse.backends.spec.open_backend`."""

    name: str = "disk0"
    #: As on the command line; or an object, which stays the caller's.
    backend: str | _native.Backend | PythonBackend = "memory"
    #: Bytes of null and memory, None: 64 MiB. Files have their own.
    size: int | None = None
    queues: int = 1
    queue_size: int = 128
    packed: bool = False
    read_only: bool = False
    direct: bool = False
    serial: str = ""
    umem: bool = False
    #: As ``--layer`` spells them, from the backend upwards.
    layers: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.size is None and self.backend in ("null", "memory"):
            object.__setattr__(self, "size", 64 << 20)


class LocalDevice:
    """A device in this process."""

    def __init__(self, framework: Framework, spec: BlkSpec) -> None:
        with ExitStack() as undo:
            control = inherited(framework.control())
            undo.callback(control.close)
            #: The device itself.
            self.blk = undo.enter_context(
                local_blk(
                    control,
                    spec.name,
                    spec.backend,
                    size=spec.size,
                    direct=spec.direct,
                    layers=spec.layers,
                    queues=spec.queues,
                    queue_size=spec.queue_size,
                    packed=spec.packed,
                    read_only=spec.read_only,
                    serial=spec.serial,
                    umem=spec.umem,
                )
            )
            self._exits = undo.pop_all()

    @property
    def serving(self) -> bool:
        """Whether it answers the framework."""
        return self.blk.ended is None

    def close(self) -> None:
        """Drains; the framework keeps the device."""
        self._exits.close()


class ChildDevice:
    """A device in a child process (``python -m vduse.devices.child``)."""

    def __init__(self, framework: Framework, spec: BlkSpec) -> None:
        if not isinstance(spec.backend, str):
            raise ValueError("a child opens its backend itself: give it as text")
        fd = framework.control()
        try:
            arguments = json.dumps(asdict(spec) | {"control_fd": fd})
            #: The child; kill it to see what a crash does.
            self.process = subprocess.Popen(
                [sys.executable, "-m", "vduse.devices.child", arguments],
                pass_fds=[fd],
                stdout=subprocess.PIPE,
                text=True,
            )
        finally:
            os.close(fd)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if line != f"ready {spec.name}\n":
            self.kill()
            raise ChildProcessError(f"the device did not start: {line.strip() or 'no word'}")

    @property
    def serving(self) -> bool:
        """Whether it lives."""
        return self.process.poll() is None

    def kill(self) -> None:
        """SIGKILL: no farewell to anybody."""
        self.process.kill()
        self._reap()

    def close(self) -> None:
        """SIGTERM; the device drains."""
        self.process.terminate()
        self._reap()

    def _reap(self) -> None:
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


class BlkStack:
    """A framework, a block device in this process or in a child, a bus driver on it."""

    def __init__(
        self, framework: Framework, spec: BlkSpec, where: Where, driver: BusDriver | None
    ) -> None:
        self.framework = framework
        self.spec = spec
        self._where: Where = where
        self.device: LocalDevice | ChildDevice = self._make_device()
        try:
            #: The device on the vDPA bus.
            self.vdpa: VdpaDevice = framework.dev_add(spec.name, driver=driver)
        except BaseException:
            self.device.close()
            raise
        self._driver: Driver | None = None

    @property
    def disk(self) -> Disk:
        """The disk under virtio_vdpa."""
        return self.framework.disk(self.spec.name)

    @property
    def native(self) -> _native.BlkDriver:
        """The virtio-blk driver under virtio_vdpa."""
        return self.disk.driver

    @property
    def driver(self) -> Driver:
        """The vhost_vdpa device, opened at first use."""
        if self._driver is None:
            self._driver = self.framework.bus.vhost(self.spec.name).open()
        return self._driver

    @property
    def blk(self) -> BlkDevice:
        """The device, where it is in this process."""
        assert isinstance(self.device, LocalDevice)
        return self.device.blk

    def close_driver(self) -> None:
        """The vhost_vdpa device is nobody's, until it is used again."""
        if self._driver is not None:
            self._driver.close()
            self._driver = None

    def kill_device(self) -> None:
        """Ends the child at once; what it had in flight stays in flight."""
        assert isinstance(self.device, ChildDevice)
        self.device.kill()

    def replace_device(self) -> None:
        """A new device takes the place of one that was closed or killed."""
        self.device = self._make_device()

    def close(self) -> None:
        """From the driver to the device."""
        with ExitStack() as exits:
            exits.callback(self.device.close)
            # Nobody would answer the reset of one that has ended; the framework's close waits
            # for nobody.
            if self.device.serving and self.spec.name in self.framework.bus.devices:
                exits.callback(self.framework.dev_del, self.spec.name)
            exits.callback(self.close_driver)

    @contextmanager
    def vhost_user(self) -> Iterator[str]:
        """The path of a vhost-user socket in front of the device under vhost_vdpa, which nobody
        has open; serves one front end after the other until the end."""
        with tempfile.TemporaryDirectory(prefix="vduse-") as folder:
            path = os.path.join(folder, "vhost-user.sock")
            with VhostUserServer(self.framework.bus.vhost(self.spec.name), path):
                yield path

    def _make_device(self) -> LocalDevice | ChildDevice:
        if self._where == "child":
            return ChildDevice(self.framework, self.spec)
        return LocalDevice(self.framework, self.spec)


@contextmanager
def blk_stack(
    *,
    backend: str | _native.Backend | PythonBackend = "memory",
    size: int | None = None,
    name: str = "disk0",
    queues: int = 1,
    queue_size: int = 128,
    packed: bool = False,
    read_only: bool = False,
    direct: bool = False,
    serial: str = "",
    umem: bool = False,
    layers: Sequence[str] = (),
    driver: BusDriver | None = "virtio_vdpa",
    where: Where = "process",
    profile: str = "6.12",
    bounce_size: int = DEFAULT_BOUNCE_SIZE,
    msg_timeout: float = DEFAULT_MSG_TIMEOUT,
    tap: Tap | None = None,
) -> Iterator[BlkStack]:
    """A framework of its own with one block device, bound to ``driver`` (None: to none)."""
    spec = BlkSpec(
        name=name,
        backend=backend,
        size=size,
        queues=queues,
        queue_size=queue_size,
        packed=packed,
        read_only=read_only,
        direct=direct,
        serial=serial,
        umem=umem,
        layers=layers,
    )
    framework = Framework(profile, bounce_size=bounce_size, msg_timeout=msg_timeout, tap=tap)
    with framework:
        stack = BlkStack(framework, spec, where, driver)
        try:
            yield stack
        finally:
            stack.close()


class BlkPark(Closing):
    """Many devices on one framework, all in this process."""

    def __init__(self) -> None:
        self.framework = Framework()
        self._devices: dict[str, LocalDevice] = {}

    def add(self, spec: BlkSpec, driver: BusDriver | None = "virtio_vdpa") -> VdpaDevice:
        """One more device, on the bus."""
        device = LocalDevice(self.framework, spec)
        self._devices[spec.name] = device
        return self.framework.dev_add(spec.name, driver=driver)

    def device(self, name: str) -> LocalDevice:
        """The device side of one that was added. KeyError."""
        return self._devices[name]

    def close(self) -> None:
        """All of them, then the rest."""
        for name, device in self._devices.items():
            if name in self.framework.bus.devices:
                self.framework.dev_del(name)
            device.close()
        self._devices.clear()
        self.framework.close()
