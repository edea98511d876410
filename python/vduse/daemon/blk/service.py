"""One disk, from its backend to its users."""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack, nullcontext, suppress

from vduse import _native
from vduse.backends.errors import BackendError
from vduse.backends.python import PythonBackend
from vduse.backends.spec import open_backend
from vduse.control.statistics import Statistics
from vduse.daemon.blk.attachment import Attachment
from vduse.daemon.blk.choose import Way
from vduse.daemon.blk.facts import Serving
from vduse.daemon.blk.watched import WatchedDisk
from vduse.daemon.commands import BlkOptions
from vduse.daemon.dev.errors import explained
from vduse.daemon.errors import UserError
from vduse.device.attach import ConfigMismatch
from vduse.device.device import DRAIN_TIMEOUT, DeviceError
from vduse.device.queues import QueueError
from vduse.device.within import within
from vduse.device.workers import shared_pool
from vduse.devices.blk import BlkDevice
from vduse.devices.local import local_blk

log = logging.getLogger(__name__)


class Service:
    """Serves from its making to :meth:`close`."""

    def __init__(self, options: BlkOptions, backend: str, way: Way, attachment: Attachment) -> None:
        """Takes over the attachment. UserError: what the person can put right."""
        self._options = options
        self._backend = backend
        self._way = way
        self._attachment = attachment
        #: Why the last look at the size found none.
        self._no_size = ""
        with ExitStack() as undo:
            undo.callback(attachment.close)
            #: Of the device and its backend.
            self._exits = undo.enter_context(ExitStack())
            self._device = self._start(self._open())
            self._size = self._device.size
            undo.callback(self._undo)
            self._reach = attachment.attach(self._device)
            #: For its metrics.
            self.watched = WatchedDisk(self._device, self._reach)
            undo.pop_all()

    def facts(self) -> Serving:
        """Where it can be reached."""
        options, reach = self._options, self._reach
        return Serving(
            event="serving",
            pid=os.getpid(),
            name=options.name,
            backend=self._backend,
            size=self._size,
            read_only=self._device.read_only,
            ring="packed" if options.packed else "split",
            queues=options.queues,
            queue_size=options.queue_size,
            engine=self._device.backend.engine,
            via=self._way.via,
            why=self._way.why,
            driver=reach.driver,
            node=reach.node,
            socket=reach.socket,
            uri=reach.uri,
            connects=options.vhost_user_connect,
        )

    def broken(self) -> str | None:
        """Why nothing is served any more; None while it is."""
        # A VM's mistake is the VM's: it resets the device, or another VM does.
        is_ours = self._reach.driver == "virtio_vdpa"
        return self._device.ended or (self._device.fault if is_ours else None)

    def users(self) -> tuple[str, ...]:
        """Who has to let go of the disk before :meth:`close`, for people to read."""
        return self._attachment.users()

    def resized(self) -> int | None:
        """Looks at the backend's size; bytes, if it has changed since the last look. The driver
        knows it then, with it a VM, and so do NBD clients that connect later."""
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
        return self._attachment.statistics(self._device)

    def close(self) -> str | None:
        """Takes the disk from its users, ends the device; why that was not done in order, None: it
        was."""
        failures = []
        try:
            answering = self.broken() is None
            failures.append(self._attachment.detach(answering=answering))
            if answering and (ended := self._device.ended) is not None:
                failures.append(f"not all requests were finished: {ended}")
            try:
                self._exits.close()
            except (OSError, DeviceError) as error:
                failures.append(f"what was written may not be on stable storage: {error}")
        finally:
            failures.append(self._attachment.close())
        return next(filter(None, failures), None)

    def _undo(self) -> None:
        if (failure := self._attachment.detach(answering=True)) is not None:
            log.warning("%s", failure)

    def _open(self) -> _native.Backend | PythonBackend:
        options = self._options
        try:
            backend = open_backend(
                self._backend,
                size=options.size,
                read_only=options.read_only,
                direct=options.direct,
                layers=options.layer,
                # A migration's two ends have it open, and one after the other serves it.
                lock_late=options.vhost_user is not None,
                pool=shared_pool,
            )
        except (BackendError, ValueError) as error:
            hint = ": --size 1G" if str(error).endswith("needs a size") else ""
            raise UserError(f"{error}{hint}") from None
        what = f"{self._backend}: the backend's end"
        self._exits.callback(within, DRAIN_TIMEOUT, backend.close, what)
        return backend

    def _pool(self, backend: _native.Backend | PythonBackend) -> _native.Pool | None:
        """Workers as asked for; None: nothing was."""
        cpus, no_poll = self._options.cpus or (), self._options.no_poll
        if not cpus and not no_poll:
            return None
        # The device's own rule (BlkDevice): one worker calls what is written in Python.
        is_python = isinstance(backend, PythonBackend) or backend.engine == "python"
        if is_python and len(cpus) > 1:
            raise UserError("--cpus: one worker serves a backend in Python: name one CPU")
        workers = 1 if is_python and not cpus else None
        try:
            pool = _native.Pool(workers, poll=not no_poll, cpus=cpus)
        except ValueError as error:
            raise UserError(f"--cpus: {error}") from None
        self._exits.callback(_end, pool)
        return pool

    def _start(self, backend: _native.Backend | PythonBackend) -> BlkDevice:
        options = self._options
        device = local_blk(
            self._attachment.control,
            options.name,
            backend,
            queues=options.queues,
            queue_size=options.queue_size,
            packed=options.packed,
            read_only=options.read_only,
            umem=options.umem,
            pool=self._pool(backend),
        )
        is_kernel = self._way.via == "kernel"
        try:
            with explained("serve", options.name) if is_kernel else nullcontext():
                return self._exits.enter_context(device)
        except ValueError as error:
            raise UserError(str(error)) from None
        except (ConfigMismatch, QueueError) as error:
            raise UserError(f"{error} (vduse dev del {options.name} removes it)") from None


def _end(pool: _native.Pool) -> None:
    # EBUSY: a device that has not ended in order has it still; the process ends.
    with suppress(OSError):
        pool.close()
