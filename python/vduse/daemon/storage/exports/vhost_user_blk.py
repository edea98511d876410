"""``vhost-user-blk``: a disk for virtual machines, at a unix socket."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack

from vduse.daemon.doors.vhost_user import OpenVhostUser
from vduse.daemon.qmp.arguments import Mistake
from vduse.daemon.storage.exports.address import InetAddress, SocketAddress
from vduse.daemon.storage.exports.embedded import EmbeddedExport, id_mistakes
from vduse.daemon.storage.exports.export import Host, QueuesOptions, make_device
from vduse.daemon.storage.nodes.node import Node
from vduse.exports.vhost_user import Listening, VhostUserServer

log = logging.getLogger(__name__)

#: Front ends choose what they need of it; this is the most that QEMU's have.
_QUEUE_SIZE = 1024


class VhostUserBlkOptions(QueuesOptions, frozen=True, kw_only=True, tag="vhost-user-blk"):
    """BlockExportOptions of this type."""

    addr: SocketAddress

    def mistakes(self) -> Iterator[Mistake]:
        yield from super().mistakes()
        yield from id_mistakes(self)
        if isinstance(self.addr, InetAddress):
            text = "Parameter 'addr.type' does not accept value 'inet': memory is passed by sockets"
            yield Mistake("addr.type", f"{text} of unix only")

    def open(self, node: Node, host: Host) -> VhostUserBlkExport:
        return VhostUserBlkExport(self, node, host)


class VhostUserBlkExport(EmbeddedExport):
    """``vhost-user-blk``."""

    def __init__(self, options: VhostUserBlkOptions, node: Node, host: Host) -> None:
        device = make_device(
            options.id,
            options,
            node,
            host,
            queues=options.num_queues,
            queue_size=_QUEUE_SIZE,
            block_size=options.logical_block_size,
        )
        super().__init__(options, node, host, device, "vhost_vdpa")
        with ExitStack() as undo:
            undo.callback(self.take_off)
            front_ends = Listening(options.addr.listen())
            vhost = self.framework.bus.vhost(device.name)
            self._door = OpenVhostUser(VhostUserServer(vhost, front_ends, name=device.name))
            undo.pop_all()

    @property
    def in_use(self) -> str:
        return "a virtual machine has it" if self._door.clients() else ""

    def close(self) -> None:
        if failure := self._door.close(answering=self.device.ended is None):
            log.error("export %s: at its end: %s", self.id, failure, extra={"export": self.id})
        self.take_off()
