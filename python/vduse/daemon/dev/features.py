"""Names of device types and feature bits, for people."""

from __future__ import annotations

from vduse.control.features import BlkFeature, DeviceId, Feature


def type_name(device_id: int) -> str:
    """ "block" of 2; the number where it has no name here."""
    try:
        return DeviceId(device_id).name.lower()
    except ValueError:
        return str(device_id)


def feature_names(bits: int, device_id: int) -> tuple[str, ...]:
    """By the names of virtio 1.3, the device type's first; "bit N" where it has none here."""
    known = {int(flag): flag.name or "" for flag in Feature}
    if device_id == DeviceId.BLOCK:
        known |= {int(flag): flag.name or "" for flag in BlkFeature}
    return tuple(
        known.get(1 << bit, f"bit {bit}") for bit in range(bits.bit_length()) if bits >> bit & 1
    )
