"""The kick eventfd of a vhost_vdpa user: relayed to the device, or taken by it."""

from __future__ import annotations

import os

from vduse import _native
from vduse.bus.iotlb import SharedFile


class DriverKick:
    """One virtqueue's. Whoever uses it guards it."""

    def __init__(self, kicks: _native.KickRelay, fd: int, line: _native.VqLine) -> None:
        """Signals of ``fd`` become kicks of ``line``. OSError EBADF, EINVAL: no eventfd."""
        self._kicks = kicks
        self._line = line
        self._file = SharedFile(fd)
        self._watch: int | None = kicks.watch(fd, line)

    def take(self) -> int:
        """The fd for a device that watches it itself (the caller's); nobody relays it then."""
        fd = os.dup(self._file.fileno())
        self.close()
        return fd

    def give_back(self) -> None:
        """The device has let go of it: it is relayed again. What was signalled since then is
        relayed at once."""
        if self._watch is None:
            self._watch = self._kicks.watch(self._file.fileno(), self._line)

    def close(self) -> None:
        """It is not relayed any more."""
        if self._watch is not None:
            self._kicks.unwatch(self._watch)
            self._watch = None
