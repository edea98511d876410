"""The bus of the framework in this process."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

from vduse.bus.errors import DeviceNotFound
from vduse.control.features import DeviceId
from vduse.daemon.dev.face import Attributes, Changed, Details, Device, Listing, Management
from vduse.daemon.dev.features import feature_names, type_name
from vduse.daemon.errors import UserError
from vduse.devices.blk_config import BlkConfig
from vduse.framework import Framework

#: The only management device that there is.
_MANAGEMENT = "vduse"


class Export(Protocol):
    """What shows a disk to its users outside: it follows the bus driver."""

    def place(self, name: str) -> str | None:
        """Where the device's users find it; None: nowhere now."""

    def clients(self, name: str) -> int:
        """How many use it now."""

    def withdraw(self, name: str) -> None:
        """The driver is about to leave the device."""

    def offer(self, name: str) -> None:
        """A driver may have taken it. UserError."""


class EmbeddedFace:
    """A :class:`~vduse.daemon.dev.face.VdpaFace`, for one thread at a time."""

    def __init__(
        self, framework: Framework, export: Export, program: Callable[[], str] | None = None
    ) -> None:
        """``program``: who serves the devices, for people to read; None: this process."""
        self._framework = framework
        self._export = export
        self._program = program or _this_process

    def list(self) -> Listing:
        """Devices that are not on the bus, too."""
        types = tuple(type_name(number) for number in sorted(self._framework.device_ids))
        return Listing(
            devices=tuple(map(self._device, self._framework.devices)),
            management=(Management(_MANAGEMENT, types, 0),),
        )

    def show(self, name: str) -> Details:
        """Statistics are the program's."""
        with _told():
            found = self._framework.device(name)
        with found.lock:
            chosen, config = found.driver_features, bytes(found.config)
        return Details(
            device=self._device(name),
            program=self._program(),
            features=feature_names(chosen, found.device_id) if chosen else None,
            offered=feature_names(found.device_features, found.device_id),
            config=_config(found.device_id, config),
            no_statistics=f"kill -USR1 {os.getpid()} prints them",
        )

    def add(
        self, name: str, management: str, attributes: Attributes, driver: str | None
    ) -> Changed:
        """Without ``driver``: virtio_vdpa."""
        if management != _MANAGEMENT:
            raise UserError(f"no management device {management}: there is {_MANAGEMENT}")
        if attributes.mtu is not None:
            raise UserError("the embedded framework sets no MTU: leave out --mtu")
        mac = bytes.fromhex(attributes.mac.replace(":", "")) if attributes.mac else None
        with _told():
            self._framework.dev_add(
                name,
                mac=mac,
                features=attributes.features,
                vq_pairs=attributes.max_vq_pairs,
                driver=driver or "virtio_vdpa",
            )
        return self._offered("added", name)

    def delete(self, name: str, *, force: bool) -> Changed:
        """The device itself stays: its program serves it."""
        with self._withdrawn(name, force):
            self._framework.dev_del(name)
        return Changed("deleted", self._device(name))

    def bind(self, name: str, driver: str, *, force: bool) -> Changed:
        """A driver that has it already keeps it."""
        if self._device(name).driver != driver:
            with self._withdrawn(name, force):
                self._framework.bus.bind(name, driver)
        return self._offered("bound", name)

    def unbind(self, name: str, *, force: bool) -> Changed:
        """It stays on the bus."""
        with self._withdrawn(name, force):
            self._framework.bus.unbind(name)
        return Changed("unbound", self._device(name))

    def close(self) -> None:
        """The framework is somebody else's."""

    @contextmanager
    def _withdrawn(self, name: str, force: bool) -> Iterator[None]:
        """UserError: somebody uses it, or what is done inside fails; then it is offered again."""
        with _told():
            if name not in self._framework.bus.devices:
                raise DeviceNotFound(f"{name} is not on the vDPA bus")
            if not force and (clients := self._export.clients(name)):
                raise UserError(f"{name} is in use (clients: {clients}): end them, or --force")
            try:
                self._export.withdraw(name)
                yield
            except BaseException:
                self._export.offer(name)
                raise

    def _offered(self, event: str, name: str) -> Changed:
        self._export.offer(name)
        return Changed(event, self._device(name))

    def _device(self, name: str) -> Device:
        bus = self._framework.bus.devices
        device = Device(name, on_bus=name in bus)
        with suppress(DeviceNotFound):
            found = self._framework.device(name)
            device = dataclasses.replace(
                device,
                type=type_name(found.device_id),
                management=_MANAGEMENT,
                driver=bus.get(name),
                node=self._export.place(name),
                max_vqs=len(found.vqs),
                max_vq_size=max((vq.num_max for vq in found.vqs), default=0),
            )
        return device


def _this_process() -> str:
    return f"this process (pid {os.getpid()})"


def _config(device_id: int, space: bytes) -> dict[str, int | str]:
    """As the kernel names the fields of a block device; else the bytes."""
    if device_id == DeviceId.BLOCK and len(space) >= BlkConfig.SIZE:
        fields = dataclasses.asdict(BlkConfig.unpack(space))
        return {f"blk_cfg_{name}": value for name, value in fields.items()}
    return {"bytes": space.hex()}


@contextmanager
def _told() -> Iterator[None]:
    """What the framework raises at a user."""
    try:
        yield
    except OSError as error:
        raise UserError(error.strerror or str(error)) from error
