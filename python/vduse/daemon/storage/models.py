"""The arguments and results of the daemon's commands, as QEMU's QAPI has them
(qapi/block-core.json, block-export.json, char.json, control.json), as far as they are supported:
a key that is not here is refused by its name. Sizes are bytes."""

from __future__ import annotations

from typing import Literal, TypeAlias

from vduse.daemon.qmp.arguments import Model


class Cache(Model, frozen=True, kw_only=True):
    """BlockdevCacheOptions."""

    #: O_DIRECT.
    direct: bool = False
    no_flush: bool = False


class Blockdev(Model, frozen=True, kw_only=True, tag_field="driver"):
    """BlockdevOptions: what all drivers have. None: not given."""

    node_name: str | None = None
    discard: Literal["ignore", "unmap"] | None = None
    cache: Cache | None = None
    read_only: bool | None = None
    auto_read_only: bool = False
    detect_zeroes: Literal["off"] = "off"


class _OnFile(Blockdev, frozen=True, kw_only=True):
    filename: str
    aio: Literal["threads", "native", "io_uring"] = "threads"
    locking: Literal["auto", "on", "off"] = "auto"
    force_share: bool = False


class FileOptions(_OnFile, frozen=True, kw_only=True, tag="file"):
    """A regular file."""


class HostDeviceOptions(_OnFile, frozen=True, kw_only=True, tag="host_device"):
    """A block device of the host's."""


class NullOptions(Blockdev, frozen=True, kw_only=True, tag="null-co"):
    """Nothing: reads leave the buffer as it is, writes are forgotten."""

    size: int = 1 << 30
    #: Nanoseconds before a request is done.
    latency_ns: int = 0
    read_zeroes: bool = False


class RawOptions(Blockdev, frozen=True, kw_only=True, tag="raw"):
    """The raw format on another node, or on one that is defined within."""

    file: str | FileOptions | HostDeviceOptions | NullOptions


AnyBlockdev: TypeAlias = FileOptions | HostDeviceOptions | NullOptions | RawOptions


class ExportOptions(Model, frozen=True, kw_only=True, tag_field="type", tag="vduse-blk"):
    """BlockExportOptions of type vduse-blk."""

    id: str
    node_name: str
    #: The VDUSE device.
    name: str | None = None
    #: N names it vduseN, where there is no name.
    vduse_id: int | None = None
    writable: bool = False
    num_queues: int = 1
    queue_size: int = 256
    logical_block_size: int | None = None
    serial: str = ""
    writethrough: bool = False


class ChardevOptions(Model, frozen=True, kw_only=True, tag_field="backend", tag="socket"):
    """A unix socket to listen at."""

    id: str
    path: str | None = None
    #: The number of a listening socket that was inherited.
    fd: int | None = None
    server: bool = False
    #: The daemon starts only once a client has connected.
    wait: bool = True


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


class VersionTriple(Model, frozen=True, kw_only=True):
    """VersionTriple."""

    major: int
    minor: int
    micro: int


class VersionInfo(Model, frozen=True, kw_only=True):
    """VersionInfo."""

    qemu: VersionTriple
    package: str
