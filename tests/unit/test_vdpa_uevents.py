"""Waiting for what the kernel's events announce."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from socket import AF_UNIX, SOCK_DGRAM, SOCK_NONBLOCK, socketpair

import pytest

from vduse.vdpa.uevents import Uevents


def test_what_is_there_is_not_waited_for() -> None:
    with Uevents() as events:
        assert events.wait(lambda: "/dev/vda", 60) == "/dev/vda"


def test_nothing_within_the_time() -> None:
    with Uevents() as events:
        assert events.wait(lambda: None, 0.0) is None


def test_an_event_asks_again() -> None:
    """Any event will do: what it says is not read."""
    looks: list[str | None] = ["/dev/vda", None]
    with Uevents() as events:
        events._socket.close()
        ours, theirs = socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK)
        events._socket = ours
        theirs.send(b"add@/devices/virtual/block/vda")
        assert events.wait(looks.pop, 60) == "/dev/vda"
        theirs.close()


class FailingSocket:
    """Of what its recv() ends with, in turn."""

    def __init__(self, fd: int, *codes: int) -> None:
        self._fd = fd
        self._codes = iter(codes)

    def fileno(self) -> int:
        return self._fd

    def recv(self, _length: int) -> bytes:
        code = next(self._codes)
        raise OSError(code, os.strerror(code))

    def close(self) -> None:
        os.close(self._fd)


@pytest.mark.parametrize(
    ("codes", "found"), [([errno.ENOBUFS, errno.EAGAIN], "/dev/vda"), ([errno.EIO], errno.EIO)]
)
def test_lost_events_do_no_harm_and_another_error_is_told(
    codes: list[int], found: str | int, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[str | None] = ["/dev/vda", None]
    with Uevents() as events:
        events._socket.close()
        socket = FailingSocket(os.eventfd(1), *codes)
        monkeypatch.setattr(events, "_socket", socket)
        if isinstance(found, str):
            assert events.wait(looks.pop, 60) == found
            return
        with pytest.raises(OSError) as failed:
            events.wait(looks.pop, 60)
        assert failed.value.errno == found


@pytest.fixture
def many_fds() -> Iterator[None]:
    """The next fd's number is above select(2)'s last, as in the program of many virtqueues."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    fds = [os.open(os.devnull, os.O_RDONLY)]
    while fds[-1] < 1024:
        fds.append(os.dup(fds[0]))
    yield
    for fd in fds:
        os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_fds")
def test_a_wait_with_more_fds_than_select_takes() -> None:
    with Uevents() as events:
        assert events.wait(lambda: None, 0.01) is None
        assert events.wait(lambda: "found", 0.01) == "found"
