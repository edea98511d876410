"""Packets of the embedded channel (docs/channel.md): structs and fds over SOCK_SEQPACKET.

The other end is not trusted: what is longer, carries more fds or is shorter than allowed raises
:class:`PacketError`, and every fd that came with it is closed. No function here waits.
"""

from __future__ import annotations

import os
import socket
import struct
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

#: Bytes of the longest packet.
MAX_PACKET = 8192
#: Fds of one packet: the two sockets of OPEN.
MAX_FDS = 2

_HEADER = struct.Struct("=II")
_ANSWER_HEADER = struct.Struct("=iI")
_UCRED = struct.Struct("=iII")
_ANCILLARY = socket.CMSG_SPACE(MAX_FDS * 4) + socket.CMSG_SPACE(_UCRED.size)


class PacketError(ConnectionError):
    """The other end broke the wire format; the connection is of no more use."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who is at the other end, as the kernel says."""

    pid: int
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet. The receiver owns ``fds`` (close-on-exec)."""

    data: bytes
    fds: tuple[int, ...] = ()
    #: The sender's, on sockets with SO_PASSCRED.
    sender: Credentials | None = None
    #: It came with more: this process has no room for them.
    fds_cut: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """A call's packet without its fds."""

    #: An :class:`~vduse.control.abi.Ioctl` or :class:`~vduse.control.abi.ExtCall` number.
    nr: int
    #: The caller's own; the answer repeats it.
    seq: int
    payload: bytes

    def pack(self) -> bytes:
        return _HEADER.pack(self.nr, self.seq) + self.payload

    @classmethod
    def unpack(cls, data: bytes) -> Call:
        """PacketError: too short for its header."""
        if len(data) < _HEADER.size:
            raise PacketError(f"call of {len(data)} bytes")
        nr, seq = _HEADER.unpack_from(data)
        return cls(nr, seq, data[_HEADER.size :])


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer's packet without its fds."""

    #: The ioctl's return value, or -errno.
    result: int
    seq: int
    payload: bytes

    def pack(self) -> bytes:
        return _ANSWER_HEADER.pack(self.result, self.seq) + self.payload

    @classmethod
    def unpack(cls, data: bytes) -> Answer:
        """PacketError: too short for its header."""
        if len(data) < _ANSWER_HEADER.size:
            raise PacketError(f"answer of {len(data)} bytes")
        result, seq = _ANSWER_HEADER.unpack_from(data)
        return cls(result, seq, data[_ANSWER_HEADER.size :])


def close_fds(fds: Iterable[int]) -> None:
    """Closes fds that came with a packet."""
    for fd in fds:
        os.close(fd)


def peer_credentials(sock: socket.socket) -> Credentials:
    """SO_PEERCRED: who connected, or who made the socket pair (not who inherited it)."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    return Credentials(*_UCRED.unpack(raw))


def send_packet(sock: socket.socket, data: bytes, fds: Sequence[int] = ()) -> None:
    """Sends one packet whole. The caller keeps its fds. BlockingIOError: no room now;
    other OSError: the other end is gone."""
    # Not socket.send_fds: before Python 3.12 it drops its flags, and would wait.
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
    sock.sendmsg([data], rights, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


def receive_packet(sock: socket.socket) -> Packet | None:
    """The next packet; None at the end of the connection. BlockingIOError: none there now;
    PacketError; other OSError: the other end is gone."""
    data, ancillary, flags, _ = sock.recvmsg(
        MAX_PACKET, _ANCILLARY, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
    )
    fds: list[int] = []
    sender = None
    for level, kind, body in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds += struct.unpack(f"={len(body) // 4}i", body[: len(body) // 4 * 4])
        elif (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
            sender = Credentials(*_UCRED.unpack(body))
    try:
        if flags & socket.MSG_TRUNC:
            raise PacketError(f"packet of more than {MAX_PACKET} bytes")
        fds_cut = bool(flags & socket.MSG_CTRUNC)
        if len(fds) + fds_cut > MAX_FDS:
            raise PacketError(f"packet with more than {MAX_FDS} fds")
        if not data:
            if fds or fds_cut:
                raise PacketError("packet of fds only")
            return None
    except PacketError:
        close_fds(fds)
        raise
    return Packet(data, tuple(fds), sender, fds_cut)
