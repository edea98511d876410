"""The one table: what QMP offers is what the command line's options are made of."""

from __future__ import annotations

from collections.abc import Callable

from vduse.daemon.qmp.session import version
from vduse.daemon.qmp.table import QmpCommand
from vduse.daemon.storage.models import (
    AnyBlockdev,
    ExportDel,
    ExportInfo,
    ExportOptions,
    NodeInfo,
    NodeName,
    QueryNodes,
    Resize,
    VersionInfo,
)
from vduse.daemon.storage.store import Store

#: The command line's options that are commands: the command's name, and the key that the first
#: part of the option's text is the value of.
OPTIONS = {
    "blockdev": ("blockdev-add", "driver"),
    "export": ("block-export-add", "type"),
}


def commands(store: Store, stop: Callable[[], None]) -> list[QmpCommand]:
    """``stop`` is called when quit was answered; it must not wait."""
    return [
        QmpCommand(
            "blockdev-add", "Adds a block node: --blockdev", store.blockdev_add, AnyBlockdev
        ),
        QmpCommand(
            "blockdev-del", "Removes a node that nothing uses", store.blockdev_del, NodeName
        ),
        QmpCommand(
            "block-export-add",
            "Exports a node as a VDUSE device: --export",
            store.block_export_add,
            ExportOptions,
        ),
        QmpCommand(
            "block-export-del",
            "Ends an export; with mode=safe, the default, not while a driver uses it",
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
        QmpCommand("block_resize", "Resizes a node, live", store.block_resize, Resize),
        QmpCommand("query-version", "The version", lambda _: version(), result=VersionInfo),
        QmpCommand("quit", "Ends the daemon in order", lambda _: None, answered=stop),
    ]
