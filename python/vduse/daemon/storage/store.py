"""What the daemon has: nodes and exports, and what the commands do with them."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from vduse.channel.base import ControlPort
from vduse.control.spelling import did_you_mean
from vduse.daemon.qmp.errors import QmpError
from vduse.daemon.storage.exports import Export
from vduse.daemon.storage.models import (
    AnyBlockdev,
    ExportDel,
    ExportInfo,
    ExportOptions,
    NodeInfo,
    NodeName,
    QueryNodes,
    Resize,
)
from vduse.daemon.storage.nodes import Node, node_names, open_nodes
from vduse.device.device import DRAIN_TIMEOUT, DeviceError
from vduse.device.within import within

log = logging.getLogger(__name__)

T = TypeVar("T")

#: QEMU's id_wellformed.
_NAME = re.compile("[A-Za-z][A-Za-z0-9._-]*")
_LONGEST_NODE_NAME = 31
_SECTOR = 512


class Store:
    """Methods are the handlers of the command table: see commands.py. They may be called from any
    thread, and take turns."""

    def __init__(self, control: ControlPort, emit: Callable[[str, dict[str, Any]], None]) -> None:
        """``control`` stays the caller's. ``emit``: sends an event and its data."""
        self._control = control
        self._emit = emit
        self._nodes: dict[str, Node] = {}
        self._exports: dict[str, Export] = {}
        self._lock = threading.RLock()
        self._closed = False

    @property
    def exports(self) -> list[Export]:
        """In the order they were added."""
        with self._lock:
            return list(self._exports.values())

    def blockdev_add(self, options: AnyBlockdev) -> None:
        """A node."""
        with self._open():
            names = node_names(options)
            for name in names:
                self._check_name(name)
            if len(set(names)) < len(names):
                raise QmpError(f"Duplicate nodes with node-name='{names[0]}'")
            for node in _said(lambda: open_nodes(options, lambda name: self._node(name, name))):
                self._nodes[node.name] = node

    def blockdev_del(self, arguments: NodeName) -> None:
        """Closes a node that nothing uses."""
        with self._open():
            name = arguments.node_name
            if name not in self._nodes:
                raise QmpError(f"Failed to find node with node-name='{name}'")
            node = self._nodes[name]
            if node.users:
                raise QmpError(f"Node {name} is in use")
            for each in (node, *node.owned):
                _said(each.close)
                del self._nodes[each.name]

    def block_export_add(self, options: ExportOptions) -> None:
        """A device."""
        with self._open():
            if not _NAME.fullmatch(options.id):
                raise QmpError("Invalid block export id")
            if options.id in self._exports:
                raise QmpError(f"Block export id '{options.id}' is already in use")
            node = self._node(options.node_name)
            self._exports[options.id] = Export(options, node, self._control)

    def block_export_del(self, arguments: ExportDel) -> None:
        """Ends a device."""
        with self._open():
            export = self._exports.get(arguments.id)
            if export is None:
                raise QmpError(f"Export '{arguments.id}' is not found")
            if arguments.mode == "safe" and export.device.live:
                raise QmpError(
                    f"export '{arguments.id}' still in use: "
                    f"vdpa dev del {export.device.name} takes it off the bus"
                )
            self._end(export)

    def block_resize(self, arguments: Resize) -> None:
        """Another size of a node; its devices' drivers are told."""
        with self._open():
            node = self._node(arguments.node_name, arguments.device)
            size = arguments.size
            if size < 0:
                raise QmpError("Parameter 'size' expects a >0 size")
            if size % _SECTOR or size >= 1 << 63:
                raise QmpError(f"Parameter 'size' expects a multiple of {_SECTOR} below 2^63")
            _said(lambda: node.resize(size))
            failed = []
            for export in self._exports.values():
                if export.node.backend is node.backend:
                    try:
                        export.device.resize()
                    except (OSError, DeviceError) as error:
                        failed.append(f"export '{export.id}' does not hear of it: {error}")
            if failed:
                raise QmpError("; ".join(failed))

    def query_block_exports(self, _: object) -> list[ExportInfo]:
        """All exports."""
        with self._lock:
            return [export.info() for export in self._exports.values()]

    def query_named_block_nodes(self, _: QueryNodes) -> list[NodeInfo]:
        """All nodes that have a name."""
        with self._lock:
            return [node.info() for node in self._nodes.values()]

    def close(self) -> None:
        """Ends the exports, then the nodes; what fails is in the log."""
        with self._lock:
            self._closed = True
            for export in self.exports:
                self._end(export)
            # Later ones may lie on earlier ones.
            while self._nodes:
                name, node = self._nodes.popitem()
                try:
                    within(DRAIN_TIMEOUT, node.close, f"node {name}: its end")
                except OSError as error:
                    log.error("node %s: at its end: %s", name, error)

    def _end(self, export: Export) -> None:
        export.close()
        del self._exports[export.id]
        self._emit("BLOCK_EXPORT_DELETED", {"id": export.id})

    @contextmanager
    def _open(self) -> Iterator[None]:
        with self._lock:
            if self._closed:
                raise QmpError("the daemon is ending")
            yield

    def _check_name(self, name: str) -> None:
        if not _NAME.fullmatch(name.removeprefix("#")):
            raise QmpError(f"Invalid node-name: '{name}'")
        if len(name) > _LONGEST_NODE_NAME:
            raise QmpError("Node name too long")
        if name in self._nodes:
            raise QmpError(f"Duplicate nodes with node-name='{name}'")

    def _node(self, name: str | None, device: str | None = None) -> Node:
        # QEMU's devices are what a virtual machine has: here there is none of any name.
        if name is None or name not in self._nodes:
            known = did_you_mean(name, self._nodes) if name else ""
            raise QmpError(
                f"Cannot find device='{device or ''}' nor node-name='{name or ''}'{known}"
            )
        return self._nodes[name]


def _said(work: Callable[[], T]) -> T:
    """What the system refuses becomes an answer."""
    try:
        return work()
    except (OSError, DeviceError, ValueError) as error:
        text = error.strerror if isinstance(error, OSError) else None
        raise QmpError(text or str(error)) from error
