"""Block nodes: drivers over the backends."""

from __future__ import annotations

import errno
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import msgspec.structs

from vduse import _native
from vduse.backends.layers import delay
from vduse.daemon.qmp.errors import QmpError
from vduse.daemon.storage.models import (
    AnyBlockdev,
    Blockdev,
    Cache,
    CacheInfo,
    FileOptions,
    HostDeviceOptions,
    ImageInfo,
    NodeInfo,
    NullOptions,
    RawOptions,
)

_SECTOR = 512
#: QEMU's name of Linux AIO; here io_uring does what it is asked for, where it can be had.
_ENGINES = {"native": "auto", "io_uring": "io_uring", "threads": "threads"}
#: What auto-read-only is for.
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)
_NO_RESIZE = "Image format driver does not support resize"


class Node(ABC):
    """A named backend. ``users``: ids of exports and names of nodes that hold it."""

    #: QEMU's name of the driver.
    driver: str

    def __init__(self, options: Blockdev, backend: _native.Backend) -> None:
        assert options.node_name is not None
        self.name = options.node_name
        self.backend = backend
        self.discard = options.discard == "unmap"
        self.direct = options.cache is not None and options.cache.direct
        self.users: set[str] = set()
        #: Nodes that were defined within this one.
        self.owned: tuple[Node, ...] = ()

    @property
    @abstractmethod
    def filename(self) -> str:
        """What the bytes are stored in, as QEMU shows it."""

    @property
    def read_only(self) -> bool:
        """Whether writes are refused."""
        return self.backend.read_only

    def resize(self, size: int) -> None:
        """Makes it ``size`` bytes. QmpError; OSError."""
        raise QmpError(_NO_RESIZE)

    def info(self) -> NodeInfo:
        """As query-named-block-nodes shows it."""
        return NodeInfo(
            node_name=self.name,
            drv=self.driver,
            file=self.filename,
            ro=self.read_only,
            image=ImageInfo(
                filename=self.filename, format=self.driver, virtual_size=self.backend.size
            ),
            cache=CacheInfo(direct=self.direct),
        )

    def close(self) -> None:
        """Flushes and closes. OSError."""
        self.backend.close()


class FileNode(Node):
    """``file``."""

    driver = "file"

    def __init__(self, options: FileOptions | HostDeviceOptions) -> None:
        self._filename = options.filename
        self._check_kind()
        super().__init__(options, _open_file(options))
        self._identity = _identity(os.stat(self._filename))

    @property
    def filename(self) -> str:
        return self._filename

    def resize(self, size: int) -> None:
        if self.read_only:
            raise QmpError(f"Node '{self.name}' is read only")
        fd = os.open(self._filename, os.O_WRONLY | os.O_CLOEXEC)
        try:
            if _identity(os.fstat(fd)) != self._identity:
                raise QmpError(f"'{self._filename}' is another file than the node's by now")
            self._set_size(fd, size)
        finally:
            os.close(fd)
        self.backend.refresh_size()

    def _set_size(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    def _check_kind(self) -> None:
        if not self._is_kind(_stat(self._filename).st_mode):
            raise QmpError(f"'file' driver requires '{self._filename}' to be a regular file")

    @staticmethod
    def _is_kind(mode: int) -> bool:
        return stat.S_ISREG(mode)


class HostDeviceNode(FileNode):
    """``host_device``."""

    driver = "host_device"

    def _check_kind(self) -> None:
        if not self._is_kind(_stat(self._filename).st_mode):
            raise QmpError(f"'host_device' driver requires '{self._filename}' to be a block device")

    @staticmethod
    def _is_kind(mode: int) -> bool:
        return stat.S_ISBLK(mode)

    def _set_size(self, fd: int, size: int) -> None:
        """A device that has grown is looked at again; nobody makes it grow from here."""
        if size > os.lseek(fd, 0, os.SEEK_END):
            raise QmpError("Cannot grow device files")


class NullNode(Node):
    """``null-co``."""

    driver = "null-co"

    def __init__(self, options: NullOptions) -> None:
        if options.read_zeroes:
            raise QmpError("Parameter 'read-zeroes' does not accept 'on': buffers stay as they are")
        if options.size <= 0 or options.size % _SECTOR or options.size >= 1 << 63:
            raise QmpError(f"Parameter 'size' expects a multiple of {_SECTOR} above 0")
        if options.latency_ns < 0:
            raise QmpError("latency-ns is invalid")
        backend = _native.Backend.null(options.size)
        if options.latency_ns:
            pause = options.latency_ns / 10**9
            backend = delay(backend, read=pause, write=pause, flush=pause)
        if options.read_only:
            backend = _native.layer_read_only(backend)
        super().__init__(options, backend)
        self._size = options.size

    @property
    def filename(self) -> str:
        return f'json:{{"driver": "null-co", "size": {self._size}}}'


class RawNode(Node):
    """``raw``: another node under a name of its own."""

    driver = "raw"

    def __init__(self, options: RawOptions, child: Node, *, owned: bool) -> None:
        """``owned``: the child was defined within, and ends with this one."""
        if child.read_only and options.read_only is False:
            raise QmpError("Block node is read-only")
        super().__init__(options, child.backend)
        self.child = child
        self.owned = (child,) if owned else ()
        self.direct = child.direct
        self.discard = self.discard and child.discard
        self._read_only = options.read_only is True or child.read_only
        child.users.add(self.name)

    @property
    def filename(self) -> str:
        return self.child.filename

    @property
    def read_only(self) -> bool:
        return self._read_only

    def resize(self, size: int) -> None:
        if self.read_only:
            raise QmpError(f"Node '{self.name}' is read only")
        self.child.resize(size)

    def close(self) -> None:
        self.child.users.discard(self.name)


def node_names(options: AnyBlockdev) -> list[str]:
    """Of the nodes that it defines, the lowest first. QmpError: the root has none."""
    if options.node_name is None:
        raise QmpError("'node-name' must be specified for the root node")
    if isinstance(options, RawOptions) and not isinstance(options.file, str):
        return [options.file.node_name or f"#{options.node_name}", options.node_name]
    return [options.node_name]


def open_nodes(options: AnyBlockdev, find: Callable[[str], Node]) -> list[Node]:
    """The nodes that it defines, the lowest first; ``find``: others by their names. QmpError,
    OSError."""
    if options.cache is not None and options.cache.no_flush:
        raise QmpError("Parameter 'cache.no-flush' does not accept 'on': flushes reach the disk")
    match options:
        case RawOptions():
            if isinstance(options.file, str):
                return [RawNode(options, find(options.file), owned=False)]
            return _open_raw(options, options.file, find)
        case FileOptions():
            return [FileNode(options)]
        case HostDeviceOptions():
            return [HostDeviceNode(options)]
        case NullOptions():
            return [NullNode(options)]


def _open_raw(
    options: RawOptions,
    inner: FileOptions | HostDeviceOptions | NullOptions,
    find: Callable[[str], Node],
) -> list[Node]:
    # What a child inherits (QEMU's bdrv_inherited_options); discards are raw's own affair.
    inherited: dict[str, Any] = {
        "node_name": node_names(options)[0],
        "discard": inner.discard or "unmap",
        "cache": inner.cache or options.cache,
        "read_only": options.read_only if inner.read_only is None else inner.read_only,
        "auto_read_only": inner.auto_read_only or options.auto_read_only,
    }
    [child] = open_nodes(msgspec.structs.replace(inner, **inherited), find)
    try:
        return [child, RawNode(options, child, owned=True)]
    except BaseException:
        child.close()
        raise


def _open_file(options: FileOptions | HostDeviceOptions) -> _native.Backend:
    cache = options.cache or Cache()
    if options.aio == "native" and not cache.direct:
        raise QmpError(
            "aio=native was specified, but it requires cache.direct=on, which was not specified."
        )
    read_only = options.read_only is True
    if options.force_share and not read_only:
        raise QmpError("force-share=on can only be used with read-only images")
    lock = options.locking != "off" and not options.force_share

    def open_backend(read_only: bool) -> _native.Backend:
        return _native.Backend.file(
            options.filename,
            read_only=read_only,
            direct=cache.direct,
            engine=_ENGINES[options.aio],
            lock=lock,
        )

    try:
        try:
            return open_backend(read_only)
        except OSError as error:
            if not options.auto_read_only or error.errno not in _NOT_WRITABLE:
                raise
            return open_backend(True)
    except OSError as error:
        text = error.strerror or str(error)
        raise QmpError(f"Could not open '{options.filename}': {text}") from None


def _stat(path: str) -> os.stat_result:
    try:
        return os.stat(path)
    except (OSError, ValueError) as error:
        text = error.strerror if isinstance(error, OSError) else str(error)
        raise QmpError(f"Could not open '{path}': {text}") from None


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino
