"""In-flight records on the kernel's channel: a file for each device in the runtime directory.

The kernel keeps nothing for a device's program. What the program writes into a shared mapping of
a file is there after SIGKILL; after a reboot it is worthless, as are the rings. So the place for
it is tmpfs, /run or a user's own part of it; on another file system the boot's id tells.

A file that is not beyond doubt of this boot, this device and this driver is ignored, and the log
says so.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
import uuid
from dataclasses import replace

from vduse.channel.inflight_header import InflightHeader

log = logging.getLogger(__name__)

_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_SUFFIX = ".inflight"
#: While it is made; it gets its name when it is whole.
_UNFINISHED = ".inflight~"

_READ = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def runtime_directory() -> str:
    """Where this process keeps the records of its devices: what systemd's RuntimeDirectory= gave
    it, else /run/vduse for root, else $XDG_RUNTIME_DIR/vduse. OSError ENOENT: there is none."""
    if given := os.environ.get("RUNTIME_DIRECTORY"):
        return given.split(":")[0]
    if os.geteuid() == 0:
        return "/run/vduse"
    if session := os.environ.get("XDG_RUNTIME_DIR"):
        return os.path.join(session, "vduse")
    raise OSError(errno.ENOENT, "neither RUNTIME_DIRECTORY nor XDG_RUNTIME_DIR is set")


def is_ours(directory: os.stat_result) -> bool:
    """Whether only this user can write to it, so that what lies there can be trusted."""
    ours = stat.S_ISDIR(directory.st_mode) and directory.st_uid == os.geteuid()
    return ours and not directory.st_mode & 0o022


def remove_records(name: str, directory: str | None = None) -> None:
    """After the device was destroyed; nothing where there are none."""
    with contextlib.suppress(OSError):
        os.unlink(os.path.join(directory or runtime_directory(), name + _SUFFIX))


class KernelRecords:
    """The file of one device, whose node is open as ``node``: one at a time, as the node is.

    Nothing is looked at before it is needed. ``directory``: in the place of
    :func:`runtime_directory`.
    """

    def __init__(self, name: str, node: int, directory: str | None = None) -> None:
        self._name = name
        self._node = node
        self._given_directory = directory
        self._directory = -1
        #: Whether a file was there; None: nobody has looked.
        self._found: bool | None = None
        #: What the file says that has been found in order; the file is open.
        self._header: InflightHeader | None = None
        self._fd = -1

    def begin(self, size: int, features: int) -> int | None:
        """DRIVER_OK: zeroed records of ``size`` bytes for a driver with these features; the fd is
        the caller's. None: none can be kept, and the log says what that costs."""
        try:
            self._load()
            self._renew(size, features, live=True)
        except OSError as error:
            log.warning(
                "%s: no in-flight record can be kept: %s. If this program dies, no other can go "
                "on under the driver, and requests wait until it is reset; see docs/kernel.md, "
                '"When the program dies"',
                self._name,
                error,
            )
            # Who finds the file must not believe that a reset is under way, nor, where it could
            # not be read, that its driver is this one.
            self._end()
            self._remove()
            return None
        return os.dup(self._fd)

    def resume(self, size: int, features: int) -> int | None:
        """What the last program left of a driver that may be live still, with these features; the
        fd is the caller's. None: nothing that can be trusted, and the log says why. OSError
        ENODATA: no driver was; EBUSY: it is live on records of another size."""
        try:
            self._load()
        except OSError as error:
            log.warning("%s: its in-flight record cannot be had: %s", self._name, error)
            return None
        if self._header is None:
            if not self._found:
                log.warning("%s: there is no in-flight record of it here", self._name)
            return None
        if not self._header.live:
            raise OSError(errno.ENODATA, "no driver is live on the records")
        if self._header.features != features:
            found = self._header.features
            self._ignored(f"the driver's features were {found:#x}, and are {features:#x}")
            return None
        if self._header.size != size:
            raise OSError(errno.EBUSY, f"the driver is live on {self._header.size} bytes")
        return os.dup(self._fd)

    def clear(self) -> None:
        """A reset is about to be answered: what the records say is of no more meaning. OSError:
        they could not be cleared, so it must not be answered."""
        try:
            self._load()
            if self._header is None:
                self._renew(0, 0, live=False)
        except OSError as error:
            log.info("%s: no in-flight record is kept: %s", self._name, error)
        self._end()

    def close(self) -> None:
        """The file stays."""
        for fd in (self._fd, self._directory):
            if fd >= 0:
                os.close(fd)
        self._fd = self._directory = -1

    # --- the file ---------------------------------------------------------------------------

    def _load(self) -> None:
        """Once: the directory, and what lies there. OSError: nothing can be kept there."""
        if self._directory < 0:
            self._directory = _own_directory(self._given_directory or runtime_directory())
        if self._found is not None:
            return
        self._found = True
        try:
            self._fd = os.open(self._name + _SUFFIX, _READ, dir_fd=self._directory)
        except FileNotFoundError:
            self._found = False
            return
        except OSError as error:
            self._ignored(str(error))
            return
        try:
            self._header = self._read()
        except ValueError as why:
            self._ignored(str(why))

    def _read(self) -> InflightHeader:
        """What the open file says. ValueError: why it is none of ours; OSError."""
        found = os.fstat(self._fd)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            raise ValueError("it is no plain file")
        if found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise ValueError("others may have written to it")
        at = found.st_size - InflightHeader.SIZE
        header = InflightHeader.unpack(os.pread(self._fd, InflightHeader.SIZE, max(at, 0)))
        if header.boot != _boot_id():
            raise ValueError("it was made before the last boot")
        if header.device != _device_number(self._name, self._node):
            raise ValueError("it is of another device that had this name")
        if header.size != at:
            raise ValueError(f"its records are {at} bytes long, not {header.size}")
        return header

    def _renew(self, size: int, features: int, *, live: bool) -> None:
        """Another file in the place of the last one, all of it or nothing."""
        header = InflightHeader(
            boot=_boot_id(),
            device=_device_number(self._name, self._node),
            features=features,
            size=size,
            generation=self._header.generation if self._header is not None else 0,
            live=live,
        )
        unfinished = self._name + _UNFINISHED
        with contextlib.suppress(FileNotFoundError):
            os.unlink(unfinished, dir_fd=self._directory)
        fd = os.open(unfinished, _CREATE, 0o600, dir_fd=self._directory)
        try:
            # A hole that finds no memory later would be SIGBUS.
            os.posix_fallocate(fd, 0, size + InflightHeader.SIZE)
            os.pwrite(fd, header.pack(), size)
            os.rename(
                unfinished,
                self._name + _SUFFIX,
                src_dir_fd=self._directory,
                dst_dir_fd=self._directory,
            )
        except OSError:
            os.close(fd)
            os.unlink(unfinished, dir_fd=self._directory)
            raise
        self._drop()
        self._header, self._fd = header, fd

    def _end(self) -> None:
        """No driver is live on the records. In place: that takes no memory, so it does not fail
        where there is none."""
        if self._header is not None and self._header.live:
            generation = self._header.generation + 1
            self._header = replace(self._header, live=False, generation=generation)
            os.pwrite(self._fd, self._header.pack(), self._header.size)

    def _remove(self) -> None:
        if self._directory >= 0:
            with contextlib.suppress(OSError):
                os.unlink(self._name + _SUFFIX, dir_fd=self._directory)
        self._drop()

    def _ignored(self, why: str) -> None:
        log.warning("%s: in-flight record ignored: %s", self._name, why)
        self._drop()

    def _drop(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._header = -1, None


def _own_directory(path: str) -> int:
    """Opens a directory that only this user can write to, made where there is none. OSError."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    if not is_ours(os.fstat(fd)):
        os.close(fd)
        raise PermissionError(errno.EPERM, "others may write to it", path)
    return fd


def _boot_id() -> bytes:
    with open(_BOOT_ID, encoding="ascii") as file:
        return uuid.UUID(file.read().strip()).bytes


def _device_number(name: str, node: int) -> int:
    """What tells a device from another one of this boot under the same name: the number of its
    directory in sysfs. Linux counts them up and gives none twice (kernfs, on 64 bits). Under `vduse
    run` nodes are sockets; there it is the device number, given once in a run, as the runtime
    directory is."""
    found = os.fstat(node)
    if stat.S_ISSOCK(found.st_mode):
        return os.stat(os.path.join("/dev/vduse", name)).st_rdev
    number = found.st_rdev
    return os.stat(f"/sys/dev/char/{os.major(number)}:{os.minor(number)}").st_ino
