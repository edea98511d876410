"""The virtqueues of one device: their kick eventfds, in-flight records, starts and stops."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from functools import partial
from time import monotonic, sleep

from vduse.channel.base import EXT_CALLFD, EXT_INFLIGHT, EXT_KICKFD, EXT_LOG, Channel
from vduse.control.abi import VqInfo, decode_vq_state
from vduse.control.features import Feature
from vduse.control.refusals import in_words
from vduse.device.datapath import DataPath
from vduse.device.spec import DeviceSpec

#: Seconds that an image's last holder may take to be gone, and between two looks at the lock.
_LAST_HOLDER = 1.0
_RETRY = 0.01


class QueueError(RuntimeError):
    """A virtqueue that cannot be started as the driver set it up, or not go on."""


class NotLive(Exception):
    """No driver is live, though it may look so: the last program was answering a reset, or
    DRIVER_OK is still to come. There is nothing to go on from."""


@contextlib.contextmanager
def _scarce() -> Iterator[None]:
    """Where no fds or memory are left here or on the framework's side, another try may find some:
    that is no device's end."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise
        raise QueueError(in_words(error)) from error


class Queues:
    """Used on the control thread only.

    The kick eventfds live as long as this object. The framework forgets them at every reset, so
    :meth:`arm` gives them again. A queue that was stopped by :meth:`stopped` starts where it
    stopped, unless the driver has set another position since.
    """

    def __init__(self, spec: DeviceSpec, channel: Channel, data_path: DataPath) -> None:
        self._spec = spec
        self._channel = channel
        self._data_path = data_path
        self._features = 0
        self._record: int | None = None
        self._record_stride = 0
        #: What the framework said where the queue starts, by queue that was started.
        self._given: dict[int, bytes] = {}
        self._stopped: dict[int, tuple[int, ...]] = {}
        #: There was a dirty log.
        self._has_log = False
        self.kickfds: list[int] = []
        try:
            for _ in self._spec.queue_sizes:
                self.kickfds.append(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        except OSError:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self.kickfds)

    @property
    def packed(self) -> bool:
        """Whether the driver negotiated packed virtqueues."""
        return bool(self._features & Feature.RING_PACKED)

    def arm(self, features: int, *, fresh: bool) -> None:
        """Before the first start with these negotiated features: fetches the memory of the
        in-flight records and gives the framework the kick eventfds. ``fresh``: the driver has just
        become live; else another program has served it. QueueError: the driver is live on records
        of other virtqueue sizes; NotLive."""
        self._features = features
        self._drop_record()
        if EXT_INFLIGHT in self._channel.extensions:
            sizes = self._spec.queue_sizes
            self._record_stride = max(self._data_path.inflight_size(s, features) for s in sizes)
            bytes_of_all = self._record_stride * len(sizes)
            try:
                with _scarce():
                    self._record = self._channel.get_inflight_fd(bytes_of_all, features, fresh)
            except OSError as error:
                if error.errno == errno.ENODATA:
                    raise NotLive from error
                if error.errno != errno.EBUSY:
                    raise
                raise QueueError(
                    f"the driver is live on virtqueues of other sizes than {max(sizes)}: start "
                    "the device as it was, or reset the driver"
                ) from error
        with _scarce():
            for index, fd in enumerate(self.kickfds):
                self._channel.vq_setup_kickfd(index, fd)

    @property
    def recoverable(self) -> bool:
        """Whether a queue's position outlives this process."""
        return self._record is not None

    def negotiated(self) -> int:
        """VDUSE_DEV_GET_FEATURES: what the driver wrote, unjudged."""
        return self._channel.dev_get_features()

    def info(self, index: int) -> VqInfo:
        """VDUSE_VQ_GET_INFO."""
        return self._channel.vq_get_info(index)

    def set_up(self, index: int) -> VqInfo | None:
        """What the driver made of a queue; None: it does not use it. QEMU's vhost-vdpa devices make
        every queue ready, also those that their guest has given no size: firmware uses one."""
        info = self.info(index)
        return info if info.ready and info.num else None

    def running(self, index: int) -> bool:
        """Whether the data path serves it."""
        return self._data_path.queue_running(index)

    def broke(self, index: int) -> bool:
        """Whether it was started and has stopped by itself: a fault, of which an event tells or
        will tell. Where it stands is not known."""
        return index in self._given and index not in self._stopped and not self.running(index)

    def start(self, info: VqInfo) -> None:
        """Starts a queue that is set up. QueueError: the driver did so wrongly; OSError from the
        channel."""
        index = info.index
        most = self._spec.queue_sizes[index]
        if info.num > most:
            raise QueueError(f"virtqueue {index}: size {info.num}, at most {most}")
        state = self._position(info)
        record = None if self._record is None else (self._record, index * self._record_stride)
        with _scarce(), self._callfd(index) as callfd, self._kickfd(index) as kickfd:
            start = partial(
                self._data_path.start_queue,
                index,
                size=info.num,
                features=self._features,
                areas=(info.desc_addr, info.driver_addr, info.device_addr),
                state=state,
                kickfd=kickfd,
                callfd=callfd,
                inflight=record,
            )
            try:
                _patiently(start)
            except OSError as error:
                raise QueueError(f"virtqueue {index}: {error}") from error
        self._given[index] = info.state
        self._stopped.pop(index, None)

    def stopped(self, index: int, position: tuple[int, ...]) -> None:
        """The queue was drained and stands at ``position``. Kicks before that are forgotten:
        they announced what the driver will announce again."""
        self._stopped[index] = position
        self.drain_kick(index)

    def position(self, index: int) -> tuple[int, ...]:
        """Where a queue that does not run stands."""
        return self._position(self.info(index))

    def drain_kick(self, index: int) -> None:
        """Takes what was signalled on a kick eventfd."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.kickfds[index])

    def update_callfd(self, index: int) -> None:
        """Fetches the call fd again. QueueError: no fd is left for it."""
        if self.running(index):
            with _scarce(), self._callfd(index) as callfd:
                self._data_path.set_callfd(index, callfd)

    def update_kickfd(self, index: int) -> None:
        """Asks for the driver's kick fd again. QueueError: no fd is left for it."""
        if self.running(index):
            with _scarce(), self._kickfd(index) as kickfd:
                self._data_path.set_kickfd(index, kickfd)

    def follow_log(self, timeout: float) -> bool:
        """Fetches the dirty log, if there is one; true once all writes are marked there. OSError:
        it cannot be used. Any thread."""
        if EXT_LOG not in self._channel.extensions:
            return True
        found = self._channel.log_get_fd()
        if found is None:
            return not self._has_log or self._data_path.set_log(None, {}, timeout)
        log, fd = found
        self._has_log = True
        try:
            return self._data_path.set_log((fd, log.offset, log.size), dict(log.used), timeout)
        finally:
            os.close(fd)

    def reset(self) -> None:
        """Before a reset is answered: positions and kicks are of no more meaning. OSError: it
        must not be answered."""
        self._given.clear()
        self._stopped.clear()
        self._drop_record()
        if EXT_INFLIGHT in self._channel.extensions:
            self._channel.clear_inflight()
        for index in range(len(self)):
            self.drain_kick(index)

    def close(self) -> None:
        """Closes the fds; no queue may run."""
        self._drop_record()
        for fd in self.kickfds:
            os.close(fd)
        self.kickfds.clear()

    def _position(self, info: VqInfo) -> tuple[int, ...]:
        stopped = self._stopped.get(info.index)
        if stopped is None:
            return decode_vq_state(info.state, self.packed)
        if info.state == self._given[info.index]:
            return stopped
        # The driver wants to go on elsewhere: what the record says is of no more meaning.
        if self._record is not None:
            os.pwrite(self._record, bytes(self._record_stride), info.index * self._record_stride)
        return decode_vq_state(info.state, self.packed)

    @contextlib.contextmanager
    def _callfd(self, index: int) -> Iterator[int]:
        if EXT_CALLFD not in self._channel.extensions:
            yield -1
            return
        fd = self._channel.vq_get_callfd(index)
        try:
            yield fd
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def _kickfd(self, index: int) -> Iterator[int]:
        """What kicks the queue: the driver's own fd, where it can be had; else ours."""
        fd = None
        if EXT_KICKFD in self._channel.extensions:
            fd = self._channel.vq_get_kickfd(index)
        if fd is None:
            yield self.kickfds[index]
            return
        try:
            yield fd
        finally:
            os.close(fd)

    def _drop_record(self) -> None:
        if self._record is not None:
            os.close(self._record)
            self._record = None


def _patiently(start: Callable[[], None]) -> None:
    """Starts a queue; again and again for a moment, while the image is locked by a program that
    may be at its end: nothing tells of that end."""
    deadline = monotonic() + _LAST_HOLDER
    while monotonic() < deadline:
        with contextlib.suppress(BlockingIOError):
            start()
            return
        sleep(_RETRY)
    start()
