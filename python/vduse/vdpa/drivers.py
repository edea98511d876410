"""Which driver of the kernel's vDPA bus has a device, and what it made of it: by sysfs."""

from __future__ import annotations

import errno
from enum import StrEnum
from pathlib import Path

#: Where sysfs is.
SYSFS = Path("/sys")


class BusDriver(StrEnum):
    """The kernel's vDPA bus drivers, by their names in /sys/bus/vdpa/drivers."""

    VIRTIO_VDPA = "virtio_vdpa"
    VHOST_VDPA = "vhost_vdpa"


class VdpaBus:
    """The bus as sysfs shows it. Writing needs root (or the file's permissions): OSError EACCES."""

    def __init__(self, sysfs: Path = SYSFS) -> None:
        self._bus = sysfs / "bus/vdpa"

    def names(self) -> list[str]:
        """Of all devices on the bus."""
        devices = self._bus / "devices"
        return sorted(entry.name for entry in devices.iterdir()) if devices.is_dir() else []

    def has_driver(self, driver: BusDriver) -> bool:
        """Whether the driver's module is loaded."""
        return (self._bus / "drivers" / driver).is_dir()

    def driver(self, name: str) -> str | None:
        """The driver that has the device; None: none. OSError ENODEV: no such device."""
        link = self._device(name) / "driver"
        return link.resolve().name if link.exists() else None

    def bind(self, name: str, driver: BusDriver) -> None:
        """Has ``driver`` probe the device, after :meth:`unbind`. The device's program gets
        messages, and must answer them before this returns. OSError ENODEV: no such device;
        ENOENT: the driver's module is not loaded; otherwise what the probe ended with: then no
        driver has the device."""
        current = self.driver(name)
        if current == driver:
            return
        file = self._bus / "drivers" / driver / "bind"
        if not file.exists():
            raise FileNotFoundError(
                errno.ENOENT, f"vDPA bus driver {driver}: not there: modprobe {driver}"
            )
        self.unbind(name)
        file.write_text(name)

    def unbind(self, name: str) -> None:
        """Takes the device from its driver; nothing where it has none. Waits for whoever has
        /dev/vhost-vdpa-N open."""
        current = self.driver(name)
        if current is not None:
            (self._bus / "drivers" / current / "unbind").write_text(name)

    def node(self, name: str) -> str | None:
        """What the driver made of the device: /dev/vdX or /dev/vhost-vdpa-N; None: nothing (yet).
        OSError ENODEV: no such device."""
        device = self._device(name)
        for block in device.glob("virtio*/block/*"):
            return f"/dev/{block.name}"
        for vhost in device.glob("vhost-vdpa-*"):
            return f"/dev/{vhost.name}"
        return None

    def _device(self, name: str) -> Path:
        path = self._bus / "devices" / name
        # Of the folder itself: a name may be a path.
        if name not in self.names():
            raise OSError(errno.ENODEV, f"no device {name} on the vDPA bus")
        return path
