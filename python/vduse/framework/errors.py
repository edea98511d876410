"""Errors of the framework: those of the bus (:mod:`vduse.bus.errors`, where the tree is drawn),
and plain OSError with the kernel's errno for ioctls."""

from __future__ import annotations

from vduse.bus.errors import (
    DeviceBusy,
    DeviceExists,
    DeviceNotFound,
    DeviceRefused,
    DeviceTimedOut,
    FeaturesRefused,
    NoDriver,
    VdpaError,
)

__all__ = [
    "DeviceBusy",
    "DeviceExists",
    "DeviceNotFound",
    "DeviceRefused",
    "DeviceTimedOut",
    "FeaturesRefused",
    "NoDriver",
    "VdpaError",
]
