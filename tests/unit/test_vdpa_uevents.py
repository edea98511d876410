"""Waiting for what the kernel's events announce."""

from __future__ import annotations

from socket import AF_UNIX, SOCK_DGRAM, SOCK_NONBLOCK, socketpair

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
