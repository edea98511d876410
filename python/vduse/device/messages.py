"""What a device does with each message. No threads, no fds: it is told of messages and kicks,
and says what it wants done through :class:`Host`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Protocol, TypeVar

from vduse.control.abi import (
    DevRequest,
    DevResponse,
    GetVqState,
    RequestResult,
    SetStatus,
    SetVqGroupAsid,
    UpdateCallfd,
    UpdateIotlb,
    UpdateKickfd,
    UpdateLog,
    encode_vq_state,
)
from vduse.control.messages import message_allowed
from vduse.control.statuses import Action, DeviceState, IllegalStatus, steps
from vduse.device.datapath import DataPath
from vduse.device.queues import NotLive, QueueError, Queues
from vduse.device.spec import DeviceSpec

log = logging.getLogger(__name__)

T = TypeVar("T")

#: The status byte of a device whose driver is live.
_LIVE_STATUS = 0xF


class Host(Protocol):
    """Who runs a :class:`MessageHandler`."""

    def respond(self, response: DevResponse) -> None:
        """Sends an answer."""

    def offload(self, work: Callable[[], T], then: Callable[[T], None]) -> None:
        """Runs ``work`` where waiting is no harm, then ``then`` with its result; no message is
        handled in between."""

    def watch_kick(self, index: int) -> None:
        """:meth:`MessageHandler.kicked` is called when this queue's eventfd is signalled."""

    def unwatch_kick(self, index: int) -> None:
        """The data path watches it now, or nobody."""

    def give_up(self, reason: str) -> None:
        """The device is broken for good: answer nothing more."""


class MessageHandler:
    """One device's control path."""

    def __init__(
        self,
        spec: DeviceSpec,
        queues: Queues,
        data_path: DataPath,
        host: Host,
        *,
        extensions: bool,
        timeout: float,
    ) -> None:
        """``timeout``: seconds that a drain or a reset may take."""
        self._spec = spec
        self._logger = logging.LoggerAdapter(log, {"device": spec.name})
        self._queues = queues
        self._data_path = data_path
        self._host = host
        self._extensions = extensions
        self._timeout = timeout
        self._state = DeviceState.RESET
        self._status = 0
        self._features = 0
        self._fault: str | None = None

    @property
    def state(self) -> DeviceState:
        """The state, as far as this device has been told."""
        return self._state

    @property
    def features(self) -> int:
        """What the driver negotiated."""
        return self._features

    @property
    def fault(self) -> str | None:
        """What the driver did so that the queues have stopped; only a reset ends that."""
        return self._fault

    def adopt(self, features: int, *, live: bool) -> None:
        """Takes over from a device that died under a live driver. Where it died between the answer
        to a reset and DRIVER_OK, the driver's next status says how to go on. ``live``: the
        framework says that the driver is. QueueError, OSError: it cannot go on."""
        if (refusal := self._spec.check_features(features)) is not None:
            raise QueueError(f"the driver negotiated other features: {refusal}")
        try:
            self._queues.arm(features, fresh=False)
        except NotLive:
            # Live, that may be a reset whose answer is on its way, or another directory's record.
            log.log(
                logging.WARNING if live else logging.INFO,
                "%s: its record says that no driver is live: the driver's next status is waited "
                "for%s",
                self._spec.name,
                "; if requests wait, the last program kept its record in another runtime "
                "directory: start it again as that one was, or reset the driver"
                if live
                else "",
            )
            return
        self._features = features
        self._state, self._status = DeviceState.LIVE, _LIVE_STATUS
        if not self._queues.recoverable:
            raise QueueError("no in-flight record says where the queues stand: reset the driver")
        self._start_ready()

    def handle(self, request: DevRequest) -> None:
        """Does what one message asks for and answers it, now or later."""
        kind = request.type
        if not message_allowed(
            kind, self._spec.api_version, self._state, extensions=self._extensions
        ):
            self._logger.warning(
                "%s: refused message %s while %s", self._spec.name, request.message, self._state
            )
            self._answer(request, RequestResult.FAILED)
            return
        match request.message:
            case SetStatus(status=status):
                self._set_status(request, status)
            case GetVqState(index=index):
                self._get_vq_state(request, index)
            case UpdateIotlb(start=start, last=last):
                self._update_iotlb(request, start, last)
            case UpdateCallfd(index=index):
                self._update_fd(request, index, self._queues.update_callfd)
            case UpdateKickfd(index=index):
                self._update_fd(request, index, self._queues.update_kickfd)
            case UpdateLog():
                self._update_log(request)
            case SetVqGroupAsid(group=group, asid=asid):
                # One group, one address space.
                known = (group, asid) == (0, 0)
                self._answer(request, RequestResult.OK if known else RequestResult.FAILED)

    def _update_fd(self, request: DevRequest, index: int, update: Callable[[int], None]) -> None:
        done = index < len(self._queues)
        try:
            if done:
                update(index)
        except QueueError as error:
            self._logger.warning("%s: %s refused: %s", self._spec.name, request.message, error)
            done = False
        self._answer(request, RequestResult.OK if done else RequestResult.FAILED)

    def kicked(self, index: int) -> None:
        """A queue that does not run was kicked: the driver has enabled it late."""
        self._queues.drain_kick(index)
        if self._state is not DeviceState.LIVE or self._fault is not None:
            return
        info = self._queues.set_up(index)
        if info is None:
            return
        # The data path watches it from now on; the two must not share.
        self._host.unwatch_kick(index)
        try:
            self._queues.start(info)
        except QueueError as error:
            self.failed(str(error))

    def failed(self, reason: str) -> None:
        """The driver broke its rules: the data path stands still until the next reset."""
        if self._state is DeviceState.RESET:
            return  # word from before the reset that has healed it
        if self._fault is None:
            self._fault = reason
            self._logger.error(
                "%s: stopped until the driver resets it: %s", self._spec.name, reason
            )
        for index in range(len(self._queues)):
            self._host.unwatch_kick(index)

    # --- SET_STATUS -------------------------------------------------------------------------

    def _set_status(self, request: DevRequest, status: int) -> None:
        try:
            rows = steps(self._state, self._status, status)
        except IllegalStatus as error:
            self._logger.warning("%s: %s", self._spec.name, error)
            self._answer(request, RequestResult.FAILED)
            return
        state = self._state
        for row in rows:
            match row.action:
                case Action.RESET:
                    self._reset(partial(self._reset_done, request))
                    return
                case Action.CHECK_FEATURES if not self._check_features():
                    self._answer(request, RequestResult.FAILED)
                    return
                case Action.START_QUEUES if not self._start_queues():
                    self._reset(partial(self._answer, request, RequestResult.FAILED))
                    return
            state = row.to
        self._state, self._status = state, status
        self._answer(request, RequestResult.OK)

    def _check_features(self) -> bool:
        features = self._queues.negotiated()
        refusal = self._spec.check_features(features)
        if refusal is not None:
            self._logger.warning("%s: features %#x refused: %s", self._spec.name, features, refusal)
            return False
        self._features = features
        return True

    def _start_queues(self) -> bool:
        try:
            self._queues.arm(self._features, fresh=True)
            self._start_ready()
        except QueueError as error:
            self._logger.warning("%s: DRIVER_OK refused: %s", self._spec.name, error)
            return False
        return True

    def _start_ready(self) -> None:
        for index in range(len(self._queues)):
            info = self._queues.set_up(index)
            if info is not None:
                self._queues.start(info)
            else:
                self._host.watch_kick(index)

    def _reset(self, then: Callable[[], None]) -> None:
        def done(clean: bool) -> None:
            if not clean:
                self._host.give_up(
                    f"reset: requests still use the driver's memory after {self._timeout:g} s"
                )
                return
            self._queues.reset()
            then()

        for index in range(len(self._queues)):
            self._host.unwatch_kick(index)
        self._host.offload(lambda: self._data_path.reset(self._timeout), done)

    def _reset_done(self, request: DevRequest) -> None:
        self._state, self._status, self._features = DeviceState.RESET, 0, 0
        self._fault = None
        self._answer(request, RequestResult.OK)

    # --- other messages ---------------------------------------------------------------------

    def _get_vq_state(self, request: DevRequest, index: int) -> None:
        if index >= len(self._queues) or self._fault is not None or self._queues.broke(index):
            self._answer(request, RequestResult.FAILED)
        elif self._queues.running(index):
            self._host.offload(
                partial(self._stop, index), partial(self._vq_stopped, request, index)
            )
        else:
            self._answer_position(request, index, self._queues.position(index))

    def _stop(self, index: int) -> tuple[int, ...] | None:
        try:
            return self._data_path.stop_queue(index, self._timeout)
        except ValueError:
            # It stopped by itself in the meantime: a fault, of which an event will tell.
            return ()

    def _vq_stopped(
        self, request: DevRequest, index: int, position: tuple[int, ...] | None
    ) -> None:
        if position is None:
            self._host.give_up(
                f"virtqueue {index}: requests still in flight after {self._timeout:g} s"
            )
        elif not position:
            self._answer(request, RequestResult.FAILED)
        else:
            self._queues.stopped(index, position)
            self._host.watch_kick(index)
            self._answer_position(request, index, position)

    def _answer_position(self, request: DevRequest, index: int, position: tuple[int, ...]) -> None:
        state = encode_vq_state(position)
        self._host.respond(DevResponse(request.request_id, RequestResult.OK, index, state))

    def _update_iotlb(self, request: DevRequest, start: int, last: int) -> None:
        def done(acknowledged: bool) -> None:
            if acknowledged:
                self._answer(request, RequestResult.OK)
            else:
                self._host.give_up(f"IOTLB update: not acknowledged in {self._timeout:g} s")

        self._host.offload(lambda: self._data_path.invalidate(start, last, self._timeout), done)

    def _update_log(self, request: DevRequest) -> None:
        def follow() -> bool | None:
            try:
                return self._queues.follow_log(self._timeout)
            except OSError as error:
                self._logger.warning("%s: dirty log refused: %s", self._spec.name, error)
                return None

        def done(acknowledged: bool | None) -> None:
            if acknowledged is None:
                self._answer(request, RequestResult.FAILED)
            elif acknowledged:
                self._answer(request, RequestResult.OK)
            else:
                self._host.give_up(f"dirty log: not acknowledged in {self._timeout:g} s")

        self._host.offload(follow, done)

    def _answer(self, request: DevRequest, result: RequestResult) -> None:
        self._host.respond(DevResponse(request.request_id, result))
