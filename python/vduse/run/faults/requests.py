"""How many requests a device has had."""

from __future__ import annotations

from vduse.bus.errors import DeviceNotFound, NoDriver
from vduse.run.hooks import Run


class Requests:
    """Counts a device's requests, over all drivers that it has. For one thread."""

    def __init__(self, run: Run, device: str) -> None:
        self._framework = run.framework
        self._device = device
        self._is_disk = self._disk() is not None
        self._total = 0
        self._last = 0

    def __call__(self) -> int:
        """What its driver has made available; where the driver is not a disk's in this process
        (vhost_vdpa): kicks or irqs, whichever are more. Stands still while there is none."""
        now = self._disk() if self._is_disk else self._signals()
        if now is not None:
            # A new driver counts from 0.
            self._total += now - self._last if now >= self._last else now
            self._last = now
        return self._total

    def _disk(self) -> int | None:
        try:
            return self._framework.disk(self._device).stats()["requests"]
        except (NoDriver, DeviceNotFound):
            return None

    def _signals(self) -> int | None:
        try:
            stats = self._framework.device(self._device).stats()
        except DeviceNotFound:
            return None
        return max(stats["kicks"], stats["irqs"])
