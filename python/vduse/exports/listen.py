"""A unix socket to listen at: its file has its mode from the start, a dead server's file is
replaced, a live one's is refused."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from time import monotonic, sleep
from typing import Protocol

from vduse.exports.errors import ExportError

#: Bytes of the longest path: sockaddr_un has 108, the last is a zero.
MAX_PATH = 107
#: Seconds that servers which begin in the same directory wait for each other.
LOCK_TIMEOUT = 5.0
#: Seconds between two tries: flock(2) has no timeout.
_LOCK_STEP = 0.01

_ADVICE = {
    errno.ENOENT: "no such directory: make it, or name another",
    errno.ENOTDIR: "a part of the path is not a directory: check it",
    errno.EADDRINUSE: "another server has just begun to listen there: name another path",
    errno.EACCES: "permission denied: check its directory's owner and mode",
    errno.EPERM: "operation not permitted: check its directory's owner and mode",
    errno.EROFS: "it lies on a read-only file system: name another place",
    errno.ENOSPC: "no space left there: free some, or name another place",
    errno.ELOOP: "its symbolic links go round in a circle: check the path",
    errno.ENAMETOOLONG: "the name is too long: use a shorter one",
}


class Listener(Protocol):
    """A listening socket."""

    @property
    def path(self) -> str:
        """Where it listens, for people."""

    def fileno(self) -> int:
        """Readable when a client has arrived."""

    def accept(self) -> socket.socket:
        """A client's connection, non-blocking. BlockingIOError: there is none."""

    def close(self) -> None:
        """Takes no connection any more."""


class UnixListener:
    """A listening socket, and its file."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        mode: int,
        *,
        owner: int | None = None,
        group: int | None = None,
    ) -> None:
        """``mode``: permission bits of the file; who may write it may connect. ``owner`` and
        ``group``: its ids; None: this process's. ExportError."""
        self.path = socket_path(path)
        self._identity: tuple[int, int] | None = None
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.setblocking(False)
            with _folder_locked(self.path):
                self._bind(mode)
                self._give(-1 if owner is None else owner, -1 if group is None else group)
                self._socket.listen(socket.SOMAXCONN)
        except OSError as error:
            self.close()
            advice = _ADVICE.get(error.errno or 0, error.strerror)
            raise ExportError(f"{self.path}: {advice}") from None
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        """Readable when a client has arrived."""
        return self._socket.fileno()

    def accept(self) -> socket.socket:
        """A client's connection, non-blocking. BlockingIOError: there is none."""
        connection, _ = self._socket.accept()
        connection.setblocking(False)
        return connection

    def close(self) -> None:
        """Takes no connection any more, and removes the file, if it is still ours."""
        # The file first: after the close its inode's number may be the next server's.
        if self._identity is not None:
            with suppress(OSError):
                if _identity(os.lstat(self.path)) == self._identity:
                    os.unlink(self.path)
            self._identity = None
        self._socket.close()

    def _bind(self, mode: int) -> None:
        _remove_dead(self.path)
        # Linux makes the file with the mode of the socket itself, less the umask: nobody can
        # connect between bind and chmod, and the umask, which is every thread's, stays.
        os.fchmod(self._socket.fileno(), mode)
        self._socket.bind(self.path)
        self._identity = _identity(os.lstat(self.path))
        os.chmod(self.path, mode)  # what the umask took away

    def _give(self, owner: int, group: int) -> None:
        """Before it listens: nobody connects whom the former owner lets in. -1: as it is."""
        if (owner, group) == (-1, -1):
            return
        try:
            os.chown(self.path, owner, group, follow_symlinks=False)
        except PermissionError:
            raise ExportError(
                f"{self.path}: cannot be given to that owner or group: to another owner as root "
                "only, to a group as root or as one of its members"
            ) from None


def socket_path(path: str | os.PathLike[str]) -> str:
    """As a unix socket's address takes it. ExportError: it does not."""
    text = os.fspath(path)
    if not text:
        # bind(2) would choose an abstract name, which file modes do not guard.
        raise ExportError("the socket has no path: name one, as in ./disk.sock")
    if "\0" in text:
        raise ExportError("a socket's path has no zero byte")
    if (length := len(os.fsencode(text))) > MAX_PATH:
        raise ExportError(
            f"{text}: {length} bytes are too long for a socket's path: at most "
            f"{MAX_PATH}; use a relative or a shorter one"
        )
    return text


def check_place(path: str | os.PathLike[str]) -> None:
    """What can be known of a path long before anybody listens there. ExportError: nobody could."""
    text = socket_path(path)
    folder = os.path.dirname(text) or "."
    if not os.path.isdir(folder):
        raise ExportError(f"{text}: {_ADVICE[errno.ENOENT]}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ExportError(f"{text}: {_ADVICE[errno.EACCES]}")
    try:
        _find_dead(text)
    except OSError as error:
        raise ExportError(f"{text}: {_ADVICE.get(error.errno or 0, error.strerror)}") from None


@contextmanager
def _folder_locked(path: str) -> Iterator[None]:
    """One server at a time looks and listens in a folder: between them, one would take the other,
    which has bound and does not listen yet, for dead. The kernel's lock goes with its holder."""
    folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        end = monotonic() + LOCK_TIMEOUT
        while True:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if monotonic() >= end:
                    raise ExportError(
                        f"{path}: another program keeps its directory locked: name another path"
                    ) from None
                sleep(_LOCK_STEP)
        yield
    finally:
        os.close(folder)


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _find_dead(path: str) -> os.stat_result | None:
    """The socket of a server that is no more; None: nothing is there. ExportError: there is
    something else, or the server lives."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    if stat.S_ISREG(found.st_mode):
        raise ExportError(f"{path}: is a file and no socket: name another path")
    if not stat.S_ISSOCK(found.st_mode):
        raise ExportError(f"{path}: exists and is no socket: name another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a full backlog is a server's, too
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            pass
        except BlockingIOError:
            raise _alive(path) from None
        else:
            raise _alive(path)
    return found


def _remove_dead(path: str) -> None:
    """ExportError: as of :func:`_find_dead`."""
    found = _find_dead(path)
    # Not the file of a server that came up since.
    if found is not None and _identity(os.lstat(path)) == _identity(found):
        os.unlink(path)


def _alive(path: str) -> ExportError:
    return ExportError(f"{path}: another server listens there: stop it, or name another path")
