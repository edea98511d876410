"""A device's messages: sent and answered synchronously, unread, then unanswered, then done.

Senders wait on their own threads; whoever carries messages to the device never does.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import select
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable

from vduse.bus.errors import DeviceRefused, DeviceTimedOut, VdpaError
from vduse.control.abi import DevRequest, DevResponse, Message, RequestResult, RequestType

log = logging.getLogger(__name__)


def _nothing() -> None:
    """No listener."""


class _Sent:
    """One message on its way."""

    def __init__(self, request: DevRequest) -> None:
        self.request = request
        #: Packed by its sender: what does not fit the struct is the sender's error.
        self.data = request.pack()
        self.done = threading.Event()
        #: None: the device broke before it answered.
        self.response: DevResponse | None = None


class MessageQueue:
    """The messages between the framework and one device. All methods are thread-safe; only
    :meth:`send` waits."""

    def __init__(self, device: str, breaks: Callable[[], None] = _nothing) -> None:
        """``breaks`` is called at the moment the device breaks, with a lock held."""
        self._device = device
        self._breaks = breaks
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._ids = itertools.count()
        self._unread: deque[_Sent] = deque()
        self._unanswered: OrderedDict[int, _Sent] = OrderedDict()
        self._broken: str | None = None
        self._counts: Counter[str] = Counter()
        #: Called, with no lock held, when a message was queued.
        self.on_queued: Callable[[], None] = _nothing
        #: Called, with no lock held, once when the device breaks.
        self.on_broken: Callable[[], None] = _nothing

    @property
    def broken(self) -> bool:
        """A message was not answered in time: nothing but destroying the device clears it."""
        return self._broken is not None

    @property
    def why_broken(self) -> str | None:
        """For people to read; None: it is not."""
        return self._broken

    def send(self, message: Message, timeout: float) -> DevResponse:
        """Sends and waits for the answer, ``timeout`` seconds on a monotonic clock (0: for
        ever). Raises DeviceRefused, DeviceTimedOut. An exception that ends the wait
        (KeyboardInterrupt) takes back this message only."""
        self._refuse_if_forked()
        sent = _Sent(DevRequest(next(self._ids) & 0xFFFF_FFFF, message))
        try:
            with self._lock:
                self._refuse_if_broken()
                self._unread.append(sent)
                self._counts[_type_name(sent.request)] += 1
            self.on_queued()
            answered = sent.done.wait(timeout if timeout > 0 else None)
        except BaseException:
            self._take_back(sent)
            raise
        if not answered:
            self._time_out(sent, timeout)
        return self._result(sent)

    def take(self) -> bytes | None:
        """read(2): the next unread message, which is unanswered from now on; None: none."""
        with self._lock:
            if not self._unread:
                return None
            sent = self._unread.popleft()
            self._unanswered[sent.request.request_id] = sent
            return sent.data

    def answer(self, response: DevResponse) -> None:
        """write(2). OSError EINVAL: nonzero reserved; ENOENT: no such unanswered message."""
        if any(response.reserved):
            raise OSError(errno.EINVAL, "vduse_dev_response.reserved is not zero")
        with self._lock:
            sent = self._unanswered.pop(response.request_id, None)
            if sent is None:
                raise OSError(errno.ENOENT, f"no message {response.request_id} is unanswered")
            sent.response = response
            sent.done.set()

    def replay(self) -> None:
        """The opener is gone: unanswered messages go to the head of the unread ones."""
        with self._lock:
            self._unread.extendleft(reversed(self._unanswered.values()))
            self._unanswered.clear()

    def break_device(self, reason: str, level: int = logging.ERROR) -> None:
        """Fails every message, now and for good; logged at ``level``."""
        with self._lock:
            if self._broken is not None:
                return
            self._broken = reason
            self._breaks()
            self._fail_all()
        log.log(level, "device %s is broken: %s", self._device, reason)
        self.on_broken()

    def abandon(self) -> None:
        """As if all who wait were killed: DeviceTimedOut for them, and nobody answers their
        messages any more. The device goes on."""
        with self._lock:
            self._fail_all()

    def poll(self) -> int:
        """As poll(2): POLLIN unread, POLLOUT unanswered, POLLERR broken."""
        with self._lock:
            return (
                (select.POLLIN if self._unread else 0)
                | (select.POLLOUT if self._unanswered else 0)
                | (select.POLLERR if self._broken is not None else 0)
            )

    def counts(self) -> dict[str, int]:
        """Messages sent, by type."""
        with self._lock:
            return dict(self._counts)

    def _refuse_if_forked(self) -> None:
        if os.getpid() != self._pid:
            raise VdpaError(f"device {self._device} belongs to the parent process")

    def _refuse_if_broken(self) -> None:
        if self._broken is not None:
            raise DeviceTimedOut(
                f"device {self._device} is broken ({self._broken}): destroy and create it again"
            )

    def _take_back(self, sent: _Sent) -> None:
        with self._lock:
            self._forget(sent)

    def _forget(self, sent: _Sent) -> None:
        if self._unanswered.pop(sent.request.request_id, None) is None and sent in self._unread:
            self._unread.remove(sent)

    def _time_out(self, sent: _Sent, timeout: float) -> None:
        with self._lock:
            if sent.done.is_set():  # answered, or broken by another, between wait and lock
                return
            self._forget(sent)
        self.break_device(
            f"no answer to {_type_name(sent.request)} within {timeout:g} s: is the device's "
            "program running?"
        )

    def _fail_all(self) -> None:
        for sent in (*self._unanswered.values(), *self._unread):
            sent.done.set()
        self._unanswered.clear()
        self._unread.clear()

    def _result(self, sent: _Sent) -> DevResponse:
        if sent.response is None:
            with self._lock:
                self._refuse_if_broken()
            raise DeviceTimedOut(f"device {self._device} is gone")
        if sent.response.result != RequestResult.OK:
            raise DeviceRefused(
                f"device {self._device} refused {sent.request.message}: see its log for why"
            )
        return sent.response


def _type_name(request: DevRequest) -> str:
    return RequestType(request.type).name
