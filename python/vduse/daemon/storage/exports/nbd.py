"""``nbd``: a disk that the daemon's NBD server has by name."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import ClassVar

from vduse.control.nbd import MAX_STRING
from vduse.daemon.qmp.arguments import Mistake
from vduse.daemon.qmp.errors import QmpError
from vduse.daemon.storage.exports.embedded import EmbeddedExport, id_mistakes
from vduse.daemon.storage.exports.export import ExportOptions, Host, make_device
from vduse.daemon.storage.exports.nbd_server import NBD_SERVER
from vduse.daemon.storage.nodes.node import Node
from vduse.device.device import DRAIN_TIMEOUT, DeviceError
from vduse.device.within import within
from vduse.exports.nbd.served import ServedDisk

log = logging.getLogger(__name__)

#: Connections take turns on these.
_QUEUES = min(4, os.cpu_count() or 1)
_QUEUE_SIZE = 256


class NbdOptions(ExportOptions, frozen=True, kw_only=True, tag="nbd"):
    """BlockExportOptions of this type."""

    server: ClassVar[str] = NBD_SERVER

    #: None: the node's.
    name: str | None = None
    description: str = ""

    def mistakes(self) -> Iterator[Mistake]:
        yield from super().mistakes()
        yield from id_mistakes(self)
        for key, text in (("name", self.name or ""), ("description", self.description)):
            if len(text.encode(errors="surrogateescape")) > MAX_STRING:
                yield Mistake(key, f"export {key} '{text[:32]}...' too long")

    @property
    def export_name(self) -> str:
        """What clients ask for."""
        return self.node_name if self.name is None else self.name

    def open(self, node: Node, host: Host) -> NbdExport:
        return NbdExport(self, node, host)


class NbdExport(EmbeddedExport):
    """``nbd``."""

    def __init__(self, options: NbdOptions, node: Node, host: Host) -> None:
        self._nbd = host.nbd_server()
        self._nbd.check_name(options.export_name)
        device = make_device(
            options.id, options, node, host, queues=_QUEUES, queue_size=_QUEUE_SIZE
        )
        super().__init__(options, node, host, device, "virtio_vdpa")
        try:
            self._vduse = self.framework.device(device.name)
            self._disk = self.framework.disk(device.name)
            self._served = ServedDisk(
                self._disk,
                options.export_name,
                description=options.description,
                pool=device.pool,
                first_worker=device.first_worker,
                data_path=device.data_path,
                default=False,
            )
        except (OSError, ValueError, RuntimeError) as error:
            self.take_off()
            raise QmpError(f"export '{options.id}': {error}") from error
        try:
            self._nbd.add(self._served)
        except QmpError:
            self._served.close()
            self.take_off()
            raise

    @property
    def in_use(self) -> str:
        count = self._served.connections
        return f"{count} NBD clients have it" if count else ""

    @property
    def _can_flush(self) -> bool:
        device = self.device
        return device.ended is None and not device.paused and not device.read_only

    def resize(self) -> None:
        super().resize()
        self._let_driver_see()

    def resume(self, node: Node) -> None:
        super().resume(node)
        self._let_driver_see()

    def _let_driver_see(self) -> None:
        """What the disk's driver knows of its size is what the next client is told."""
        self._vduse.flush_config_irq()

    def close(self) -> None:
        """Clients' connections end."""
        self._nbd.remove(self._served)
        if not self._served.close():
            # A flush would wait for ever behind requests that are not answered.
            log.error(
                "export %s: at its end: not all requests were answered",
                self.id,
                extra={"export": self.id},
            )
        elif self._can_flush:
            try:
                within(DRAIN_TIMEOUT, self._disk.flush, "the last flush")
            except (OSError, DeviceError) as error:
                log.error(
                    "export %s: what was written may not be stored: %s",
                    self.id,
                    error,
                    extra={"export": self.id},
                )
        self.take_off()
