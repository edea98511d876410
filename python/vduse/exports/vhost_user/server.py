"""A device bound to vhost_vdpa, served to one vhost-user front end after the other."""

from __future__ import annotations

import errno
import logging
import os
import selectors
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Protocol, Self

from vduse.bus.driver import Driver
from vduse.control import vhost_user as vu
from vduse.control.vhost_user import Decoder, Message, ProtocolError
from vduse.exports.errors import ExportError
from vduse.exports.vhost_user.front_ends import FrontEnds, Listening
from vduse.exports.vhost_user.session import Reply, Session

log = logging.getLogger(__name__)

#: Seconds that :meth:`VhostUserServer.close` waits: longer than a framework for its device.
CLOSE_TIMEOUT = 40.0


class Opens(Protocol):
    """A :class:`~vduse.bus.vhost_vdpa.VhostVdpa`, as far as it is needed here."""

    def open(self) -> Driver:
        """The device, reset; one user at a time. OSError."""


class VhostUserServer:
    """Serves one front end after the other, from its making to :meth:`close`, on a thread of its
    own: a front end, or its device, that does not answer holds up nobody else. A context
    manager.

    ::

        framework.dev_add("disk0", driver="vhost_vdpa")
        with VhostUserServer(framework.bus.vhost("disk0"), "disk.sock", name="disk0"):
            ...  # qemu ... -chardev socket,id=c,path=disk.sock -device vhost-user-blk-pci,chardev=c
    """

    def __init__(
        self,
        vhost: Opens,
        front_ends: str | os.PathLike[str] | FrontEnds,
        *,
        name: str = "vhost-user",
    ) -> None:
        """``front_ends``: where they come from; a path: a socket to listen at, for this user only.
        Closed with the server. ``name``: in the log. ExportError: it cannot listen there."""
        self._vhost = vhost
        self._log_name = f"vhost-user {name}"
        self._pid = os.getpid()
        self._closed = False
        self._connected = False
        self._connections = 0
        if isinstance(front_ends, str | os.PathLike):
            front_ends = Listening(front_ends)
        self._front_ends: FrontEnds = front_ends
        try:
            self._stop, self._stopped = socket.socketpair()
        except OSError:
            self._front_ends.close()
            raise
        self._thread = threading.Thread(target=self._run, name=f"vduse-{name}", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            self._front_ends.close()
            self._stop.close()
            self._stopped.close()
            raise ExportError(
                "no more threads for this process: raise the limit (ulimit -u)"
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def path(self) -> str:
        """Of the socket, as given."""
        return self._front_ends.path

    @property
    def connected(self) -> bool:
        """Whether a front end is there."""
        return self._connected

    def stats(self) -> dict[str, int]:
        """``connections``: front ends so far; ``connected``: now, 0 or 1."""
        return {"connections": self._connections, "connected": int(self._connected)}

    def close(self, timeout: float = CLOSE_TIMEOUT) -> bool:
        """Ends the connection, once what its front end asked for is finished, and removes the
        socket. False: it is not finished within ``timeout`` seconds; that goes on, until the device
        answers or breaks. Nothing in a forked child."""
        if self._closed or os.getpid() != self._pid:
            return True
        self._closed = True
        self._stop.close()
        self._thread.join(timeout)
        self._front_ends.close()
        return not self._thread.is_alive()

    # --- the thread -------------------------------------------------------------------------

    def _run(self) -> None:
        with self._stopped:
            while not self._closed:
                if (connection := self._front_ends.next(self._stopped)) is not None:
                    with connection:
                        self._serve_safely(connection)

    def _serve_safely(self, connection: socket.socket) -> None:
        try:
            self._serve(connection)
        except (ProtocolError, OSError) as error:
            # Its text: who keeps the log's records would keep the frames of an exception, and with
            # them the front end's memory.
            log.warning("%s: connection closed: %s", self._log_name, str(error))
        except Exception:
            # A fault of ours costs this connection, and no other device.
            log.exception("%s: connection closed", self._log_name)

    def _serve(self, connection: socket.socket) -> None:
        with self._session() as session, selectors.PollSelector() as selector:
            log.info("%s: a front end has connected", self._log_name)
            # Else it would stay unread, and the socket readable for ever.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
            selector.register(self._stopped, selectors.EVENT_READ)
            selector.register(connection, selectors.EVENT_READ)
            selector.register(session.config_fd, selectors.EVENT_READ)
            decoder = Decoder()
            try:
                while self._stopped.fileno() not in (ready := _wait(selector)):
                    if session.config_fd in ready:
                        session.config_changed()
                    if connection.fileno() in ready and not _receive(
                        connection, decoder, session.handle
                    ):
                        log.info("%s: the front end has gone", self._log_name)
                        return
            finally:
                for fd in decoder.close():
                    os.close(fd)

    @contextmanager
    def _session(self) -> Iterator[Session]:
        driver = self._vhost.open()
        try:
            session = Session(driver, self._log_name)
            self._connections += 1
            self._connected = True
            try:
                yield session
            finally:
                self._connected = False
                session.close()
        finally:
            driver.close()


def _wait(selector: selectors.BaseSelector) -> set[int]:
    return {key.fd for key, _ in selector.select()}


def _receive(
    connection: socket.socket, decoder: Decoder, handle: Callable[[Message], Reply | None]
) -> bool:
    """What has arrived of one message, and its reply; false: the front end has gone."""
    try:
        data, fds, flags, _ = socket.recv_fds(
            connection, decoder.wanted, vu.MAX_FDS, socket.MSG_CMSG_CLOEXEC
        )
    except BlockingIOError:
        return True
    except ConnectionResetError:
        return False
    if not data:
        return False
    if flags & socket.MSG_CTRUNC:
        for fd in fds:
            os.close(fd)
        raise ProtocolError("more fds than a message may carry, or than this process may have")
    message = decoder.feed(data, fds)
    if message is not None and (reply := handle(message)) is not None:
        _send(connection, message.request, reply)
    return True


def _send(connection: socket.socket, request: int, reply: Reply) -> None:
    data = vu.reply(request, reply.payload)
    try:
        # One packet of a few bytes: where it does not fit, nobody has read many before it.
        if socket.send_fds(connection, [data], reply.fds) != len(data):
            raise OSError(errno.ENOBUFS, "a reply does not fit")
    except BlockingIOError:
        raise ProtocolError("the front end does not read its replies") from None
    finally:
        for fd in reply.fds:
            os.close(fd)
