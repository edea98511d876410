"""The daemon's exports and nodes, as those see them who watch it."""

from __future__ import annotations

from vduse.daemon.storage.store import Store
from vduse.daemon.watch.collect import Opened, Served


class WatchedStore:
    """A :class:`~vduse.daemon.watch.collect.Watched`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def served(self) -> list[Served]:
        """Exports that are not just ending."""
        return [
            Served(each.id, each.type, each.node.name, each.device)
            for each in self._store.exports
            if not each.closing
        ]

    def opened(self) -> list[Opened]:
        """All nodes."""
        return [Opened(node.name, node.driver, node.backend) for node in self._store.nodes]
