"""A disk as an NBD export: what its clients are told, and their connections."""

from __future__ import annotations

import logging

from vduse import _native
from vduse.bus.disk import Disk
from vduse.exports.nbd.export import Export, sendable, transmission_flags
from vduse.exports.nbd.handshake import Agreed
from vduse.exports.nbd.negotiator import Negotiator

log = logging.getLogger(__name__)

#: Seconds that :meth:`ServedDisk.close` waits for the answers to requests.
CLOSE_TIMEOUT = 20.0


class ServedDisk:
    """From its making to :meth:`close`, which leaves the disk as it is."""

    def __init__(
        self,
        disk: Disk,
        name: str,
        *,
        pool: _native.Pool,
        first_worker: int = 0,
        data_path: _native.BlkDataPath | None = None,
        description: str = "",
        default: bool = True,
    ) -> None:
        """``name``: of the export; ``default``: the empty name means it, too. ``pool``,
        ``first_worker`` and ``data_path``: as of :class:`vduse._native.NbdExport`."""
        self._driver = disk.driver
        self.name = sendable(name)
        self._description = sendable(description)
        self._default = default
        self._log_name = f"nbd {disk.name}"
        self._native = _native.NbdExport(
            disk.driver, pool, first_worker=first_worker, data_path=data_path
        )
        self._negotiator = Negotiator.shared()
        self._negotiator.watch(self._native.event_fd, self._log_events)

    @property
    def connections(self) -> int:
        """Those in their transmission phase now."""
        return self._native.connections

    def stats(self) -> dict[str, int]:
        """See :meth:`vduse._native.NbdExport.stats`."""
        return self._native.stats()

    def export(self) -> Export:
        """What clients are told now."""
        flags = transmission_flags(self._driver)
        return Export(self.name, self._driver.size, flags, self._description, self._default)

    def attach(self, fd: int, agreed: Agreed, session: _native.NbdTls | None) -> None:
        """A client begins its transmission phase, in the TLS session of its handshake; takes the
        fd, also where it raises."""
        self._native.attach(
            fd,
            structured=agreed.structured,
            base_allocation=agreed.base_allocation,
            tls=session,
        )

    def close(self, timeout: float = CLOSE_TIMEOUT) -> bool:
        """Answers the requests taken, at most ``timeout`` seconds, and closes all connections;
        false if some requests were not answered."""
        answered = self._native.close(timeout)
        self._negotiator.unwatch(self._native.event_fd)
        self._log_events()
        return answered

    def _log_events(self) -> None:
        for line in self._native.events():
            log.warning("%s: %s", self._log_name, line)
