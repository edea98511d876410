"""What every device here requires of a driver's choice of features."""

from __future__ import annotations

from vduse.control.features import Feature, feature_names

#: VDUSE requires the second of the device, and every driver in use since virtio 1.0 the first.
REQUIRED = Feature.VERSION_1 | Feature.ACCESS_PLATFORM


def check_features(offered: int, chosen: int, device_id: int) -> str | None:
    """None, or why a driver's choice cannot be (virtio 1.3, sections 2.2.2 and 6.2)."""
    # Plain integers: an IntFlag's inverse knows only the bits that it names.
    if extra := int(chosen) & ~int(offered):
        return "not offered: " + ", ".join(feature_names(extra, device_id))
    if missing := int(REQUIRED) & ~int(chosen):
        return "required: " + ", ".join(feature_names(missing, device_id))
    return None
