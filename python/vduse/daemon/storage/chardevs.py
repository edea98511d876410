"""Character devices: unix sockets for monitors."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import stat

from vduse.daemon.qmp.errors import ArgumentError, QmpError
from vduse.daemon.storage.models import ChardevOptions
from vduse.exports.errors import ExportError
from vduse.exports.listen import UnixListener

log = logging.getLogger(__name__)

#: Who may write it may do with the host's files what the daemon may.
_MODE = 0o600


class Chardev:
    """A listening socket; a :class:`~vduse.daemon.qmp.server.Listener`."""

    def __init__(self, options: ChardevOptions) -> None:
        """QmpError: no such socket can be had."""
        if (options.path is None) == (options.fd is None):
            raise ArgumentError("one of 'path' and 'fd' is required")
        if not options.server:
            raise ArgumentError("Parameter 'server' must be 'on': monitors listen for clients")
        self.id = options.id
        #: Whether a monitor has it.
        self.in_use = False
        self._first: socket.socket | None = None
        try:
            self._listener = (
                _Inherited(options.fd)
                if options.path is None
                else UnixListener(options.path, _MODE)
            )
        except ExportError as error:
            raise QmpError(str(error)) from None

    def fileno(self) -> int:
        """Readable when a client has arrived."""
        return self._listener.fileno()

    def accept(self) -> socket.socket:
        """A client's connection. BlockingIOError: there is none."""
        first, self._first = self._first, None
        return first or self._listener.accept()

    def wait(self) -> None:
        """Waits for the first client, which is accepted."""
        log.warning("chardev %s: waits for a client to connect (wait=off does not)", self.id)
        # Not select(2): it takes no fd above 1023.
        poller = select.poll()
        poller.register(self._listener, select.POLLIN)
        while self._first is None:
            poller.poll()
            # It may have gone again.
            with contextlib.suppress(BlockingIOError):
                self._first = self._listener.accept()

    def close(self) -> None:
        """Takes no connection any more."""
        if self._first is not None:
            self._first.close()
        self._listener.close()


class _Inherited:
    """A listening socket by its number."""

    def __init__(self, fd: int | None) -> None:
        """QmpError: it is none."""
        assert fd is not None
        try:
            if not stat.S_ISSOCK(os.fstat(fd).st_mode):
                raise QmpError(f"fd {fd} is no socket")
        except (OSError, OverflowError):
            raise QmpError(f"fd {fd} is not open") from None
        self._socket = socket.socket(fileno=fd)
        if self._socket.type != socket.SOCK_STREAM:
            self._socket.detach()
            raise QmpError(f"fd {fd} is no stream socket")
        if not self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            self._socket.detach()
            raise QmpError(f"fd {fd} does not listen")
        self._socket.setblocking(False)

    def fileno(self) -> int:
        return self._socket.fileno()

    def accept(self) -> socket.socket:
        connection, _ = self._socket.accept()
        connection.setblocking(False)
        return connection

    def close(self) -> None:
        self._socket.close()
