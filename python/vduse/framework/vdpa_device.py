"""A VDUSE device's place on the vDPA bus: what bus drivers call (struct vdpa_config_ops)."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from vduse import _native
from vduse.bus.iotlb import Mapping, SharedFile
from vduse.bus.kick import DriverKick
from vduse.control.abi import (
    DirtyLog,
    GetVqState,
    SetVqGroupAsid,
    UpdateCallfd,
    UpdateIotlb,
    UpdateKickfd,
    UpdateLog,
    decode_vq_state,
    encode_vq_state,
)
from vduse.framework.device import VduseDevice
from vduse.framework.inflight import sealed_memfd

log = logging.getLogger(__name__)

_U64_MAX = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Provision:
    """What `dev add` decided for the driver (netlink attributes)."""

    #: Offered features, of those the device has; None: all.
    features: int | None = None
    #: Config bytes in place of the device's, as (offset, bytes).
    config: tuple[tuple[int, bytes], ...] = ()


class VdpaDevice:
    """Implements :class:`vduse.bus.vdpa.VdpaDevice`.

    Operations that wait hold no lock of the framework while they do."""

    def __init__(self, device: VduseDevice, provision: Provision) -> None:
        """Attaches the device to the bus. DeviceExists; OSError EINVAL."""
        self._device = device
        self._provision = provision
        self._domain = device.attach()

    @property
    def name(self) -> str:
        return self._device.name

    @property
    def device(self) -> VduseDevice:
        """The device itself."""
        return self._device

    @property
    def nvqs(self) -> int:
        return len(self._device.vqs)

    @property
    def domain(self) -> _native.Domain:
        return self._domain.native

    @property
    def max_iotlb_entries(self) -> int | None:
        return self._device.profile.max_iotlb_entries

    @property
    def has_groups(self) -> bool:
        return self._device.profile.api_version >= 1

    def detach(self) -> None:
        """Leaves the bus."""
        self._device.detach()

    # --- device -----------------------------------------------------------------------------

    def get_device_id(self) -> int:
        return self._device.device_id

    def get_vendor_id(self) -> int:
        return self._device.vendor_id

    def get_device_features(self) -> int:
        offered, wanted = self._device.device_features, self._provision.features
        return offered if wanted is None else offered & wanted

    def get_driver_features(self) -> int:
        return self._device.driver_features

    def set_driver_features(self, features: int) -> None:
        self._device.driver_features = features

    def get_status(self) -> int:
        return self._device.status

    def set_status(self, status: int) -> None:
        self._device.send_status(status)
        with self._device.lock:
            self._device.status = status
        log.debug("%s: status %#x", self.name, status)

    def reset(self) -> None:
        try:
            self._device.send_status(0)
        finally:
            self._device.reset()
            log.debug("%s: reset", self.name)

    # --- config space -----------------------------------------------------------------------

    def get_config_size(self) -> int:
        return len(self._device.config)

    def get_config(self, offset: int, length: int) -> bytes:
        with self._device.lock:
            config = bytearray(self._device.config)
        for at, data in self._provision.config:
            config[at : at + len(data)] = data
        return bytes(config[offset : offset + length]).ljust(length, b"\0")

    def set_config(self, offset: int, data: bytes) -> None:
        log.debug("%s: the driver's write of %d config bytes is dropped", self.name, len(data))

    def get_generation(self) -> int:
        return self._device.generation

    def set_config_cb(self, callback: Callable[[], None] | None) -> None:
        self._device.set_config_cb(callback)

    # --- virtqueues -------------------------------------------------------------------------

    def get_vq_num_max(self) -> int:
        return max((vq.num_max for vq in self._device.vqs), default=0)

    def get_vq_size(self, index: int) -> int:
        vq = self._device.vq(index)
        return vq.num or vq.num_max

    def get_vq_align(self) -> int:
        return self._device.vq_align

    def get_vq_group(self, index: int) -> int:
        return self._device.vq(index).group

    def set_group_asid(self, group: int, asid: int) -> None:
        device = self._device
        if device.api_version < 1 or not 0 <= group < device.ngroups or asid != 0:
            raise OSError(errno.EINVAL, f"group {group}, address space {asid}")
        device.messages.send(SetVqGroupAsid(group, asid), device.msg_timeout)

    def set_vq_address(self, index: int, desc: int, driver: int, device: int) -> None:
        with self._device.lock:
            vq = self._device.vq(index)
            vq.desc_addr, vq.driver_addr, vq.device_addr = desc, driver, device

    def set_vq_num(self, index: int, num: int) -> None:
        self._device.vq(index).num = num

    def set_vq_ready(self, index: int, ready: bool) -> None:
        self._device.vq(index).ready = ready

    def get_vq_ready(self, index: int) -> bool:
        return self._device.vq(index).ready

    def set_vq_state(self, index: int, position: tuple[int, ...]) -> None:
        self._device.vq(index).state = encode_vq_state(position)

    def get_vq_state(self, index: int) -> tuple[int, ...]:
        device = self._device
        device.vq(index)
        answer = device.messages.send(GetVqState(index), device.msg_timeout)
        return decode_vq_state(answer.vq_state, device.packed)

    def vq_line(self, index: int) -> _native.VqLine:
        return self._device.vq(index).line

    def kick_vq(self, index: int) -> None:
        self._device.vq(index).kick()

    def set_vq_cb(self, index: int, fd: int | None) -> None:
        device = self._device
        with device.lock:
            vq = device.vq(index)
            vq.line.set_callfd(-1 if fd is None else fd)
            tell = vq.callfd_given
        if tell:
            device.messages.send(UpdateCallfd(index), device.msg_timeout)

    def set_vq_kick(self, index: int, kick: DriverKick | None) -> None:
        device = self._device
        with device.lock:
            vq = device.vq(index)
            former, vq.driver_kick = vq.driver_kick, kick
            tell, vq.kick_taken = vq.kick_taken, False
        if former is not None:
            former.close()
        if tell:
            device.messages.send(UpdateKickfd(index), device.msg_timeout)

    # --- in-flight records ------------------------------------------------------------------

    def inflight_size(self, features: int) -> int:
        sizes = [vq.num_max for vq in self._device.vqs]
        return len(sizes) * max(_native.DataPath.inflight_size(size, features) for size in sizes)

    def new_inflight(self, features: int) -> int:
        return sealed_memfd(self.inflight_size(features))

    def set_inflight(self, fd: int, size: int) -> None:
        with self._device.lock:
            self._device.inflight.adopt(fd, size)

    # --- dirty log --------------------------------------------------------------------------

    @property
    def can_log(self) -> bool:
        return self._device.log_known

    def set_log(self, log: DirtyLog | None, fd: int) -> None:
        device = self._device
        if not device.log_known:
            raise OSError(errno.EOPNOTSUPP, f"{device.name}: its program marks no writes")
        with device.lock:
            former, device.log = device.log, None if log is None else (SharedFile(fd), log)
        try:
            device.messages.send(UpdateLog(), device.msg_timeout)
        except BaseException:
            with device.lock:
                device.log = former
            raise

    # --- IOTLB ------------------------------------------------------------------------------

    def get_iova_range(self) -> tuple[int, int]:
        return 0, _U64_MAX

    def set_map(self, mappings: Iterable[Mapping], asid: int = 0) -> None:
        device = self._device
        if asid != 0:
            raise OSError(errno.EINVAL, f"no address space {asid}")
        with device.lock:
            self._domain.set_map(mappings)
        try:
            device.messages.send(UpdateIotlb(0, _U64_MAX), device.msg_timeout)
        except BaseException:
            with device.lock:
                self._domain.set_map(())
            raise

    def clear_map(self) -> None:
        with self._device.lock:
            self._domain.clear_map()
