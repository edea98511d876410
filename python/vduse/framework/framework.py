"""The embedded framework: the kernel's part of VDUSE, in this process.

Threads: the *service thread* answers device programs, the *work thread* runs what config
interrupts start, the *shrinker* reclaims bounce pages, the *kick relay* (in Rust) turns kick
eventfds of vhost_vdpa users into kicks. Bus operations (``dev_add``, ``bind``,
resets) run on their caller's thread and wait there for the device.

Locks, in the order in which they may be taken; only the first is held while waiting for a
device, and the service thread never takes it:

1. the bus's lock and that of an open vhost_vdpa (vduse.bus)
2. ``Framework._lock``: which devices there are
3. ``VduseDevice.lock``: one device's state
4. the locks inside MessageQueue, WorkQueue, Service and the native classes
"""

from __future__ import annotations

import atexit
import errno
import logging
import os
import socket
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Self, TypeVar

from vduse import _native
from vduse.bus.bus import Bus
from vduse.bus.class_driver import ClassDriverType
from vduse.bus.disk import Disk
from vduse.bus.errors import DeviceBusy, DeviceExists, DeviceNotFound, VdpaError
from vduse.bus.virtio_vdpa import CLASS_DRIVERS
from vduse.channel.tap import Tap
from vduse.control.abi import DevConfig
from vduse.framework.dev_add import provision
from vduse.framework.device import (
    MAX_BOUNCE_SIZE,
    MAX_MSG_TIMEOUT,
    MIN_BOUNCE_SIZE,
    VduseDevice,
)
from vduse.framework.endpoints import Listener, add_control, open_device
from vduse.framework.irq import WorkQueue
from vduse.framework.nodes import Nodes
from vduse.framework.profile import find_profile
from vduse.framework.service import Service
from vduse.framework.shrinker import Reclaimable, Shrinker
from vduse.framework.vdpa_device import Provision, VdpaDevice

log = logging.getLogger(__name__)

T = TypeVar("T")

DEFAULT_BOUNCE_SIZE = 64 << 20
DEFAULT_MSG_TIMEOUT = 30.0

_CLOSED = "the framework was closed"


class Framework:
    """Control node, devices and vDPA bus. A context manager; leaving it closes it."""

    def __init__(
        self,
        profile: str = "6.12",
        *,
        bounce_size: int = DEFAULT_BOUNCE_SIZE,
        msg_timeout: float = DEFAULT_MSG_TIMEOUT,
        tap: Tap | None = None,
        device_ids: Iterable[int] = (),
        class_drivers: Mapping[int, ClassDriverType] | None = None,
    ) -> None:
        """``profile``: which kernel to play (6.12, 7.2). ``bounce_size`` (bytes) and
        ``msg_timeout`` (seconds, 0: for ever) are new devices' attributes. ``tap`` sees
        everything that crosses the channels. ``device_ids``: virtio device ids that CREATE_DEV
        takes beside that kernel's own. ``class_drivers``: of your own, by virtio device id,
        beside or instead of ours. ValueError: no such profile, or an attribute out of its
        range."""
        known = find_profile(profile)
        self._profile = replace(known, device_ids=known.device_ids | frozenset(device_ids))
        if not MIN_BOUNCE_SIZE <= bounce_size <= MAX_BOUNCE_SIZE:
            raise ValueError(f"bounce_size: {bounce_size} is not between 1 MiB and 1 GiB")
        if not 0 <= msg_timeout <= MAX_MSG_TIMEOUT:
            raise ValueError(f"msg_timeout: {msg_timeout} is not between 0 and {MAX_MSG_TIMEOUT} s")
        self._bounce_size = bounce_size
        self._msg_timeout = msg_timeout
        self._tap = tap
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._devices: dict[str, VduseDevice] = {}
        self._attached: dict[str, VdpaDevice] = {}
        self._closed = False
        self._work = WorkQueue("vduse-work")
        self._service = Service("vduse-service")
        self._kicks = _native.KickRelay()
        self._bus = Bus(self._kicks, {**CLASS_DRIVERS, **(class_drivers or {})})
        self._shrinker = Shrinker(self._reclaimable)
        _open.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def bus(self) -> Bus:
        """The vDPA bus: bind and unbind drivers there."""
        return self._bus

    @property
    def device_ids(self) -> frozenset[int]:
        """Virtio device ids that CREATE_DEV takes."""
        return self._profile.device_ids

    @property
    def shrinker(self) -> Shrinker:
        """Reclaim on command, and its metrics."""
        return self._shrinker

    # --- device side ------------------------------------------------------------------------

    def control(self) -> int:
        """A new control connection, as the fd of its other end (the caller's; close-on-exec):
        for :class:`vduse.channel.embedded` here, or for a child that inherits it."""
        self._check_usable()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        add_control(self._service, ours, self, self._profile, self._tap)
        return theirs.detach()

    def listen(self, path: str | os.PathLike[str]) -> None:
        """Takes control connections of other programs of this user at a socket, until
        :meth:`close`. OSError EADDRINUSE. ValueError: an empty path."""
        self._check_usable()
        if not os.fspath(path):
            # bind(2) would choose an abstract name, which file modes do not guard.
            raise ValueError("listen: needs a path")
        self._service.add(Listener(self._service, os.fspath(path), self, self._profile, self._tap))

    @property
    def devices(self) -> dict[str, VduseDevice]:
        """The devices there are, by name (a copy)."""
        with self._lock:
            return dict(self._devices)

    def device(self, name: str) -> VduseDevice:
        """A device, with its attributes ``msg_timeout`` and ``bounce_size``. DeviceNotFound."""
        with self._lock:
            return self._find(name)

    # --- vDPA management --------------------------------------------------------------------

    def dev_add(
        self,
        name: str,
        *,
        mac: bytes | None = None,
        features: int | None = None,
        vq_pairs: int | None = None,
        driver: str | None = "virtio_vdpa",
        vdpa_type: Callable[[VduseDevice, Provision], VdpaDevice] = VdpaDevice,
    ) -> VdpaDevice:
        """Puts a device on the vDPA bus (`vdpa dev add`) and binds ``driver`` (None: leaves it
        unbound). ``features``: offer these only. ``mac`` (6 bytes) and ``vq_pairs``: of a net
        device. ``vdpa_type``: what the bus's drivers call the device through, one that does more
        than ours. If the driver does not take it, the device leaves the bus again.

        Waits for the device. DeviceNotFound, DeviceExists, OSError EINVAL, EOPNOTSUPP, and
        whatever the driver raises."""
        self._check_usable()
        with self._lock:
            device = self._find(name)
            vdpa = vdpa_type(device, provision(device, mac, features, vq_pairs))
            self._attached[name] = vdpa
        try:
            self._bus.add(vdpa)
            if driver is not None:
                self._bus.bind(name, driver)
        except BaseException:
            with suppress(DeviceNotFound):  # another thread's dev_del was quicker
                self._leave_bus(vdpa)
            raise
        log.info("%s: on the vDPA bus, driver %s", name, driver or "none")
        return vdpa

    def dev_del(self, name: str) -> None:
        """Takes a device off the bus (`vdpa dev del`); waits for its reset, at most
        msg_timeout. DeviceNotFound; DeviceBusy: a vhost_vdpa user has it open."""
        self._check_usable()
        with self._lock:
            vdpa = self._attached.get(name)
        if vdpa is None:
            raise DeviceNotFound(f"{name} is not on the vDPA bus")
        self._leave_bus(vdpa)
        log.info("%s: off the vDPA bus", name)

    def driver(self, name: str, kind: type[T]) -> T:
        """The class driver, one of ``kind``, of a device bound to virtio_vdpa. DeviceNotFound,
        NoDriver."""
        return self._bus.driver(name, kind)

    def disk(self, name: str) -> Disk:
        """The disk of a virtio-blk device bound to virtio_vdpa. DeviceNotFound, NoDriver."""
        return self._bus.disk(name)

    def close(self) -> None:
        """Ends everything, waiting for no device: outstanding messages fail, disks raise
        ENODEV, device programs see the end of their connections."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            if self._closed:
                return
            self._closed = True
            devices = list(self._devices.values())
        for device in devices:
            device.messages.break_device(_CLOSED, logging.DEBUG)
        self._bus.close()
        self._kicks.close()
        self._shrinker.close()
        self._service.close()
        self._work.close()
        with self._lock:
            devices = list(self._devices.values())
            self._devices.clear()
            self._attached.clear()
        for device in devices:
            device.messages.break_device(_CLOSED, logging.DEBUG)  # created while we closed
            device.release()

    # --- DeviceTable: for control nodes -----------------------------------------------------

    def create(self, config: DevConfig, api_version: int) -> None:
        """CREATE_DEV, checked. DeviceExists: the name is taken."""
        with self._lock:
            if config.name in self._devices:
                raise DeviceExists(f"there is a device {config.name} already")
            self._devices[config.name] = VduseDevice(
                config,
                self._profile,
                api_version,
                self._work,
                bounce_size=self._bounce_size,
                msg_timeout=self._msg_timeout,
            )
        log.info("%s: created", config.name)

    def destroy(self, name: str) -> None:
        """DESTROY_DEV. DeviceNotFound; DeviceBusy: attached or open."""
        self.device(name).look_at_opener()  # may tell a tap: not under our lock
        with self._lock:
            device = self._find(name)
            with device.lock:
                if device.attached:
                    raise DeviceBusy(f"{name} is on the vDPA bus: dev_del it first")
                if device.connected:
                    raise DeviceBusy(f"{name} is open in its device's program")
                device.destroyed = True
            del self._devices[name]
        device.reset()
        device.release()
        log.info("%s: destroyed", name)

    def open(self, name: str) -> list[int]:
        """OPEN. OSError ENOENT, ENODEV, EBUSY."""
        device = self.devices.get(name)
        if device is None:
            raise OSError(errno.ENOENT, f"no device {name}")
        return open_device(self._service, device, self._tap)

    # --- for other transports of calls than sockets -----------------------------------------

    @property
    def nodes(self) -> Nodes:
        """Control and device nodes by themselves, and the thread that serves them."""
        self._check_usable()
        return Nodes(self._service, self, self._profile, self._tap)

    # --- inside -----------------------------------------------------------------------------

    def _find(self, name: str) -> VduseDevice:
        device = self._devices.get(name)
        if device is None:
            known = ", ".join(self._devices) or "none"
            raise DeviceNotFound(f"no device {name!r}; there are: {known}")
        return device

    def _leave_bus(self, vdpa: VdpaDevice) -> None:
        self._bus.remove(vdpa)
        with self._lock:
            self._attached.pop(vdpa.name, None)
        vdpa.detach()

    def _reclaimable(self) -> list[Reclaimable]:
        return [device for device in self.devices.values() if device.domain is not None]

    def _check_usable(self) -> None:
        if os.getpid() != self._pid:
            raise VdpaError("this framework belongs to the parent process: make one here")
        if self._closed:
            raise VdpaError("the framework is closed")


#: For the end of the interpreter: its threads end then, and no message would be answered.
_open: weakref.WeakSet[Framework] = weakref.WeakSet()


@atexit.register
def _stop_waiting() -> None:
    # Disks go on to the end: other threads still use them.
    for framework in list(_open):
        # A forked child has copies of locks that nobody will release.
        devices = framework.devices if framework._pid == os.getpid() else {}
        for device in devices.values():
            device.messages.break_device("the program has ended", logging.DEBUG)
