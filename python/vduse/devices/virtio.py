"""Devices of any type, served in Python: subclass :class:`VirtioDevice`.

class Echo(VirtioDevice):
    DEVICE_ID = 42

    def submit(self, queue, batch):
        for chain in batch:
            chain.write(chain.read())
            chain.complete()
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable
from inspect import iscoroutinefunction
from typing import ClassVar

from vduse import _native
from vduse.channel.base import Resolver
from vduse.control.features import Feature
from vduse.control.statistics import DeviceStats
from vduse.device.control_thread import ControlThread
from vduse.device.device import DRAIN_TIMEOUT, Device
from vduse.device.spec import DeviceSpec
from vduse.devices.features import REQUIRED, check_features
from vduse.devices.life import DeviceLife
from vduse.devices.virtio_loop import SubmitLoop

log = logging.getLogger(__name__)

#: What the native data path can do for every device type.
_COMMON = REQUIRED | Feature.INDIRECT_DESC | Feature.EVENT_IDX
_LARGEST_QUEUE = 1 << 15


class VirtioDevice(DeviceLife, ABC):
    """A virtio device whose chains :meth:`submit` serves, a batch at a time, on a worker thread
    of its own: one that waits there lets only this device wait.

    A kernel's VDUSE takes block and net devices; for others see ``device_ids`` of
    :class:`~vduse.framework.Framework`.
    """

    #: Virtio device id (virtio 1.3, section 5).
    DEVICE_ID: ClassVar[int]
    #: Feature bits of the device type that are offered; those of every device come by themselves.
    FEATURES: ClassVar[int] = 0
    #: Most descriptors of each virtqueue, powers of two.
    QUEUE_SIZES: ClassVar[tuple[int, ...]] = (128,)

    def __init__(
        self,
        name: str,
        *,
        packed: bool = False,
        thread: ControlThread | None = None,
        drain_timeout: float = DRAIN_TIMEOUT,
        api_version: int = 0,
    ) -> None:
        """``packed`` offers packed virtqueues; the driver chooses. ``drain_timeout``: seconds
        that a stop or a reset may take. ValueError: name, QUEUE_SIZES, drain_timeout or
        api_version out of range. A subclass sets what :meth:`config` needs first."""
        if not hasattr(self, "DEVICE_ID"):
            raise TypeError(f"{type(self).__name__} has no DEVICE_ID (virtio 1.3, section 5)")
        for size in self.QUEUE_SIZES:
            if size & (size - 1) or not 1 <= size <= _LARGEST_QUEUE:
                raise ValueError(
                    f"QUEUE_SIZES: {size} is not a power of two between 1 and {_LARGEST_QUEUE}"
                )
        if drain_timeout < 0:
            raise ValueError(f"drain_timeout: {drain_timeout} is negative")
        features = int(self.FEATURES | _COMMON | (Feature.RING_PACKED if packed else 0))
        self._pool: _native.Pool | None = None
        self._data_path: _native.ChainDataPath | None = None
        self._loop: SubmitLoop | None = None
        self._device = Device(
            DeviceSpec(
                name=name,
                device_id=self.DEVICE_ID,
                features=features,
                queue_sizes=self.QUEUE_SIZES,
                config=self.config(),
                check_features=lambda chosen: check_features(features, chosen, self.DEVICE_ID),
                api_version=api_version,
            ),
            self._make_data_path,
            thread=thread,
            drain_timeout=drain_timeout,
        )

    # --- what a device is -------------------------------------------------------------------

    @abstractmethod
    def submit(self, queue: int, batch: _native.ChainBatch) -> Awaitable[None] | None:
        """Serves the next chains of virtqueue ``queue``, at least one, on the worker. Each is to
        be completed, here or later, on any thread. What it raises goes to the log; chains of
        the batch that have not ended are completed with 0 bytes written then.

        As ``async def`` it runs on a loop of the device's own, each batch in its own task."""

    def config(self) -> bytes:
        """The config space at creation, little-endian."""
        return b""

    def drain(self, queue: int) -> None:
        """Virtqueue ``queue`` is being stopped and waits for chains that were kept: complete
        them. On the worker. By default they complete as ever, within ``drain_timeout``."""
        log.debug("%s: virtqueue %d drains", self.name, queue)

    # --- what its program does --------------------------------------------------------------

    def set_config(self, offset: int, data: bytes) -> None:
        """Writes the config space and tells a live driver. OSError EINVAL: out of range."""
        self._device.set_config(offset, data)

    def stats(self) -> DeviceStats | None:
        """What was counted (docs/statistics.md); None before the start. Requests are chains,
        ``errors`` those that were dropped, ``bytes_read`` what was written for the driver."""
        return self._data_path.stats() if self._data_path is not None else None

    def close(self, *, destroy: bool = False) -> None:
        """Drains and closes the node. The device stays, for whoever takes it over, unless it is
        to be destroyed. DeviceError: chains do not end, or the device's own handler calls.
        OSError EBUSY: closed, but on the vDPA bus and not destroyed."""
        self._device.close()
        self._data_path = None
        if self._loop is not None:
            self._loop.close()
            self._loop = None
        if self._pool is not None:
            self._pool.close()
            self._pool = None
        if destroy:
            self._device.destroy()

    def _make_data_path(self, resolver: Resolver) -> _native.ChainDataPath:
        self._pool = self._pool or _native.Pool(1)
        submit = self.submit
        if iscoroutinefunction(submit):
            self._loop = self._loop or SubmitLoop(self.name, submit)
            submit = self._loop.submit
        self._data_path = _native.ChainDataPath(self._pool, resolver, submit, self.drain)
        return self._data_path
