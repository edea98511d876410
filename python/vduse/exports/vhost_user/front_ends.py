"""Where front ends come from: a socket that they connect to, or one of theirs."""

from __future__ import annotations

import logging
import os
import selectors
import socket
import stat
from time import monotonic
from typing import Protocol

from vduse.exports.errors import ExportError
from vduse.exports.listen import Listener, UnixListener, socket_path

log = logging.getLogger(__name__)

#: What a selector takes.
Selectable = socket.socket | Listener
#: Seconds until the next try where no connection can be accepted.
_ACCEPT_AGAIN = 1.0
#: Seconds between two tries to connect: the first pause, doubled up to the longest.
_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 1.0


class FrontEnds(Protocol):
    """One connection after the other."""

    @property
    def path(self) -> str:
        """Of the socket, as given."""

    def next(self, stopped: socket.socket) -> socket.socket | None:
        """The next connection, non-blocking; waits for it. None: ``stopped`` became readable."""

    def close(self) -> None:
        """Takes no connection any more. From any thread, once."""


class Listening:
    """Front ends connect to us."""

    def __init__(
        self,
        at: str | os.PathLike[str] | Listener,
        *,
        mode: int = 0o600,
        owner: int | None = None,
        group: int | None = None,
    ) -> None:
        """``at``: a path, and the rest as of :class:`~vduse.exports.listen.UnixListener`; or a
        socket that listens, which is taken over. ExportError."""
        self._listener: Listener = (
            UnixListener(at, mode, owner=owner, group=group)
            if isinstance(at, str | os.PathLike)
            else at
        )

    @property
    def path(self) -> str:
        return self._listener.path

    def next(self, stopped: socket.socket) -> socket.socket | None:
        while stopped not in _readable(None, stopped, self._listener):
            try:
                return self._listener.accept()
            except (BlockingIOError, ConnectionError):
                continue  # it has gone again
            except OSError as error:
                # No fds are left, for example. It waits still: looking again at once would be a
                # loop.
                log.warning("%s: no connection accepted: %s", self.path, str(error))
                if _readable(_ACCEPT_AGAIN, stopped):
                    return None
        return None

    def close(self) -> None:
        self._listener.close()


class Connecting:
    """The front end listens; we connect as soon as it is there, and again when it has gone."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """ExportError: no socket can have that path, or something else is there."""
        self.path = socket_path(path)
        if os.path.exists(self.path) and not stat.S_ISSOCK(os.stat(self.path).st_mode):
            raise ExportError(f"{self.path} is no socket: name the one that the VMM listens at")
        self._pause = 0.0
        self._connected_at = -_LONGEST_PAUSE
        #: Errnos in the log since the last connection.
        self._said: set[int] = set()

    def next(self, stopped: socket.socket) -> socket.socket | None:
        # One that ends each connection at once is tried no more often than one that is not there.
        if monotonic() - self._connected_at > _LONGEST_PAUSE:
            self._pause = 0.0
        while not _readable(self._pause, stopped):
            self._pause = min(max(_FIRST_PAUSE, 2 * self._pause), _LONGEST_PAUSE)
            if (connection := self._connect()) is not None:
                self._connected_at = monotonic()
                self._said.clear()
                return connection
        return None

    def close(self) -> None:
        """The socket is the front end's."""

    def _connect(self) -> socket.socket | None:
        try:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError as error:
            self._say(error)
            return None
        try:
            connection.setblocking(False)  # its backlog may be full
            connection.connect(self.path)
        except OSError as error:
            connection.close()
            self._say(error)
            return None
        return connection

    def _say(self, error: OSError) -> None:
        """Once, not at each try."""
        if error.errno not in self._said:
            self._said.add(error.errno or 0)
            log.warning(
                "%s: not connected: %s; trying until a front end listens there",
                self.path,
                error.strerror or str(error),
            )


def _readable(timeout: float | None, *files: Selectable) -> set[Selectable]:
    """Those of them that are, after ``timeout`` seconds at most."""
    # Not epoll: there may be no fd left.
    with selectors.PollSelector() as selector:
        for file in files:
            selector.register(file, selectors.EVENT_READ, file)
        return {key.data for key, _ in selector.select(timeout)}
