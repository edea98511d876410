"""A disk of the kernel's: on its vDPA bus, as /dev/vdX or /dev/vhost-vdpa-N."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress

from vduse.channel.base import ControlPort
from vduse.channel.kernel import KernelControl
from vduse.control.statistics import Statistics, collect
from vduse.daemon.blk.attachment import Reach
from vduse.daemon.dev.errors import KernelRefused, explained
from vduse.daemon.errors import UserError
from vduse.device.within import within
from vduse.devices.blk import BlkDevice
from vduse.vdpa.drivers import BusDriver, VdpaBus
from vduse.vdpa.netlink import VdpaManagement
from vduse.vdpa.uevents import Uevents
from vduse.vdpa.users import users

#: Seconds for `vdpa dev add`, `vdpa dev del` or a driver's probe: longer than the kernel's
#: msg_timeout, so that its own verdict comes first.
_BUS_TIMEOUT = 60.0
#: Seconds for udev to load the virtio driver, where it is not.
_NODE_TIMEOUT = 10.0


class KernelAttachment:
    """An :class:`~vduse.daemon.blk.attachment.Attachment`."""

    def __init__(
        self,
        name: str,
        driver: BusDriver,
        *,
        tapped: Callable[[ControlPort], ControlPort] = lambda control: control,
    ) -> None:
        """``tapped`` puts a tap on the port. KernelRefused: no module, no permission."""
        self._name = name
        self._driver = driver
        self._bus = VdpaBus()
        if not self._bus.has_driver(driver):
            raise KernelRefused(
                f"the kernel's vDPA bus driver {driver} is not loaded: as root: "
                f"modprobe -a vduse virtio_blk {driver}"
            )
        with explained("reach", name):
            VdpaManagement().close()
            control = KernelControl()
        if name not in self._bus.names():
            # One that an earlier program left, with no driver: there is nothing to go on with, and
            # the kernel may have given it up. EBUSY (served): starting says it better.
            with suppress(OSError):
                control.destroy_dev(name)
        self._control = tapped(control)

    @property
    def control(self) -> ControlPort:
        """/dev/vduse/control."""
        return self._control

    def attach(self, device: BlkDevice) -> Reach:
        """Puts it on the bus, where it is not (taken over), and waits for its node."""
        name = self._name
        taken_over = name in self._bus.names()
        if taken_over:
            self._check_driver()
        with Uevents() as events:
            if not taken_over:
                with explained("add", name):
                    _bounded(lambda: _management(lambda vdpa: vdpa.add(name)), f"adding {name}")
            with explained("bind", name):
                _bounded(lambda: self._bus.bind(name, self._driver), f"binding {self._driver}")
            node = events.wait(self._node, _NODE_TIMEOUT)
        if node is None and taken_over:
            raise UserError(
                f"{self._driver} did not take {name}, which an earlier program left, made with "
                "other options perhaps: start again, then it is made anew"
            )
        if node is None:
            raise KernelRefused(
                f"{self._driver} has {name}, and no node came within {_NODE_TIMEOUT:g} s: as root: "
                "modprobe virtio_blk; the kernel's log may say more: dmesg"
            )
        return Reach(driver=self._driver, node=node)

    def users(self) -> tuple[str, ...]:
        """Of the node that there is now: another driver may have been bound."""
        node = self._node()
        return tuple(f"{node} is {user}" for user in users(node)) if node else ()

    def left(self) -> str:
        """The kernel keeps the device for the next program of its name."""
        if not os.path.exists(f"/dev/vduse/{self._name}"):
            return ""
        return (
            f"{self._name} is left on the kernel's bus, its requests wait: the same command takes "
            f"it over, vduse dev del {self._name} removes it"
        )

    def statistics(self, device: BlkDevice) -> Statistics:
        """Of the device; the kernel counts the disk's in /sys/block."""
        return collect(devices=[device], pools=[device.pool])

    def detach(self, *, answering: bool) -> str | None:
        """Takes it off the bus; the kernel writes its caches back first. Where somebody uses it, it
        is left, whatever the end's reason: they would lose it, and where the device does not answer
        that would wait for ever, and all of the bus with it."""
        if self._name not in self._bus.names():
            return None
        if held := self.users():
            return f"{'; '.join(held)}; {self.left()}"
        try:
            _bounded(self._delete, f"taking {self._name} off the vDPA bus")
        except OSError as error:
            return f"{error.strerror or error}; {self.left()}"
        return None

    def close(self) -> str | None:
        """Destroys the device, where it has left the bus."""
        try:
            self._control.destroy_dev(self._name)
        except OSError as error:
            # EINVAL: there is none, or no longer.
            if error.errno != errno.EINVAL:
                return self.left() or str(error)
        finally:
            self._control.close()
        return None

    def _check_driver(self) -> None:
        """UserError: taking it over would take it from somebody. It may have been bound anew since
        its last program was started."""
        driver = self._bus.driver(self._name)
        if driver not in (None, self._driver) and (held := self.users()):
            raise UserError(
                f"{self._name}: {'; '.join(held)}: that ends first, or --driver {driver}"
            )

    def _delete(self) -> None:
        try:
            _management(lambda vdpa: vdpa.delete(self._name))
        except OSError as error:
            # ENODEV: somebody else was quicker.
            if error.errno != errno.ENODEV:
                raise

    def _node(self) -> str | None:
        try:
            node = self._bus.node(self._name)
        except OSError:  # off the bus
            return None
        return node if node and os.path.exists(node) else None


def _management(call: Callable[[VdpaManagement], None]) -> None:
    with VdpaManagement() as vdpa:
        call(vdpa)


def _bounded(call: Callable[[], None], what: str) -> None:
    """On a thread of its own: in this one no second signal could end the program, as the kernel
    waits for what the device's backend does."""
    within(_BUS_TIMEOUT, call, what)
