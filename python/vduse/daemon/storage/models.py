"""The arguments and results of the daemon's commands, as QEMU's QAPI has them
(qapi/block-core.json, block-export.json, char.json, control.json, qom.json), as far as they are
supported: a key that is not here is refused by its name. Sizes are bytes. Those of nodes, exports
and objects are with these."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from vduse.daemon.qmp.arguments import Mistake, Model
from vduse.daemon.storage.ids import is_id
from vduse.daemon.storage.nodes.options import Blockdev


class ChardevOptions(Model, frozen=True, kw_only=True, tag_field="backend", tag="socket"):
    """A unix socket to listen at."""

    id: str
    path: str | None = None
    #: A listening socket that was inherited: its number, or the name that systemd gave it.
    fd: str | None = None
    server: bool = False
    #: The daemon starts only once a client has connected.
    wait: bool = True

    def mistakes(self) -> Iterator[Mistake]:
        if not is_id(self.id):
            yield Mistake("id", "Parameter 'id' expects an identifier")
        if (self.path is None) == (self.fd is None):
            yield Mistake("path", "one of 'path' and 'fd' is required")
        if not self.server:
            text = "Parameter 'server' must be 'on': monitors listen for clients"
            yield Mistake("server", text)


class MonitorOptions(Model, frozen=True, kw_only=True):
    """MonitorOptions."""

    chardev: str
    id: str | None = None
    mode: Literal["control"] = "control"
    pretty: bool = False


class NodeName(Model, frozen=True, kw_only=True):
    """Of blockdev-del."""

    node_name: str


class ExportDel(Model, frozen=True, kw_only=True):
    """Of block-export-del. safe: refused while a driver uses the device."""

    id: str
    mode: Literal["safe", "hard"] = "safe"


class Resize(Model, frozen=True, kw_only=True):
    """Of block_resize. A node, by either name."""

    size: int
    node_name: str | None = None
    device: str | None = None


class QueryNodes(Model, frozen=True, kw_only=True):
    """Of query-named-block-nodes; nodes here have no backing files to leave out."""

    flat: bool = False


class Reopen(Model, frozen=True, kw_only=True):
    """Of blockdev-reopen: all options of each node; what is not given is as it is by default."""

    options: tuple[Blockdev, ...]


class ObjectId(Model, frozen=True, kw_only=True):
    """Of object-del."""

    id: str


class QomGet(Model, frozen=True, kw_only=True):
    """Of qom-get: a property of an object's."""

    #: Its id, with or without ``/objects/`` before it.
    path: str
    property: str


class QomSet(Model, frozen=True, kw_only=True):
    """Of qom-set."""

    path: str
    property: str
    value: dict[str, Any]


class QueryStats(Model, frozen=True, kw_only=True):
    """Of query-blockstats."""

    query_nodes: bool = False


class ExportInfo(Model, frozen=True, kw_only=True):
    """BlockExportInfo."""

    id: str
    type: str
    node_name: str
    shutting_down: bool


class ImageInfo(Model, frozen=True, kw_only=True):
    """ImageInfo."""

    filename: str
    format: str
    virtual_size: int


class CacheInfo(Model, frozen=True, kw_only=True):
    """BlockdevCacheInfo."""

    direct: bool
    writeback: bool = True
    no_flush: bool = False


class NodeInfo(Model, frozen=True, kw_only=True, rename={"node_name": "node-name"}):
    """BlockDeviceInfo, whose names are older than QMP's dashes."""

    node_name: str
    drv: str
    file: str
    ro: bool
    image: ImageInfo
    cache: CacheInfo
    encrypted: bool = False
    iops: int = 0
    iops_rd: int = 0
    iops_wr: int = 0
    bps: int = 0
    bps_rd: int = 0
    bps_wr: int = 0
    write_threshold: int = 0
    backing_file_depth: int = 0
    detect_zeroes: str = "off"


class BlockDeviceStats(Model, frozen=True, kw_only=True, rename={}):
    """BlockDeviceStats, as far as it is counted: of a node's exports together, since each began."""

    rd_bytes: int = 0
    wr_bytes: int = 0
    rd_operations: int = 0
    wr_operations: int = 0
    flush_operations: int = 0
    #: Discards, write zeroes, and whatever failed.
    other_operations: int = 0
    failed_operations: int = 0


class BlockStats(Model, frozen=True, kw_only=True):
    """BlockStats."""

    node_name: str
    stats: BlockDeviceStats


class VersionTriple(Model, frozen=True, kw_only=True):
    """VersionTriple."""

    major: int
    minor: int
    micro: int


class VersionInfo(Model, frozen=True, kw_only=True):
    """VersionInfo."""

    qemu: VersionTriple
    package: str
