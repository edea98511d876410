"""One disk at one socket: framework, device, virtio_vdpa driver and NBD server, in this
process."""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack

from vduse.backends.errors import BackendError
from vduse.channel.embedded import EmbeddedControl
from vduse.control.statistics import Statistics, collect
from vduse.daemon.blk.facts import Serving
from vduse.daemon.commands import BlkOptions
from vduse.daemon.errors import UserError
from vduse.device.device import DRAIN_TIMEOUT, DeviceError
from vduse.device.within import within
from vduse.devices.local import local_blk
from vduse.exports.errors import ExportError
from vduse.exports.nbd import NbdServer
from vduse.exports.nbd.server import CLOSE_TIMEOUT
from vduse.framework import Framework

log = logging.getLogger(__name__)


class Service:
    """Serves from its making to :meth:`close`."""

    def __init__(self, options: BlkOptions, backend: str, path: str) -> None:
        """UserError: what the person can put right."""
        self._options = options
        self._backend = backend
        with ExitStack() as exits:
            framework = exits.enter_context(Framework())
            control = EmbeddedControl(framework.control())
            exits.callback(control.close)
            try:
                self._device = exits.enter_context(
                    local_blk(
                        control,
                        options.name,
                        backend,
                        size=options.size,
                        direct=options.direct,
                        layers=options.layer,
                        queues=options.queues,
                        queue_size=options.queue_size,
                        packed=options.packed,
                        read_only=options.read_only,
                    )
                )
            except (BackendError, ValueError) as error:
                hint = ": --size 1G" if str(error).endswith("needs a size") else ""
                raise UserError(f"{error}{hint}") from None
            framework.dev_add(options.name)
            self._framework = framework
            exits.callback(self._leave_bus)
            self._disk = framework.disk(options.name)
            self._size = self._disk.size
            self._answered = True
            #: Why the last look at the size found none.
            self._no_size = ""
            try:
                self._server = NbdServer(
                    self._disk,
                    path,
                    mode=options.nbd_mode,
                    description=backend,
                    pool=self._device.pool,
                    first_worker=self._device.first_worker,
                )
            except ExportError as error:
                raise UserError(str(error)) from None
            exits.callback(self._flush)
            self._exits = exits.pop_all()

    def facts(self) -> Serving:
        """Where it can be reached."""
        options = self._options
        return Serving(
            event="serving",
            pid=os.getpid(),
            name=options.name,
            backend=self._backend,
            size=self._size,
            read_only=self._disk.read_only,
            ring="packed" if options.packed else "split",
            queues=options.queues,
            queue_size=options.queue_size,
            engine=self._device.backend.engine,
            socket=os.path.abspath(self._server.path),
            uri=self._server.uri,
        )

    def broken(self) -> str | None:
        """Why nothing is served any more; None while it is."""
        return self._device.ended or self._device.fault

    def resized(self) -> int | None:
        """Looks at the backend's size; bytes, if it has changed since the last look. The driver
        knows it then, and so do clients that connect later."""
        former = self._size
        try:
            self._size = self._device.resize()
        except (OSError, DeviceError) as error:
            # A file may be of half a sector for a moment: once is enough to say.
            if str(error) != self._no_size:
                log.warning("%s keeps its size: %s", self._options.name, error)
            self._no_size = str(error)
            return None
        self._no_size = ""
        return self._size if self._size != former else None

    def statistics(self) -> Statistics:
        """All there is."""
        return collect(
            devices=[self._device], disks=[self._disk], exports={self._server.path: self._server}
        )

    def close(self) -> str | None:
        """Answers what was taken, closes the socket, flushes, ends the device; why that was not
        done in order, None: it was."""
        # Who stands still answers nothing more.
        patience = CLOSE_TIMEOUT if self.broken() is None else 0.0
        self._answered = self._server.close(patience)
        failure = None
        try:
            self._exits.close()
        except (OSError, DeviceError) as error:
            failure = f"what was written may not be on stable storage: {error}"
        if not self._answered:
            return f"requests were not answered within {patience:g} s"
        return failure

    def _flush(self) -> None:
        # It would wait for ever behind requests that are not answered.
        if self._answered and self.broken() is None:
            within(DRAIN_TIMEOUT, self._disk.flush, "the last flush")

    def _leave_bus(self) -> None:
        # Nobody would answer the reset of a device that has ended; the framework's own end waits
        # for nobody.
        if self._device.ended is None:
            self._framework.dev_del(self._options.name)
