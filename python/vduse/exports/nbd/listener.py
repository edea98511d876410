"""A socket where NBD clients find any number of disks by name, which come and go."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from vduse import _native
from vduse.exports.listen import Listener
from vduse.exports.nbd.export import Export
from vduse.exports.nbd.handshake import Agreed
from vduse.exports.nbd.negotiator import MAX_CONNECTIONS, Listening, Negotiator
from vduse.exports.nbd.served import ServedDisk


class NbdListener:
    """Accepts clients from :meth:`accept` to :meth:`close`, which leaves its disks as they are, and
    their clients with them; those that come before wait. Methods may be called from any thread."""

    def __init__(
        self,
        listener: Listener,
        *,
        name: str,
        max_connections: int = MAX_CONNECTIONS,
        session: Callable[[], _native.NbdTls] | None = None,
    ) -> None:
        """Takes over ``listener``. ``name``: for the log. ``session``: a TLS session, which clients
        have to begin; None: they cannot."""
        self._listener = listener
        #: By name. Replaced, never changed: the negotiator's thread reads it.
        self._disks: dict[str, ServedDisk] = {}
        self._changing = threading.Lock()
        self._listening = Listening(
            name,
            listener,
            self._exports,
            self._attach,
            connections=lambda: sum(disk.connections for disk in self._disks.values()),
            most=max_connections,
            session=session,
        )
        self._negotiator = Negotiator.shared()

    def accept(self) -> None:
        """Once, when its disks are there."""
        self._negotiator.add(self._listening)

    def __contains__(self, name: str) -> bool:
        return name in self._disks

    def add(self, disk: ServedDisk) -> None:
        """Clients find it from now on. ValueError: another has its name."""
        with self._changing:
            if disk.name in self._disks:
                raise ValueError(f"two NBD exports are called {disk.name}")
            self._disks = {**self._disks, disk.name: disk}

    def remove(self, disk: ServedDisk) -> None:
        """No client finds it any more, or is attached after this; those that have it keep it until
        its close."""
        with self._changing:
            self._disks = {name: each for name, each in self._disks.items() if each is not disk}
        self._negotiator.settle()

    def close(self) -> None:
        """Removes the socket; no client is accepted or attached after this."""
        self._negotiator.discard(self._listening)
        self._listener.close()

    def _exports(self) -> list[Export]:
        return [disk.export() for disk in self._disks.values()]

    def _attach(self, fd: int, agreed: Agreed, session: _native.NbdTls | None) -> None:
        disk = self._disks.get(agreed.export)
        if disk is None:  # it has gone since
            os.close(fd)
        else:
            disk.attach(fd, agreed, session)
