"""Spec section "Messages"."""

from __future__ import annotations

import errno
import select
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from vduse.bus.errors import DeviceRefused, DeviceTimedOut
from vduse.control.abi import (
    DevRequest,
    DevResponse,
    GetVqState,
    SetStatus,
    SetVqGroupAsid,
    UpdateIotlb,
)
from vduse.framework import messages
from vduse.framework.messages import MessageQueue

FOREVER = 0.0


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as threads:
        yield threads


class Queue(MessageQueue):
    """A queue whose test can wait until a message was queued."""

    def __init__(self) -> None:
        super().__init__("vd0")
        self.queued = threading.Semaphore(0)
        self.on_queued = self.queued.release

    def take_request(self) -> DevRequest:
        data = self.take()
        assert data is not None
        return DevRequest.unpack(data)


def send(
    pool: ThreadPoolExecutor, queue: Queue, status: int, timeout: float = FOREVER
) -> Future[DevResponse]:
    """Sends on a thread of its own; returns when the message is queued."""
    future = pool.submit(queue.send, SetStatus(status), timeout)
    assert queue.queued.acquire(timeout=60)
    return future


def test_send_waits_for_the_answer(pool: ThreadPoolExecutor) -> None:
    queue = Queue()
    sent = send(pool, queue, 3)
    request = queue.take_request()
    assert request.message == SetStatus(3)
    assert not sent.done()
    queue.answer(DevResponse(request.request_id, vq_index=9))
    assert sent.result(60).vq_index == 9
    assert queue.counts() == {"SET_STATUS": 1}


def test_a_nonzero_result_is_eio_to_whoever_asked(pool: ThreadPoolExecutor) -> None:
    queue = Queue()
    sent = send(pool, queue, 0xB)
    queue.answer(DevResponse(queue.take_request().request_id, result=1))
    with pytest.raises(DeviceRefused) as caught:
        sent.result(60)
    assert caught.value.errno == errno.EIO
    assert not queue.broken


def test_poll_says_in_out_err(pool: ThreadPoolExecutor) -> None:
    queue = Queue()
    assert queue.poll() == 0
    sent = send(pool, queue, 1)
    assert queue.poll() == select.POLLIN
    request = queue.take_request()
    assert queue.poll() == select.POLLOUT
    queue.answer(DevResponse(request.request_id))
    sent.result(60)
    assert queue.poll() == 0
    queue.break_device("test")
    assert queue.poll() == select.POLLERR


def test_unknown_id_is_enoent_and_reserved_is_einval(pool: ThreadPoolExecutor) -> None:
    queue = Queue()
    with pytest.raises(OSError) as caught:
        queue.answer(DevResponse(5))
    assert caught.value.errno == errno.ENOENT
    sent = send(pool, queue, 1)
    unread = DevResponse(0)
    with pytest.raises(OSError) as caught:
        queue.answer(unread)  # queued, but nobody has read it
    assert caught.value.errno == errno.ENOENT
    request = queue.take_request()
    with pytest.raises(OSError) as caught:
        queue.answer(DevResponse(request.request_id, reserved=b"\1" + bytes(15)))
    assert caught.value.errno == errno.EINVAL
    queue.answer(DevResponse(request.request_id))
    sent.result(60)


def test_replay_puts_unanswered_messages_at_the_head_in_order(pool: ThreadPoolExecutor) -> None:
    queue = Queue()
    sent = [send(pool, queue, status) for status in (1, 3, 0xB)]
    assert queue.take_request().message == SetStatus(1)
    assert queue.take_request().message == SetStatus(3)
    queue.replay()
    for status, future in zip((1, 3, 0xB), sent, strict=True):
        request = queue.take_request()
        assert request.message == SetStatus(status)
        queue.answer(DevResponse(request.request_id))
        future.result(60)


def test_abandoned_messages_raise_and_are_not_read_while_the_device_goes_on(
    pool: ThreadPoolExecutor,
) -> None:
    queue = Queue()
    read, unread = send(pool, queue, 1), send(pool, queue, 3)
    request = queue.take_request()
    queue.abandon()
    for sent in (read, unread):
        with pytest.raises(DeviceTimedOut):
            sent.result(60)
    assert queue.take() is None
    with pytest.raises(OSError):
        queue.answer(DevResponse(request.request_id))
    later = send(pool, queue, 0xB)
    queue.answer(DevResponse(queue.take_request().request_id))
    later.result(60)


def test_a_timeout_fails_every_message_and_breaks_for_good(pool: ThreadPoolExecutor) -> None:
    queue = Queue()
    broken = threading.Event()
    queue.on_broken = broken.set
    unread, unanswered = send(pool, queue, 1), send(pool, queue, 3)
    queue.take()
    with pytest.raises(DeviceTimedOut) as caught:
        queue.send(UpdateIotlb(0, 9), 0.01)
    assert caught.value.errno == errno.EIO
    for future in (unread, unanswered):
        with pytest.raises(DeviceTimedOut):
            future.result(60)
    assert broken.is_set()
    assert queue.take() is None
    with pytest.raises(DeviceTimedOut, match="UPDATE_IOTLB"):
        queue.send(GetVqState(0), FOREVER)


def test_a_late_answer_to_a_broken_device_is_enoent(pool: ThreadPoolExecutor) -> None:
    queue = Queue()
    sent = send(pool, queue, 1, 0.01)
    with pytest.raises(DeviceTimedOut):
        sent.result(60)
    with pytest.raises(OSError) as caught:
        queue.answer(DevResponse(0))
    assert caught.value.errno == errno.ENOENT


class Killed(BaseException):
    """What ends a wait from outside, as KeyboardInterrupt does."""


class KilledEvent(threading.Event):
    def wait(self, timeout: float | None = None) -> bool:
        raise Killed


@pytest.mark.parametrize("taken", [False, True], ids=["unread", "unanswered"])
def test_a_killed_waiter_drops_only_its_own_message(
    pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch, taken: bool
) -> None:
    queue = Queue()
    other = send(pool, queue, 1)
    monkeypatch.setattr(messages.threading, "Event", KilledEvent)
    if taken:
        queue.on_queued = lambda: (queue.take(), queue.take())
    with pytest.raises(Killed):
        queue.send(SetStatus(3), FOREVER)
    if taken:
        queue.replay()
    request = queue.take_request()
    assert request.message == SetStatus(1)
    assert queue.take() is None
    queue.answer(DevResponse(request.request_id))
    other.result(60)
    assert not queue.broken


def test_no_device_program_is_needed_to_send(pool: ThreadPoolExecutor) -> None:
    """Sending does not check that a daemon is connected."""
    queue = Queue()
    sent = send(pool, queue, 1)
    queue.replay()
    queue.answer(DevResponse(queue.take_request().request_id))
    sent.result(60)


def test_a_message_that_fits_no_struct_is_its_sender_s_error() -> None:
    queue = Queue()
    with pytest.raises(struct.error):
        queue.send(SetVqGroupAsid(-1, 0), 0)
    assert queue.take() is None
