"""Waiting for what the kernel's events announce."""

from __future__ import annotations

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
