"""``vduse-blk``: a VDUSE device of the kernel's. On the vDPA bus it is put by others (``vdpa dev
add name NAME mgmtdev vduse``)."""

from __future__ import annotations

from collections.abc import Iterator

from vduse.daemon.qmp.arguments import Mistake
from vduse.daemon.storage.exports.export import (
    Export,
    Host,
    QueuesOptions,
    close_device,
    make_device,
    start,
    value_mistakes,
)
from vduse.daemon.storage.nodes.node import Node
from vduse.device.spec import check_name
from vduse.devices.blk import BlkDevice, check_queue_size, check_serial


class VduseBlkOptions(QueuesOptions, frozen=True, kw_only=True, tag="vduse-blk"):
    """BlockExportOptions of this type."""

    #: The VDUSE device.
    name: str | None = None
    #: N names it vduseN, where there is no name.
    vduse_id: int | None = None
    queue_size: int = 256
    serial: str = ""

    def mistakes(self) -> Iterator[Mistake]:
        yield from super().mistakes()
        if self.name is not None and self.vduse_id is not None:
            text = "Parameters 'name' and 'vduse-id' are mutually exclusive"
            yield Mistake("vduse-id", text)
        elif self.name is None and self.vduse_id is None:
            yield Mistake("name", "Parameter 'name' is missing")
        elif self.vduse_id is not None and self.vduse_id < 0:
            text = "Parameter 'vduse-id' expects a number of 0 or above"
            yield Mistake("vduse-id", text)
        else:
            yield from value_mistakes("name", check_name, self.device_name)
        yield from value_mistakes("queue-size", check_queue_size, self.queue_size)
        yield from value_mistakes("serial", check_serial, self.serial)

    @property
    def device_name(self) -> str:
        """Of the VDUSE device."""
        return f"vduse{self.vduse_id}" if self.name is None else self.name

    def open(self, node: Node, host: Host) -> VduseBlkExport:
        return VduseBlkExport(self, node, host)


class VduseBlkExport(Export):
    """``vduse-blk``."""

    def __init__(self, options: VduseBlkOptions, node: Node, host: Host) -> None:
        super().__init__(options, node)
        self._device = make_device(
            options.device_name,
            options,
            node,
            host,
            queues=options.num_queues,
            queue_size=options.queue_size,
            block_size=options.logical_block_size,
            serial=options.serial,
        )
        start(self._device, host.kernel)

    @property
    def device(self) -> BlkDevice:
        return self._device

    @property
    def in_use(self) -> str:
        if not self._device.live:
            return ""
        return f"vdpa dev del {self._device.name} takes it off the bus"

    def close(self) -> None:
        close_device(self._device)
