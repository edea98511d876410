"""Class drivers: what drives a virtio device of one type under virtio_vdpa (in Linux a
``struct virtio_driver``). :class:`QueueDriver` is where one of your own begins."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from vduse import _native
from vduse.bus.vdpa import VdpaDevice
from vduse.control.features import Feature


class ClassDriver(Protocol):
    """A device in a class driver's hands, from feature negotiation to removal."""

    @property
    def queue_sizes(self) -> Sequence[int]:
        """Descriptors of each virtqueue in use, by index."""

    def areas(self, index: int) -> tuple[int, int, int]:
        """IOVAs of a virtqueue's descriptor, driver and device areas."""

    def start(self) -> None:
        """After DRIVER_OK."""

    def stop(self, error: int) -> None:
        """After the reset: what is outstanding, and all that comes, ends with errno ``error``."""


class ClassDriverType(Protocol):
    """Makes class drivers; a class that satisfies :class:`ClassDriver` is one."""

    @property
    def FEATURES(self) -> int:
        """Feature bits that it can make use of."""

    def __call__(self, vdpa: VdpaDevice, features: int, /) -> ClassDriver:
        """After FEATURES_OK, with the negotiated ``features``: makes the virtqueues."""


@runtime_checkable
class Restorable(Protocol):
    """A class driver whose device can be reset under it (``freeze`` and ``restore`` of Linux's
    struct virtio_driver): programs' requests wait, and fail no sooner than the device does."""

    def freeze(self) -> None:
        """Before the reset: leaves the virtqueues alone until :meth:`ClassDriver.start`."""

    def restore(self) -> None:
        """After FEATURES_OK, with the same features: makes the virtqueues anew, of the same
        sizes. What the device had and has not answered it gets again after the start. OSError."""


class QueueDriver:
    """A class driver on virtqueues whose requests Python makes."""

    #: What :class:`_native.Virtqueue` can do; a class adds its device's own.
    FEATURES = int(Feature.INDIRECT_DESC | Feature.EVENT_IDX | Feature.RING_PACKED)
    #: Virtqueues that are used, the first ones.
    QUEUES = 1
    #: Most descriptors of a virtqueue that are used.
    QUEUE_SIZE = 128

    def __init__(self, vdpa: VdpaDevice, features: int) -> None:
        """OSError EINVAL: the device has too few virtqueues."""
        self.vdpa = vdpa
        #: The negotiated feature bits.
        self.features = features
        sizes = [vdpa.get_vq_size(index) for index in range(min(self.QUEUES, vdpa.nvqs))]
        if len(sizes) < self.QUEUES or 0 in sizes:
            raise OSError(
                errno.EINVAL, f"{vdpa.name}: {self.QUEUES} virtqueues are needed, sizes {sizes}"
            )
        sizes = [min(size, self.QUEUE_SIZE) for size in sizes]
        if not features & Feature.RING_PACKED:
            # Split rings are powers of two long (section 2.7).
            sizes = [1 << (size.bit_length() - 1) for size in sizes]
        self.queue_sizes = sizes
        self.queues = [
            _native.Virtqueue(vdpa.domain, vdpa.vq_line(index), size, features)
            for index, size in enumerate(sizes)
        ]

    def areas(self, index: int) -> tuple[int, int, int]:
        """As :meth:`ClassDriver.areas`."""
        return self.queues[index].areas

    def start(self) -> None:
        """As :meth:`ClassDriver.start`."""
        for queue in self.queues:
            queue.start()

    def stop(self, error: int) -> None:
        """As :meth:`ClassDriver.stop`."""
        for queue in self.queues:
            queue.stop(error)

    def config(self) -> bytes:
        """The config space, all of it as of one generation (section 2.5.1)."""
        while True:
            generation = self.vdpa.get_generation()
            config = self.vdpa.get_config(0, self.vdpa.get_config_size())
            if self.vdpa.get_generation() == generation:
                return config
