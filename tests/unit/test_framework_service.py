"""The service thread outlives whatever its endpoints do."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from vduse.framework.service import Service


class Endpoint:
    """An eventfd whose ``serve`` does as told."""

    wants_write = False

    def __init__(self, *, fails: bool = False) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.fails = fails
        self.served = threading.Semaphore(0)
        self.closed = threading.Event()

    def fileno(self) -> int:
        return self.fd

    def serve(self) -> bool:
        if self.fails:
            raise RuntimeError("fault")
        with suppress(BlockingIOError):
            os.eventfd_read(self.fd)
        self.served.release()
        return True

    def close(self) -> None:
        os.close(self.fd)
        self.closed.set()


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service("test-service")
    yield made
    made.close()


def test_a_failing_endpoint_is_closed_and_others_go_on(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    bad, good = Endpoint(fails=True), Endpoint()
    with caplog.at_level(logging.ERROR, "vduse"):
        service.add(bad)
        assert bad.closed.wait(60)
    assert "fault" in caplog.text
    service.add(good)
    assert good.served.acquire(timeout=60)  # once when it is added
    os.eventfd_write(good.fd, 1)
    assert good.served.acquire(timeout=60)


def test_poke_serves_and_discard_closes(service: Service) -> None:
    endpoint = Endpoint()
    service.add(endpoint)
    service.poke(endpoint)
    for _ in range(2):
        assert endpoint.served.acquire(timeout=60)
    service.discard(endpoint)
    service.poke(endpoint)
    assert endpoint.closed.wait(60)
    service.discard(endpoint)


def test_close_closes_every_endpoint_and_takes_no_more() -> None:
    service = Service("test-service")
    endpoint = Endpoint()
    service.add(endpoint)
    assert endpoint.served.acquire(timeout=60)
    service.close()
    service.close()
    assert endpoint.closed.is_set()
    service.run(lambda: pytest.fail("ran"))


def test_an_endpoint_that_fails_to_close_harms_no_other(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = Endpoint(fails=True), Endpoint()

    def close() -> None:
        os.close(bad.fd)
        bad.closed.set()
        raise RuntimeError("fault")

    monkeypatch.setattr(bad, "close", close)
    service.add(bad)
    assert bad.closed.wait(60)
    service.add(good)
    assert good.served.acquire(timeout=60)


def test_an_endpoint_that_cannot_be_watched_is_closed(service: Service) -> None:
    class Unwatchable(Endpoint):
        def fileno(self) -> int:
            return file

    with open(os.devnull) as devnull:
        file = devnull.fileno()  # EPERM of epoll, as ENOSPC past its limit
        unwatched = Unwatchable()
        service.add(unwatched)
        assert unwatched.closed.wait(60)
