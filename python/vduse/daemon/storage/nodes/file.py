"""``file``, a regular file, and ``host_device``, a block device of the host's."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from typing import Literal, Protocol

from vduse import _native
from vduse.backends.qcow2 import is_qcow2
from vduse.control.refusals import in_words
from vduse.daemon.qmp.arguments import Mistake
from vduse.daemon.qmp.errors import QmpError
from vduse.daemon.storage.nodes.node import Storage, Surroundings
from vduse.daemon.storage.nodes.options import Blockdev, Cache

#: QEMU's name of Linux AIO; here io_uring does what it is asked for, where it can be had.
_ENGINES = {"native": "auto", "io_uring": "io_uring", "threads": "threads"}
#: What auto-read-only is for.
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)


class OnFile(Blockdev, frozen=True, kw_only=True):
    """Options of both drivers."""

    filename: str
    aio: Literal["threads", "native", "io_uring"] = "threads"
    locking: Literal["auto", "on", "off"] = "auto"
    force_share: bool = False

    def mistakes(self) -> Iterator[Mistake]:
        if not self.filename or "\0" in self.filename:
            text = "Parameter 'filename' expects a path: not empty, without a zero byte"
            yield Mistake("filename", text)
        if self.force_share and self.read_only is not True:
            yield Mistake("force-share", "force-share=on can only be used with read-only images")


class FileOptions(OnFile, frozen=True, kw_only=True, tag="file"):
    """A regular file."""

    def open(self, around: Surroundings) -> FileNode:
        return FileNode(self)


class HostDeviceOptions(OnFile, frozen=True, kw_only=True, tag="host_device"):
    """A block device of the host's."""

    def open(self, around: Surroundings) -> HostDeviceNode:
        return HostDeviceNode(self)


class FileNode(Storage):
    """``file``."""

    options: OnFile

    def __init__(self, options: OnFile) -> None:
        self._filename = options.filename
        self._check_kind()
        super().__init__(options)
        self._place = Place(self._filename)

    def open_backend(self) -> _native.Backend:
        return open_as(self.options, _open)

    @property
    def filename(self) -> str:
        return self._filename

    def resize(self, size: int) -> None:
        self.check_writable()
        fd = os.open(self._filename, os.O_WRONLY | os.O_CLOEXEC)
        try:
            self._place.check(os.fstat(fd))
            self._set_size(fd, size)
        finally:
            os.close(fd)
        self.look_again()

    def check_way_back(self) -> None:
        self._place.check()

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


class Opener(Protocol):
    """What opens the backend in a file. OSError."""

    def __call__(
        self, path: str, *, read_only: bool, direct: bool, engine: str, lock: bool
    ) -> _native.Backend: ...


def _open(path: str, *, read_only: bool, direct: bool, engine: str, lock: bool) -> _native.Backend:
    return _native.Backend.file(
        path,
        read_only=read_only,
        direct=direct,
        engine=engine,
        lock=lock,
        # For a node on it: the size of an image is not whole sectors.
        container=is_qcow2(path),
    )


def open_as(options: OnFile, opener: Opener) -> _native.Backend:
    """What ``opener`` makes of the file, by the options. QmpError."""
    cache = options.cache or Cache()
    # Not a mistake of the options alone: a child has its parent's cache.
    if options.aio == "native" and not cache.direct:
        raise QmpError(
            "aio=native was specified, but it requires cache.direct=on, which was not specified."
        )
    lock = options.locking != "off" and not options.force_share

    def open_backend(read_only: bool) -> _native.Backend:
        return opener(
            options.filename,
            read_only=read_only,
            direct=cache.direct,
            engine=_ENGINES[options.aio],
            lock=lock,
        )

    try:
        try:
            return open_backend(options.read_only is True)
        except OSError as error:
            if not options.auto_read_only or error.errno not in _NOT_WRITABLE:
                raise
            return open_backend(True)
    except OSError as error:
        text = in_words(error)
        if error.errno == errno.EAGAIN:
            text += ", or remove the node of this daemon that has it"
        raise QmpError(f"Could not open '{options.filename}': {text}") from None


def _stat(path: str) -> os.stat_result:
    try:
        return os.stat(path)
    except (OSError, ValueError) as error:
        text = error.strerror if isinstance(error, OSError) else str(error)
        raise QmpError(f"Could not open '{path}': {text}") from None


class Place:
    """Where an open file is to be found."""

    def __init__(self, path: str) -> None:
        """QmpError."""
        self._path = path
        self._identity = _identity(_stat(path))

    def check(self, found: os.stat_result | None = None) -> None:
        """QmpError: what is ``found`` there, by default now, is another file."""
        if _identity(found or _stat(self._path)) != self._identity:
            raise QmpError(f"'{self._path}' is another file than the node's by now")


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino
