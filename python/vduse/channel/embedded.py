"""The embedded channel as a device sees it: the ports of base.py over sockets (docs/channel.md)."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence

from vduse import _native
from vduse.channel.base import EXT_CALLFD, EXT_INFLIGHT, EXT_KICKFD, EXT_LOG
from vduse.channel.packet import PacketError, close_fds, receive_packet, send_packet
from vduse.control.abi import (
    DevConfig,
    DevRequest,
    DevResponse,
    DevSetConfig,
    DirtyLog,
    ExtCall,
    Ioctl,
    IotlbEntry,
    IovaInfo,
    IovaUmem,
    VqConfig,
    VqEventfd,
    VqInfo,
    pack_name,
    pack_u32,
    pack_u64,
    unpack_u64,
)


def connect(path: str) -> EmbeddedControl:
    """Opens the control socket of a framework that listens at ``path``. OSError: nobody there."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        sock.connect(path)
    except OSError:
        sock.close()
        raise
    return EmbeddedControl(sock.detach())


def inherited(fd: int) -> EmbeddedControl:
    """The control socket that a parent process left open as ``fd``. OSError EBADF, ENOTSOCK,
    EPROTOTYPE: it is no SOCK_SEQPACKET socket, and stays open."""
    sock = socket.socket(fileno=os.dup(fd))
    with sock:
        if sock.type != socket.SOCK_SEQPACKET:
            raise OSError(errno.EPROTOTYPE, f"fd {fd} is no SOCK_SEQPACKET socket")
    os.set_inheritable(fd, False)
    return EmbeddedControl(fd)


def _call(
    calls: _native.CallSocket,
    nr: int,
    payload: bytes = b"",
    fds: Sequence[int] = (),
    *,
    answer_fds: int = 0,
) -> tuple[bytes, list[int]]:
    """One call that must succeed and return ``answer_fds`` fds. OSError; PacketError for an
    answer that is none."""
    result, answer, got = calls.call(nr, payload, fds)
    if result < 0:
        close_fds(got)
        raise OSError(-result, os.strerror(-result))
    if len(got) != answer_fds:
        close_fds(got)
        raise PacketError(f"call {nr:#x}: {len(got)} fds in the answer, expected {answer_fds}")
    return answer, got


def _truncated(nr: int, error: ValueError) -> PacketError:
    return PacketError(f"answer to call {nr:#x}: {error}")


class EmbeddedControl:
    """A :class:`~vduse.channel.base.ControlPort` over a control socket; takes over ``fd``."""

    def __init__(self, fd: int) -> None:
        self._calls = _native.CallSocket(fd)

    def get_api_version(self) -> int:
        """The newest API version both ends know."""
        answer, _ = _call(self._calls, Ioctl.GET_API_VERSION)
        try:
            return unpack_u64(answer)
        except ValueError as error:
            raise _truncated(Ioctl.GET_API_VERSION, error) from None

    def set_api_version(self, version: int) -> None:
        """Chooses the API version of this socket. OSError EINVAL: unknown."""
        _call(self._calls, Ioctl.SET_API_VERSION, pack_u64(version))

    def create_dev(self, config: DevConfig) -> None:
        """OSError EINVAL, EPERM, EEXIST."""
        _call(self._calls, Ioctl.CREATE_DEV, config.pack())

    def destroy_dev(self, name: str) -> None:
        """OSError EINVAL: no such device; EBUSY: open, or on the vDPA bus."""
        _call(self._calls, Ioctl.DESTROY_DEV, pack_name(name))

    def open(self, name: str) -> EmbeddedChannel:
        """OSError ENOENT, ENODEV, EBUSY (somebody has it open)."""
        _, fds = _call(self._calls, ExtCall.OPEN, pack_name(name), answer_fds=2)
        return EmbeddedChannel(*fds)

    def close(self) -> None:
        """Devices opened through it stay open."""
        self._calls.close()


class EmbeddedChannel:
    """A :class:`~vduse.channel.base.Channel` over a node's two sockets; takes over the fds."""

    def __init__(self, messages: int, calls: int) -> None:
        self._messages = socket.socket(fileno=messages)
        self._calls = _native.CallSocket(calls)

    @property
    def extensions(self) -> frozenset[str]:
        """All there are."""
        return frozenset({EXT_CALLFD, EXT_INFLIGHT, EXT_KICKFD, EXT_LOG})

    def fileno(self) -> int:
        """The message socket."""
        return self._messages.fileno()

    def receive(self) -> DevRequest | None:
        """The next message; None: none there now. ConnectionError: the framework is gone, or
        breaks the format."""
        try:
            packet = receive_packet(self._messages)
        except BlockingIOError:
            return None
        if packet is None:
            raise ConnectionResetError("the framework closed the message socket")
        close_fds(packet.fds)
        if packet.fds:
            raise PacketError("message with fds")
        try:
            return DevRequest.unpack(packet.data)
        except ValueError as error:
            raise PacketError(str(error)) from None

    def respond(self, response: DevResponse) -> None:
        """Never waits. ConnectionError: the framework is gone, or does not read answers."""
        try:
            send_packet(self._messages, response.pack())
        except BlockingIOError:
            raise PacketError("the framework does not read answers") from None

    def dev_get_features(self) -> int:
        """What the driver wrote."""
        answer, _ = _call(self._calls, Ioctl.DEV_GET_FEATURES)
        try:
            return unpack_u64(answer)
        except ValueError as error:
            raise _truncated(Ioctl.DEV_GET_FEATURES, error) from None

    def dev_set_config(self, offset: int, data: bytes) -> None:
        """OSError EINVAL: no data, or outside the config space."""
        _call(self._calls, Ioctl.DEV_SET_CONFIG, DevSetConfig(offset, data).pack())

    def dev_inject_config_irq(self) -> None:
        """OSError EINVAL: before DRIVER_OK."""
        _call(self._calls, Ioctl.DEV_INJECT_CONFIG_IRQ)

    def vq_setup(self, index: int, max_size: int, group: int = 0) -> None:
        """OSError EINVAL."""
        _call(self._calls, Ioctl.VQ_SETUP, VqConfig(index, max_size, group).pack())

    def vq_get_info(self, index: int) -> VqInfo:
        """OSError EINVAL: no such virtqueue."""
        answer, _ = _call(self._calls, Ioctl.VQ_GET_INFO, VqInfo(index).pack())
        try:
            return VqInfo.unpack(answer)
        except ValueError as error:
            raise _truncated(Ioctl.VQ_GET_INFO, error) from None

    def vq_setup_kickfd(self, index: int, fd: int) -> None:
        """The framework takes a dup; -1 deassigns. OSError EINVAL, EBADF."""
        fds = [fd] if fd >= 0 else []
        _call(self._calls, Ioctl.VQ_SETUP_KICKFD, VqEventfd(index, fd).pack(), fds)

    def vq_inject_irq(self, index: int) -> None:
        """OSError EINVAL: before DRIVER_OK."""
        _call(self._calls, Ioctl.VQ_INJECT_IRQ, pack_u32(index))

    def iotlb_get_fd(self, start: int, last: int) -> tuple[IotlbEntry, int]:
        """The first overlapping mapping and its fd (the caller owns it). OSError EINVAL: none."""
        asked = IotlbEntry(start=start, last=last).pack()
        answer, fds = _call(self._calls, Ioctl.IOTLB_GET_FD, asked, answer_fds=1)
        try:
            return IotlbEntry.unpack(answer), fds[0]
        except ValueError as error:
            close_fds(fds)
            raise _truncated(Ioctl.IOTLB_GET_FD, error) from None

    def iotlb_get_info(self, start: int, last: int) -> IovaInfo:
        """OSError EINVAL: nothing there."""
        answer, _ = _call(self._calls, Ioctl.IOTLB_GET_INFO, IovaInfo(start, last).pack())
        try:
            return IovaInfo.unpack(answer)
        except ValueError as error:
            raise _truncated(Ioctl.IOTLB_GET_INFO, error) from None

    def iotlb_reg_umem(self, umem: IovaUmem) -> None:
        """OSError EINVAL, EEXIST, ENOMEM."""
        _call(self._calls, Ioctl.IOTLB_REG_UMEM, umem.pack())

    def iotlb_dereg_umem(self, umem: IovaUmem) -> None:
        """OSError ENOENT, EINVAL."""
        _call(self._calls, Ioctl.IOTLB_DEREG_UMEM, umem.pack())

    def resolver(self) -> _native.CallSocket:
        """The call socket, shared."""
        return self._calls

    def vq_get_callfd(self, index: int) -> int:
        """The fd that signals an irq of this virtqueue (the caller owns it)."""
        _, fds = _call(self._calls, ExtCall.VQ_GET_CALLFD, pack_u32(index), answer_fds=1)
        return fds[0]

    def vq_get_kickfd(self, index: int) -> int | None:
        """The fd that the driver kicks this virtqueue with (the caller owns it); None: it kicks
        ours."""
        try:
            _, fds = _call(self._calls, ExtCall.VQ_GET_KICKFD, pack_u32(index), answer_fds=1)
        except FileNotFoundError:
            return None
        return fds[0]

    def get_inflight_fd(self, size: int, features: int, fresh: bool) -> int:
        """Memory for in-flight records (the caller owns the fd). The framework has zeroed it at
        the last reset, so it is the same for a fresh driver and for one that is live still."""
        _, fds = _call(self._calls, ExtCall.GET_INFLIGHT_FD, pack_u64(size), answer_fds=1)
        return fds[0]

    def clear_inflight(self) -> None:
        """Nothing: the framework zeroes it, once the reset is answered."""

    def log_get_fd(self) -> tuple[DirtyLog, int] | None:
        """The dirty log, and the memory file it lies in (the caller owns it); None: no log."""
        try:
            answer, fds = _call(self._calls, ExtCall.LOG_GET_FD, answer_fds=1)
        except FileNotFoundError:
            return None
        try:
            return DirtyLog.unpack(answer), fds[0]
        except ValueError as error:
            close_fds(fds)
            raise _truncated(ExtCall.LOG_GET_FD, error) from None

    def close(self) -> None:
        """The node closes: unanswered messages go to its next opener."""
        self._messages.close()
        self._calls.close()
