"""An open /dev/vhost-vdpa-N: the ioctls and IOTLB messages of drivers/vhost/vdpa.c."""

from __future__ import annotations

import contextlib
import errno
import logging
import mmap
import os
import threading
from collections.abc import Callable

from vduse import _native
from vduse.bus.errors import VdpaError
from vduse.bus.iotlb import Iotlb, Mapping, SharedFile
from vduse.bus.kick import DriverKick
from vduse.bus.vdpa import VdpaDevice
from vduse.control.abi import DirtyLog
from vduse.control.features import Feature, Status

log = logging.getLogger(__name__)

# linux/vhost_types.h: VHOST_BACKEND_F_IOTLB_MSG_V2, _BATCH, _ASID are bits 1 to 3.
BACKEND_FEATURES = 1 << 1 | 1 << 2 | 1 << 3

_U64_MAX = (1 << 64) - 1
_PROTECTION = {
    1: mmap.PROT_READ,
    2: mmap.PROT_WRITE,
    3: mmap.PROT_READ | mmap.PROT_WRITE,
}


class VhostVdpaFile:
    """Implements :class:`vduse.bus.driver.Driver`. Thread-safe; calls are served one at a time,
    and those that reach the device wait for it. After :meth:`close`: OSError EBADF."""

    def __init__(
        self, vdpa: VdpaDevice, kicks: _native.KickRelay, closed: Callable[[], None]
    ) -> None:
        """For :meth:`VhostVdpa.open`; ``closed`` resets the device."""
        self._device: VdpaDevice | None = vdpa
        self._kicks = kicks
        self._on_closed = closed
        self._lock = threading.RLock()
        self._iotlb = Iotlb()
        self._in_batch = False
        #: Queues with a kick eventfd.
        self._kicked: set[int] = set()
        self._config_call: SharedFile | None = None

    # --- device -----------------------------------------------------------------------------

    def get_device_id(self) -> int:
        return self._vdpa.get_device_id()

    def get_status(self) -> int:
        return self._vdpa.get_status()

    def set_status(self, status: int) -> None:
        """As the kernel: a status that the device refuses, or does not answer, is not stored, and
        nothing is raised: read it back. OSError EINVAL: bits taken away; EIO: the reset failed."""
        with self._lock:
            if status == 0:
                self._in_batch = False
                self._vdpa.reset()
                return
            if not 0 < status <= 0xFF or self._vdpa.get_status() & ~status:
                raise OSError(errno.EINVAL, "status bits are only added; 0 resets")
            with contextlib.suppress(VdpaError):
                self._vdpa.set_status(status)

    def get_features(self) -> int:
        return self._vdpa.get_device_features()

    def set_features(self, features: int) -> None:
        """OSError EBUSY after FEATURES_OK; EINVAL: more than 64 bits."""
        _check_u64(features)
        with self._lock:
            if self._vdpa.get_status() & Status.FEATURES_OK:
                raise OSError(errno.EBUSY, "features are settled: reset the device first")
            self._vdpa.set_driver_features(features)

    def get_backend_features(self) -> int:
        return BACKEND_FEATURES

    def set_backend_features(self, features: int) -> None:
        """OSError EOPNOTSUPP: not one of ours."""
        if features & ~BACKEND_FEATURES:
            raise OSError(errno.EOPNOTSUPP, f"backend features {features:#x}")

    def get_config_size(self) -> int:
        return self._vdpa.get_config_size()

    def get_config(self, offset: int, length: int) -> bytes:
        """OSError EINVAL: no bytes, or any past the end."""
        self._check_config(offset, length)
        return self._vdpa.get_config(offset, length)

    def set_config(self, offset: int, data: bytes) -> None:
        """Checked as :meth:`get_config`, then dropped by the device."""
        self._check_config(offset, len(data))
        self._vdpa.set_config(offset, data)

    def set_config_call(self, fd: int) -> None:
        call = None if fd < 0 else SharedFile(fd)
        with self._lock:
            self._config_call = call
            self._vdpa.set_config_cb(None if call is None else lambda: _signal(call))

    def get_iova_range(self) -> tuple[int, int]:
        return self._vdpa.get_iova_range()

    # --- virtqueues -------------------------------------------------------------------------

    def get_vqs_count(self) -> int:
        return self._vdpa.nvqs

    def get_vring_num_max(self) -> int:
        return self._vdpa.get_vq_num_max()

    def get_vring_group(self, index: int) -> int:
        """OSError ENOBUFS; EOPNOTSUPP: Linux 6.12 has no groups."""
        self._check_index(index)
        self._check_groups()
        return self._vdpa.get_vq_group(index)

    def set_group_asid(self, group: int, asid: int) -> None:
        """OSError EOPNOTSUPP: Linux 6.12 has no groups; EBUSY under DRIVER_OK; EINVAL: no such
        group or address space."""
        self._check_groups()
        with self._lock:
            if self._vdpa.get_status() & Status.DRIVER_OK:
                raise OSError(errno.EBUSY, "groups change their address space before DRIVER_OK")
            self._vdpa.set_group_asid(group, asid)

    def set_vring_num(self, index: int, num: int) -> None:
        """OSError EINVAL: 0, no power of two, above the device's maximum."""
        self._check_index(index)
        longest = self._vdpa.get_vq_num_max()
        if not 0 < num <= longest or num & (num - 1):
            raise OSError(errno.EINVAL, f"queue size {num}: a power of two up to {longest}")
        self._vdpa.set_vq_num(index, num)

    def set_vring_addr(self, index: int, desc: int, driver: int, device: int) -> None:
        """OSError EINVAL: driver area not on 2 bytes, device area not on 4, or more than 64
        bits."""
        self._check_index(index)
        _check_u64(desc, driver, device)
        if driver % 2 or device % 4:
            raise OSError(errno.EINVAL, "the driver area lies on 2 bytes, the device area on 4")
        self._vdpa.set_vq_address(index, desc, driver, device)

    def set_vring_base(self, index: int, base: int) -> None:
        """OSError EINVAL: a split ring's index of more than 16 bits, a packed ring's of 32."""
        self._check_index(index)
        if not 0 <= base <= 0xFFFF_FFFF:
            raise OSError(errno.EINVAL, f"vring base {base:#x}: 32 bits")
        if self._packed:
            avail, used = base & 0xFFFF, base >> 16 & 0xFFFF
            position: tuple[int, ...] = (avail & 0x7FFF, avail >> 15, used & 0x7FFF, used >> 15)
        elif base > 0xFFFF:
            raise OSError(errno.EINVAL, f"avail index {base:#x}: 16 bits")
        else:
            position = (base,)
        self._vdpa.set_vq_state(index, position)

    def get_vring_base(self, index: int) -> int:
        self._check_index(index)
        with self._lock:
            position = self._vdpa.get_vq_state(index)
        if len(position) == 1:
            return position[0]
        avail, avail_wrap, used, used_wrap = position
        return avail | avail_wrap << 15 | (used | used_wrap << 15) << 16

    def set_vring_enable(self, index: int, enable: bool) -> None:
        self._vdpa.set_vq_ready(self._check_index(index), enable)

    def set_vring_kick(self, index: int, fd: int) -> None:
        """OSError EBADF, EINVAL."""
        line = self._vdpa.vq_line(self._check_index(index))
        kick = DriverKick(self._kicks, fd, line) if fd >= 0 else None
        with self._lock:
            if kick is None:
                self._kicked.discard(index)
            else:
                self._kicked.add(index)
            self._vdpa.set_vq_kick(index, kick)

    def set_vring_call(self, index: int, fd: int) -> None:
        """OSError EBADF, EINVAL. A reset takes it away."""
        self._check_index(index)
        with self._lock:
            self._vdpa.set_vq_cb(index, None if fd < 0 else fd)

    def kick(self, index: int) -> None:
        self._vdpa.kick_vq(self._check_index(index))

    # --- in-flight records ------------------------------------------------------------------

    def new_inflight(self, features: int) -> int:
        return self._vdpa.new_inflight(features)

    def set_inflight(self, fd: int, size: int) -> None:
        """OSError EBUSY after DRIVER_OK; EINVAL: not made by :meth:`new_inflight` for such a
        device."""
        with self._lock:
            if self._vdpa.get_status() & Status.DRIVER_OK:
                raise OSError(errno.EBUSY, "the device is live: reset it first")
            self._vdpa.set_inflight(fd, size)

    # --- dirty log --------------------------------------------------------------------------

    def can_log(self) -> bool:
        return self._vdpa.can_log

    def set_log(self, log: DirtyLog | None, fd: int = -1) -> None:
        """OSError EOPNOTSUPP: the device's program marks no writes; EIO: it refuses this log."""
        with self._lock:
            self._vdpa.set_log(log, fd)

    # --- IOTLB ------------------------------------------------------------------------------

    def iotlb_update(
        self, iova: int, size: int, fd: int, offset: int, perm: int, asid: int = 0
    ) -> None:
        """As one piece of VHOST_IOTLB_UPDATE: outside a batch, the device is told at once.
        OSError EINVAL: no bytes, perm, or a file that cannot be shared (the kernel skips such
        memory; here a file is named, so it is an error); EBADF; EFAULT for all else, as the
        kernel: it overlaps, it wraps, asid, too many entries, the device refuses it."""
        if size == 0:
            raise OSError(errno.EINVAL, "no bytes to map")
        if perm not in _PROTECTION:
            raise OSError(errno.EINVAL, f"perm {perm}: 1 (read), 2 (write) or 3")
        self._check_asid(asid)
        _check_range(iova, size)
        with self._lock:
            mapping = Mapping(iova, iova + size - 1, SharedFile(fd), offset, perm)
            there = self._iotlb.first(mapping.start, mapping.last)
            if there is not None:
                raise OSError(
                    errno.EFAULT,
                    f"IOVAs {mapping.start:#x}-{mapping.last:#x} overlap the mapping "
                    f"{there.start:#x}-{there.last:#x}: invalidate that first",
                )
            limit = self._vdpa.max_iotlb_entries
            if limit is not None and len(self._iotlb) >= limit:
                raise OSError(errno.EFAULT, f"more than {limit} IOTLB entries: map larger regions")
            _check_mappable(mapping)
            self._iotlb.add(mapping)
            try:
                self._publish()
            except OSError as error:
                self._iotlb.remove(mapping.start, mapping.last)
                self._publish_quietly()
                raise OSError(errno.EFAULT, str(error)) from error
            except BaseException:
                self._iotlb.remove(mapping.start, mapping.last)
                raise

    def iotlb_invalidate(self, iova: int, size: int, asid: int = 0) -> None:
        """Removes every mapping that overlaps, whatever the device makes of it. OSError EFAULT."""
        self._check_asid(asid)
        _check_range(iova, size)
        with self._lock:
            self._iotlb.remove(iova, iova + size - 1)
            self._publish_quietly()

    def iotlb_batch_begin(self) -> None:
        with self._lock:
            self._check_asid(0)
            self._in_batch = True

    def iotlb_batch_end(self) -> None:
        """Tells the device. As in the kernel, what it makes of it raises nothing here."""
        with self._lock:
            if self._in_batch:
                self._in_batch = False
                self._publish_quietly()

    def close(self) -> None:
        """Resets the device, ends the watching of kicks, forgets the IOTLB. Idempotent."""
        with self._lock:
            vdpa, self._device = self._device, None
            if vdpa is None:
                return
            self._iotlb.remove(0, _U64_MAX)
            try:
                self._on_closed()
            finally:
                # After the reset: no device watches them itself, and is to be asked.
                for index in self._kicked:
                    vdpa.set_vq_kick(index, None)

    # --- inside -----------------------------------------------------------------------------

    @property
    def _vdpa(self) -> VdpaDevice:
        if self._device is None:
            raise OSError(errno.EBADF, "this vhost_vdpa device was closed")
        return self._device

    @property
    def _packed(self) -> bool:
        return bool(self._vdpa.get_driver_features() & Feature.RING_PACKED)

    def _publish(self) -> None:
        if not self._in_batch:
            self._vdpa.set_map(self._iotlb)

    def _publish_quietly(self) -> None:
        try:
            self._publish()
        except OSError as error:
            log.warning("%s: IOTLB update: %s", self._vdpa.name, str(error))

    def _check_groups(self) -> None:
        if not self._vdpa.has_groups:
            raise OSError(errno.EOPNOTSUPP, "virtqueue groups: Linux 7.2 has them")

    def _check_index(self, index: int) -> int:
        if not 0 <= index < self._vdpa.nvqs:
            raise OSError(errno.ENOBUFS, f"the device has no virtqueue {index}")
        return index

    def _check_asid(self, asid: int) -> None:
        if self._vdpa and asid != 0:
            raise OSError(errno.EFAULT, f"no address space {asid}")

    def _check_config(self, offset: int, length: int) -> None:
        size = self._vdpa.get_config_size()
        if length <= 0 or offset < 0 or offset + length > size:
            raise OSError(errno.EINVAL, f"config offset {offset}, {length} bytes of {size}")


def _check_u64(*values: int) -> None:
    """The kernel's ioctls carry 64 bits; what is more would fail in the device's structs."""
    for value in values:
        if not 0 <= value <= _U64_MAX:
            raise OSError(errno.EINVAL, f"{value:#x}: 64 bits")


def _check_range(iova: int, size: int) -> None:
    if size <= 0 or iova < 0 or iova + size - 1 > _U64_MAX:
        raise OSError(errno.EFAULT, f"IOVA {iova:#x}, {size} bytes")


def _check_mappable(mapping: Mapping) -> None:
    """The device's program will map it shared: see that it can be."""
    page = mapping.offset & -mmap.ALLOCATIONGRANULARITY
    try:
        size = os.fstat(mapping.file.fileno()).st_size
        mmap.mmap(
            mapping.file.fileno(),
            min(mmap.PAGESIZE, size - page),
            mmap.MAP_SHARED,
            _PROTECTION[mapping.perm],
            offset=page,
        ).close()
    except (OSError, ValueError, OverflowError) as error:
        raise OSError(errno.EINVAL, f"not memory that can be shared: {error}") from error


def _signal(call: SharedFile) -> None:
    # Not eventfd_write: the user's fd may be full and blocking; one signal is enough.
    os.set_blocking(call.fileno(), False)
    try:
        os.write(call.fileno(), (1).to_bytes(8, "little"))
    except BlockingIOError:
        return
