"""Exports at sockets: a device on the framework of this process, and a door to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, suppress

from vduse.bus.errors import DeviceBusy, DeviceNotFound, VdpaError
from vduse.control.refusals import in_words
from vduse.daemon.qmp.arguments import Mistake
from vduse.daemon.qmp.errors import QmpError
from vduse.daemon.storage.exports.export import Export, ExportOptions, Host, close_device, start
from vduse.daemon.storage.nodes.node import Node
from vduse.devices.blk import BlkDevice
from vduse.framework import Framework

#: VDUSE's names have room for this many bytes.
_LONGEST_ID = 255


def id_mistakes(options: ExportOptions) -> Iterator[Mistake]:
    """The device is called as the export."""
    if len(options.id.encode()) > _LONGEST_ID:
        yield Mistake("id", f"Parameter 'id' expects at most {_LONGEST_ID} bytes")


class EmbeddedExport(Export):
    """The base of such."""

    def __init__(
        self, options: ExportOptions, node: Node, host: Host, device: BlkDevice, driver: str
    ) -> None:
        """Puts ``device`` on the bus, bound to ``driver``. QmpError."""
        super().__init__(options, node)
        self._device = device
        self._framework, control = host.embedded()
        with ExitStack() as undo:
            start(device, control)
            undo.callback(close_device, device)
            try:
                self._framework.dev_add(device.name, driver=driver)
            except (VdpaError, OSError) as error:
                text = in_words(error) if isinstance(error, OSError) else str(error)
                raise QmpError(f"export '{options.id}': {text}") from error
            undo.pop_all()

    @property
    def device(self) -> BlkDevice:
        return self._device

    @property
    def framework(self) -> Framework:
        """That the device is on."""
        return self._framework

    def take_off(self) -> None:
        """Takes the device off the bus and ends it; its door is closed."""
        if self._device.ended is None:
            with suppress(DeviceNotFound, DeviceBusy):
                self._framework.dev_del(self._device.name)
        close_device(self._device)
