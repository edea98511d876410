"""One virtqueue as the front end describes it, until it is handed to the device."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, field, replace

from vduse.bus.driver import PACKED_START, Driver
from vduse.control.vhost_user import VringAddr
from vduse.exports.vhost_user.memory import Memory

#: struct pvirtq_desc (virtio 1.3, 2.8.13), and the flag of a descriptor that was used.
_PACKED_DESC = struct.Struct("<QIHH")
_USED = 1 << 15


@dataclass
class Ring:
    """What SET_VRING_* said. Owns its fds."""

    index: int
    num: int = 0
    addr: VringAddr | None = None
    base: int = 0
    kick: int = -1
    call: int = -1
    #: SET_VRING_ENABLE, or from the start where protocol features were not negotiated.
    enabled: bool = False
    #: SET_VRING_KICK came: the ring is started until GET_VRING_BASE.
    started: bool = False
    #: The device serves it.
    running: bool = field(default=False, init=False)

    @property
    def ready(self) -> bool:
        """The device may have it."""
        return self.started and self.enabled and self.addr is not None

    def is_at(self, addr: VringAddr) -> bool:
        """Whether its areas are where ``addr`` says, whatever that says of logging."""
        return self.addr is not None and addr == replace(
            self.addr, logged=addr.logged, log=addr.log
        )

    def used_bytes(self, *, packed: bool) -> int:
        """Of the device area (virtio 1.3, sections 2.7.8 and 2.8.14)."""
        return 4 if packed else 6 + 8 * self.num

    def set_kick(self, fd: int) -> None:
        """Takes the fd over, in place of what was there; -1: none."""
        _close(self.kick)
        self.kick = fd

    def set_call(self, fd: int) -> None:
        """The same."""
        _close(self.call)
        self.call = fd

    def hand_over(self, driver: Driver, memory: Memory, *, packed: bool) -> None:
        """Gives the ring to the device, which serves it from DRIVER_OK on. ProtocolError: its
        addresses; OSError: the device's refusal."""
        assert self.addr is not None
        areas = (self.addr.descriptors, self.addr.available, self.addr.used)
        driver.set_vring_num(self.index, self.num)
        driver.set_vring_addr(self.index, *map(memory.guest, areas))
        driver.set_vring_base(self.index, self._base(memory, packed))
        driver.set_vring_call(self.index, self.call)
        driver.set_vring_kick(self.index, self.kick)
        driver.set_vring_enable(self.index, True)
        self.running = True

    def take_back(self, driver: Driver) -> None:
        """The device stops at the ring, with nothing in flight, and :attr:`base` is where it
        stands. OSError."""
        self.base = driver.get_vring_base(self.index)
        driver.set_vring_enable(self.index, False)
        driver.set_vring_kick(self.index, -1)
        self.running = False

    def reset(self, *, enabled: bool) -> None:
        """As at the start of a connection, but for :attr:`base`; the device knows already."""
        self.set_kick(-1)
        self.set_call(-1)
        self.num, self.addr = 0, None
        self.enabled, self.started, self.running = enabled, False, False

    def _base(self, memory: Memory, packed: bool) -> int:
        # libblkio says 0 for a fresh packed ring, where both wrap counters are 1. 0 may be meant,
        # too: then the first descriptor was used in the lap before.
        if not packed or self.base:
            return self.base
        assert self.addr is not None
        first = memory.read(self.addr.descriptors, _PACKED_DESC.size)
        flags = _PACKED_DESC.unpack(first.ljust(_PACKED_DESC.size, b"\0"))[3]
        return self.base if flags & _USED else PACKED_START


def _close(fd: int) -> None:
    if fd >= 0:
        os.close(fd)
