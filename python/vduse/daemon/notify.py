"""A service tells systemd that it can be used (sd_notify(3), ``Type=notify``)."""

from __future__ import annotations

import contextlib
import os
import socket


def ready() -> None:
    """Once, when what was asked for is served; nothing where no service manager waits for it."""
    address = os.environ.pop("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):  # an abstract socket
        address = "\0" + address[1:]
    # A manager that has gone is none of the disk's trouble.
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
    ):
        manager.sendto(b"READY=1", address)
