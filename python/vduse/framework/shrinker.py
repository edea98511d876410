"""Gives idle bounce pages back to the system under memory pressure (RFC v2): one device at a
time, and the next one the next time.

Pressure comes from PSI where it can be read, else from the cgroup's memory.events, and by
command (:meth:`Shrinker.reclaim`)."""

from __future__ import annotations

import logging
import os
import select
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

log = logging.getLogger(__name__)

#: Half of a percent of two seconds stalled; unprivileged triggers need windows of 2 s multiples.
#: With its NUL: the kernel overwrites the last byte with one.
_PSI_TRIGGER = b"some 10000 2000000\0"


class Reclaimable(Protocol):
    """A device's bounce memory."""

    @property
    def name(self) -> str: ...
    def reclaim(self) -> int:
        """Frees what is idle; bytes."""


@dataclass(frozen=True, slots=True)
class ShrinkerStats:
    """What a shrinker has done so far."""

    #: Where pressure is heard of: ``psi``, ``memory.events`` or ``none``.
    source: str
    #: Times that pressure was reported.
    events: int
    #: Devices reclaimed from.
    runs: int
    #: Bytes given back.
    bytes: int


class Shrinker:
    """Reclaims on pressure, on a thread of its own, started only where there is a source."""

    def __init__(self, devices: Callable[[], list[Reclaimable]]) -> None:
        self._devices = devices
        self._lock = threading.Lock()
        self._last = ""
        self._events = self._runs = self._bytes = 0
        self._source, self._fd = _open_source()
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread: threading.Thread | None = None
        if self._fd >= 0:
            self._thread = threading.Thread(target=self._serve, name="vduse-shrinker", daemon=True)
            self._thread.start()

    def reclaim(self) -> int:
        """Frees the idle bounce pages of the next device that has some; bytes."""
        with self._lock:
            for device in self._rotated():
                self._last = device.name
                freed = device.reclaim()
                if freed:
                    self._runs += 1
                    self._bytes += freed
                    log.info("%s: %d KiB of bounce pages reclaimed", device.name, freed >> 10)
                    return freed
        return 0

    def stats(self) -> ShrinkerStats:
        """Counters since the start."""
        return ShrinkerStats(self._source, self._events, self._runs, self._bytes)

    def close(self) -> None:
        """Ends the thread."""
        os.eventfd_write(self._stop, 1)
        if self._thread is not None:
            self._thread.join()
        os.close(self._stop)
        if self._fd >= 0:
            os.close(self._fd)

    def _rotated(self) -> Iterator[Reclaimable]:
        devices = sorted(self._devices(), key=lambda device: device.name)
        yield from (device for device in devices if device.name > self._last)
        yield from (device for device in devices if device.name <= self._last)

    def _serve(self) -> None:
        poll = select.poll()
        poll.register(self._stop, select.POLLIN)
        poll.register(self._fd, select.POLLPRI)
        while True:
            for fd, events in poll.poll():
                if fd == self._stop:
                    return
                if not self._take(events):
                    log.warning("memory pressure is heard of no more: %s is gone", self._source)
                    poll.unregister(self._fd)
                    continue
                self._events += 1
                try:
                    self.reclaim()
                except Exception:
                    log.exception("reclaim failed")

    def _take(self, events: int) -> bool:
        """Takes a notification and arms the next. False: the source is gone, as with its cgroup;
        its fd stays ready for ever."""
        if self._source == _PSI:
            return not events & (select.POLLERR | select.POLLHUP)
        try:
            os.pread(self._fd, 4096, 0)
        except OSError:
            return False
        return True


_PSI, _EVENTS, _NONE = "psi", "memory.events", "none"


def _open_source() -> tuple[str, int]:
    own = _own_cgroup()
    for path in ("/proc/pressure/memory", own / "memory.pressure"):
        with suppress(OSError):
            fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                os.write(fd, _PSI_TRIGGER)
            except OSError:
                os.close(fd)
                raise
            return _PSI, fd
    with suppress(OSError):
        fd = os.open(own / "memory.events", os.O_RDONLY | os.O_CLOEXEC)
        os.pread(fd, 4096, 0)
        return _EVENTS, fd
    return _NONE, -1


def _own_cgroup() -> Path:
    """Our directory of the unified hierarchy."""
    root = Path("/sys/fs/cgroup")
    if not (root / "cgroup.controllers").exists():  # beside the old hierarchies
        root /= "unified"
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            if line.startswith("0::"):
                return root / line[3:].lstrip("/")
    return root
