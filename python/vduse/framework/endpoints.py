"""The sockets of the embedded channel as endpoints of the service thread."""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Callable
from contextlib import suppress

from vduse.channel.packet import Credentials, peer_credentials
from vduse.channel.server import CallHandler, CallServer, MessageServer
from vduse.channel.tap import Tap
from vduse.framework.control_node import ControlNode, DeviceTable
from vduse.framework.device import VduseDevice
from vduse.framework.device_node import DeviceNode
from vduse.framework.profile import Profile
from vduse.framework.service import Service

log = logging.getLogger(__name__)

#: Connections that wait to be accepted.
_BACKLOG = 64


class _CallEndpoint(CallServer):
    """A call socket: an answer never waits for room."""

    wants_write = False


class _Caller:
    """Who makes the call that a handler answers just now; the server is not there yet when its
    handler is made."""

    def __init__(self, sock: socket.socket) -> None:
        self._first = peer_credentials(sock)
        self.server: CallServer | None = None

    def __call__(self) -> Credentials:
        return self._first if self.server is None else self.server.peer


def _call_endpoint(
    sock: socket.socket, handler: CallHandler, caller: _Caller, device: str, tap: Tap | None
) -> _CallEndpoint:
    endpoint = _CallEndpoint(sock, handler, device=device, tap=tap)
    caller.server = endpoint
    return endpoint


def add_control(
    service: Service,
    sock: socket.socket,
    devices: DeviceTable,
    profile: Profile,
    tap: Tap | None,
) -> None:
    """Serves ``sock`` as one open control node."""
    caller = _Caller(sock)
    node = ControlNode(devices, profile, caller)
    service.add(_call_endpoint(sock, node, caller, "", tap))


def open_device(service: Service, device: VduseDevice, tap: Tap | None) -> list[int]:
    """Opens the device's node and serves it; the message and the call fd for the opener.
    OSError ENODEV, EBUSY."""
    calls, their_calls = _pair()
    caller = _Caller(calls)
    served: list[_CallEndpoint] = []

    def end_calls() -> None:
        for endpoint in served:
            service.discard(endpoint)

    try:
        node, messages = open_messages(service, device, caller, tap, end_calls)
    except BaseException:
        calls.close()
        their_calls.close()
        raise
    served.append(_call_endpoint(calls, node, caller, device.name, tap))
    service.add(served[0])
    return [messages.detach(), their_calls.detach()]


def open_messages(
    service: Service,
    device: VduseDevice,
    caller: Callable[[], Credentials],
    tap: Tap | None,
    on_release: Callable[[], None],
) -> tuple[DeviceNode, socket.socket]:
    """Opens the device's node, whose calls somebody else brings, and serves its messages: the
    node, and the opener's end of its message socket. On the service thread, as ``on_release`` when
    that end is closed. OSError ENODEV, EBUSY."""
    ours, theirs = _pair()
    device.look_at_opener()
    try:
        node = DeviceNode(device, caller)
    except BaseException:
        ours.close()
        theirs.close()
        raise
    service.add(_OpenNode(service, ours, node, on_release, tap))
    return node, theirs


class _OpenNode:
    """An open node's message socket; its end is the node's."""

    def __init__(
        self,
        service: Service,
        sock: socket.socket,
        node: DeviceNode,
        on_release: Callable[[], None],
        tap: Tap | None,
    ) -> None:
        self._sock = sock
        self._node = node
        self._on_release = on_release
        self._refused = False
        self._server = MessageServer(sock, self, device=node.device.name, tap=tap)
        node.device.look_at_opener = lambda: service.serve_now(self)
        messages = node.device.messages
        messages.on_queued = lambda: service.poke(self)
        messages.on_broken = lambda: service.run(self._hang_up)
        if messages.broken:
            service.run(self._hang_up)

    @property
    def wants_write(self) -> bool:
        return self._server.wants_write

    def fileno(self) -> int:
        return self._sock.fileno()

    def serve(self) -> bool:
        return self._server.serve() and self._server.flush()

    def close(self) -> None:
        self._server.close()
        # They know each other: whoever waits for this to be freed would wait for the collector.
        del self._server

    def _hang_up(self) -> None:
        """A broken device sees the end of its messages (POLLERR of the kernel's node)."""
        if self._sock.fileno() >= 0:
            self._sock.shutdown(socket.SHUT_WR)

    # --- what MessageServer asks of its node ------------------------------------------------

    def read_messages(self) -> list[bytes]:
        return self._node.read_messages()

    def write_response(self, data: bytes) -> None:
        try:
            self._node.write_response(data)
        except OSError as error:
            # As a failed write(2): the opener's own affair. The waiter may have been killed.
            # Told once: a program that floods us with them fills no log.
            level = logging.DEBUG if self._refused else logging.WARNING
            self._refused = True
            log.log(level, "%s: response refused: %s", self._node.device.name, error.strerror)

    def release(self) -> None:
        # The device knows this opener no more; else it would keep all that the opener has.
        device = self._node.device
        device.look_at_opener = device.messages.on_queued = device.messages.on_broken = _nothing
        self._node.release()
        self._on_release()


class Listener:
    """A listening socket; every connection is one open control node."""

    wants_write = False

    def __init__(
        self,
        service: Service,
        path: str,
        devices: DeviceTable,
        profile: Profile,
        tap: Tap | None,
    ) -> None:
        """Listens at ``path``, readable for its owner only (as /dev/vduse/control is for root).
        OSError EADDRINUSE: something is there."""
        self._service = service
        self._devices = devices
        self._profile = profile
        self._tap = tap
        self._path = path
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            os.fchmod(self._sock.fileno(), 0o600)
            self._sock.bind(path)
            self._sock.listen(_BACKLOG)
        except OSError as error:
            self._sock.close()
            if error.errno == errno.EADDRINUSE:
                raise OSError(
                    errno.EADDRINUSE, "there is a file already: remove it, or choose another", path
                ) from None
            raise
        #: Given up to accept, and close, a connection when no other fd is left.
        self._spare = os.eventfd(0, os.EFD_CLOEXEC)

    def fileno(self) -> int:
        return self._sock.fileno()

    def serve(self) -> bool:
        try:
            for _ in range(_BACKLOG):  # then others have their turn
                sock, _ = self._sock.accept()
                add_control(self._service, sock, self._devices, self._profile, self._tap)
        except BlockingIOError:
            return True
        except OSError as error:
            log.warning("%s: connection not accepted: %s", self._path, error)
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._turn_away()
        return True

    def _turn_away(self) -> None:
        """No fd is left: a connection that waited on would keep the service thread spinning."""
        self._drop_spare()
        with suppress(OSError):
            self._sock.accept()[0].close()
        with suppress(OSError):  # another thread took it: the next time, then
            self._spare = os.eventfd(0, os.EFD_CLOEXEC)

    def _drop_spare(self) -> None:
        if self._spare >= 0:
            os.close(self._spare)
            self._spare = -1

    def close(self) -> None:
        self._sock.close()
        self._drop_spare()
        try:
            os.unlink(self._path)
        except FileNotFoundError:
            log.debug("%s was removed by somebody else", self._path)


def _nothing() -> None:
    """Nobody has it open."""


def _pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
