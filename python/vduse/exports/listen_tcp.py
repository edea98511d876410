"""A TCP port to listen at: the same to its users as a unix socket."""

from __future__ import annotations

import socket

from vduse.exports.errors import ExportError


class TcpListener:
    """A listening socket at one address."""

    def __init__(self, host: str, port: str) -> None:
        """``host``: a name or an address, empty for all of this host's; ``port``: a number, or a
        service's name. Of several addresses the first that can be had is taken. ExportError."""
        self.path = f"{host or '*'}:{port}"
        try:
            found = socket.getaddrinfo(
                host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
        except (OSError, UnicodeError) as error:
            text = error.strerror if isinstance(error, OSError) else str(error)
            raise ExportError(f"{self.path}: {text}") from None
        failures = []
        for family, _, _, _, address in found:
            listener = socket.socket(family, socket.SOCK_STREAM)
            try:
                # A server that has just ended has connections that linger.
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.setblocking(False)
                listener.bind(address)
                listener.listen(socket.SOMAXCONN)
            except OSError as error:
                failures.append(error.strerror or str(error))
                listener.close()
            else:
                self._socket = listener
                return
        raise ExportError(f"{self.path}: {failures[0]}")

    @property
    def port(self) -> int:
        """The number, where 0 was asked for, too."""
        return int(self._socket.getsockname()[1])

    def fileno(self) -> int:
        """Readable when a client has arrived."""
        return self._socket.fileno()

    def accept(self) -> socket.socket:
        """A client's connection, non-blocking. BlockingIOError: there is none."""
        connection, _ = self._socket.accept()
        connection.setblocking(False)
        # Requests are small, and each waits for its answer.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def close(self) -> None:
        """Takes no connection any more."""
        self._socket.close()
