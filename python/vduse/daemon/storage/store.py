"""What the daemon has: objects, nodes, exports and the NBD server, and what the commands do with
them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from vduse.channel.base import ControlPort
from vduse.control.refusals import in_words
from vduse.daemon.qmp.errors import QmpError
from vduse.daemon.storage.exports.export import Export, ExportOptions
from vduse.daemon.storage.exports.nbd_server import NBD_SERVER, NbdServerOptions, NbdServerStart
from vduse.daemon.storage.exports.table import Exports
from vduse.daemon.storage.models import (
    BlockStats,
    ExportDel,
    ExportInfo,
    NodeInfo,
    NodeName,
    ObjectId,
    QomGet,
    QomSet,
    QueryNodes,
    QueryStats,
    Reopen,
    Resize,
)
from vduse.daemon.storage.nodes.graph import Graph
from vduse.daemon.storage.nodes.node import Node
from vduse.daemon.storage.nodes.options import Blockdev
from vduse.daemon.storage.objects.options import ObjectOptions
from vduse.daemon.storage.objects.store import Objects
from vduse.daemon.storage.objects.tls_creds import TlsCredsX509
from vduse.daemon.storage.place import Place
from vduse.daemon.storage.reopen import Reopening
from vduse.daemon.storage.reservations import Reservations, Work
from vduse.daemon.storage.statistics import total
from vduse.device.device import DRAIN_TIMEOUT, DeviceError

log = logging.getLogger(__name__)

_SECTOR = 512
#: Seconds that the daemon's end waits for commands at work. What is being opened is of no use any
#: more; what is being closed has data to store.
_SETTLE = {
    Work.OPENING: 2.0,
    Work.RESIZING: 2.0,
    Work.CLOSING: DRAIN_TIMEOUT,
    Work.REOPENING: DRAIN_TIMEOUT,
}


class Store:
    """Methods are the handlers of the command table: see commands.py. They may be called from any
    thread. What they wait for (a server, a disk) holds up commands for the same names, which are
    refused meanwhile, and no others."""

    def __init__(
        self,
        control: ControlPort,
        emit: Callable[[str, dict[str, Any]], None],
        changed: Callable[[Sequence[Export]], None] = lambda exports: None,
    ) -> None:
        """``control`` stays the caller's. ``emit``: sends an event and its data. ``changed`` is
        called with the exports after one has come or gone; it must not wait, or call the store."""
        self._reservations = Reservations()
        self._lock = self._reservations.lock
        self._place = Place(control, emit)
        self._objects = Objects()
        #: Of the NBD server, while it runs.
        self._nbd_credentials: TlsCredsX509 | None = None
        self._nodes = Graph(self._objects, self._reservations)
        self._exports = Exports(self._nodes, self._place, self._reservations, emit, changed)

    @property
    def exports(self) -> list[Export]:
        """In the order they were added."""
        with self._lock:
            return list(self._exports)

    def accept(self) -> None:
        """The daemon's options are made: clients that waited for exports find them all."""
        with self._lock:
            self._place.accept()

    @property
    def nodes(self) -> list[Node]:
        """In the order they were added."""
        with self._lock:
            return list(self._nodes)

    def object_add(self, options: ObjectOptions) -> None:
        """An object."""
        with self._reservations.held("object", [options.id], Work.OPENING):
            with self._lock:
                self._objects.check(options.id)
            made = options.open()
            with self._lock:
                self._objects.add(made)

    def object_del(self, arguments: ObjectId) -> None:
        """Removes an object that nothing uses."""
        with self._lock:
            self._reservations.check_open()
            self._objects.remove(arguments.id)

    def qom_get(self, arguments: QomGet) -> dict[str, Any]:
        """A property of an object's."""
        with self._lock:
            return self._objects.get(arguments.path, arguments.property)

    def qom_set(self, arguments: QomSet) -> None:
        """Changes a property of an object's, live."""
        with self._lock:
            self._reservations.check_open()
            self._objects.set(arguments.path, arguments.property, arguments.value)

    def blockdev_add(self, options: Blockdev) -> None:
        """A node."""
        _said(lambda: self._nodes.add(options))

    def blockdev_del(self, arguments: NodeName) -> None:
        """Closes a node that nothing uses."""
        _said(lambda: self._nodes.remove(arguments.node_name))

    def blockdev_reopen(self, arguments: Reopen) -> None:
        """Opens nodes anew by other options, all or none."""
        reopening = Reopening(self._nodes, self._exports, self._lock)
        _said(partial(reopening.run, arguments.options))

    def nbd_server_start(self, arguments: NbdServerStart | NbdServerOptions) -> None:
        """Listens for NBD clients."""
        options = arguments
        if isinstance(options, NbdServerStart):
            options = options.options()
        with self._reservations.held(NBD_SERVER, [""], Work.OPENING), ExitStack() as undo:
            credentials = None
            if options.tls_creds is not None:
                with self._lock:
                    credentials = self._objects.find(options.tls_creds, TlsCredsX509)
                    if NBD_SERVER not in credentials.users:  # that of one that runs
                        credentials.users.add(NBD_SERVER)
                        undo.callback(credentials.users.discard, NBD_SERVER)
            self._place.start_nbd(options, credentials)
            self._nbd_credentials = credentials
            undo.pop_all()

    def nbd_server_stop(self, _: object) -> None:
        """Ends the exports at the NBD server, and the server."""
        with ExitStack() as reserved:
            with self._lock:
                self._place.nbd_server()
                self._exports.check_settled(NBD_SERVER)
                held = self._reservations.held(NBD_SERVER, [""], Work.CLOSING)
                reserved.enter_context(held)
            self._exports.close(NBD_SERVER)
            self._place.stop_nbd()
            if self._nbd_credentials is not None:
                self._nbd_credentials.users.discard(NBD_SERVER)

    def block_export_add(self, options: ExportOptions) -> None:
        """A node, exported."""
        _said(partial(self._exports.add, options))

    def block_export_del(self, arguments: ExportDel) -> None:
        """Ends an export."""
        self._exports.remove(arguments.id, safe=arguments.mode == "safe")

    def block_resize(self, arguments: Resize) -> None:
        """Another size of a node; its devices' drivers are told."""
        with ExitStack() as reserved:
            with self._lock:
                node = self._nodes.find(arguments.node_name, arguments.device)
                size = arguments.size
                if size < 0:
                    raise QmpError("Parameter 'size' expects a >0 size")
                if size % _SECTOR or size >= 1 << 63:
                    raise QmpError(f"Parameter 'size' expects a multiple of {_SECTOR} below 2^63")
                names = {node.name, node.lowest.name}
                reserved.enter_context(self._nodes.held(names, Work.RESIZING))
            _said(lambda: node.resize(size))
            self._exports.resized(node.lowest)

    def query_block_exports(self, _: object) -> list[ExportInfo]:
        """All exports."""
        with self._lock:
            return [export.info() for export in self._exports]

    def query_named_block_nodes(self, _: QueryNodes) -> list[NodeInfo]:
        """All nodes that have a name."""
        with self._lock:
            return [node.info() for node in self._nodes]

    def query_blockstats(self, _: QueryStats) -> list[BlockStats]:
        """What the exports of each node did."""
        with self._lock:
            exports = [export for export in self._exports if not export.closing]
            return [
                total(node.name, [each for each in exports if each.node is node])
                for node in self._nodes
            ]

    def close(self) -> None:
        """Ends the exports, then the nodes, in bounded time; what fails, or is waited for no
        longer, is in the log."""
        self._reservations.end()
        for text in self._reservations.settle(_SETTLE):
            log.error("%s: left behind", text)
        self._exports.close()
        self._place.close()
        self._nodes.close()


def _said(work: Callable[[], None]) -> None:
    """What the system refuses becomes an answer."""
    try:
        work()
    except (OSError, DeviceError, ValueError) as error:
        text = in_words(error) if isinstance(error, OSError) else str(error)
        raise QmpError(text) from error
