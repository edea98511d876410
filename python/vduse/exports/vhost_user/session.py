"""One front end: its messages become calls of the driver's port. No sockets.

Without protocol STATUS the front end has no word for the device's status: the sequence of virtio
1.3, 3.1.1, is made up for it, and DRIVER_OK set when its first ring is ready. ACCESS_PLATFORM,
which every VDUSE device needs, is no affair of a front end: it is taken from what is offered and
put to what is chosen.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from vduse.bus.driver import Driver, InflightDriver
from vduse.control import vhost_user as vu
from vduse.control.features import Feature, Status
from vduse.control.vhost_user import (
    Inflight,
    Message,
    ProtocolError,
    ProtocolFeature,
    Request,
)
from vduse.exports.vhost_user.log import Log
from vduse.exports.vhost_user.memory import MAX_SLOTS, Memory
from vduse.exports.vhost_user.ring import Ring

log = logging.getLogger(__name__)

#: What is spoken here; INFLIGHT_SHMFD and LOG_SHMFD too, where the driver can.
PROTOCOL_FEATURES: Final = int(
    ProtocolFeature.MQ
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.BACKEND_REQ
    | ProtocolFeature.CONFIG
    | ProtocolFeature.RESET_DEVICE
    | ProtocolFeature.CONFIGURE_MEM_SLOTS
    | ProtocolFeature.STATUS
)

_DRIVER = Status.ACKNOWLEDGE | Status.DRIVER
_AGREED = _DRIVER | Status.FEATURES_OK


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply's payload and fds; the fds are the taker's."""

    payload: bytes
    fds: list[int] = field(default_factory=list)


class Session:
    """From a connection's begin to its end. ``driver`` is just opened, so reset. ``name``: in the
    log."""

    def __init__(self, driver: Driver, name: str) -> None:
        self._driver = driver
        self._name = name
        self._logger = logging.LoggerAdapter(log, {"device": name})
        self._memory = Memory(driver)
        self._rings = [Ring(index, enabled=True) for index in range(driver.get_vqs_count())]
        #: As the front end wrote it, F_PROTOCOL_FEATURES and all.
        self._features = 0
        self._protocol_features = ProtocolFeature(0)
        #: The front end's, where it speaks of it.
        self._status = 0
        #: The device has DRIVER_OK.
        self._live = False
        self._backend_fd = -1
        #: The front end's record of requests in flight, and its bytes.
        self._inflight: tuple[int, int] | None = None
        self._log = Log(driver)
        #: Signalled when the config space has changed.
        self.config_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            driver.set_config_call(self.config_fd)
        except BaseException:
            os.close(self.config_fd)
            raise

    def handle(self, message: Message) -> Reply | None:
        """What is to be sent back, None: nothing. Closes the message's fds.

        ProtocolError, OSError: the message was not served and the front end does not wait for
        an answer, so the connection is of no more use."""
        try:
            reply = self._serve(message)
        except (ProtocolError, OSError) as error:
            if not message.need_reply or message.request in _WITH_REPLY:
                raise
            self._logger.warning("%s: %s refused: %s", self._name, message.name, str(error))
            return Reply(vu.pack_u64(1))
        finally:
            for fd in message.fds:
                os.close(fd)
        if reply is None and message.need_reply:
            return Reply(vu.pack_u64(0))
        return reply

    def config_changed(self) -> None:
        """After :attr:`config_fd` was signalled: tells the front end, if it wants to know."""
        os.eventfd_read(self.config_fd)
        wanted = ProtocolFeature.BACKEND_REQ | ProtocolFeature.CONFIG
        if self._backend_fd < 0 or self._protocol_features & wanted != wanted:
            return
        try:
            # O_NONBLOCK belongs to the open file: the front end may have taken it away again.
            if not _has_room(self._backend_fd):
                raise BlockingIOError(errno.EAGAIN, "it does not read what it is told")
            # Not send: user-mode-linux's is a pipe.
            os.write(self._backend_fd, vu.backend_request(vu.BackendRequest.CONFIG_CHANGE))
        except OSError as error:
            # It looks at the config space when it likes to; nothing else is lost.
            self._logger.warning("%s: not told of a config change: %s", self._name, str(error))

    def close(self) -> None:
        """The front end is gone: finishes what it asked for. The driver's close resets it."""
        try:
            self._finish()
        finally:
            for ring in self._rings:
                ring.reset(enabled=False)
            self._memory.close()
            self._driver.set_config_call(-1)
            os.close(self.config_fd)
            self._set_backend_fd(-1)
            self._keep_inflight(None)
            self._log.close()

    def _serve(self, message: Message) -> Reply | None:
        handler = self._HANDLERS.get(message.request)
        if handler is None:
            raise ProtocolError(f"{message.name} is not served here")
        return handler(self, message)

    # --- features and status ----------------------------------------------------------------

    def _get_features(self, message: Message) -> Reply:
        offered = self._driver.get_features() & ~int(Feature.ACCESS_PLATFORM)
        if self._log.offered:
            offered |= vu.F_LOG_ALL
        return Reply(vu.pack_u64(offered | vu.F_PROTOCOL_FEATURES))

    def _set_features(self, message: Message) -> None:
        features = vu.unpack_u64(message)
        if features & vu.F_LOG_ALL and not self._log.offered:
            raise ProtocolError("F_LOG_ALL was not offered")
        if self._live and (features ^ self._features) & ~vu.F_LOG_ALL:
            raise ProtocolError(f"features {features:#x} while the device runs")
        self._features = features
        if self._live:
            self._follow_log()
            return
        self._reset_driver()
        # Before that, rings need no SET_VRING_ENABLE.
        if features & vu.F_PROTOCOL_FEATURES:
            for ring in self._rings:
                ring.enabled = False
        self._agree()

    def _get_protocol_features(self, message: Message) -> Reply:
        return Reply(vu.pack_u64(self._offered))

    @property
    def _offered(self) -> int:
        offered = PROTOCOL_FEATURES
        if isinstance(self._driver, InflightDriver):
            offered |= int(ProtocolFeature.INFLIGHT_SHMFD)
        if self._log.offered:
            offered |= int(ProtocolFeature.LOG_SHMFD)
        return offered

    def _set_protocol_features(self, message: Message) -> None:
        features = vu.unpack_u64(message)
        if features & ~self._offered:
            raise ProtocolError(f"protocol features {features:#x}, offered {self._offered:#x}")
        self._protocol_features = ProtocolFeature(features)

    def _get_status(self, message: Message) -> Reply:
        return Reply(vu.pack_u64(self._status))

    def _set_status(self, message: Message) -> None:
        status = vu.unpack_u64(message)
        if status > 0xFF:
            raise ProtocolError(f"status {status:#x}")
        if status == 0:
            self._reset()
            return
        self._status = status
        self._start()

    def _reset_device(self, message: Message) -> None:
        self._reset()

    def _agree(self) -> None:
        """The status sequence up to FEATURES_OK. ProtocolError: the device refuses."""
        chosen = self._features & ~(vu.F_PROTOCOL_FEATURES | vu.F_LOG_ALL)
        self._driver.set_status(Status.ACKNOWLEDGE)
        self._driver.set_status(_DRIVER)
        self._driver.set_features(chosen | Feature.ACCESS_PLATFORM)
        self._driver.set_status(_AGREED)
        if not self._agreed:
            self._reset_driver()
            raise ProtocolError(f"the device refuses features {chosen:#x}")

    @property
    def _agreed(self) -> bool:
        return bool(self._driver.get_status() & Status.FEATURES_OK)

    @property
    def _packed(self) -> bool:
        return bool(self._features & Feature.RING_PACKED)

    def _start(self) -> None:
        """Gives the device what is ready, as soon as it may have it."""
        with_status = bool(self._protocol_features & ProtocolFeature.STATUS)
        if not self._live and with_status and not self._status & Status.DRIVER_OK:
            return
        ready = [ring for ring in self._rings if ring.ready and not ring.running]
        if not self._live and not (ready or with_status):
            return
        if self._live:
            for ring in ready:
                ring.hand_over(self._driver, self._memory, packed=self._packed)
            self._follow_log()
            # Nothing tells a device that a queue was enabled late, but a kick.
            for ring in ready:
                self._driver.kick(ring.index)
            return
        try:
            self._start_driver(ready)
        except BaseException:
            # Whoever is told of it may set up other rings.
            for ring in ready:
                ring.running = False
            self._reset_driver()
            raise
        self._live = True

    def _start_driver(self, ready: list[Ring]) -> None:
        if not self._agreed:
            self._agree()
        if self._inflight is not None:
            self._inflight_driver.set_inflight(*self._inflight)
        for ring in ready:
            ring.hand_over(self._driver, self._memory, packed=self._packed)
        self._follow_log()
        self._driver.set_status(_AGREED | Status.DRIVER_OK)
        if not self._driver.get_status() & Status.DRIVER_OK:
            raise OSError(errno.EIO, "the device does not start: its log says why")

    def _reset(self) -> None:
        # QEMU 7.2 says status 0 first, and then asks where the rings stand.
        self._finish()
        self._reset_driver()
        self._status = 0
        enabled = not self._features & vu.F_PROTOCOL_FEATURES
        for ring in self._rings:
            ring.reset(enabled=enabled)

    def _reset_driver(self) -> None:
        self._driver.set_status(0)
        self._live = False
        self._log.forgotten()
        self._driver.set_config_call(self.config_fd)  # a reset takes it away

    def _finish(self) -> None:
        """Stops all rings, as far as the device does: one that is broken is to be reset, too."""
        try:
            self._take_back(self._rings)
        except OSError as error:
            self._logger.warning("%s: not all requests were finished: %s", self._name, str(error))

    def _take_back(self, rings: list[Ring]) -> None:
        """Stops rings; with the last one the device is reset."""
        for ring in rings:
            if ring.running:
                ring.take_back(self._driver)
        if self._live and not any(ring.running for ring in self._rings):
            self._reset_driver()

    # --- memory -----------------------------------------------------------------------------

    def _set_mem_table(self, message: Message) -> None:
        regions = vu.unpack_regions(message)
        fds, message.fds = message.fds, []
        self._memory.replace(regions, fds)

    def _get_max_mem_slots(self, message: Message) -> Reply:
        return Reply(vu.pack_u64(MAX_SLOTS))

    def _add_mem_reg(self, message: Message) -> None:
        region = vu.unpack_region(message)
        if len(message.fds) != 1:
            raise ProtocolError(f"{message.name}: {len(message.fds)} fds, expected 1")
        fds, message.fds = message.fds, []
        self._memory.add(region, fds[0])

    def _rem_mem_reg(self, message: Message) -> None:
        self._memory.remove(vu.unpack_region(message))

    # --- rings ------------------------------------------------------------------------------

    def _get_queue_num(self, message: Message) -> Reply:
        return Reply(vu.pack_u64(len(self._rings)))

    def _set_vring_num(self, message: Message) -> None:
        index, num = vu.unpack_vring_state(message)
        self._stopped_ring(index).num = num

    def _set_vring_addr(self, message: Message) -> None:
        addr = vu.unpack_vring_addr(message)
        ring = self._ring(addr.index)
        if ring.running and ring.is_at(addr):
            ring.addr = addr  # logging has begun or ended
            self._follow_log()
            return
        self._stopped_ring(addr.index)
        for user in (addr.descriptors, addr.available, addr.used):
            self._memory.guest(user)
        ring.addr = addr

    def _set_vring_base(self, message: Message) -> None:
        index, base = vu.unpack_vring_state(message)
        self._stopped_ring(index).base = base

    def _get_vring_base(self, message: Message) -> Reply:
        index, _ = vu.unpack_vring_state(message)
        ring = self._ring(index)
        self._take_back([ring])
        ring.started = False
        ring.set_kick(-1)
        ring.set_call(-1)
        return Reply(vu.pack_vring_state(index, ring.base))

    def _set_vring_kick(self, message: Message) -> None:
        index, fd = vu.unpack_vring_fd(message)
        if fd < 0:
            raise ProtocolError("SET_VRING_KICK without an fd: polling is not done here")
        ring = self._ring(index)
        ring.set_kick(message.fds.pop())
        if ring.running:
            self._driver.set_vring_kick(index, fd)
            return
        ring.started = True
        self._start()

    def _set_vring_call(self, message: Message) -> None:
        index, fd = vu.unpack_vring_fd(message)
        ring = self._ring(index)
        ring.set_call(message.fds.pop() if fd >= 0 else fd)
        if ring.running:
            self._driver.set_vring_call(index, fd)

    def _set_vring_err(self, message: Message) -> None:
        index, _ = vu.unpack_vring_fd(message)
        self._ring(index)

    def _set_vring_enable(self, message: Message) -> None:
        index, enable = vu.unpack_vring_state(message)
        ring = self._ring(index)
        ring.enabled = bool(enable)
        if not ring.enabled and ring.running:
            self._take_back([ring])
        self._start()

    def _ring(self, index: int) -> Ring:
        if index >= len(self._rings):
            raise ProtocolError(f"virtqueue {index}: the device has {len(self._rings)}")
        return self._rings[index]

    def _stopped_ring(self, index: int) -> Ring:
        ring = self._ring(index)
        if ring.running:
            raise ProtocolError(f"virtqueue {index} runs: GET_VRING_BASE stops it")
        return ring

    # --- dirty log --------------------------------------------------------------------------

    def _set_log_base(self, message: Message) -> Reply:
        if not self._protocol_features & ProtocolFeature.LOG_SHMFD:
            raise ProtocolError("LOG_SHMFD was not negotiated")
        with self._log.new_base(message):
            if self._live:
                self._follow_log()
        return Reply(vu.pack_u64(0))

    def _set_log_fd(self, message: Message) -> None:
        """Where a front end that waits for marks would be told of them: it may be, and is not."""
        if len(message.fds) != 1:
            raise ProtocolError(f"{message.name}: {len(message.fds)} fds, expected 1")

    def _follow_log(self) -> None:
        wanted = bool(self._features & vu.F_LOG_ALL)
        self._log.follow(self._rings if wanted else None, self._memory, packed=self._packed)

    # --- in-flight records ------------------------------------------------------------------

    def _get_inflight_fd(self, message: Message) -> Reply:
        asked = vu.unpack_inflight(message)
        longest = self._driver.get_vring_num_max()
        if not (0 < asked.queues <= len(self._rings) and 0 < asked.queue_size <= longest):
            raise ProtocolError(
                f"{message.name}: {asked.queues} virtqueues of {asked.queue_size}: "
                f"the device has {len(self._rings)} of at most {longest}"
            )
        fd = self._inflight_driver.new_inflight(self._features)
        made = Inflight(os.fstat(fd).st_size, 0, asked.queues, asked.queue_size)
        return Reply(vu.pack_inflight(made), [fd])

    def _set_inflight_fd(self, message: Message) -> None:
        inflight = vu.unpack_inflight(message)
        if len(message.fds) != 1:
            raise ProtocolError(f"{message.name}: {len(message.fds)} fds, expected 1")
        if inflight.offset:
            raise ProtocolError(f"in-flight records at {inflight.offset} bytes are not ours")
        self._keep_inflight((message.fds.pop(), inflight.size))

    def _keep_inflight(self, inflight: tuple[int, int] | None) -> None:
        if self._inflight is not None:
            os.close(self._inflight[0])
        self._inflight = inflight

    @property
    def _inflight_driver(self) -> InflightDriver:
        if not isinstance(self._driver, InflightDriver):
            raise ProtocolError("in-flight records were not offered")
        return self._driver

    # --- config space, the rest -------------------------------------------------------------

    def _get_config(self, message: Message) -> Reply:
        offset, asked = vu.unpack_config(message)
        there = self._driver.get_config_size() - offset
        if there <= 0 or not asked:
            return Reply(vu.pack_config(offset, b""))
        config = self._driver.get_config(offset, min(len(asked), there))
        # QEMU asks for all of its struct, of whatever version.
        return Reply(vu.pack_config(offset, config.ljust(len(asked), b"\0")))

    def _set_config(self, message: Message) -> None:
        self._driver.set_config(*vu.unpack_config(message))

    def _set_backend_req_fd(self, message: Message) -> None:
        if len(message.fds) != 1:
            raise ProtocolError(f"{message.name}: {len(message.fds)} fds, expected 1")
        kind = os.fstat(message.fds[0]).st_mode
        if not stat.S_ISSOCK(kind) and not stat.S_ISFIFO(kind):
            raise ProtocolError(f"{message.name}: neither a socket nor a pipe")
        os.set_blocking(message.fds[0], False)
        self._set_backend_fd(message.fds.pop())

    def _set_backend_fd(self, fd: int) -> None:
        if self._backend_fd >= 0:
            os.close(self._backend_fd)
        self._backend_fd = fd

    def _nothing(self, message: Message) -> None:
        """Who owns the back end is said by the connection."""

    _HANDLERS: Final[dict[int, Callable[[Session, Message], Reply | None]]] = {
        Request.GET_FEATURES: _get_features,
        Request.SET_FEATURES: _set_features,
        Request.SET_OWNER: _nothing,
        Request.RESET_OWNER: _reset_device,
        Request.SET_MEM_TABLE: _set_mem_table,
        Request.SET_LOG_BASE: _set_log_base,
        Request.SET_LOG_FD: _set_log_fd,
        Request.SET_VRING_NUM: _set_vring_num,
        Request.SET_VRING_ADDR: _set_vring_addr,
        Request.SET_VRING_BASE: _set_vring_base,
        Request.GET_VRING_BASE: _get_vring_base,
        Request.SET_VRING_KICK: _set_vring_kick,
        Request.SET_VRING_CALL: _set_vring_call,
        Request.SET_VRING_ERR: _set_vring_err,
        Request.GET_PROTOCOL_FEATURES: _get_protocol_features,
        Request.SET_PROTOCOL_FEATURES: _set_protocol_features,
        Request.GET_QUEUE_NUM: _get_queue_num,
        Request.SET_VRING_ENABLE: _set_vring_enable,
        Request.SET_BACKEND_REQ_FD: _set_backend_req_fd,
        Request.GET_CONFIG: _get_config,
        Request.SET_CONFIG: _set_config,
        Request.GET_INFLIGHT_FD: _get_inflight_fd,
        Request.SET_INFLIGHT_FD: _set_inflight_fd,
        Request.RESET_DEVICE: _reset_device,
        Request.GET_MAX_MEM_SLOTS: _get_max_mem_slots,
        Request.ADD_MEM_REG: _add_mem_reg,
        Request.REM_MEM_REG: _rem_mem_reg,
        Request.SET_STATUS: _set_status,
        Request.GET_STATUS: _get_status,
    }


#: Requests whose reply is more than an acknowledgement.
_WITH_REPLY: Final = frozenset(
    {
        Request.GET_FEATURES,
        Request.GET_PROTOCOL_FEATURES,
        Request.GET_QUEUE_NUM,
        Request.GET_VRING_BASE,
        Request.GET_CONFIG,
        Request.GET_INFLIGHT_FD,
        Request.GET_MAX_MEM_SLOTS,
        Request.GET_STATUS,
    }
)


def _has_room(fd: int) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLOUT)
    return poller.poll(0) == [(fd, select.POLLOUT)]
