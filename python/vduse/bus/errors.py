"""What the bus and the framework raise at a user, each an OSError whose text says what to do.

::

    OSError
    └── VdpaError
        ├── DeviceNotFound      EINVAL  no device of that name (as `vdpa dev add`)
        ├── DeviceExists        EEXIST  the name is taken, or already attached
        ├── DeviceBusy          EBUSY   somebody holds the device
        ├── NoDriver            ENODEV  nothing here drives this kind of device
        ├── DeviceRefused       EIO     the device answered a message with a failure
        ├── DeviceTimedOut      EIO     the device did not answer in time, and is broken
        └── FeaturesRefused     ENODEV  device and driver found no common features
"""

from __future__ import annotations

import errno
from typing import ClassVar


class VdpaError(OSError):
    """Base class; :attr:`errno` is what the kernel gives in the same case."""

    ERRNO: ClassVar[int] = errno.EIO

    def __init__(self, message: str) -> None:
        super().__init__(self.ERRNO, message)

    def __str__(self) -> str:
        return str(self.strerror)


class DeviceNotFound(VdpaError):
    """No device of that name."""

    ERRNO = errno.EINVAL


class DeviceExists(VdpaError):
    """The name is taken, or the device is attached already."""

    ERRNO = errno.EEXIST


class DeviceBusy(VdpaError):
    """Somebody holds the device."""

    ERRNO = errno.EBUSY


class NoDriver(VdpaError):
    """Nothing here drives this kind of device."""

    ERRNO = errno.ENODEV


class DeviceRefused(VdpaError):
    """The device answered a message with a failure."""


class DeviceTimedOut(VdpaError):
    """The device did not answer in time; it is broken until destroyed and created again."""


class FeaturesRefused(VdpaError):
    """The device refused the features that the driver chose, or lacks one it must have."""

    ERRNO = errno.ENODEV
