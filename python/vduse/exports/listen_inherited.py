"""A listening socket that was passed to this process: the same to its users as one of its own."""

from __future__ import annotations

import os
import socket
import stat

from vduse.exports.errors import ExportError

_INTERNET = (socket.AF_INET, socket.AF_INET6)


class InheritedListener:
    """A socket that somebody else made, listens at, and removes."""

    def __init__(self, fd: int, name: str) -> None:
        """Duplicates ``fd``, which stays open: after :meth:`close` clients still find the socket,
        and wait for the next server. ``name``: for people. ExportError: it is no such socket."""
        self.path = name
        try:
            if not stat.S_ISSOCK(os.fstat(fd).st_mode):
                raise ExportError(f"{name} is no socket")
        except (OSError, OverflowError):
            raise ExportError(f"{name} is not open") from None
        # os.dup makes it close-on-exec.
        self._socket = socket.socket(fileno=os.dup(fd))
        try:
            if self._socket.type != socket.SOCK_STREAM:
                raise ExportError(f"{name} is no stream socket")
            if not self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                raise ExportError(f"{name} does not listen")
        except ExportError:
            self._socket.close()
            raise
        self._socket.setblocking(False)

    def fileno(self) -> int:
        """Readable when a client has arrived."""
        return self._socket.fileno()

    def accept(self) -> socket.socket:
        """A client's connection, non-blocking. BlockingIOError: there is none."""
        connection, _ = self._socket.accept()
        connection.setblocking(False)
        if self._socket.family in _INTERNET:
            # Requests are small, and each waits for its answer.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def close(self) -> None:
        """Takes no connection any more."""
        self._socket.close()
