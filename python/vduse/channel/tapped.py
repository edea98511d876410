"""Ports with a tap on them: a device's side of any channel, the kernel's too.

control = TappedControl(KernelControl(), recorder)

What the data path calls goes past the tap: it is only counted, and told when a node is closed.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable
from typing import TypeAlias, TypeVar

from vduse.channel.base import Channel, ControlPort, Resolver
from vduse.channel.tap import Tap
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
)

T = TypeVar("T")
#: Told of a device: how often its data path made an ioctl with a result, by number, and errno or 0.
Counted: TypeAlias = Callable[[str, Counter[tuple[int, int]]], None]
#: What an ioctl that succeeded gave back: its struct, and fds.
_Answer = tuple[bytes, int]


class _Calls:
    """The calls of one port, told to a tap."""

    def __init__(self, tap: Tap, device: str) -> None:
        self.tap = tap
        self.device = device

    def make(
        self,
        nr: Ioctl | ExtCall,
        payload: bytes,
        call: Callable[[], T],
        answer: Callable[[T], _Answer] = lambda _: (b"", 0),
        *,
        fds: int = 0,
    ) -> T:
        """The call's result; whatever it raises."""
        try:
            result = call()
        except OSError as error:
            number = error.errno or errno.EIO
            self.tap.on_call(self.device, nr, payload, fds, -number, b"", 0)
            raise
        self.tap.on_call(self.device, nr, payload, fds, 0, *answer(result))
        return result


class TappedControl:
    """A :class:`~vduse.channel.base.ControlPort` with a tap; takes over ``control``."""

    def __init__(self, control: ControlPort, tap: Tap, counted: Counted | None = None) -> None:
        """``counted`` is told what the data path of each node did, before its close."""
        self._control = control
        self._counted = counted
        self._calls = _Calls(tap, "")

    def get_api_version(self) -> int:
        return self._calls.make(
            Ioctl.GET_API_VERSION,
            b"",
            self._control.get_api_version,
            lambda version: (pack_u64(version), 0),
        )

    def set_api_version(self, version: int) -> None:
        self._calls.make(
            Ioctl.SET_API_VERSION,
            pack_u64(version),
            lambda: self._control.set_api_version(version),
        )

    def create_dev(self, config: DevConfig) -> None:
        self._calls.make(Ioctl.CREATE_DEV, config.pack(), lambda: self._control.create_dev(config))

    def destroy_dev(self, name: str) -> None:
        self._calls.make(
            Ioctl.DESTROY_DEV, pack_name(name), lambda: self._control.destroy_dev(name)
        )

    def open(self, name: str) -> TappedChannel:
        """Only an open that succeeds is told of."""
        return TappedChannel(self._control.open(name), self._calls.tap, name, self._counted)

    def close(self) -> None:
        self._control.close()


class TappedChannel:
    """A :class:`~vduse.channel.base.Channel` with a tap, from its open on; takes over
    ``channel``."""

    def __init__(
        self, channel: Channel, tap: Tap, name: str, counted: Counted | None = None
    ) -> None:
        """``counted`` as :class:`TappedControl`'s."""
        self._channel = channel
        self._counted = counted
        self._calls = _Calls(tap, name)
        self._closed = False
        if counted is not None:
            channel.resolver().start_counting()
        tap.on_open(name)

    @property
    def extensions(self) -> frozenset[str]:
        return self._channel.extensions

    def fileno(self) -> int:
        return self._channel.fileno()

    def receive(self) -> DevRequest | None:
        request = self._channel.receive()
        if request is not None:
            self._calls.tap.on_message(self._calls.device, request.pack())
        return request

    def respond(self, response: DevResponse) -> None:
        # Before it: once it is there, whoever waits for it goes on.
        self._calls.tap.on_response(self._calls.device, response.pack())
        self._channel.respond(response)

    def dev_get_features(self) -> int:
        return self._calls.make(
            Ioctl.DEV_GET_FEATURES,
            b"",
            self._channel.dev_get_features,
            lambda features: (pack_u64(features), 0),
        )

    def dev_set_config(self, offset: int, data: bytes) -> None:
        self._calls.make(
            Ioctl.DEV_SET_CONFIG,
            DevSetConfig(offset, data).pack(),
            lambda: self._channel.dev_set_config(offset, data),
        )

    def dev_inject_config_irq(self) -> None:
        self._calls.make(Ioctl.DEV_INJECT_CONFIG_IRQ, b"", self._channel.dev_inject_config_irq)

    def vq_setup(self, index: int, max_size: int, group: int = 0) -> None:
        self._calls.make(
            Ioctl.VQ_SETUP,
            VqConfig(index, max_size, group).pack(),
            lambda: self._channel.vq_setup(index, max_size, group),
        )

    def vq_get_info(self, index: int) -> VqInfo:
        return self._calls.make(
            Ioctl.VQ_GET_INFO,
            VqInfo(index).pack(),
            lambda: self._channel.vq_get_info(index),
            lambda info: (info.pack(), 0),
        )

    def vq_setup_kickfd(self, index: int, fd: int) -> None:
        self._calls.make(
            Ioctl.VQ_SETUP_KICKFD,
            VqEventfd(index, fd).pack(),
            lambda: self._channel.vq_setup_kickfd(index, fd),
            fds=int(fd >= 0),
        )

    def vq_inject_irq(self, index: int) -> None:
        self._calls.make(
            Ioctl.VQ_INJECT_IRQ, pack_u32(index), lambda: self._channel.vq_inject_irq(index)
        )

    def iotlb_get_fd(self, start: int, last: int) -> tuple[IotlbEntry, int]:
        """Told of as version 0's, whichever the channel uses."""
        return self._calls.make(
            Ioctl.IOTLB_GET_FD,
            IotlbEntry(start=start, last=last).pack(),
            lambda: self._channel.iotlb_get_fd(start, last),
            lambda found: (found[0].pack(), 1),
        )

    def iotlb_get_info(self, start: int, last: int) -> IovaInfo:
        return self._calls.make(
            Ioctl.IOTLB_GET_INFO,
            IovaInfo(start, last).pack(),
            lambda: self._channel.iotlb_get_info(start, last),
            lambda info: (info.pack(), 0),
        )

    def iotlb_reg_umem(self, umem: IovaUmem) -> None:
        self._calls.make(
            Ioctl.IOTLB_REG_UMEM, umem.pack(), lambda: self._channel.iotlb_reg_umem(umem)
        )

    def iotlb_dereg_umem(self, umem: IovaUmem) -> None:
        self._calls.make(
            Ioctl.IOTLB_DEREG_UMEM, umem.pack(), lambda: self._channel.iotlb_dereg_umem(umem)
        )

    def resolver(self) -> Resolver:
        return self._channel.resolver()

    def vq_get_callfd(self, index: int) -> int:
        return self._calls.make(
            ExtCall.VQ_GET_CALLFD,
            pack_u32(index),
            lambda: self._channel.vq_get_callfd(index),
            lambda _: (b"", 1),
        )

    def vq_get_kickfd(self, index: int) -> int | None:
        return self._calls.make(
            ExtCall.VQ_GET_KICKFD,
            pack_u32(index),
            lambda: self._channel.vq_get_kickfd(index),
            lambda fd: (b"", int(fd is not None)),
        )

    def get_inflight_fd(self, size: int, features: int, fresh: bool) -> int | None:
        return self._calls.make(
            ExtCall.GET_INFLIGHT_FD,
            pack_u64(size),
            lambda: self._channel.get_inflight_fd(size, features, fresh),
            lambda fd: (b"", int(fd is not None)),
        )

    def log_get_fd(self) -> tuple[DirtyLog, int] | None:
        return self._calls.make(
            ExtCall.LOG_GET_FD,
            b"",
            self._channel.log_get_fd,
            lambda log: (b"", 0) if log is None else (log[0].pack(), 1),
        )

    def clear_inflight(self) -> None:
        """Not told of: nothing crosses a channel."""
        self._channel.clear_inflight()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            if self._counted is not None:
                self._counted(self._calls.device, Counter(self._channel.resolver().counts()))
            self._channel.close()
            self._calls.tap.on_close(self._calls.device)
