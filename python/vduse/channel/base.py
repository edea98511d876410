"""The device side's view of whoever plays the kernel's part: two ports, no implementation.

Every method is one ioctl, read or write of linux/vduse.h, under its name. Errors are OSError
with the errno the kernel gives. Optional extensions (never offered to foreign daemons) are
named in :attr:`Channel.extensions`.
"""

from __future__ import annotations

from typing import Protocol, TypeAlias

from vduse import _native
from vduse.control.abi import (
    DevConfig,
    DevRequest,
    DevResponse,
    DirtyLog,
    IotlbEntry,
    IovaInfo,
    IovaUmem,
    VqInfo,
)

#: The channel hands out an irq fd for a virtqueue: no call per irq.
EXT_CALLFD = "callfd"
#: The channel hands out the driver's own kick fd, where it has one: nobody relays its kicks.
EXT_KICKFD = "kickfd"
#: The channel keeps memory for in-flight records while devices come and go.
EXT_INFLIGHT = "inflight"
#: The channel says where writes into the driver's memory are to be marked (live migration).
EXT_LOG = "log"

#: What a data path resolves IOTLB misses and injects irqs with, without the GIL.
Resolver: TypeAlias = _native.CallSocket | _native.KernelNode


class ControlPort(Protocol):
    """An open /dev/vduse/control, and the directory it lies in."""

    def get_api_version(self) -> int: ...
    def set_api_version(self, version: int) -> None: ...
    def create_dev(self, config: DevConfig) -> None: ...
    def destroy_dev(self, name: str) -> None: ...
    def open(self, name: str) -> Channel:
        """Opens /dev/vduse/NAME. OSError ENODEV, ENOENT, EBUSY."""

    def close(self) -> None: ...


class Channel(Protocol):
    """An open /dev/vduse/NAME."""

    @property
    def extensions(self) -> frozenset[str]: ...
    def fileno(self) -> int:
        """Readable when a message waits (or the framework is gone)."""

    def receive(self) -> DevRequest | None:
        """The next message, None if there is none now. ConnectionResetError: the framework
        is gone. ConnectionAbortedError: it has given the device up, for good."""

    def respond(self, response: DevResponse) -> None: ...
    def dev_get_features(self) -> int: ...
    def dev_set_config(self, offset: int, data: bytes) -> None: ...
    def dev_inject_config_irq(self) -> None: ...
    def vq_setup(self, index: int, max_size: int, group: int = 0) -> None: ...
    def vq_get_info(self, index: int) -> VqInfo: ...
    def vq_setup_kickfd(self, index: int, fd: int) -> None: ...
    def vq_inject_irq(self, index: int) -> None: ...
    def iotlb_get_fd(self, start: int, last: int) -> tuple[IotlbEntry, int]:
        """The first overlapping mapping and its fd (the caller owns it)."""

    def iotlb_get_info(self, start: int, last: int) -> IovaInfo: ...
    def iotlb_reg_umem(self, umem: IovaUmem) -> None: ...
    def iotlb_dereg_umem(self, umem: IovaUmem) -> None: ...
    def resolver(self) -> Resolver:
        """The data path's way into this channel; of no more use after :meth:`close`."""

    def vq_get_callfd(self, index: int) -> int:
        """EXT_CALLFD: the fd that signals an irq of this virtqueue (the caller owns it)."""

    def vq_get_kickfd(self, index: int) -> int | None:
        """EXT_KICKFD: the fd that the driver kicks this virtqueue with (the caller owns it); None:
        the driver has none of its own, and kicks the eventfd of :meth:`vq_setup_kickfd`."""

    def get_inflight_fd(self, size: int, features: int, fresh: bool) -> int | None:
        """EXT_INFLIGHT: a memory file that outlives this opener, with ``size`` bytes for in-flight
        records of a driver that negotiated ``features`` (the caller owns the fd). ``fresh``: the
        driver has just become live, and they are zeroes; else they are what the last opener left
        of a driver that may be live still. None: there are none that can be kept or trusted; the
        log says why. OSError EBUSY: of another size, and the driver is live; ENODATA: no driver
        has been live since the last opener cleared them; EINVAL."""

    def clear_inflight(self) -> None:
        """EXT_INFLIGHT: to be called before a reset is answered, when no request is in flight:
        nobody may go on from the records then. OSError: it must not be answered."""

    def log_get_fd(self) -> tuple[DirtyLog, int] | None:
        """EXT_LOG: the dirty log, and the memory file it lies in (the caller owns it); None: writes
        are not marked. UPDATE_LOG tells of every change after the first call."""

    def close(self) -> None: ...
