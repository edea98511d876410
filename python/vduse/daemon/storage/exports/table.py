"""The exports by id."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from typing import Any

from vduse.daemon.qmp.errors import QmpError
from vduse.daemon.storage.exports.export import Export, ExportOptions, Host, user_of
from vduse.daemon.storage.ids import is_id
from vduse.daemon.storage.nodes.graph import Graph
from vduse.daemon.storage.nodes.node import Node
from vduse.daemon.storage.reservations import Reservations, Work
from vduse.device.device import DeviceError
from vduse.device.within import together

_KIND = "export"


class Exports:
    """Methods may be called from any thread. Exports are opened and ended without the lock, their
    ids reserved meanwhile; looks are made with the lock held."""

    def __init__(
        self,
        nodes: Graph,
        host: Host,
        reservations: Reservations,
        emit: Callable[[str, dict[str, Any]], None],
        changed: Callable[[Sequence[Export]], None],
    ) -> None:
        """``emit``: sends an event and its data. ``changed`` is called with the exports after one
        has come or gone, with the lock held."""
        self._nodes = nodes
        self._host = host
        self._reservations = reservations
        self._lock = reservations.lock
        self._emit = emit
        self._changed = changed
        #: Those that are being ended, too.
        self._exports: dict[str, Export] = {}
        #: By id: the servers that exports being opened need.
        self._opening: dict[str, str] = {}

    def __iter__(self) -> Iterator[Export]:
        """In the order they were added."""
        return iter(list(self._exports.values()))

    def add(self, options: ExportOptions) -> None:
        """A node, exported. QmpError."""
        user = user_of(options.id)
        with ExitStack() as reserved, ExitStack() as undo:
            with self._lock:
                if not is_id(options.id):
                    raise QmpError("Invalid block export id")
                if options.id in self._exports:
                    raise QmpError(f"Block export id '{options.id}' is already in use")
                if options.server:
                    self._reservations.check(options.server)
                node = self._nodes.find(options.node_name)
                held = self._reservations.held(_KIND, [options.id], Work.OPENING)
                reserved.enter_context(held)
                self._opening[options.id] = options.server
                reserved.callback(self._opening.pop, options.id)
                node.users.add(user)
                undo.callback(node.users.discard, user)
            node.base.share(user)
            undo.callback(node.base.unshare, user)
            export = options.open(node, self._host)
            undo.callback(export.close)
            with self._lock:
                # Who ends the daemon has looked already.
                self._reservations.check_open()
                self._exports[export.id] = export
                undo.pop_all()
                self._changed(list(self))

    def remove(self, name: str, *, safe: bool) -> None:
        """Ends an export; ``safe``: if nobody uses it. QmpError."""
        with ExitStack() as reserved:
            with self._lock:
                export = self._exports.get(name)
                if export is None:
                    self._reservations.check(_KIND, name)
                    raise QmpError(f"Export '{name}' is not found")
                if export.closing:
                    raise QmpError(f"Export '{name}' is already shutting down")
                if safe and (reason := export.in_use):
                    raise QmpError(f"export '{name}' still in use: {reason}")
                held = self._reservations.held(_KIND, [name], Work.CLOSING)
                reserved.enter_context(held)
                export.closing = True
            self._end(export)

    def resized(self, node: Node) -> None:
        """Tells the drivers of exports on it, or on what lies on it. QmpError: which do not hear
        of it."""
        with self._lock:
            found = [each for each in self if each.node.lowest is node and not each.closing]
        failed = []
        for export in found:
            try:
                export.resize()
            except (OSError, DeviceError, ValueError) as error:
                if not export.closing:
                    failed.append(f"export '{export.id}' does not hear of it: {error}")
        if failed:
            raise QmpError("; ".join(failed))

    def on(self, nodes: Collection[Node]) -> list[Export]:
        """Their exports, with the lock held. QmpError: one is being opened or ended."""
        for name in self._opening:
            if any(user_of(name) in node.users for node in nodes):
                self._reservations.check(_KIND, name)
        found = [each for each in self if each.node in nodes]
        for each in found:
            if each.closing:
                raise QmpError(f"Export '{each.id}' is already shutting down")
        return found

    def held(self, exports: Iterable[Export], work: Work) -> AbstractContextManager[None]:
        """Reserves exports that there are. QmpError: a command is at work on one."""
        return self._reservations.held(_KIND, [each.id for each in exports], work)

    def check_settled(self, server: str) -> None:
        """QmpError: an export at ``server`` is being opened or reopened."""
        for name, needed in self._opening.items():
            if needed == server:
                self._reservations.check(_KIND, name)
        for name, export in self._exports.items():
            if export.server == server and not export.closing:
                self._reservations.check(_KIND, name)

    def close(self, server: str | None = None) -> None:
        """Ends all at once, those of ``server`` if it is given; what fails is in the log."""
        with self._lock:
            found = [each for each in self if server in (None, each.server)]
        self.end(found)

    def end(self, exports: Iterable[Export]) -> None:
        """Ends those that nobody ends yet; what fails is in the log."""
        with self._lock:
            ending = [export for export in exports if not export.closing]
            for export in ending:
                export.closing = True
        for error in together(None, [partial(self._end, export) for export in ending]):
            if error is not None:
                raise error

    def _end(self, export: Export) -> None:
        """One that this thread has marked."""
        try:
            export.close()
        finally:
            export.node.base.unshare(export.user)
            with self._lock:
                export.node.users.discard(export.user)
                del self._exports[export.id]
                self._changed(list(self))
            self._emit("BLOCK_EXPORT_DELETED", {"id": export.id})
