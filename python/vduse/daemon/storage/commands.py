"""The one table: what QMP offers is what the command line's options are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vduse.daemon.qmp.schema import schema
from vduse.daemon.qmp.session import version
from vduse.daemon.qmp.table import CommandTable, QmpCommand
from vduse.daemon.storage.exports.export import ExportOptions
from vduse.daemon.storage.exports.nbd_server import NbdServerOptions, NbdServerStart
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
    VersionInfo,
)
from vduse.daemon.storage.nodes.options import Blockdev
from vduse.daemon.storage.objects.options import ObjectOptions
from vduse.daemon.storage.store import Store
from vduse.daemon.storage.watched import WatchedStore
from vduse.daemon.watch.collect import state_command


@dataclass(frozen=True)
class OptionRow:
    """An option of the command line that is a command."""

    command: str
    #: The key that the first part of its text is the value of; None: there is none.
    implied: str | None
    #: Where they are not the command's.
    arguments: Any = None


#: By their names, without the dashes.
OPTIONS = {
    "object": OptionRow("object-add", "qom-type"),
    "blockdev": OptionRow("blockdev-add", "driver"),
    "nbd-server": OptionRow("nbd-server-start", None, NbdServerOptions),
    "export": OptionRow("block-export-add", "type"),
}

#: What clients are told without being asked, and when.
EVENTS = {
    "BLOCK_EXPORT_DELETED": "an export has ended",
    "BLOCK_IO_ERROR": "a node has failed a request of an export's",
}


def commands(store: Store, stop: Callable[[], None]) -> list[QmpCommand]:
    """``stop`` is called when quit was answered; it must not wait."""
    rows = [
        QmpCommand("object-add", "Adds an object: --object", store.object_add, ObjectOptions),
        QmpCommand("object-del", "Removes an object that nothing uses", store.object_del, ObjectId),
        QmpCommand(
            "qom-get",
            "A property of an object's: a throttle group's limits",
            store.qom_get,
            QomGet,
            dict[str, int],
        ),
        QmpCommand(
            "qom-set",
            "Changes one, live: what is not given stays as it is",
            store.qom_set,
            QomSet,
        ),
        QmpCommand("blockdev-add", "Adds a block node: --blockdev", store.blockdev_add, Blockdev),
        QmpCommand(
            "blockdev-del", "Removes a node that nothing uses", store.blockdev_del, NodeName
        ),
        QmpCommand(
            "blockdev-reopen",
            "Opens nodes anew by other options, all or none; their users go on",
            store.blockdev_reopen,
            Reopen,
        ),
        QmpCommand(
            "nbd-server-start",
            "Listens for NBD clients: --nbd-server",
            store.nbd_server_start,
            NbdServerStart,
        ),
        QmpCommand("nbd-server-stop", "Ends that, and its exports", store.nbd_server_stop),
        QmpCommand(
            "block-export-add", "Exports a node: --export", store.block_export_add, ExportOptions
        ),
        QmpCommand(
            "block-export-del",
            "Ends an export; with mode=safe, the default, not while somebody uses it",
            store.block_export_del,
            ExportDel,
        ),
        QmpCommand(
            "query-block-exports",
            "The exports",
            store.query_block_exports,
            result=list[ExportInfo],
        ),
        QmpCommand(
            "query-named-block-nodes",
            "The nodes",
            store.query_named_block_nodes,
            QueryNodes,
            list[NodeInfo],
        ),
        QmpCommand(
            "query-blockstats",
            "What the exports of each node did",
            store.query_blockstats,
            QueryStats,
            list[BlockStats],
        ),
        QmpCommand("block_resize", "Resizes a node, live", store.block_resize, Resize),
        state_command(lambda: WatchedStore(store)),
        QmpCommand("query-version", "The version", lambda _: version(), result=VersionInfo),
        QmpCommand("quit", "Ends the daemon in order", lambda _: None, answered=stop),
    ]
    return [
        *rows,
        QmpCommand(
            "query-qmp-schema",
            "All of this, for programs",
            lambda _: schema(CommandTable(commands(store, stop)), EVENTS),
            result=list[dict[str, Any]],
        ),
    ]
