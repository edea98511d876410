"""A service tells systemd how it is (sd_notify(3), ``Type=notify``, ``WatchdogSec=``)."""

from __future__ import annotations

import contextlib
import os
import socket

#: Seconds that a message waits for a manager that does not read.
_PATIENCE = 5.0


class Manager:
    """The service manager that started this process; nobody, where none waits for it."""

    def __init__(self) -> None:
        """Takes what concerns it out of the environment: no child shall speak for this process."""
        self._address = _address(os.environ.pop("NOTIFY_SOCKET", ""))
        #: Seconds within which it wants :meth:`alive` again and again; None: it does not.
        self.watchdog = _seconds(
            os.environ.pop("WATCHDOG_USEC", ""), os.environ.pop("WATCHDOG_PID", "")
        )

    def ready(self, status: str = "") -> None:
        """Once, when what was asked for is served."""
        self._tell("READY=1", *([f"STATUS={status}"] if status else []))

    def status(self, text: str) -> None:
        """One line for a person: ``systemctl status`` shows it."""
        self._tell(f"STATUS={text}")

    def alive(self) -> None:
        """The watchdog's next interval begins."""
        self._tell("WATCHDOG=1")

    def stopping(self) -> None:
        """The end has begun, whoever asked for it."""
        self._tell("STOPPING=1")

    def _tell(self, *lines: str) -> None:
        if not self._address:
            return
        # A manager that has gone, or does not read, is none of the disk's trouble.
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
        ):
            manager.settimeout(_PATIENCE)
            manager.sendto("\n".join(lines).encode(), self._address)


def ready() -> None:
    """For services that say no more than that."""
    Manager().ready()


def _address(text: str) -> str:
    if text.startswith("@"):  # an abstract socket
        return "\0" + text[1:]
    return text if text.startswith("/") else ""


def _seconds(microseconds: str, pid: str) -> float | None:
    """As sd_watchdog_enabled(3) reads them."""
    if pid not in ("", str(os.getpid())) or not microseconds.isdecimal():
        return None
    return int(microseconds) / 1e6 or None
