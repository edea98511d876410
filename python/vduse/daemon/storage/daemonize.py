"""--daemonize: the daemon goes on in the background once it serves."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable


def daemonize() -> Callable[[], None]:
    """Returns in a child, in a session of its own; call what it returns once everything is made:
    from there on standard input and output are /dev/null. This process ends then, with exit code
    0, or with the child's, if that ends before. RuntimeError: there are threads, which a child
    would not have."""
    if threading.active_count() > 1:
        raise RuntimeError("threads do not survive a fork")
    reader, writer = os.pipe()
    if child := os.fork():
        os.close(writer)
        _follow(child, reader)
    os.close(reader)
    os.setsid()

    def ready() -> None:
        null = os.open(os.devnull, os.O_RDWR)
        for fd in range(3):
            os.dup2(null, fd)
        os.close(null)
        os.write(writer, b"\0")
        os.close(writer)

    return ready


def _follow(child: int, reader: int) -> None:
    """Does not return."""
    try:
        if os.read(reader, 1):
            os._exit(0)
        _, status = os.waitpid(child, 0)
    except BaseException:  # a signal to this process is meant for both
        os.kill(child, signal.SIGTERM)
        raise
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)
