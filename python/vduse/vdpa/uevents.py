"""The kernel's events of devices that come and go (NETLINK_KOBJECT_UEVENT)."""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Callable
from time import monotonic
from types import TracebackType
from typing import Self, TypeVar

T = TypeVar("T")

#: linux/netlink.h; the socket module does not name it.
_NETLINK_KOBJECT_UEVENT = 15
#: The multicast group of the kernel's own events, as against udev's.
_KERNEL = 1
_LONGEST_EVENT = 8192


class Uevents:
    """Events from its making on; open to every user. A context manager."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, _NETLINK_KOBJECT_UEVENT
        )
        self._socket.bind((0, _KERNEL))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._socket.close()

    def wait(self, look: Callable[[], T | None], timeout: float) -> T | None:
        """What ``look`` finds, which is asked at first and after each event; None: nothing within
        ``timeout`` seconds."""
        deadline = monotonic() + timeout
        # Not select(2): it takes no fd above 1023, and a device of many virtqueues has more.
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        while (found := look()) is None and (left := deadline - monotonic()) > 0:
            if poller.poll(left * 1000):
                self._drain()
        return found

    def _drain(self) -> None:
        # What an event says is not read: sysfs says it better, and lost ones do no harm.
        while True:
            try:
                self._socket.recv(_LONGEST_EVENT)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # events were lost
                    raise
