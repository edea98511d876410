"""A framework and a data path for the device's control path, stricter than the real ones: what
the kernel would merely tolerate fails a test here."""

from __future__ import annotations

import errno
import os
import socket
import threading
from dataclasses import dataclass, replace

from vduse import _native
from vduse.channel.base import EXT_CALLFD, EXT_INFLIGHT, EXT_LOG
from vduse.control.abi import (
    DevConfig,
    DevRequest,
    DevResponse,
    DirtyLog,
    IotlbEntry,
    IovaInfo,
    IovaUmem,
    Message,
    VqInfo,
)


class FakeChannel:
    """One open device node. Requests are given by :meth:`send`; answers are read with
    :meth:`answer`, which waits for them."""

    def __init__(
        self, queue_count: int, *, config: bytes = b"", extensions: tuple[str, ...] = ()
    ) -> None:
        self.features = 0
        self.infos = [VqInfo(index) for index in range(queue_count)]
        self.max_sizes = [0] * queue_count
        self.kickfds = [-1] * queue_count
        self.config = bytearray(config)
        self.config_irqs = 0
        self.driver_ok = False
        self.closed = False
        self._extensions = frozenset(extensions)
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours.settimeout(60)
        self._theirs.setblocking(False)
        self._next_id = 1
        self._unanswered: set[int] = set()
        self._inflight_fd = -1
        #: Calls for in-flight records: features and whether fresh, None for a clear.
        self.inflight_calls: list[tuple[int, bool] | None] = []
        #: What the next call for a record is answered with.
        self.inflight_error: OSError | None = None
        self.inflight_lost = False
        self.log: DirtyLog | None = None

    # --- the test's side ------------------------------------------------------------------

    def send(self, message: Message) -> int:
        """Sends a message; its request id."""
        request = DevRequest(self._next_id, message)
        self._next_id += 1
        self._unanswered.add(request.request_id)
        self._ours.send(request.pack())
        return request.request_id

    def answer(self) -> DevResponse:
        """The next answer. Each message is answered once."""
        response = DevResponse.unpack(self._ours.recv(4096))
        self._unanswered.remove(response.request_id)
        assert not any(response.reserved)
        return response

    def ask(self, message: Message) -> DevResponse:
        """Sends and waits."""
        self.send(message)
        return self.answer()

    def hang_up(self) -> None:
        """The framework is gone."""
        self._ours.close()

    def reset(self) -> None:
        """What the kernel does at every reset, once it was answered."""
        self.infos = [VqInfo(info.index) for info in self.infos]
        self.driver_ok = False
        self._forget_kickfds()

    def _forget_kickfds(self) -> None:
        for index, fd in enumerate(self.kickfds):
            if fd >= 0:
                os.close(fd)
            self.kickfds[index] = -1

    def set_up(self, index: int, *, ready: bool = True, num: int = 8) -> None:
        """The driver sets a virtqueue up."""
        self.infos[index] = replace(
            self.infos[index],
            num=num,
            desc_addr=0x1000,
            driver_addr=0x2000,
            device_addr=0x3000,
            ready=ready,
        )

    def dispose(self) -> None:
        """Frees what a test left open."""
        self._forget_kickfds()
        self._ours.close()
        self._theirs.close()
        if self._inflight_fd >= 0:
            os.close(self._inflight_fd)

    # --- Channel ----------------------------------------------------------------------------

    @property
    def extensions(self) -> frozenset[str]:
        return self._extensions

    def fileno(self) -> int:
        return self._theirs.fileno()

    def receive(self) -> DevRequest | None:
        try:
            data = self._theirs.recv(4096)
        except BlockingIOError:
            return None
        if not data:
            raise ConnectionResetError("hung up")
        return DevRequest.unpack(data)

    def respond(self, response: DevResponse) -> None:
        assert not self.closed
        self._theirs.send(response.pack())

    def dev_get_features(self) -> int:
        return self.features

    def dev_set_config(self, offset: int, data: bytes) -> None:
        if not data or offset + len(data) > len(self.config):
            raise OSError(errno.EINVAL, "config")
        self.config[offset : offset + len(data)] = data

    def dev_inject_config_irq(self) -> None:
        if not self.driver_ok:
            raise OSError(errno.EINVAL, "no irq before DRIVER_OK")
        self.config_irqs += 1

    def vq_setup(self, index: int, max_size: int, group: int = 0) -> None:
        self._check(index)
        assert self.max_sizes[index] == 0, "set up twice"
        self.max_sizes[index] = max_size

    def vq_get_info(self, index: int) -> VqInfo:
        self._check(index)
        return self.infos[index]

    def vq_setup_kickfd(self, index: int, fd: int) -> None:
        self._check(index)
        assert self.kickfds[index] == -1, "a kick eventfd is there already"
        self.kickfds[index] = os.dup(fd)

    def vq_inject_irq(self, index: int) -> None:
        raise AssertionError("irqs are the data path's")

    def iotlb_get_fd(self, start: int, last: int) -> tuple[IotlbEntry, int]:
        raise AssertionError("mappings are the data path's")

    def iotlb_get_info(self, start: int, last: int) -> IovaInfo:
        raise AssertionError("mappings are the data path's")

    def iotlb_reg_umem(self, umem: IovaUmem) -> None:
        raise AssertionError("nobody asked for it")

    def iotlb_dereg_umem(self, umem: IovaUmem) -> None:
        raise AssertionError("nobody asked for it")

    def resolver(self) -> _native.CallSocket:
        return None  # type: ignore[return-value]  # the fake data path takes none

    def vq_get_callfd(self, index: int) -> int:
        assert EXT_CALLFD in self._extensions
        self._check(index)
        return os.eventfd(0, os.EFD_CLOEXEC)

    def get_inflight_fd(self, size: int, features: int, fresh: bool) -> int | None:
        assert EXT_INFLIGHT in self._extensions
        self.inflight_calls.append((features, fresh))
        if self.inflight_error is not None:
            error, self.inflight_error = self.inflight_error, None
            raise error
        if self.inflight_lost:
            return None
        if self._inflight_fd < 0:
            self._inflight_fd = os.memfd_create("inflight")
        if os.fstat(self._inflight_fd).st_size != size:
            os.ftruncate(self._inflight_fd, 0)
            os.ftruncate(self._inflight_fd, size)
        return os.dup(self._inflight_fd)

    def log_get_fd(self) -> tuple[DirtyLog, int] | None:
        assert EXT_LOG in self._extensions
        return None if self.log is None else (self.log, os.memfd_create("log"))

    def clear_inflight(self) -> None:
        assert EXT_INFLIGHT in self._extensions
        assert self._unanswered, "only a reset clears them, before it is answered"
        self.inflight_calls.append(None)
        if self.inflight_error is not None:
            raise self.inflight_error

    def close(self) -> None:
        assert not self.closed, "closed twice"
        self.closed = True

    def _check(self, index: int) -> None:
        if not 0 <= index < len(self.infos):
            raise OSError(errno.EINVAL, "no such virtqueue")


class FakeControl:
    """A control node with at most one device, whose node is ``channel``. ``refusal``: what
    creating is answered with; ``locked``: what every call on the control node is."""

    def __init__(
        self,
        channel: FakeChannel,
        *,
        existing: bool = False,
        refusal: OSError | None = None,
        locked: OSError | None = None,
    ) -> None:
        self.channel = channel
        self.created: DevConfig | None = None
        self.destroyed = False
        self.version: int | None = None
        self._existing = existing
        self._refusal = refusal
        self._locked = locked

    def get_api_version(self) -> int:
        raise AssertionError("on 7.2 that would pin version 1")

    def set_api_version(self, version: int) -> None:
        self.version = version
        if self._locked is not None:
            raise self._locked

    def create_dev(self, config: DevConfig) -> None:
        if self._refusal is not None:
            raise self._refusal
        if self._existing:
            raise FileExistsError(errno.EEXIST, "device exists")
        self.created = config
        self.channel.config = bytearray(config.config)

    def destroy_dev(self, name: str) -> None:
        assert self.channel.closed, "EBUSY"
        self.destroyed = True

    def open(self, name: str) -> FakeChannel:
        if not self._existing and self.created is None:
            raise FileNotFoundError(errno.ENOENT, name)
        return self.channel

    def close(self) -> None:
        pass


@dataclass
class StartedQueue:
    """What a queue was started with."""

    size: int
    features: int
    areas: tuple[int, int, int]
    state: tuple[int, ...]
    has_callfd: bool
    inflight_offset: int | None


class FakeDataPath:
    """Queues that go nowhere. ``drains`` and ``resets``: whether a wait ends in time."""

    def __init__(self) -> None:
        self.started: dict[int, StartedQueue] = {}
        self.running: set[int] = set()
        self.position: tuple[int, ...] = (0,)
        self.drains = True
        self.resets = True
        self.acknowledges = True
        self.refuses: int | None = None
        self.invalidated: list[tuple[int, int]] = []
        #: Offset, bytes and rings of each log that was set, None: taken away.
        self.logs: list[tuple[int, int, dict[int, int]] | None] = []
        self.refuses_logs = False
        self.new_callfds: list[int] = []
        self.reset_count = 0
        self.closed = False
        self._starting = threading.Condition()
        self._events: list[tuple[str, int, str]] = []
        self._fetched = threading.Event()
        self._event_fd = os.eventfd(0, os.EFD_CLOEXEC)

    def inflight_size(self, size: int, features: int) -> int:
        return 64 + 16 * size

    def start_queue(
        self,
        index: int,
        *,
        size: int,
        features: int,
        areas: tuple[int, int, int],
        state: tuple[int, ...],
        kickfd: int,
        callfd: int,
        inflight: tuple[int, int] | None,
    ) -> None:
        assert index not in self.running, "started twice"
        if index == self.refuses:
            raise OSError(errno.EFAULT, "ring areas are not mapped")
        os.fstat(kickfd)
        offset = None if inflight is None else inflight[1]
        self.started[index] = StartedQueue(size, features, areas, state, callfd >= 0, offset)
        with self._starting:
            self.running.add(index)
            self._starting.notify_all()

    def stop_queue(self, index: int, timeout: float) -> tuple[int, ...] | None:
        if index not in self.running:
            raise ValueError("not running")
        if not self.drains:
            return None
        self.running.remove(index)
        return self.position

    def queue_running(self, index: int) -> bool:
        return index in self.running

    def set_callfd(self, index: int, fd: int) -> None:
        assert index in self.running
        os.fstat(fd)
        self.new_callfds.append(index)

    def invalidate(self, start: int, last: int, timeout: float) -> bool:
        self.invalidated.append((start, last))
        return self.acknowledges

    def set_log(
        self, log: tuple[int, int, int] | None, used: dict[int, int], timeout: float
    ) -> bool:
        if self.refuses_logs:
            raise OSError(errno.EINVAL, "no such log")
        if log is not None:
            os.fstat(log[0])
        self.logs.append(None if log is None else (*log[1:], used))
        return self.acknowledges

    def reset(self, timeout: float) -> bool:
        assert not self.closed
        self.reset_count += 1
        if self.resets:
            self.running.clear()
        return self.resets

    @property
    def on_worker(self) -> bool:
        return False

    @property
    def event_fd(self) -> int:
        return self._event_fd

    def events(self) -> list[tuple[str, int, str]]:
        os.eventfd_read(self._event_fd)
        events, self._events = self._events, []
        self._fetched.set()
        return events

    def break_queue(self, index: int, message: str) -> None:
        """What a malformed ring does; waits until the control thread has come for the event."""
        self.stop_unannounced()
        self._events.append(("broken", index, message))
        self._fetched.clear()
        os.eventfd_write(self._event_fd, 1)
        assert self._fetched.wait(60)

    def stop_unannounced(self) -> None:
        """Every queue has stopped by itself, and the event that tells of it is still to come."""
        self.running.clear()

    def wait_running(self, *indexes: int) -> None:
        """Waits until just these queues run."""
        with self._starting:
            assert self._starting.wait_for(lambda: self.running == set(indexes), 30)

    def close(self) -> None:
        assert not self.running, "closed under running queues"
        self.closed = True

    def dispose(self) -> None:
        """Frees what a test left open."""
        os.close(self._event_fd)
