"""What an export is: a block device on a node, and somebody's way to it."""

from __future__ import annotations

import errno
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from vduse.channel.base import ControlPort
from vduse.control.refusals import in_words
from vduse.control.statistics import DeviceStats
from vduse.daemon.qmp.arguments import Mistake, Model
from vduse.daemon.qmp.errors import ArgumentError, QmpError
from vduse.daemon.storage.models import ExportInfo
from vduse.daemon.storage.nodes.node import Node
from vduse.device.attach import ConfigMismatch
from vduse.device.device import DeviceError
from vduse.device.queues import QueueError
from vduse.devices.blk import BlkDevice, check_block_size

if TYPE_CHECKING:
    from vduse.daemon.storage.exports.nbd_server import StorageNbdServer
    from vduse.framework import Framework

log = logging.getLogger(__name__)

_MOST_QUEUES = 0xFFFF

Value = TypeVar("Value")


class Host(Protocol):
    """Where exports are made."""

    @property
    def kernel(self) -> ControlPort:
        """Of VDUSE devices for the bus."""

    def embedded(self) -> tuple[Framework, ControlPort]:
        """The framework of this process, for devices that are reached by sockets."""

    def nbd_server(self) -> StorageNbdServer:
        """QmpError: there is none."""

    def emit(self, event: str, data: dict[str, Any]) -> None:
        """Sends an event to QMP's clients; does not wait."""


class ExportOptions(Model, frozen=True, kw_only=True, tag_field="type"):
    """BlockExportOptions; as a type it is the options of any type."""

    #: What has to run for it; empty: nothing.
    server: ClassVar[str] = ""

    id: str
    node_name: str
    writable: bool = False
    writethrough: bool = False

    def mistakes(self) -> Iterator[Mistake]:
        if self.writethrough:
            text = "Parameter 'writethrough' does not accept 'on': drivers flush"
            yield Mistake("writethrough", text)

    @property
    def type(self) -> str:
        """QEMU's name of it."""
        return str(self.__struct_config__.tag)

    @abstractmethod
    def open(self, node: Node, host: Host) -> Export:
        """The export, in service. QmpError."""


def value_mistakes(key: str, check: Callable[[Value], None], value: Value) -> Iterator[Mistake]:
    """What a device's ``check`` has against the value of ``key``."""
    try:
        check(value)
    except ValueError as error:
        yield Mistake(key, _spelled(str(error)))


class QueuesOptions(ExportOptions, frozen=True, kw_only=True):
    """Of types that have virtqueues."""

    num_queues: int = 1
    logical_block_size: int | None = None

    def mistakes(self) -> Iterator[Mistake]:
        yield from super().mistakes()
        if not 1 <= self.num_queues <= _MOST_QUEUES:
            yield Mistake("num-queues", f"num-queues must be from 1 to {_MOST_QUEUES}")
        if self.logical_block_size is not None:
            key = "logical-block-size"
            yield from value_mistakes(key, check_block_size, self.logical_block_size)


def user_of(export: str) -> str:
    """What an export of this id is among those who use its node."""
    return f"export '{export}'"


class Export(ABC):
    """From its making to :meth:`close`."""

    def __init__(self, options: ExportOptions, node: Node) -> None:
        """QmpError: the node cannot be exported so."""
        if options.writable and node.read_only:
            raise QmpError("Cannot export read-only node as writable")
        if options.writable:
            node.expect_writes()
        self.id = options.id
        self._writable = options.writable
        self.node = node
        self.type = options.type
        self.server = options.server
        #: It is being ended: set by who does that.
        self.closing = False

    @property
    @abstractmethod
    def device(self) -> BlkDevice:
        """What serves."""

    @property
    @abstractmethod
    def in_use(self) -> str:
        """Who has to let go of it first, and how; empty: nobody."""

    @property
    def user(self) -> str:
        """What it is among those who use its node."""
        return user_of(self.id)

    def resize(self) -> None:
        """Tells the driver how large the node is now. OSError, DeviceError, ValueError: it does not
        hear of it."""
        self.device.resize()

    def pause(self) -> None:
        """Completes what was taken, and lets go of the node, which may be closed then; requests
        wait. QmpError: it goes on as before."""
        try:
            self.device.pause()
        except (DeviceError, OSError, ValueError) as error:
            raise QmpError(f"export '{self.id}': {error}") from error
        self.node.base.unshare(self.user)

    def resume(self, node: Node) -> None:
        """After :meth:`pause`: goes on, on ``node``. QmpError: it is still paused."""
        if self._writable and node.read_only:
            name = node.first_read_only.name
            text = f"Read-only block node '{name}' cannot support read-write users: {self.user}"
            raise QmpError(text)
        node.base.share(self.user)
        if self._writable:
            node.expect_writes()
        try:
            self.device.resume(node.backend)
        except (DeviceError, OSError, ValueError) as error:
            node.base.unshare(self.user)
            raise QmpError(f"export '{self.id}': {error}") from error
        self.node = node

    def info(self) -> ExportInfo:
        """As query-block-exports shows it."""
        return ExportInfo(
            id=self.id, type=self.type, node_name=self.node.name, shutting_down=self.closing
        )

    def stats(self) -> DeviceStats | None:
        """What was counted; None: nothing is served."""
        return self.device.stats()

    @abstractmethod
    def close(self) -> None:
        """Completes what was taken, flushes, ends. What fails is in the log."""


def make_device(
    name: str,
    options: ExportOptions,
    node: Node,
    host: Host,
    *,
    queues: int,
    queue_size: int,
    block_size: int | None = None,
    serial: str = "",
) -> BlkDevice:
    """A device that is not started. ArgumentError."""
    try:
        return BlkDevice(
            name,
            node.backend,
            queues=queues,
            queue_size=queue_size,
            read_only=not options.writable,
            serial=serial,
            block_size=block_size,
            discard=node.discard,
            failed=lambda what: host.emit("BLOCK_IO_ERROR", _io_error(options, what)),
        )
    except ValueError as error:
        raise ArgumentError(_spelled(str(error))) from None


def _io_error(options: ExportOptions, what: str) -> dict[str, Any]:
    """BLOCK_IO_ERROR's data. ``what``: operation, place and errno."""
    return {
        "device": options.id,
        "node-name": options.node_name,
        # QEMU's event knows two.
        "operation": "read" if what.startswith("read") else "write",
        "action": "report",
        "reason": what,
    }


def start(device: BlkDevice, control: ControlPort) -> None:
    """Creates the device, or takes over the one that a dead daemon left. QmpError."""
    try:
        existed = device.start(control)
    except (OSError, ConfigMismatch, QueueError, ValueError) as error:
        raise QmpError(f"VDUSE device '{device.name}': {_reason(error)}") from error
    if existed:
        log.info(
            "%s: taken over from a daemon that is no more",
            device.name,
            extra={"device": device.name},
        )


def close_device(device: BlkDevice) -> None:
    """Completes what was taken, flushes, destroys it. One that is on the kernel's vDPA bus stays
    there for the next daemon, as with QEMU's. What fails is in the log."""
    name = device.name
    try:
        device.close(destroy=True)
    except OSError as error:
        if error.errno == errno.EBUSY:
            log.warning(
                "%s stays, it is on the vDPA bus: vdpa dev del %s",
                name,
                name,
                extra={"device": name},
            )
        else:
            log.error("%s: at its end: %s", name, error, extra={"device": name})
    except DeviceError as error:
        log.error("%s: at its end: %s", name, error, extra={"device": name})


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno == errno.EBUSY:
        return "another program serves it: stop that one, or use another name"
    return in_words(error) if isinstance(error, OSError) else str(error)


def _spelled(text: str) -> str:
    """A device's words with QEMU's names of its parameters."""
    text = text.replace("queue_size", "queue-size")
    return text.replace("block_size", "logical-block-size")
