"""Work that an irq starts: off the injector's stack, once, and over after a flush."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import pytest

from vduse.framework.irq import Work, WorkQueue


@pytest.fixture
def queue() -> Iterator[WorkQueue]:
    made = WorkQueue("test-work")
    yield made
    made.close()


def test_work_is_queued_once_while_it_waits(queue: WorkQueue) -> None:
    running, go_on = threading.Event(), threading.Event()
    runs: list[int] = []

    def block() -> None:
        running.set()
        assert go_on.wait(60)

    blocker, counted = Work(block, "blocker"), Work(lambda: runs.append(1), "counted")
    queue.queue(blocker)
    assert running.wait(60)
    for _ in range(3):
        queue.queue(counted)
    go_on.set()
    queue.flush(counted)
    assert runs == [1]


def test_flush_waits_for_what_runs(queue: WorkQueue) -> None:
    running, go_on, done = threading.Event(), threading.Event(), threading.Event()

    def block() -> None:
        running.set()
        assert go_on.wait(60)
        done.set()

    work = Work(block, "blocker")
    queue.queue(work)
    assert running.wait(60)
    flusher = threading.Thread(target=queue.flush, args=(work,))
    flusher.start()
    assert flusher.is_alive()
    go_on.set()
    flusher.join()
    assert done.is_set()


def test_work_may_flush_and_close_its_own_queue(queue: WorkQueue) -> None:
    done = threading.Event()

    def own() -> None:
        queue.flush(work)
        queue.close()
        done.set()

    work = Work(own, "own")
    queue.queue(work)
    assert done.wait(60)


def test_failing_work_is_logged_and_the_next_runs(
    queue: WorkQueue, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    done = threading.Event()
    with caplog.at_level(logging.ERROR, "vduse"):
        queue.queue(Work(fail, "config interrupt of vd0"))
        queue.queue(Work(done.set, "next"))
        assert done.wait(60)
    assert "config interrupt of vd0 failed" in caplog.text


def test_nothing_runs_after_close() -> None:
    queue = WorkQueue("test-work")
    queue.close()
    work = Work(lambda: pytest.fail("ran"), "late")
    queue.queue(work)
    queue.flush(work)
