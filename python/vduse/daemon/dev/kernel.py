"""The kernel's bus: generic netlink, sysfs, /dev/vduse."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

from vduse.channel.kernel import KernelControl
from vduse.daemon.dev.errors import KernelRefused, explain, explained
from vduse.daemon.dev.face import Attributes, Changed, Details, Device, Listing, Management
from vduse.daemon.dev.features import feature_names, type_name
from vduse.daemon.dev.operation import (
    CLASS,
    NODES,
    is_served,
    msg_timeout,
    perform,
    read,
    silence,
)
from vduse.daemon.errors import UserError
from vduse.vdpa.drivers import BusDriver, VdpaBus
from vduse.vdpa.messages import ManagementDevice, VdpaDevice
from vduse.vdpa.netlink import VDUSE, VdpaManagement
from vduse.vdpa.uevents import Uevents
from vduse.vdpa.users import programs, requests_in_flight, users

T = TypeVar("T")

#: Seconds for a driver's node; it is there at once, unless a module is to be loaded.
_NODE_TIMEOUT = 10.0


class KernelFace:
    """A :class:`~vduse.daemon.dev.face.VdpaFace`."""

    def __init__(self) -> None:
        """KernelRefused: there is no vDPA."""
        with explained("reach", ""):
            VdpaManagement().close()
        self._bus = VdpaBus()

    def list(self) -> Listing:
        """Devices of VDUSE that are not on the bus come last."""
        found = read("show", "", lambda: _management(lambda vdpa: (vdpa.devices(), _types(vdpa))))
        on_bus = [self._device(device) for device in found[0]]
        names = {device.name for device in on_bus}
        others = [name for name in _created() if name not in names]
        return Listing(
            devices=(*on_bus, *(Device(name, on_bus=False) for name in others)),
            management=found[1],
        )

    def show(self, name: str) -> Details:
        """Statistics are the vendor's: VDUSE has none."""
        if name not in self._bus.names() and name in _created():
            device = Device(name, on_bus=False)
            note = f"not on the bus: vduse dev add {name}"
            return Details(device, _program(name), None, (), {}, no_statistics=note)
        return read("show", name, lambda: _management(lambda vdpa: self._details(vdpa, name)))

    def add(
        self, name: str, management: str, attributes: Attributes, driver: str | None
    ) -> Changed:
        """`vdpa dev add`."""

        def ask() -> None:
            with VdpaManagement() as vdpa:
                vdpa.add(
                    name,
                    management,
                    features=attributes.features,
                    mac=attributes.mac,
                    mtu=attributes.mtu,
                    max_vq_pairs=attributes.max_vq_pairs,
                )
            if driver is not None:
                self._bus.bind(name, BusDriver(driver))

        return self._changed("added", name, perform("add", name, ask))

    def delete(self, name: str, *, force: bool) -> Changed:
        """`vdpa dev del`; then VDUSE_DESTROY_DEV, which the kernel refuses while a program serves
        the device."""
        note = None
        if name in self._bus.names():
            self._check_free(name, force, f"vduse dev del {name}")
            with _hardly_waited_for(name):
                note = perform("del", name, lambda: _management(lambda vdpa: vdpa.delete(name)))
            served = is_served(name)
        elif name not in _created():
            raise explain(OSError(errno.ENODEV, ""), "del", name)
        elif served := is_served(name):
            raise KernelRefused(
                f"{name}: not on the vDPA bus; {_program(name) or 'a program'} serves it: it goes "
                "when that ends"
            )
        if not served:
            _destroy(name)
            note = None  # of a program that has gone
        return self._changed("deleted", name, note)

    def bind(self, name: str, driver: str, *, force: bool) -> Changed:
        """Writes the driver's ``bind``; a driver that has it already keeps it."""
        with explained("show", name):
            current = self._bus.driver(name)
        note = None
        if current != driver:
            self._check_free(name, force, f"vduse dev bind {name} {driver}")
            note = perform("bind", name, lambda: self._bus.bind(name, BusDriver(driver)))
        return self._changed("bound", name, note)

    def unbind(self, name: str, *, force: bool) -> Changed:
        """Writes the driver's ``unbind``."""
        self._check_free(name, force, f"vduse dev unbind {name}")
        note = perform("bind", name, lambda: self._bus.unbind(name))
        return self._changed("unbound", name, note)

    def close(self) -> None:
        """Nothing is open between two calls."""

    def _check_free(self, name: str, force: bool, command: str) -> None:
        """UserError: somebody would lose the disk, or the kernel would wait for ever."""
        with explained("show", name):
            node = self._bus.node(name)
        if node is None:
            return
        held = "; ".join(users(node))
        if held and "vhost" in node:
            # The kernel would wait for it, and everybody for the kernel.
            raise UserError(f"{node} is {held}: stop that first")
        if held and not force:
            raise UserError(
                f"{node} is {held}: let go of it first (umount). {command} --force takes it away "
                "all the same: the kernel writes a file system back, and shuts it down"
            )
        waiting = requests_in_flight(node)
        if waiting and not _answers(name):
            raise UserError(
                f"{waiting} requests of {node} wait for an answer, and the kernel would wait for "
                f"them: {silence(name)}; let it go on, or start it again: it takes the device over"
            )

    def _details(self, vdpa: VdpaManagement, name: str) -> Details:
        found = vdpa.device(name)
        config = vdpa.config(name)
        fields = dict(config.fields)
        offered = int(fields.pop("features", 0))
        chosen = config.negotiated_features
        statistics, why = [], ""
        try:
            statistics = [vdpa.statistics(name, queue) for queue in range(found.max_vqs)]
        except OSError as error:
            why = _no_statistics(error, found.management)
        return Details(
            device=self._device(found),
            program=_program(name),
            features=None if chosen is None else feature_names(chosen, found.device_id),
            offered=feature_names(offered, found.device_id),
            config=fields,
            statistics=tuple(statistics),
            no_statistics=why,
        )

    def _device(self, found: VdpaDevice) -> Device:
        driver = node = None
        with suppress(OSError):  # it has just left
            driver, node = self._bus.driver(found.name), self._bus.node(found.name)
        return Device(
            name=found.name,
            on_bus=True,
            type=type_name(found.device_id),
            management=found.management,
            driver=driver,
            node=node,
            max_vqs=found.max_vqs,
            max_vq_size=found.max_vq_size,
        )

    def _changed(self, event: str, name: str, note: str | None) -> Changed:
        """The device as it is now; of a device with a driver, when its node is there."""
        device = Device(name, on_bus=False)
        with suppress(OSError, KernelRefused):
            if self._bus.driver(name) is not None and note is None:
                with Uevents() as events:
                    events.wait(lambda: self._bus.node(name), _NODE_TIMEOUT)
            device = read(
                "show", name, lambda: self._device(_management(lambda vdpa: vdpa.device(name)))
            )
        return Changed(event, device, (note,) if note else ())


def _management(call: Callable[[VdpaManagement], T]) -> T:
    with VdpaManagement() as vdpa:
        return call(vdpa)


def _types(vdpa: VdpaManagement) -> tuple[Management, ...]:
    def of(found: ManagementDevice) -> Management:
        types = tuple(type_name(number) for number in sorted(found.device_ids))
        return Management(found.name, types, found.max_vqs)

    return tuple(of(found) for found in vdpa.management_devices())


def _created() -> list[str]:
    """Devices of VDUSE."""
    names = {path.name for path in CLASS.iterdir()} if CLASS.is_dir() else set()
    return sorted(names - {"control"})


def _program(name: str) -> str | None:
    found = programs(NODES / name)
    return str(found[0]) if found else None


def _answers(name: str) -> bool:
    if not (NODES / name).exists():
        return True  # no device of VDUSE's: its hardware does
    return is_served(name) and not any(program.stopped for program in programs(NODES / name))


@contextmanager
def _hardly_waited_for(name: str) -> Iterator[None]:
    """The kernel waits a second for a program that is not there, and afterwards, where the device
    is left, as long as before. OSError: then `vdpa dev del` is refused, too, or takes longer."""
    seconds = msg_timeout(name)
    if not seconds or is_served(name):
        yield
        return
    attribute = CLASS / name / "msg_timeout"
    with suppress(OSError):
        attribute.write_text("1")
    try:
        yield
    finally:
        with suppress(OSError):
            attribute.write_text(f"{seconds:.0f}")


def _destroy(name: str) -> None:
    if not (NODES / name).exists():
        return
    control = KernelControl()
    try:
        with explained("del", name):
            control.destroy_dev(name)
    finally:
        control.close()


def _no_statistics(error: OSError, management: str) -> str:
    if error.errno == errno.EOPNOTSUPP and management == VDUSE:
        return "the kernel counts none of VDUSE's: kill -USR1 to its program prints its own"
    if error.errno == errno.EOPNOTSUPP:
        return "the device's vendor counts none"
    if error.errno == errno.EPERM:
        return "reading them takes CAP_NET_ADMIN: run it as root"
    return error.strerror or str(error)
