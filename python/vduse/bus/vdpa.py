"""The bus's port to a device: the operations of struct vdpa_config_ops (linux/vdpa.h).

Those that wait for the device's answer say so; they raise
:class:`~vduse.bus.errors.DeviceRefused` or :class:`~vduse.bus.errors.DeviceTimedOut` (both EIO),
run on the caller's thread and release the GIL. All others return at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Protocol

from vduse import _native
from vduse.bus.errors import VdpaError
from vduse.bus.iotlb import Mapping
from vduse.bus.kick import DriverKick
from vduse.control.abi import DirtyLog

log = logging.getLogger(__name__)


class VdpaDevice(Protocol):
    """A device on the vDPA bus. Virtqueue indices out of range: OSError EINVAL."""

    @property
    def name(self) -> str: ...
    @property
    def nvqs(self) -> int:
        """Virtqueues that may be used."""

    @property
    def domain(self) -> _native.Domain:
        """IOVA domain for drivers that live on this side (virtio_vdpa)."""

    @property
    def max_iotlb_entries(self) -> int | None:
        """Most mappings that vhost_vdpa takes; None: no limit."""

    @property
    def has_groups(self) -> bool:
        """vhost_vdpa tells of virtqueue groups (Linux 7.2)."""

    def get_device_id(self) -> int: ...
    def get_vendor_id(self) -> int: ...
    def get_device_features(self) -> int:
        """What the device offers, less what `dev add` took away."""

    def get_driver_features(self) -> int: ...
    def set_driver_features(self, features: int) -> None:
        """Kept for the device to read; no subset check."""

    def get_status(self) -> int: ...
    def set_status(self, status: int) -> None:
        """Waits. ``status`` is not 0; it is stored only after an OK answer."""

    def reset(self) -> None:
        """Waits. Sends SET_STATUS(0) and resets even where that failed; then raises."""

    def get_config_size(self) -> int: ...
    def get_config(self, offset: int, length: int) -> bytes:
        """From the framework's copy, zero-filled past its end."""

    def set_config(self, offset: int, data: bytes) -> None:
        """Dropped: the config space is read-only for drivers."""

    def get_generation(self) -> int: ...
    def set_config_cb(self, callback: Callable[[], None] | None) -> None:
        """Called on a thread of the framework after a config interrupt. A reset clears it and
        waits until it does not run."""

    def get_vq_num_max(self) -> int: ...
    def get_vq_size(self, index: int) -> int:
        """Descriptors: as set, else the queue's maximum."""

    def get_vq_align(self) -> int: ...
    def get_vq_group(self, index: int) -> int: ...
    def set_group_asid(self, group: int, asid: int) -> None:
        """Waits (API version 1). OSError EINVAL."""

    def set_vq_address(self, index: int, desc: int, driver: int, device: int) -> None: ...
    def set_vq_num(self, index: int, num: int) -> None: ...
    def set_vq_ready(self, index: int, ready: bool) -> None:
        """Sends no message: the device looks."""

    def get_vq_ready(self, index: int) -> bool: ...
    def set_vq_state(self, index: int, position: tuple[int, ...]) -> None:
        """``(avail_index,)`` split; ``(avail_index, avail_wrap, used_index, used_wrap)``
        packed, by the negotiated features."""

    def get_vq_state(self, index: int) -> tuple[int, ...]:
        """Waits: the device stops at the queue and says where it stands."""

    def vq_line(self, index: int) -> _native.VqLine:
        """The queue's kick and irq, for a driver in Rust."""

    def kick_vq(self, index: int) -> None: ...
    def set_vq_cb(self, index: int, fd: int | None) -> None:
        """An eventfd of the driver's own that irqs signal as soon as the queue is ready;
        None: back to the line's own, signalled under DRIVER_OK only. May wait, where the
        device holds the fd itself."""

    def inflight_size(self, features: int) -> int:
        """Bytes of the in-flight records of all virtqueues, with these features."""

    def new_inflight(self, features: int) -> int:
        """A memory file for them, zeroed and sealed (the caller's)."""

    def set_inflight(self, fd: int, size: int) -> None:
        """The records are in this file until the next reset, and the device goes on from what is
        there. OSError EINVAL: another size, or it may shrink."""

    @property
    def can_log(self) -> bool:
        """Whether the device can mark what it writes (live migration)."""

    def set_log(self, log: DirtyLog | None, fd: int) -> None:
        """Waits. Until the next reset the device marks what it writes in the memory file ``fd``;
        None: nowhere. OSError EOPNOTSUPP: it cannot."""

    def set_vq_kick(self, index: int, kick: DriverKick | None) -> None:
        """The eventfd that the driver kicks the queue with from now on; None: the driver calls
        :meth:`kick_vq`. May wait, where the device watches the former one itself."""

    def get_iova_range(self) -> tuple[int, int]: ...
    def set_map(self, mappings: Iterable[Mapping], asid: int = 0) -> None:
        """Waits. Replaces the whole IOTLB and sends UPDATE_IOTLB(0, ~0)."""

    def clear_map(self) -> None:
        """Drops what set_map made, after a reset: no message."""


def reset_quietly(vdpa: VdpaDevice) -> None:
    """A reset on the way out: what the device makes of it changes nothing."""
    try:
        vdpa.reset()
    except VdpaError as error:
        log.warning("%s: reset: %s", vdpa.name, str(error))
