"""The framework's ends of the embedded channel: call sockets and message sockets.

No threads and no waiting here: whoever owns the selector calls ``serve`` when a socket is
readable and ``flush`` when messages wait or it is writable. A peer that breaks the format, or
makes its handler fail, loses its own connection with a log line; nothing else happens.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections import deque
from collections.abc import Iterable
from typing import Protocol

from vduse.channel.packet import (
    Answer,
    Call,
    Credentials,
    Packet,
    PacketError,
    close_fds,
    peer_credentials,
    receive_packet,
    send_packet,
)
from vduse.channel.tap import Tap

log = logging.getLogger(__name__)

#: Packets of one socket served before others have their turn: a peer that sends without end
#: keeps nobody waiting. More than a socket's buffer holds, so that a dead peer's end is seen in
#: the same turn as its last packets.
BURST = 512


class CallHandler(Protocol):
    """What answers the calls of one socket: a control node or an open device node."""

    def ioctl(self, nr: int, payload: bytes, fds: list[int]) -> tuple[int, bytes, list[int]]:
        """Result (>= 0), the struct written back, fds for the caller.

        OSError: the call fails with its errno. ValueError: a payload that is no struct of this
        call; the connection ends. Request fds are closed after this returns: dup what is kept.
        Returned fds are given away."""


def told_call(
    handler: CallHandler, nr: int, payload: bytes, fds: list[int], device: str, tap: Tap | None
) -> tuple[int, bytes, list[int]]:
    """One call: its result, where it fails -errno, with what goes back, as ``tap`` is told. What
    :meth:`CallHandler.ioctl` says of fds holds; ValueError as there."""
    try:
        result, answer, answer_fds = handler.ioctl(nr, payload, fds)
    except OSError as error:
        # The caller gets the number alone, as from a kernel. Its text: who keeps the log's
        # records would keep the frames of an exception, and their fds.
        log.info("%s: call refused: %s", device or "control", str(error))
        result, answer, answer_fds = -(error.errno or errno.EIO), b"", []
    # Before the answer: once the caller goes on, its call is on record.
    if tap is not None:
        tap.on_call(device, nr, payload, len(fds), result, answer, len(answer_fds))
    return result, answer, answer_fds


class _NoRoom:
    """A handler for a call whose fds did not all arrive."""

    def ioctl(self, nr: int, payload: bytes, fds: list[int]) -> tuple[int, bytes, list[int]]:
        raise OSError(errno.EMFILE, "no room for the fds of a call")


class MessageNode(Protocol):
    """An open device node, as its message socket sees it."""

    def read_messages(self) -> Iterable[bytes]:
        """Takes the unread messages, each a vduse_dev_request."""

    def write_response(self, data: bytes) -> None:
        """A vduse_dev_response. OSError where write(2) would fail: ENOENT is harmless (nobody
        waits any more), any other ends the connection."""

    def release(self) -> None:
        """The device closed the node: unanswered messages go to the next opener."""


class CallServer:
    """Answers the calls that come over one socket. Owns ``sock``."""

    def __init__(
        self,
        sock: socket.socket,
        handler: CallHandler,
        *,
        device: str = "",
        tap: Tap | None = None,
    ) -> None:
        # A socket pair is made by one process and used by another: only the credentials that
        # come with each packet name the real caller.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._sock = sock
        self._handler = handler
        self._device = device
        self._tap = tap
        self._peer = peer_credentials(sock)

    @property
    def peer(self) -> Credentials:
        """Who made the last call (whose ioctl runs now); before any, SO_PEERCRED."""
        return self._peer

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        self._sock.close()

    def serve(self) -> bool:
        """Answers the calls that are there, at most :data:`BURST`. False: the connection is
        over; close it."""
        try:
            for _ in range(BURST):
                packet = receive_packet(self._sock)
                if packet is None:
                    return False
                self._answer(packet)
            return True
        except BlockingIOError:
            return True
        except (OSError, ValueError) as error:
            why = str(error)
            log.warning("%s: connection of pid %d closed: %s", self._name, self._peer.pid, why)
        except Exception:
            log.exception("%s: connection of pid %d closed", self._name, self._peer.pid)
        return False

    @property
    def _name(self) -> str:
        return self._device or "control"

    def _answer(self, packet: Packet) -> None:
        if packet.sender is not None and packet.sender.pid != 0:
            self._peer = packet.sender
        answer_fds: list[int] = []
        try:
            call = Call.unpack(packet.data)
            handler = _NoRoom() if packet.fds_cut else self._handler
            result, payload, answer_fds = told_call(
                handler, call.nr, call.payload, list(packet.fds), self._device, self._tap
            )
            self._send(Answer(result, call.seq, payload), answer_fds)
        finally:
            close_fds(packet.fds)
            close_fds(answer_fds)

    def _send(self, answer: Answer, fds: list[int]) -> None:
        try:
            send_packet(self._sock, answer.pack(), fds)
        except BlockingIOError:
            # One exchange at a time: a full socket means calls sent without reading answers.
            raise PacketError("answers are not read") from None


class MessageServer:
    """Carries a device node's messages over one socket. Owns ``sock``.

    The end of the connection releases the node, once.
    """

    def __init__(
        self,
        sock: socket.socket,
        node: MessageNode,
        *,
        device: str = "",
        tap: Tap | None = None,
    ) -> None:
        self._sock = sock
        self._node = node
        self._device = device
        self._tap = tap
        self._unsent: deque[bytes] = deque()
        self._released = False
        if tap is not None:
            tap.on_open(device)

    def fileno(self) -> int:
        return self._sock.fileno()

    @property
    def wants_write(self) -> bool:
        """The socket was full: call :meth:`flush` when it is writable."""
        return bool(self._unsent)

    def flush(self) -> bool:
        """Sends what the node's messages are, as far as there is room. False: the connection is
        over and the node released; close it."""
        self._unsent.extend(self._node.read_messages())
        try:
            while self._unsent:
                send_packet(self._sock, self._unsent[0])
                data = self._unsent.popleft()
                if self._tap is not None:
                    self._tap.on_message(self._device, data)
        except BlockingIOError:
            return True
        except OSError as error:
            self._tell_end(error)
            self._release()
            return False
        return True

    def serve(self) -> bool:
        """Takes the answers that are there, at most :data:`BURST`. False: the connection is over
        and the node released; close it."""
        try:
            for _ in range(BURST):
                packet = receive_packet(self._sock)
                if packet is None:
                    break
                if packet.fds:
                    close_fds(packet.fds)
                    raise PacketError("response with fds")
                if self._tap is not None:
                    self._tap.on_response(self._device, packet.data)
                self._respond(packet.data)
            else:
                return True
        except BlockingIOError:
            return True
        except (OSError, ValueError) as error:
            self._tell_end(error)
        except Exception:
            log.exception("%s: message socket closed", self._device)
        self._release()
        return False

    def _tell_end(self, error: Exception) -> None:
        # As close(2) of a node whose messages were not all read: the next opener gets them.
        at_its_end = isinstance(error, ConnectionResetError | BrokenPipeError)
        level = logging.INFO if at_its_end else logging.WARNING
        log.log(level, "%s: message socket closed: %s", self._device, str(error))

    def _respond(self, data: bytes) -> None:
        try:
            self._node.write_response(data)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
            log.info("%s: answer to a message nobody waits for", self._device)

    def close(self) -> None:
        """Closes the socket and, where it is still open, the node."""
        self._release()
        self._sock.close()

    def _release(self) -> None:
        if self._released:
            return
        self._released = True
        self._unsent.clear()
        self._node.release()
        if self._tap is not None:
            self._tap.on_close(self._device)
