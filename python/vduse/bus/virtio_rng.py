"""virtio-rng's driver side (virtio 1.3, section 5.4): one virtqueue of buffers to fill."""

from __future__ import annotations

import errno
import threading
from time import monotonic

from vduse.bus.class_driver import QueueDriver
from vduse.bus.vdpa import VdpaDevice

#: Most bytes asked for at once.
_MOST = 64 << 10


class VirtioRng(QueueDriver):
    """An entropy device in our hands."""

    def __init__(self, vdpa: VdpaDevice, features: int) -> None:
        """As :class:`QueueDriver`."""
        super().__init__(vdpa, features)
        self._lock = threading.Lock()

    def read(self, length: int, timeout: float | None = None) -> bytes:
        """``length`` random bytes, in as many requests as the device makes of it. Thread-safe.
        TimeoutError: it did not answer within ``timeout`` seconds, and what it answers later is
        thrown away. OSError EIO: it used a buffer and wrote nothing; ENODEV: it was taken away."""
        deadline = None if timeout is None else monotonic() + timeout
        found = bytearray()
        with self._lock:
            while len(found) < length:
                part = self._request(min(length - len(found), _MOST), deadline)
                if not part:
                    raise OSError(errno.EIO, f"{self.vdpa.name}: a buffer used with no bytes")
                found += part
        return bytes(found)

    def _request(self, length: int, deadline: float | None) -> bytes:
        (queue,) = self.queues
        token = queue.add([], [length])
        queue.kick()
        while True:
            for used, data in queue.reap():
                if used == token:
                    return data
            left = None if deadline is None else max(0.0, deadline - monotonic())
            if not queue.wait(left):
                raise TimeoutError(f"{self.vdpa.name}: no entropy in time")
