"""Lines to a file, from any thread, without waiting for the file."""

from __future__ import annotations

import logging
import os
import select
import signal
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)

#: Bytes that wait for a file that does not keep up. What comes then is lost, and counted.
LIMIT = 8 << 20
#: Seconds that :meth:`LineWriter.close` waits for such a file.
_CLOSE_TIMEOUT = 2.0


class LineWriter:
    """Writes each line as it comes, on a thread of its own.

    A file that cannot be written (no space left, a pipe whose reader has gone) is the end of it:
    one log line, and later lines go nowhere. One that does not keep up loses lines. Neither
    raises, nor keeps whoever writes waiting."""

    def __init__(self, fd: int, name: str, lost: Callable[[int], bytes]) -> None:
        """Takes over ``fd``. ``name`` is the file's in log lines; ``lost`` makes the line that
        stands where so many lines are missing."""
        self._fd = fd
        self._name = name
        self._lost_line = lost
        self._changed = threading.Condition()
        self._waiting: list[bytes] = []
        #: Bytes of them.
        self._size = 0
        self._lost = 0
        self._closed = False
        self._failed = False
        # A daemon: one that waits for a pipe's reader must not keep the process.
        self._thread = threading.Thread(target=self._run, name="vduse-lines", daemon=True)
        self._thread.start()

    def write(self, line: bytes) -> None:
        """The next line, with its newline. After :meth:`close` it goes nowhere."""
        with self._changed:
            if self._closed or self._failed:
                return
            # While lines are missing, none is added: the gap is in one place.
            if self._lost or self._size + len(line) > LIMIT:
                self._lost += 1
                return
            self._waiting.append(line)
            self._size += len(line)
            self._changed.notify()

    def close(self) -> None:
        """Waits until all is written, at most 2 s."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify()
        self._thread.join(_CLOSE_TIMEOUT)
        if self._thread.is_alive():
            log.warning("%s is not read: the end of what was to be written is lost", self._name)

    def _run(self) -> None:
        # Signals are the main thread's: none ends a write half done.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            while (data := self._take()) is not None:
                self._write(data)
        except OSError as error:
            with self._changed:
                self._failed = True
                self._waiting.clear()
            reason = error.strerror or str(error)
            log.warning("%s: %s: nothing more is written there", self._name, reason)
        finally:
            os.close(self._fd)

    def _take(self) -> bytes | None:
        """What waits; None: nothing more comes."""
        with self._changed:
            while not (self._waiting or self._lost or self._closed):
                self._changed.wait()
            if not (self._waiting or self._lost):
                return None
            if self._lost:
                self._waiting.append(self._lost_line(self._lost))
            data = b"".join(self._waiting)
            self._waiting.clear()
            self._size = self._lost = 0
            return data

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._fd, rest) :]
            except BlockingIOError:  # a terminal or pipe that somebody has made so
                poll = select.poll()
                poll.register(self._fd, select.POLLOUT)
                poll.poll()
