"""The control thread: whose fault is whose, and what runs where."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from functools import partial

import pytest

from vduse.device.control_thread import ControlThread


class Owner:
    """Keeps what broke it."""

    def __init__(self, name: str = "dev") -> None:
        self.name = name
        self.broken = threading.Event()
        self.error: Exception | None = None

    def on_exception(self, error: Exception) -> None:
        self.error = error
        self.broken.set()


@pytest.fixture
def thread() -> Iterator[ControlThread]:
    thread = ControlThread()
    yield thread
    thread.close()


@pytest.fixture
def event() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    yield fd
    os.close(fd)


def test_call_returns_and_raises_what_the_function_does(thread: ControlThread) -> None:
    assert thread.call(lambda: threading.current_thread().name) == "vduse-control"
    with pytest.raises(ZeroDivisionError):
        thread.call(lambda: 1 // 0)


def test_call_on_the_thread_itself_does_not_wait_for_itself(thread: ControlThread) -> None:
    assert thread.call(lambda: thread.call(lambda: 5)) == 5


def test_watch_calls_back_until_unwatched(thread: ControlThread, event: int) -> None:
    seen: list[int] = []
    called = threading.Event()

    def on_event() -> None:
        seen.append(os.eventfd_read(event))
        called.set()

    thread.call(lambda: thread.watch(event, Owner(), on_event))
    os.eventfd_write(event, 3)
    assert called.wait(60)
    thread.call(lambda: thread.unwatch(event))
    thread.call(lambda: thread.unwatch(event))
    os.eventfd_write(event, 4)
    thread.call(lambda: None)
    assert seen == [3]


def test_unwatch_holds_for_events_that_are_there_already(thread: ControlThread) -> None:
    fds = [os.eventfd(1, os.EFD_CLOEXEC) for _ in range(2)]
    called: list[int] = []
    done = threading.Event()

    def on_event(index: int) -> None:
        called.append(index)
        for fd in fds:
            thread.unwatch(fd)
        done.set()

    def watch() -> None:
        for index, fd in enumerate(fds):
            thread.watch(fd, Owner(), partial(on_event, index))

    thread.call(watch)
    assert done.wait(60)
    thread.call(lambda: None)
    assert len(called) == 1
    for fd in fds:
        os.close(fd)


def test_exception_is_its_owner_s(
    thread: ControlThread, event: int, caplog: pytest.LogCaptureFixture
) -> None:
    owner = Owner("disk0")

    def fail() -> None:
        thread.unwatch(event)
        raise ValueError("a bug")

    thread.call(lambda: thread.watch(event, owner, fail))
    os.eventfd_write(event, 1)
    assert owner.broken.wait(60)
    assert isinstance(owner.error, ValueError)
    assert "disk0: broken by ValueError('a bug')" in caplog.text
    assert thread.call(lambda: "alive") == "alive"


def test_offload_waits_elsewhere(thread: ControlThread) -> None:
    release = threading.Event()
    results: list[tuple[str, str]] = []
    done = threading.Event()

    def work() -> str:
        release.wait(60)
        return threading.current_thread().name

    def then(name: str) -> None:
        results.append((name, threading.current_thread().name))
        done.set()

    thread.offload(Owner("disk0"), work, then)
    assert thread.call(lambda: "not blocked") == "not blocked"
    release.set()
    assert done.wait(60)
    assert results == [("vduse-wait-disk0", "vduse-control")]


@pytest.mark.parametrize("stage", ["work", "then"])
def test_offload_s_exception_is_its_owner_s(thread: ControlThread, stage: str) -> None:
    owner = Owner()

    def run(at: str) -> None:
        if at == stage:
            raise ValueError(at)

    thread.offload(owner, lambda: run("work"), lambda _: run("then"))
    assert owner.broken.wait(60)
    assert str(owner.error) == stage


def test_posted_call_that_raises_is_logged(
    thread: ControlThread, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    thread.post(fail)
    assert thread.call(lambda: "alive") == "alive"
    assert "ZeroDivisionError" in caplog.text


def test_one_thread_a_process() -> None:
    assert ControlThread.shared() is ControlThread.shared()


def test_work_that_ends_after_close_writes_into_nobody_s_file() -> None:
    thread = ControlThread()
    go_on = threading.Event()

    def work() -> None:
        go_on.wait(60)

    thread.offload(Owner(), work, lambda _: None)
    waiter = next(each for each in threading.enumerate() if each.name.startswith("vduse-wait"))
    thread.close()
    reused = os.eventfd(0, os.EFD_NONBLOCK)  # takes the lowest fd, that of the wake-up
    try:
        go_on.set()
        waiter.join(60)
        with pytest.raises(BlockingIOError):
            os.eventfd_read(reused)
    finally:
        os.close(reused)
