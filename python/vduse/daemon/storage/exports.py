"""Block exports: nodes as VDUSE devices."""

from __future__ import annotations

import errno
import logging

from vduse.channel.base import ControlPort
from vduse.daemon.qmp.errors import ArgumentError, QmpError
from vduse.daemon.storage.models import ExportInfo, ExportOptions
from vduse.daemon.storage.nodes import Node
from vduse.device.attach import ConfigMismatch
from vduse.device.device import DeviceError
from vduse.device.queues import QueueError
from vduse.devices.blk import BlkDevice

log = logging.getLogger(__name__)

_MOST_QUEUES = 0xFFFF


class Export:
    """A device on a node, from its making to :meth:`close`. On the vDPA bus it is put by others
    (``vdpa dev add name NAME mgmtdev vduse``)."""

    def __init__(self, options: ExportOptions, node: Node, control: ControlPort) -> None:
        """Creates the device, or takes over the one that a dead daemon left. QmpError."""
        self.id = options.id
        self.node = node
        self.closing = False
        name = _device_name(options)
        if options.writable and node.read_only:
            raise QmpError("Cannot export read-only node as writable")
        if options.writethrough:
            raise ArgumentError("Parameter 'writethrough' does not accept 'on': drivers flush")
        if not 1 <= options.num_queues <= _MOST_QUEUES:
            raise ArgumentError(f"num-queues must be from 1 to {_MOST_QUEUES}")
        try:
            self._device = BlkDevice(
                name,
                node.backend,
                queues=options.num_queues,
                queue_size=options.queue_size,
                read_only=not options.writable,
                serial=options.serial,
                block_size=options.logical_block_size,
                discard=node.discard,
            )
        except ValueError as error:
            raise ArgumentError(_spelled(str(error))) from None
        try:
            existed = self._device.start(control)
        except (OSError, ConfigMismatch, QueueError, ValueError) as error:
            raise QmpError(f"VDUSE device '{name}': {_reason(error)}") from error
        if existed:
            log.info("%s: taken over from a daemon that is no more", name)
        node.users.add(self.id)

    @property
    def device(self) -> BlkDevice:
        """What the bus has."""
        return self._device

    def info(self) -> ExportInfo:
        """As query-block-exports shows it."""
        return ExportInfo(
            id=self.id, type="vduse-blk", node_name=self.node.name, shutting_down=self.closing
        )

    def close(self) -> None:
        """Completes what was taken, flushes, destroys the device. One that is on the vDPA bus
        stays there for the next daemon, as with QEMU's. What fails is in the log."""
        self.closing = True
        name = self._device.name
        try:
            self._device.close(destroy=True)
        except OSError as error:
            if error.errno == errno.EBUSY:
                log.warning("%s stays, it is on the vDPA bus: vdpa dev del %s", name, name)
            else:
                log.error("%s: at its end: %s", name, error)
        except DeviceError as error:
            log.error("%s: at its end: %s", name, error)
        self.node.users.discard(self.id)


def _device_name(options: ExportOptions) -> str:
    if options.name is None:
        if options.vduse_id is None:
            raise ArgumentError("Parameter 'name' is missing")
        if options.vduse_id < 0:
            raise ArgumentError("Parameter 'vduse-id' expects a number of 0 or above")
        return f"vduse{options.vduse_id}"
    if options.vduse_id is not None:
        raise ArgumentError("Parameters 'name' and 'vduse-id' are mutually exclusive")
    return options.name


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno == errno.EBUSY:
        return "another program serves it: stop that one, or use another name"
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _spelled(text: str) -> str:
    """A device's words with QEMU's names of its parameters."""
    text = text.replace("queue_size", "queue-size")
    return text.replace("block_size", "logical-block-size")
