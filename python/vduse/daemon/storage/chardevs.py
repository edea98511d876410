"""Character devices: unix sockets for monitors."""

from __future__ import annotations

import contextlib
import logging
import select
import socket

from vduse.daemon.activation import sockets
from vduse.daemon.qmp.errors import QmpError
from vduse.daemon.storage.models import ChardevOptions
from vduse.exports.errors import ExportError
from vduse.exports.listen import Listener, UnixListener

log = logging.getLogger(__name__)

#: Who may write it may do with the host's files what the daemon may.
_MODE = 0o600


class Chardev:
    """A listening socket; a :class:`~vduse.daemon.qmp.server.Listener`."""

    def __init__(self, options: ChardevOptions) -> None:
        """QmpError: no such socket can be had."""
        self.id = options.id
        #: Whether a monitor has it.
        self.in_use = False
        self._first: socket.socket | None = None
        self._listener: Listener
        try:
            if options.path is not None:
                self._listener = UnixListener(options.path, _MODE)
            else:
                assert options.fd is not None
                self._listener = sockets().listener(options.fd)
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
