"""What scenarios work with: the device under vhost_vdpa, its daemon's life, what was found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event
from time import monotonic

from vduse.bus.driver import Driver
from vduse.bus.errors import DeviceRefused, VdpaError
from vduse.check import rules
from vduse.check.config import BlkFields
from vduse.check.errors import Broken, Died, Stopped
from vduse.check.watch import WatchedDevice
from vduse.control.abi import Message
from vduse.control.features import BlkFeature, DeviceId, Feature, Status
from vduse.framework import Framework

_ALL = (1 << 64) - 1
#: What the driver here can make use of.
_COMMON = (
    Feature.VERSION_1
    | Feature.ACCESS_PLATFORM
    | Feature.RING_PACKED
    | Feature.INDIRECT_DESC
    | Feature.EVENT_IDX
)
_BLK = (
    BlkFeature.SIZE_MAX
    | BlkFeature.SEG_MAX
    | BlkFeature.RO
    | BlkFeature.BLK_SIZE
    | BlkFeature.FLUSH
    | BlkFeature.TOPOLOGY
    | BlkFeature.MQ
    | BlkFeature.DISCARD
    | BlkFeature.WRITE_ZEROES
)
STARTED = Status.ACKNOWLEDGE | Status.DRIVER
AGREED = STARTED | Status.FEATURES_OK
LIVE = AGREED | Status.DRIVER_OK


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds."""

    #: Within which a daemon does what it must.
    patience: float = 10.0
    #: For which it is looked at for what it must not do.
    quiet: float = 0.5


class Stage:
    """One device, opened through vhost_vdpa, under scenario after scenario."""

    def __init__(
        self,
        framework: Framework,
        name: str,
        driver: Driver,
        watch: WatchedDevice,
        timing: Timing,
        say: Callable[[str], None],
        kill: Callable[[], None] | None,
        stop: Event,
    ) -> None:
        """``driver`` stays the caller's. ``say``: a line for whoever waits. ``kill``: SIGKILL to
        the daemon, and waits until it serves the device again; raises where it does not. ``stop``:
        set from any thread, it ends the check."""
        self.name = name
        self.driver = driver
        self.watch = watch
        self.ledger = watch.ledger
        self.timing = timing
        self.say = say
        self._kill = kill
        self._stop = stop
        self._device = framework.device(name)
        self._opens = watch.opens
        self._timed_out = False
        # A message that a daemon died of would be the first thing its successor reads.
        watch.on_closed = self._device.messages.abandon
        #: Feature bits that the device offers.
        self.offered = driver.get_features()
        self.queues = driver.get_vqs_count()
        #: Descriptors of the longest virtqueue.
        self.max_size = driver.get_vring_num_max()

    # --- the device -------------------------------------------------------------------------

    @property
    def is_blk(self) -> bool:
        """A block device: its requests can be looked at."""
        return self.driver.get_device_id() == DeviceId.BLOCK

    @property
    def read_only(self) -> bool:
        """It offers VIRTIO_BLK_F_RO."""
        return self.offers(BlkFeature.RO)

    @property
    def formats(self) -> list[bool]:
        """The virtqueue formats that it can be driven with: whether packed."""
        return [False, True] if self.offers(Feature.RING_PACKED) else [False]

    @property
    def api_version(self) -> int:
        """That the daemon created the device with."""
        return self._device.api_version

    def offers(self, bits: int) -> bool:
        """Whether these feature bits are offered, all of them."""
        return self.offered & int(bits) == int(bits)

    def config(self) -> bytes:
        """The config space."""
        size = self.driver.get_config_size()
        return self.driver.get_config(0, size) if size else b""

    def fields(self) -> BlkFields:
        """A block device's."""
        return BlkFields.read(self.config())

    @property
    def usable(self) -> int:
        """Feature bits that are offered and that the driver here makes something of."""
        return self.offered & (int(_COMMON) | (int(_BLK) if self.is_blk else 0))

    # --- the daemon -------------------------------------------------------------------------

    @property
    def broken(self) -> bool:
        """The framework has given the device up."""
        return self._device.messages.broken

    def check_alive(self) -> None:
        """Broken, Died, Stopped."""
        if self._timed_out:
            raise Broken("the device is broken: a message was not answered in time")
        if not self.watch.open or self.watch.opens != self._opens:
            raise Died("the daemon closed its node, or died")
        if self._stop.is_set() or self.broken:
            raise Stopped("the check was stopped")

    def restart(self) -> None:
        """SIGKILL to the daemon; its successor serves the device then. Died: none does, or nobody
        here can start one. Stopped."""
        if self._stop.is_set():
            raise Stopped("the check was stopped")
        if self._kill is None:
            raise Died("the daemon died, and nobody here can start it again")
        try:
            self._kill()
        except Exception as error:  # whatever starts programs may raise
            raise Died(f"the daemon did not come back: {error}") from error
        self._opens = self.watch.opens

    @property
    def can_restart(self) -> bool:
        """Whether :meth:`restart` can do anything."""
        return self._kill is not None

    def send(self, message: Message) -> bool:
        """A message that no driver sends; whether it was answered OK. Broken."""
        with self.messages():
            try:
                self._device.messages.send(message, self._device.msg_timeout)
            except DeviceRefused:
                return False
            return True

    def lengthen_queue(self, index: int, size: int) -> None:
        """Makes a virtqueue ``size`` descriptors long, more than its max_size: no driver can,
        since Linux 6.12.111; before that vhost_vdpa's could."""
        self._device.vq(index).num = size

    def set_status(self, status: int) -> bool:
        """Whether the device took it. Died, Broken."""
        with self.messages():
            self.driver.set_status(status)
        return self.driver.get_status() == status

    def reset(self) -> bool:
        """Resets the device; whether it agreed. Its memory stays mapped."""
        with self.messages():
            try:
                self.driver.set_status(0)
            except DeviceRefused:
                return False
        return True

    def unmap(self) -> None:
        """Takes all memory away."""
        with self.messages():
            self.driver.iotlb_invalidate(0, _ALL)

    def agree(self, features: int) -> bool:
        """From a reset to FEATURES_OK with these feature bits; whether the device took them."""
        self.reset()
        self.unmap()
        self.set_status(Status.ACKNOWLEDGE)
        self.set_status(STARTED)
        self.driver.set_features(features)
        return self.set_status(AGREED)

    @contextmanager
    def messages(self) -> Iterator[None]:
        """Around what sends messages: where one is not answered in time the rule fails."""
        self.check_alive()
        timeout = self._device.msg_timeout
        deadline = monotonic() + timeout
        try:
            yield
        except VdpaError:
            if self.watch.opens == self._opens and self.watch.open and not self.broken:
                raise
        # A device that breaks is hung up on: its daemon closes the node then, at last.
        if self.broken and not self.watch.closed_before(deadline) and not self._stop.is_set():
            self._timed_out = True
            self.ledger.fail(
                rules.MESSAGE_IN_TIME, f"no answer within {timeout:g} s\n{self.watch.tail()}"
            )
        self.check_alive()
        self.ledger.reach(rules.MESSAGE_IN_TIME)
