"""A disk, served to NBD clients at a unix socket."""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack
from types import TracebackType
from typing import Self
from urllib.parse import quote

from vduse import _native
from vduse.bus.disk import Disk
from vduse.exports.listen import UnixListener
from vduse.exports.nbd.export import Export, sendable, transmission_flags
from vduse.exports.nbd.handshake import Agreed
from vduse.exports.nbd.negotiator import Listening, Negotiator

log = logging.getLogger(__name__)

#: Seconds that :meth:`NbdServer.close` waits for the answers to requests.
CLOSE_TIMEOUT = 20.0


class NbdServer:
    """Serves from its making to :meth:`close`, which leaves the disk as it is. A context
    manager.

    ::

        with NbdServer(framework.disk("disk0"), "disk.sock") as server:
            subprocess.run(["nbdinfo", server.uri])
    """

    def __init__(
        self,
        disk: Disk,
        path: str | os.PathLike[str],
        *,
        name: str | None = None,
        mode: int = 0o600,
        description: str = "",
        pool: _native.Pool | None = None,
        first_worker: int = 0,
    ) -> None:
        """``name``: of the export, beside the empty one that NBD clients ask for by default;
        None: the disk's. ``mode``: of the socket's file; who may write it may connect.
        ``pool`` and ``first_worker``: as of :class:`vduse._native.NbdExport`; None: a pool of
        its own. ExportError: it cannot listen there."""
        self._disk = disk
        self._export_name = sendable(disk.name if name is None else name)
        self._description = sendable(description)
        self._log_name = f"nbd {disk.name}"
        self._pid = os.getpid()
        self._closed = False
        with ExitStack() as undo:
            self._listener = UnixListener(path, mode)
            undo.callback(self._listener.close)
            self._own_pool = None
            if pool is None:
                pool = self._own_pool = _native.Pool()
                undo.callback(pool.close)
            self._native = _native.NbdExport(disk.driver, pool, first_worker=first_worker)
            undo.pop_all()
        self._negotiator = Negotiator.shared()
        self._negotiator.watch(self._native.event_fd, self._log_events)
        self._listening = Listening(
            self._log_name,
            self._listener,
            self._export,
            self._attach,
            connections=lambda: self._native.connections,
        )
        self._negotiator.add(self._listening)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def path(self) -> str:
        """Of the socket, as given."""
        return self._listener.path

    @property
    def uri(self) -> str:
        """For NBD clients on this host: ``nbd+unix:///?socket=...``."""
        return f"nbd+unix:///?socket={quote(os.fsencode(os.path.abspath(self.path)))}"

    @property
    def connections(self) -> int:
        """Those in their transmission phase now."""
        return self._native.connections

    def stats(self) -> dict[str, int]:
        """See :meth:`vduse._native.NbdExport.stats`."""
        return self._native.stats()

    def close(self, timeout: float = CLOSE_TIMEOUT) -> bool:
        """Removes the socket, answers the requests taken, at most ``timeout`` seconds, and closes
        all connections; false if some requests were not answered. Nothing in a forked child."""
        if self._closed or os.getpid() != self._pid:
            return True
        self._closed = True
        self._negotiator.discard(self._listening)
        self._listener.close()
        answered = self._native.close(timeout)
        self._negotiator.unwatch(self._native.event_fd)
        self._log_events()
        if self._own_pool is not None:
            self._own_pool.close()
        return answered

    def _export(self) -> Export:
        driver = self._disk.driver
        flags = transmission_flags(driver)
        return Export(self._export_name, driver.size, flags, self._description)

    def _attach(self, fd: int, agreed: Agreed) -> None:
        self._native.attach(
            fd, structured=agreed.structured, base_allocation=agreed.base_allocation
        )

    def _log_events(self) -> None:
        for line in self._native.events():
            log.warning("%s: %s", self._log_name, line)
