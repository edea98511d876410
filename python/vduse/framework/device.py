"""One VDUSE device as the framework keeps it (struct vduse_dev): shared by its node, which the
device's program opens, and by its place on the vDPA bus."""

from __future__ import annotations

import errno
import itertools
import logging
import threading
from collections.abc import Callable

from vduse import _native
from vduse.bus.errors import DeviceExists
from vduse.bus.iotlb import SharedFile
from vduse.control.abi import DevConfig, DirtyLog, SetStatus
from vduse.control.features import Feature, Status
from vduse.framework.domain import PAGE_SIZE, IovaDomain
from vduse.framework.inflight import InflightFile
from vduse.framework.irq import Work, WorkQueue
from vduse.framework.messages import MessageQueue
from vduse.framework.profile import Profile
from vduse.framework.virtqueue import Virtqueue

log = logging.getLogger(__name__)

_numbers = itertools.count(1)

MIN_BOUNCE_SIZE = 1 << 20
MAX_BOUNCE_SIZE = 1 << 30
#: Seconds, an unsigned int in the kernel.
MAX_MSG_TIMEOUT = (1 << 32) - 1


class VduseDevice:
    """State of a device. ``lock`` guards it and is never held while waiting for the device or
    for work; the message queue and the work queue have locks of their own."""

    def __init__(
        self,
        config: DevConfig,
        profile: Profile,
        api_version: int,
        work: WorkQueue,
        *,
        bounce_size: int,
        msg_timeout: float,
    ) -> None:
        self.name = config.name
        #: No other device of this process has it, or had it.
        self.number = next(_numbers)
        self.profile = profile
        self.api_version = api_version
        self.device_id = config.device_id
        self.vendor_id = config.vendor_id
        self.device_features = config.features
        self.vq_align = config.vq_align
        self.ngroups = config.ngroups or 1
        self.lock = threading.RLock()
        self.vqs = [Virtqueue(index) for index in range(config.vq_num)]
        #: VQ_INJECT_IRQ's rule, for whoever takes that call.
        self.irqs = _native.IrqGate([vq.line for vq in self.vqs])
        self.messages = MessageQueue(config.name, lambda: self.irqs.set_broken())
        self.config = bytearray(config.config)
        self.driver_features = 0
        self.status = 0
        self.generation = 0
        self.domain: IovaDomain | None = None
        self.inflight = InflightFile()
        #: Where the driver's side wants writes marked, until the next reset.
        self.log: tuple[SharedFile, DirtyLog] | None = None
        #: The device's program asks for logs (LOG_GET_FD).
        self.log_known = False
        self.connected = False
        #: On the service thread: an opener that is gone already is heard of now.
        self.look_at_opener: Callable[[], None] = _nothing
        self.attached = False
        self.destroyed = False
        self._msg_timeout = 0.0
        self._bounce_size = 0
        self.msg_timeout = msg_timeout
        self.bounce_size = bounce_size
        self._work = work
        self._config_cb: Callable[[], None] | None = None
        self._config_work = Work(self._run_config_cb, f"config interrupt of {self.name}")

    # --- attributes (/sys/class/vduse/NAME) -------------------------------------------------

    @property
    def msg_timeout(self) -> float:
        """Seconds that a message waits for its answer; 0: for ever."""
        return self._msg_timeout

    @msg_timeout.setter
    def msg_timeout(self, seconds: float) -> None:
        if not 0 <= seconds <= MAX_MSG_TIMEOUT:
            raise OSError(errno.EINVAL, "msg_timeout is 0 (for ever) or a number of seconds")
        self._msg_timeout = seconds

    @property
    def bounce_size(self) -> int:
        """Bytes of the bounce region."""
        return self._bounce_size

    @bounce_size.setter
    def bounce_size(self, size: int) -> None:
        with self.lock:
            if self.domain is not None:
                raise OSError(
                    errno.EPERM, f"bounce_size of {self.name} is fixed once it was attached"
                )
            if not MIN_BOUNCE_SIZE <= size <= MAX_BOUNCE_SIZE:
                raise OSError(errno.EINVAL, "bounce_size is between 1 MiB and 1 GiB")
            self._bounce_size = size & -PAGE_SIZE

    # --- what both sides use ----------------------------------------------------------------

    @property
    def status(self) -> int:
        """Stored when its SET_STATUS was answered."""
        return self._status

    @status.setter
    def status(self, status: int) -> None:
        self._status = status
        self.irqs.set_driver_ok(bool(status & Status.DRIVER_OK))

    @property
    def packed(self) -> bool:
        """The driver negotiated packed virtqueues."""
        return bool(self.driver_features & Feature.RING_PACKED)

    def vq(self, index: int) -> Virtqueue:
        """OSError EINVAL: no such virtqueue."""
        if not 0 <= index < len(self.vqs):
            raise OSError(errno.EINVAL, f"{self.name} has no virtqueue {index}")
        return self.vqs[index]

    def attach(self) -> IovaDomain:
        """The device comes onto the vDPA bus. DeviceExists: it is there; OSError EINVAL: a
        virtqueue is not set up."""
        with self.lock:
            unset = [vq.index for vq in self.vqs if vq.num_max == 0]
            if unset:
                raise OSError(
                    errno.EINVAL,
                    f"virtqueue {unset[0]} of {self.name} is not set up: the device's program "
                    "must run first",
                )
            if self.attached:
                raise DeviceExists(f"{self.name} is on the vDPA bus already")
            if self.domain is None:
                self.domain = IovaDomain(self._bounce_size)
            self.attached = True
            return self.domain

    def detach(self) -> None:
        """The device has left the bus."""
        with self.lock:
            self.attached = False

    def set_config_cb(self, callback: Callable[[], None] | None) -> None:
        """Who is told of a config interrupt."""
        with self.lock:
            self._config_cb = callback

    def inject_config_irq(self) -> None:
        """OSError EINVAL before DRIVER_OK."""
        with self.lock:
            if not self.status & Status.DRIVER_OK:
                raise OSError(errno.EINVAL, f"{self.name}: no config interrupt before DRIVER_OK")
            self._work.queue(self._config_work)

    def flush_config_irq(self) -> None:
        """Waits until the driver has dealt with the config interrupts so far."""
        self._work.flush(self._config_work)

    def inject_vq_irq(self, index: int) -> None:
        """Signals a ready queue's driver; one that is not ready gets nothing. OSError EPERM,
        EINVAL, as :meth:`vduse._native.IrqGate.inject`. Never runs anything of the driver's on
        this stack."""
        self.irqs.inject(index)

    def send_status(self, status: int) -> None:
        """Sends SET_STATUS and waits; stores nothing."""
        self.messages.send(SetStatus(status), self.msg_timeout)

    def reset(self) -> None:
        """The framework's half of a reset; sends nothing. Waits for a config interrupt that
        runs just now."""
        with self.lock:
            if self.domain is not None:
                self.domain.reset()
            self.status = 0
            self.driver_features = 0
            self.generation += 1
            self._config_cb = None
            for vq in self.vqs:
                vq.clear()
            self.inflight.zero()
            self.log = None
        self.flush_config_irq()

    def release(self) -> None:
        """The device is no more: lets go of its memory and fds at once."""
        with self.lock:
            self.destroyed = True
            self.domain = None
            self.inflight.close()
            self.log = None
            self.vqs.clear()
            self.irqs = _native.IrqGate([])

    def reclaim(self) -> int:
        """Gives idle bounce pages back to the system; bytes."""
        domain = self.domain
        return 0 if domain is None else domain.native.reclaim()

    def stats(self) -> dict[str, int]:
        """Messages by type (``messages_SET_STATUS`` ...), ``kicks`` and ``irqs`` over all
        queues, and the domain's bounce and map counters."""
        found = {f"messages_{kind}": count for kind, count in self.messages.counts().items()}
        lines = [vq.line.stats() for vq in self.vqs]
        found["kicks"] = sum(line["kicks"] for line in lines)
        found["irqs"] = sum(line["irqs"] for line in lines)
        domain = self.domain
        if domain is not None:
            found |= domain.native.stats()
        return found

    def _run_config_cb(self) -> None:
        with self.lock:
            callback = self._config_cb
        if callback is not None:
            callback()


def _nothing() -> None:
    """No opener."""
