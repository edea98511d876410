"""One virtqueue as the framework keeps it (struct vduse_virtqueue)."""

from __future__ import annotations

from vduse import _native
from vduse.bus.kick import DriverKick
from vduse.control.abi import VQ_STATE_SIZE


class Virtqueue:
    """State of a virtqueue. Guarded by the device's lock; only :attr:`line` is free of it."""

    def __init__(self, index: int) -> None:
        self.index = index
        #: Descriptors at most; 0 until VQ_SETUP.
        self.num_max = 0
        self.group = 0
        self.line = _native.VqLine()
        #: The driver's own kick eventfd (vhost_vdpa); it stays over a reset.
        self.driver_kick: DriverKick | None = None
        #: The device watches that one itself (VQ_GET_KICKFD).
        self.kick_taken = False
        self.clear()

    @property
    def ready(self) -> bool:
        """Enabled by the driver. The line drops kicks while it is not."""
        return self._ready

    @ready.setter
    def ready(self, ready: bool) -> None:
        self._ready = ready
        self.line.set_ready(ready)

    def clear(self) -> None:
        """As after a reset."""
        self.ready = False
        self.num = 0
        self.desc_addr = 0
        self.driver_addr = 0
        self.device_addr = 0
        self.state = bytes(VQ_STATE_SIZE)
        #: The device holds the call fd (VQ_GET_CALLFD).
        self.callfd_given = False
        self.line.clear_kicked()
        self.line.set_kickfd(-1)
        self.line.set_callfd(-1)
        self.give_kick_back()

    def take_kick(self) -> int | None:
        """VQ_GET_KICKFD (the caller owns the fd); None: the driver has none."""
        if self.driver_kick is None:
            return None
        self.kick_taken = True
        return self.driver_kick.take()

    def give_kick_back(self) -> None:
        """The device watches it no longer."""
        if self.kick_taken and self.driver_kick is not None:
            self.driver_kick.give_back()
        self.kick_taken = False

    def set_kickfd(self, fd: int) -> None:
        """VQ_SETUP_KICKFD; a kick that found no eventfd is made up for."""
        self.line.set_kickfd(fd)
        if fd >= 0 and self.ready and self.line.kicked:
            self.line.clear_kicked()
            self.line.kick()

    def kick(self) -> None:
        """The driver's kick; nothing while the queue is not ready."""
        self.line.kick()
