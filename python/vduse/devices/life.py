"""A device's life, whatever its type: what its program asks of it between its start and its end."""

from __future__ import annotations

from vduse.channel.base import ControlPort
from vduse.device.device import Device


class DeviceLife:
    """Base of the devices of this package, each of which makes its ``_device``."""

    _device: Device

    @property
    def name(self) -> str:
        """The device's name."""
        return self._device.name

    @property
    def ended(self) -> str | None:
        """Why the device answers nothing more; None while it does."""
        return self._device.ended

    @property
    def fault(self) -> str | None:
        """What the driver did so that all virtqueues stand still until it resets the device."""
        return self._device.fault

    @property
    def taken_over(self) -> bool:
        """Whether the start found the device that a dead program left."""
        return self._device.taken_over

    @property
    def live(self) -> bool:
        """Whether a driver uses it."""
        return self._device.live

    def wait(self, timeout: float | None = None) -> str | None:
        """Waits until the device ends, at most ``timeout`` seconds; :attr:`ended`."""
        return self._device.wait(timeout)

    def start(self, control: ControlPort) -> bool:
        """Creates the device or takes it over; see :meth:`vduse.device.device.Device.start`."""
        return self._device.start(control)
