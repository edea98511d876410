"""A device on a channel: its life from start to close."""

from __future__ import annotations

import contextlib
import errno
import logging
import threading
from collections.abc import Callable
from time import monotonic
from typing import TypeVar

from vduse.channel.base import EXT_CALLFD, Channel, ControlPort, Resolver
from vduse.control.abi import DevResponse
from vduse.control.statuses import DeviceState
from vduse.device.attach import create_or_open
from vduse.device.control_thread import ControlThread
from vduse.device.datapath import DataPath
from vduse.device.messages import MessageHandler
from vduse.device.queues import Queues
from vduse.device.spec import DeviceSpec

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds that a drain or a reset may take; below the framework's 30 for an answer.
DRAIN_TIMEOUT = 20.0


class DeviceError(RuntimeError):
    """The device cannot do that now."""


class Device:
    """One device, attached by :meth:`start`, served by the process's control thread.

    Public methods may be called from any thread but the control thread's callbacks. When the
    device breaks (a bug, a reset that does not end, the framework gone), it answers nothing
    more; :attr:`ended` says why, and :meth:`close` is still to be called.
    """

    def __init__(
        self,
        spec: DeviceSpec,
        make_data_path: Callable[[Resolver], DataPath],
        *,
        resized: Callable[[], None] | None = None,
        failed: Callable[[str], None] | None = None,
        thread: ControlThread | None = None,
        drain_timeout: float = DRAIN_TIMEOUT,
    ) -> None:
        """``resized`` is called on a thread of its own when the data path's backend has another
        size. ``failed`` is called on the control thread, and must not wait, when the backend has
        failed a request, for the first of each errno in a minute: operation, place and errno.
        ``drain_timeout``: seconds that a stop or a reset may take."""
        self._spec = spec
        self._make_data_path = make_data_path
        self._resized = resized
        self._failed = failed
        self._thread = thread
        self._drain_timeout = drain_timeout
        self._attached: _Attached | None = None
        self._control: ControlPort | None = None
        self._taken_over = False
        self._end = _End()

    @property
    def name(self) -> str:
        """The device's name."""
        return self._spec.name

    @property
    def ended(self) -> str | None:
        """Why the device answers nothing more; None while it does."""
        return self._end.reason

    @property
    def fault(self) -> str | None:
        """What the driver did so that all virtqueues stand still until it resets the device."""
        return self._require().handler.fault

    @property
    def taken_over(self) -> bool:
        """Whether the start found the device that a dead program left."""
        return self._taken_over

    @property
    def live(self) -> bool:
        """Whether a driver uses it."""
        return self._require().handler.state is DeviceState.LIVE

    def wait(self, timeout: float | None = None) -> str | None:
        """Waits until the device ends, at most ``timeout`` seconds; :attr:`ended`."""
        self._end.event.wait(timeout)
        return self._end.reason

    def start(self, control: ControlPort) -> bool:
        """Creates the device, or takes over the one of this name that a dead program left; true
        if it took over. Where the driver is live the queues go on from the in-flight record.

        OSError, ConfigMismatch: see :func:`~vduse.device.attach.create_or_open`; QueueError:
        the device was there and cannot go on. ``control`` stays the caller's."""
        if self._attached is not None:
            raise DeviceError(f"{self.name} is started")
        thread = self._thread or ControlThread.shared()
        channel, existed = create_or_open(control, self._spec)
        with contextlib.ExitStack() as undo:
            undo.callback(self._undo, control, existed)
            with contextlib.ExitStack() as parts:
                parts.callback(channel.close)
                data_path = self._make_data_path(channel.resolver())
                parts.callback(data_path.close)
                attached = _Attached(
                    self._spec,
                    channel,
                    data_path,
                    thread,
                    self._end,
                    self._resized,
                    self._failed,
                    self._drain_timeout,
                )
                parts.pop_all()  # they are its own
            undo.callback(attached.close, self._drain_timeout)
            thread.call(lambda: attached.begin(existed))
            undo.pop_all()
        self._attached, self._control, self._taken_over = attached, control, existed
        return existed

    def set_config(self, offset: int, data: bytes) -> None:
        """Writes the config space and tells a live driver. OSError EINVAL: out of range."""
        attached = self._require()
        attached.channel.dev_set_config(offset, data)
        attached.tell_driver()

    def close(self) -> None:
        """Drains the virtqueues and closes the node; the device stays, for whoever takes it
        over. DeviceError: requests do not end; then their memory stays as it is. Or it is the
        device's own handler that calls: nothing is closed then."""
        if self._attached is not None:
            self._attached.check_caller()
            self._attached.close(self._drain_timeout)
            self._attached = None
            self._end.set("closed")

    def destroy(self) -> None:
        """After :meth:`close`: the device is no more. OSError EBUSY: it is on the vDPA bus."""
        control, self._control = self._control, None
        if control is not None:
            control.destroy_dev(self.name)

    def _undo(self, control: ControlPort, existed: bool) -> None:
        """A start that failed leaves no device behind that it made itself."""
        if not existed:
            with contextlib.suppress(OSError):
                control.destroy_dev(self.name)

    def _require(self) -> _Attached:
        if self._attached is None:
            raise DeviceError(f"{self.name} is not started")
        return self._attached


class _End:
    """Why and that a device has ended; the first reason stays."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.reason: str | None = None

    def set(self, reason: str) -> None:
        if self.reason is None:
            self.reason = reason
        self.event.set()


class _Attached:
    """A started device: owns the channel, the data path and the fds. Callbacks run on the
    control thread; it is the handler's host and the control thread's owner."""

    def __init__(
        self,
        spec: DeviceSpec,
        channel: Channel,
        data_path: DataPath,
        thread: ControlThread,
        end: _End,
        resized: Callable[[], None] | None,
        failed: Callable[[str], None] | None,
        timeout: float,
    ) -> None:
        self.name = spec.name
        self._logger = logging.LoggerAdapter(log, {"device": spec.name})
        self.channel = channel
        self._data_path = data_path
        self._thread = thread
        self._end = end
        self._resized = resized
        self._failed = failed
        self._timeout = timeout
        self._serving = False
        self._watched_kicks: set[int] = set()
        #: Set while nothing runs off the control thread.
        self._idle = threading.Event()
        self._idle.set()
        self._queues = Queues(spec, channel, data_path)
        self.handler = MessageHandler(
            spec,
            self._queues,
            data_path,
            self,
            extensions=EXT_CALLFD in channel.extensions,
            timeout=timeout,
        )

    def begin(self, existed: bool) -> None:
        """Starts to serve; goes on where a dead program left off."""
        self._serving = True
        self._thread.watch(self._data_path.event_fd, self, self._on_data_path)
        # Nothing runs yet: there is nobody to wait for.
        self._queues.follow_log(0)
        # Queues are ready under a live driver, or one whose DRIVER_OK is still to be answered.
        live = existed and self.tell_driver()
        if live or (existed and any(self._queues.info(i).ready for i in range(len(self._queues)))):
            self._logger.info("%s: taking over from a live driver's last device", self.name)
            self.handler.adopt(self._queues.negotiated(), live=live)
        self._thread.watch(self.channel.fileno(), self, self._on_messages)

    def tell_driver(self) -> bool:
        """A config interrupt. False: no driver is live that could be told."""
        try:
            self.channel.dev_inject_config_irq()
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return False
        return True

    # --- what the handler asks for (messages.Host) ------------------------------------------

    def respond(self, response: DevResponse) -> None:
        self.channel.respond(response)

    def offload(self, work: Callable[[], T], then: Callable[[T], None]) -> None:
        def done(result: T) -> None:
            self._idle.set()
            if self._serving:
                self._thread.watch(self.channel.fileno(), self, self._on_messages)
                then(result)

        self._thread.unwatch(self.channel.fileno())
        self._idle.clear()
        try:
            self._thread.offload(self, work, done)
        except BaseException:
            self._idle.set()
            raise

    def watch_kick(self, index: int) -> None:
        if index not in self._watched_kicks:
            self._watched_kicks.add(index)
            fd = self._queues.kickfds[index]
            self._thread.watch(fd, self, lambda: self.handler.kicked(index))

    def unwatch_kick(self, index: int) -> None:
        if index in self._watched_kicks:
            self._watched_kicks.remove(index)
            self._thread.unwatch(self._queues.kickfds[index])

    def give_up(self, reason: str) -> None:
        """The node stays open: were it closed, its messages would be replayed to another
        program while requests still use the driver's memory."""
        if not self._serving:
            return
        self._stop_serving()
        self._logger.error("%s: broken, will not answer any more: %s", self.name, reason)
        try:
            self.offload(lambda: self._data_path.reset(self._timeout), lambda _: None)
        finally:  # where no thread can be started, too
            self._end.set(reason)

    # --- callbacks --------------------------------------------------------------------------

    def on_exception(self, error: Exception) -> None:
        self._idle.set()
        self.give_up(f"{type(error).__name__}: {error}")

    def _on_messages(self) -> None:
        # One message a round: a handler may have gone off to wait, and other devices wait too.
        try:
            request = self.channel.receive()
        except ConnectionAbortedError as error:
            self.give_up(str(error))
            return
        except ConnectionError as error:
            self.give_up(f"the framework is gone: {error}")
            return
        if request is not None:
            self.handler.handle(request)

    def _on_data_path(self) -> None:
        for kind, queue, message in self._data_path.events():
            if kind == "broken":
                self.handler.failed(f"virtqueue {queue}: {message}")
                continue
            if kind == "failed":
                self._logger.warning(
                    "%s: virtqueue %d: the backend failed: %s", self.name, queue, message
                )
                if self._failed is not None:
                    self._failed(message)
                continue
            if kind == "umem":
                self._logger.warning("%s: %s", self.name, message)
                continue
            if kind == "connection":
                self._logger.warning("%s: the backend's connection: %s", self.name, message)
                continue
            self._logger.info("%s: %s %s", self.name, kind, message)
            if kind == "resized" and self._resized is not None:
                self._thread.offload(self, self._resized, lambda _: None)

    # --- end --------------------------------------------------------------------------------

    def _stop_serving(self) -> None:
        if not self._serving:
            return
        self._serving = False
        self._thread.unwatch(self.channel.fileno())
        self._thread.unwatch(self._data_path.event_fd)
        for index in list(self._watched_kicks):
            self.unwatch_kick(index)

    def check_caller(self) -> None:
        """DeviceError on a thread that serves the virtqueues."""
        if self._data_path.on_worker:
            raise DeviceError(
                f"{self.name}: closed by a handler on the worker that serves it, whose end the "
                "close would wait for; close it from another thread"
            )

    def close(self, timeout: float) -> None:
        """Caller's thread. Drains, then frees everything."""
        deadline = monotonic() + timeout
        self._thread.call(self._stop_serving)
        self._idle.wait(timeout)
        for index in range(len(self._queues)):
            if self._queues.running(index):
                self._drain(index, max(0.0, deadline - monotonic()))
        if not self._data_path.reset(timeout):
            raise DeviceError(
                f"{self.name}: requests still use the driver's memory after {timeout:g} s; "
                "the node stays open"
            )
        self._data_path.close()
        self._queues.close()
        self.channel.close()
        # The two know each other: without this the fds below them would wait for a collection.
        del self.handler

    def _drain(self, index: int, timeout: float) -> None:
        # ValueError: it has stopped by itself in the meantime.
        with contextlib.suppress(ValueError):
            if self._data_path.stop_queue(index, timeout) is None:
                self._logger.warning("%s: virtqueue %d does not drain", self.name, index)
