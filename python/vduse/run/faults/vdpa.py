"""A device's place on the vDPA bus, where faults change what its driver does."""

from __future__ import annotations

import ctypes
import errno
import logging
import mmap
import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from vduse.bus.iotlb import Mapping, SharedFile
from vduse.control.abi import ACCESS_RW, UpdateIotlb
from vduse.control.features import Status
from vduse.framework.device import VduseDevice
from vduse.framework.vdpa_device import Provision, VdpaDevice
from vduse.run.faults.cut import cut

log = logging.getLogger(__name__)

_U64_MAX = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Late:
    """Virtqueues that become ready only after DRIVER_OK."""

    #: That long after it.
    seconds: float
    #: None: the last one that the driver enables.
    queue: int | None
    #: Told, on a thread of its own, that it happened.
    happened: Callable[[str], None]


class FaultyVdpa(VdpaDevice):
    """As :class:`VdpaDevice`, which faults call too. Its own methods are thread-safe; those that
    wait for the device say so, and keep the driver's calls out meanwhile."""

    def __init__(self, device: VduseDevice, provision: Provision, late: Late | None = None) -> None:
        super().__init__(device, provision)
        self._turn = threading.RLock()
        self._late = late
        self._enabled_late: int | None = None
        self._timer: threading.Timer | None = None
        #: What a vhost_vdpa user has mapped.
        self._mapped: tuple[Mapping, ...] | None = None
        self._elsewhere: _Memory | None = None

    # --- what drivers call ------------------------------------------------------------------

    def set_status(self, status: int) -> None:
        with self._turn:
            super().set_status(status)
            if status & Status.DRIVER_OK and self._late is not None and self._timer is None:
                self._timer = threading.Timer(self._late.seconds, self._enable_late)
                self._timer.daemon = True
                self._timer.start()

    def reset(self) -> None:
        with self._turn:
            self._forget_late()
            try:
                super().reset()
            finally:
                self._come_back()

    def detach(self) -> None:
        with self._turn:
            self._forget_late()
            self._come_back()
        super().detach()

    def set_vq_ready(self, index: int, ready: bool) -> None:
        with self._turn:
            if not ready:
                if self._enabled_late == index:
                    self._enabled_late = None
            elif self._is_late(index):
                self._hold_back(index)
                return
            super().set_vq_ready(index, ready)

    def set_map(self, mappings: Iterable[Mapping], asid: int = 0) -> None:
        with self._turn:
            mapped = tuple(mappings)
            super().set_map(mapped, asid)
            self._mapped = mapped

    def clear_map(self) -> None:
        with self._turn:
            super().clear_map()
            self._mapped = None

    # --- what faults call -------------------------------------------------------------------

    def send_status_again(self) -> bool:
        """Waits. SET_STATUS with the status that the device has, as virtio sends it; False: no
        driver is live. VdpaError."""
        with self._turn:
            status = self.get_status()
            if not status & Status.DRIVER_OK:
                return False
            super().set_status(status)
            return True

    def update_iotlb(self) -> None:
        """Waits. UPDATE_IOTLB of everything, where nothing has changed. VdpaError."""
        with self._turn:
            self._tell()

    def cut_iotlb(self) -> int:
        """Waits, twice. Each large entry of the IOTLB becomes two of the same memory, then one
        again; how many were cut. None of them is cut within a ring. VdpaError."""
        with self._turn:
            before = self._entries()
            after = [piece for mapping in before for piece in cut(mapping, self._rings())]
            if len(after) == len(before):
                return 0
            try:
                super().set_map(after)
            finally:
                self._put_back()
            self._tell()
            return len(after) - len(before)

    @property
    def elsewhere(self) -> bool:
        """The bounce pages lie in other memory than the domain's."""
        return self._elsewhere is not None

    def move_bounce(self) -> None:
        """Waits. The bounce pages move to other memory, or back: no request may be in flight, and
        none made until this returns. OSError EBUSY: the device has registered user memory in
        their place; EINVAL: there are none yet; VdpaError."""
        with self._turn:
            if self._elsewhere is not None:
                self._come_back()
            elif self._domain.has_umem:
                raise OSError(
                    errno.EBUSY, f"{self.name}: the bounce pages are the device's own memory"
                )
            else:
                self._go_elsewhere()
            self._tell()

    # --- inside -----------------------------------------------------------------------------

    def _tell(self) -> None:
        self._device.messages.send(UpdateIotlb(0, _U64_MAX), self._device.msg_timeout)

    def _entries(self) -> list[Mapping]:
        """What the device can reach now."""
        if self._mapped is not None:
            return list(self._mapped)
        domain = self.domain
        own = SharedFile(domain.fd)
        entries = [
            Mapping(start, last, own, offset, perm)
            for start, last, offset, perm in domain.entries()
            if start >= domain.bounce_size
        ]
        # Before the first request too: one may come as soon as the entries are fixed.
        bounce = own if self._elsewhere is None else self._elsewhere.file
        return [Mapping(0, domain.bounce_size - 1, bounce, 0, ACCESS_RW), *entries]

    def _rings(self) -> list[int]:
        """IOVAs of all areas."""
        with self._device.lock:
            return [
                area
                for vq in self._device.vqs
                for area in (vq.desc_addr, vq.driver_addr, vq.device_addr)
            ]

    def _put_back(self) -> None:
        """The entries as they were; tells nobody."""
        with self._device.lock:
            if self._mapped is not None:
                self._domain.set_map(self._mapped)
            elif self._elsewhere is not None:
                self._domain.set_map(self._entries())
            else:
                self._domain.clear_map()

    def _go_elsewhere(self) -> None:
        memory = _Memory(self.domain.bounce_size)
        # The framework copies between these and the driver's buffers as it does for a device's
        # own pages.
        self.domain.reg_umem(os.getpid(), memory.address)
        self._elsewhere = memory
        self._put_back()

    def _come_back(self) -> None:
        if self._elsewhere is None:
            return
        self.domain.dereg_umem()
        self._elsewhere = None
        self._put_back()

    # --- late virtqueues --------------------------------------------------------------------

    def _is_late(self, index: int) -> bool:
        """Whether a queue that is enabled now is to wait: not one that comes late by itself."""
        if self._late is None or self.get_status() & Status.DRIVER_OK:
            return False
        return self._late.queue is None or self._late.queue == index

    def _hold_back(self, index: int) -> None:
        former, self._enabled_late = self._enabled_late, index
        if former is not None and former != index:
            super().set_vq_ready(former, True)

    def _forget_late(self) -> None:
        self._enabled_late = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _enable_late(self) -> None:
        with self._turn:
            index = self._enabled_late
            if index is None or self._timer is not threading.current_thread():
                return
            self._enabled_late = None
            super().set_vq_ready(index, True)
            # Kicks of a queue that was not ready have gone nowhere; its driver kicks from now on.
            self.kick_vq(index)
        if self._late is not None:
            self._late.happened(f"virtqueue {index} is ready {self._late.seconds:g} s late")


class _Memory:
    """A memory file, mapped here."""

    def __init__(self, size: int) -> None:
        fd = os.memfd_create("vduse-elsewhere", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, size)
            self.file = SharedFile(fd)
            self._mapped = mmap.mmap(fd, size)
        finally:
            os.close(fd)
        #: Where it lies in this process, as long as this object lives.
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._mapped))
