"""/dev/vduse/NAME: every ioctl of linux/vduse.h on a device, with the kernel's checks in the
kernel's order. Knows no transport; never waits for the device or its driver."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace

from vduse.channel.packet import Credentials
from vduse.control.abi import (
    EVENTFD_DEASSIGN,
    IOVA_CAP_UMEM,
    DevResponse,
    DevSetConfig,
    ExtCall,
    Ioctl,
    IotlbEntry,
    IotlbEntryV2,
    IovaInfo,
    IovaUmem,
    VqConfig,
    VqEventfd,
    VqInfo,
    pack_u64,
    unpack_u32,
    unpack_u64,
)
from vduse.control.features import Status
from vduse.framework.credentials import lockable_bytes
from vduse.framework.device import VduseDevice
from vduse.framework.domain import IovaDomain, Region

log = logging.getLogger(__name__)

Result = tuple[int, bytes, list[int]]
_OK: Result = (0, b"", [])


@dataclass(frozen=True, slots=True)
class _Call:
    payload: bytes
    fds: list[int]


class DeviceNode:
    """One open device node. At most one per device lives at a time."""

    def __init__(self, device: VduseDevice, caller: Callable[[], Credentials]) -> None:
        """Opens the node. ``caller`` says whose ioctl runs now. OSError ENODEV: destroyed;
        EBUSY: open already."""
        with device.lock:
            if device.destroyed:
                raise OSError(errno.ENODEV, f"{device.name} was destroyed")
            if device.connected:
                raise OSError(errno.EBUSY, f"{device.name} is open in another program")
            device.connected = True
        self._device = device
        self._caller = caller
        log.info("%s: opened", device.name)

    @property
    def device(self) -> VduseDevice:
        """The device behind the node."""
        return self._device

    # --- read, write, poll, release ---------------------------------------------------------

    def read_messages(self) -> list[bytes]:
        """Takes every unread message."""
        return list(iter(self._device.messages.take, None))

    def write_response(self, data: bytes) -> None:
        """A vduse_dev_response. OSError EINVAL, ENOENT."""
        try:
            response = DevResponse.unpack(data)
        except ValueError as error:
            raise OSError(errno.EINVAL, str(error)) from None
        self._device.messages.answer(response)

    def poll(self) -> int:
        """As poll(2)."""
        return self._device.messages.poll()

    def release(self) -> None:
        """The last close(2): user memory goes, unanswered messages wait for the next opener.
        The device is not reset."""
        device = self._device
        with device.lock:
            if device.domain is not None:
                try:
                    device.domain.drop_umem()
                except OSError as error:  # the process whose memory it was is dead
                    log.warning("%s: user memory was lost: %s", device.name, error)
            for vq in device.vqs:
                vq.give_kick_back()
            device.messages.replay()
            device.connected = False
        log.info("%s: closed", device.name)

    # --- ioctls -----------------------------------------------------------------------------

    def ioctl(self, nr: int, payload: bytes, fds: list[int]) -> Result:
        """The ioctl's result, its struct as written back, fds for the caller. OSError as the
        kernel; ValueError: ``payload`` is no such struct. ``fds`` stay the caller's."""
        if self._device.messages.broken:
            raise OSError(errno.EPERM, f"{self._device.name} is broken: destroy it")
        handler = _HANDLERS.get(nr)
        if handler is None:
            raise _unknown(nr)
        with self._device.lock:
            return handler(self, _Call(payload, fds))

    def _iotlb_get_fd(self, call: _Call) -> Result:
        entry = IotlbEntry.unpack(call.payload)
        region = self._region(entry.start, entry.last)
        return 0, _entry(region).pack(), [os.dup(region.fd)]

    def _iotlb_get_fd2(self, call: _Call) -> Result:
        if self._device.api_version < 1:
            raise _unknown(Ioctl.IOTLB_GET_FD2)
        entry = IotlbEntryV2.unpack(call.payload)
        self._check_reserved(entry.reserved, entry.asid, errno.EINVAL)
        region = self._region(entry.v1.start, entry.v1.last)
        return 0, replace(entry, v1=_entry(region)).pack(), [os.dup(region.fd)]

    def _dev_get_features(self, call: _Call) -> Result:
        return 0, pack_u64(self._device.driver_features), []

    def _dev_set_config(self, call: _Call) -> Result:
        update = DevSetConfig.unpack(call.payload)
        config = self._device.config
        end = update.offset + len(update.data)
        if not update.data or end > len(config):
            raise OSError(
                errno.EINVAL,
                f"config bytes {update.offset} to {end} of {len(config)}",
            )
        config[update.offset : end] = update.data
        return _OK

    def _dev_inject_config_irq(self, call: _Call) -> Result:
        self._device.inject_config_irq()
        return _OK

    def _vq_setup(self, call: _Call) -> Result:
        setup = VqConfig.unpack(call.payload)
        device = self._device
        vq = device.vq(setup.index)
        if any(setup.reserved):
            raise OSError(errno.EINVAL, "vduse_vq_config.reserved is not zero")
        if device.api_version < 1:
            if setup.group != 0:
                raise OSError(errno.EINVAL, "virtqueue groups need API version 1")
        elif setup.group >= device.ngroups:
            raise OSError(errno.EINVAL, f"group {setup.group} of {device.ngroups}")
        elif device.status & Status.DRIVER_OK:
            raise OSError(errno.EINVAL, "virtqueues are set up before DRIVER_OK")
        vq.num_max, vq.group = setup.max_size, setup.group
        return _OK

    def _vq_get_info(self, call: _Call) -> Result:
        vq = self._device.vq(VqInfo.unpack(call.payload).index)
        info = VqInfo(
            index=vq.index,
            num=vq.num,
            desc_addr=vq.desc_addr,
            driver_addr=vq.driver_addr,
            device_addr=vq.device_addr,
            state=vq.state,
            ready=vq.ready,
        )
        return 0, info.pack(), []

    def _vq_setup_kickfd(self, call: _Call) -> Result:
        setup = VqEventfd.unpack(call.payload)
        vq = self._device.vq(setup.index)
        if setup.fd >= 0:
            if not call.fds:
                raise OSError(errno.EBADF, "no eventfd came with the call")
            vq.set_kickfd(call.fds[0])
        elif setup.fd == EVENTFD_DEASSIGN:
            vq.set_kickfd(-1)
        return _OK

    def _vq_inject_irq(self, call: _Call) -> Result:
        self._device.inject_vq_irq(unpack_u32(call.payload))
        return _OK

    def _iotlb_reg_umem(self, call: _Call) -> Result:
        umem = IovaUmem.unpack(call.payload)
        self._check_reserved(umem.reserved, umem.asid, errno.EINVAL)
        domain = self._domain()
        domain.check_umem(umem.iova, umem.uaddr, umem.size)
        pid = self._caller().pid
        room = lockable_bytes(pid)
        if room is not None and umem.size > room:
            raise OSError(
                errno.ENOMEM, f"RLIMIT_MEMLOCK of process {pid} leaves {room} of {umem.size} bytes"
            )
        domain.reg_umem(pid, umem.uaddr)
        return _OK

    def _iotlb_dereg_umem(self, call: _Call) -> Result:
        umem = IovaUmem.unpack(call.payload)
        self._check_reserved(umem.reserved, umem.asid, errno.EINVAL)
        domain = self._device.domain
        if domain is None:
            raise OSError(errno.ENOENT, "no user memory is registered")
        domain.dereg_umem(umem.iova, umem.size)
        return _OK

    def _iotlb_get_info(self, call: _Call) -> Result:
        info = IovaInfo.unpack(call.payload)
        _check_range(info.start, info.last)
        self._check_reserved(info.reserved, info.asid, self._device.profile.iova_info_errno)
        region = self._region(info.start, info.last)
        found = IovaInfo(region.start, region.last, IOVA_CAP_UMEM if region.umem else 0)
        return 0, found.pack(), []

    # --- extensions (docs/channel.md) -------------------------------------------------------

    def _vq_get_callfd(self, call: _Call) -> Result:
        vq = self._device.vq(unpack_u32(call.payload))
        vq.callfd_given = True
        return 0, b"", [os.dup(vq.line.callfd)]

    def _vq_get_kickfd(self, call: _Call) -> Result:
        fd = self._device.vq(unpack_u32(call.payload)).take_kick()
        # No mistake of the caller's that the log should tell of.
        return (-errno.ENOENT, b"", []) if fd is None else (0, b"", [fd])

    def _get_inflight_fd(self, call: _Call) -> Result:
        size = unpack_u64(call.payload)
        device = self._device
        if device.status & Status.DRIVER_OK and device.inflight.size not in (0, size):
            raise OSError(
                errno.EBUSY,
                f"the driver is live on an in-flight record of {device.inflight.size} bytes",
            )
        return 0, b"", [device.inflight.get(size, len(device.vqs))]

    def _log_get_fd(self, call: _Call) -> Result:
        self._device.log_known = True
        if self._device.log is None:
            return -errno.ENOENT, b"", []
        file, log = self._device.log
        return 0, log.pack(), [os.dup(file.fileno())]

    # --- checks -----------------------------------------------------------------------------

    def _check_reserved(self, reserved: bytes, asid: int, error: int) -> None:
        # In version 0 the asid lies in what is reserved; version 1 has one address space here.
        if any(reserved) or asid != 0:
            raise OSError(error, "reserved is not zero, or no such address space")

    def _domain(self) -> IovaDomain:
        if self._device.domain is None:
            raise OSError(errno.EINVAL, f"{self._device.name} is not attached: nothing is mapped")
        return self._device.domain

    def _region(self, start: int, last: int) -> Region:
        _check_range(start, last)
        region = self._domain().first(start, last)
        if region is None:
            raise OSError(errno.EINVAL, f"nothing is mapped at {start:#x}-{last:#x}")
        return region


def _check_range(start: int, last: int) -> None:
    if start > last:
        raise OSError(errno.EINVAL, f"IOVA range {start:#x}-{last:#x}")


def _entry(region: Region) -> IotlbEntry:
    return IotlbEntry(region.offset, region.start, region.last, region.perm)


def _unknown(nr: int) -> OSError:
    # ENOIOCTLCMD of the driver is ENOTTY to its caller.
    return OSError(errno.ENOTTY, f"no ioctl {nr:#x} on a device node")


_HANDLERS: dict[int, Callable[[DeviceNode, _Call], Result]] = {
    Ioctl.IOTLB_GET_FD: DeviceNode._iotlb_get_fd,
    Ioctl.IOTLB_GET_FD2: DeviceNode._iotlb_get_fd2,
    Ioctl.DEV_GET_FEATURES: DeviceNode._dev_get_features,
    Ioctl.DEV_SET_CONFIG: DeviceNode._dev_set_config,
    Ioctl.DEV_INJECT_CONFIG_IRQ: DeviceNode._dev_inject_config_irq,
    Ioctl.VQ_SETUP: DeviceNode._vq_setup,
    Ioctl.VQ_GET_INFO: DeviceNode._vq_get_info,
    Ioctl.VQ_SETUP_KICKFD: DeviceNode._vq_setup_kickfd,
    Ioctl.VQ_INJECT_IRQ: DeviceNode._vq_inject_irq,
    Ioctl.IOTLB_REG_UMEM: DeviceNode._iotlb_reg_umem,
    Ioctl.IOTLB_DEREG_UMEM: DeviceNode._iotlb_dereg_umem,
    Ioctl.IOTLB_GET_INFO: DeviceNode._iotlb_get_info,
    ExtCall.VQ_GET_CALLFD: DeviceNode._vq_get_callfd,
    ExtCall.VQ_GET_KICKFD: DeviceNode._vq_get_kickfd,
    ExtCall.GET_INFLIGHT_FD: DeviceNode._get_inflight_fd,
    ExtCall.LOG_GET_FD: DeviceNode._log_get_fd,
}
