"""A vhost-user connection seen from between: the crate that drives the device keeps its socket to
itself, and neither gives up waiting for a reply nor notices that the server has gone. So it
connects to a socket of ours; what it and the server say to each other passes here. Requests do
not: they go by shared memory and eventfds.
"""

from __future__ import annotations

import os
import selectors
import socket
import struct
import threading
from contextlib import suppress
from tempfile import TemporaryDirectory

from vduse.control.nbd import MAGIC
from vduse.daemon.errors import UserError
from vduse.testing.closing import Closing

#: What an NBD server says first.
_NBD = MAGIC.to_bytes(8, "big")
#: Most fds of one message: a memory table's.
_MAX_FDS = 8
_PIECE = 1 << 16
#: Seconds that a server may take to read a message of a few bytes.
_PATIENCE = 10.0


class Relay(Closing):
    """Connected to a server, for one front end at :attr:`path`."""

    def __init__(self, server: str) -> None:
        """OSError: it cannot be connected to. UserError: nobody could connect here."""
        self._server = socket.socket(socket.AF_UNIX)
        try:
            self._server.settimeout(_PATIENCE)
            self._server.connect(server)
            #: The process that made the server's socket listen; None: not one of this namespace.
            self.pid: int | None = _peer(self._server) or None
        except BaseException:
            self._server.close()
            raise
        self._gone = False
        self._is_nbd = False
        try:
            self._folder = TemporaryDirectory(prefix="vduse-bench-")
        except OSError as error:
            self._server.close()
            raise UserError(
                f"no folder for a socket: {error.strerror}: set TMPDIR to one that can be written"
            ) from None
        self._fd = os.open(self._folder.name, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        #: Where the front end connects to. By fd: the folder's own path may be too long.
        self.path = f"/proc/self/fd/{self._fd}/vhost-user.sock"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen(1)
        self._stop, self._stopped = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="vduse-relay", daemon=True)
        self._thread.start()

    @property
    def gone(self) -> bool:
        """Whether the server has closed the connection."""
        return self._gone

    @property
    def is_nbd(self) -> bool:
        """Whether the server speaks NBD. Then it has been left."""
        return self._is_nbd

    def close(self) -> None:
        """Ends the connection, on both sides. Idempotent."""
        self._stop.close()
        self._thread.join()
        self._stopped.close()

    # --- the thread -------------------------------------------------------------------------

    def _run(self) -> None:
        with self._server, self._listener:
            if (front_end := self._accept()) is None:
                return
            with front_end, suppress(OSError):
                self._pass_on(front_end)

    def _accept(self) -> socket.socket | None:
        """None: it is to end."""
        try:
            return self._listener.accept()[0] if self._ready(self._listener) else None
        finally:
            # Nobody else comes: a client that is killed leaves nothing.
            os.close(self._fd)
            self._folder.cleanup()

    def _pass_on(self, front_end: socket.socket) -> None:
        front_end.settimeout(_PATIENCE)
        while ready := self._ready(front_end, self._server):
            if self._server in ready and _greets_by_nbd(self._server):
                self._is_nbd = True
                return
            # What it said before it went is passed on first.
            if self._server in ready and not _moved(self._server, front_end):
                self._gone = True
                return
            if front_end in ready and not _moved(front_end, self._server):
                return

    def _ready(self, *sockets: socket.socket) -> set[object]:
        """Those that can be read; none: it is to end."""
        with selectors.DefaultSelector() as selector:
            for each in (*sockets, self._stopped):
                selector.register(each, selectors.EVENT_READ)
            ready: set[object] = {key.fileobj for key, _ in selector.select()}
        return set() if self._stopped in ready else ready


def _moved(source: socket.socket, to: socket.socket) -> bool:
    """Passes on what has arrived; false: nothing will any more."""
    try:
        data, fds, _, _ = socket.recv_fds(source, _PIECE, _MAX_FDS, socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        return False
    if not data:
        return False
    try:
        sent = socket.send_fds(to, [data], fds)
        to.sendall(data[sent:])
    finally:
        for fd in fds:
            os.close(fd)
    return True


def _greets_by_nbd(server: socket.socket) -> bool:
    """No vhost-user message begins so."""
    try:
        return server.recv(len(_NBD), socket.MSG_PEEK | socket.MSG_DONTWAIT) == _NBD
    except OSError:
        return False


def _peer(connection: socket.socket) -> int:
    """The pid that SO_PEERCRED names."""
    credentials = connection.getsockopt(
        socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")
    )
    pid: int = struct.unpack("3i", credentials)[0]
    return pid
